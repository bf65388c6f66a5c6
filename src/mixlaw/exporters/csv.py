"""A table for spreadsheets and scripts: one row per domain.

Names are data: they are written as they are, so that tables can be joined by name. A name that
begins like a formula stays as it is, too; the export says so, since spreadsheets may run it. Lines
end as RFC 4180 wants, which keeps a name with a line break of its own apart.
"""

import csv
import io

from mixlaw.errors import ExportError, MixtureError
from mixlaw.exporters.table import ExportTable
from mixlaw.mixtures import Mixture

COLUMNS = ("domain", "proportion", "tokens", "epochs")
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def format_csv(table: ExportTable) -> tuple[str, list[str]]:
    """Returns the text of a mixture as CSV, and notes on names that look like formulas."""
    lines = io.StringIO()
    writer = csv.writer(lines)
    writer.writerow(COLUMNS)
    for row in table.rows:
        writer.writerow([row.name, repr(row.proportion), row.tokens, row.epochs])
    return lines.getvalue(), formula_notes([row.name for row in table.rows])


def formula_notes(names: list[str]) -> list[str]:
    """Returns a note for the names that a spreadsheet may take for formulas."""
    risky = [name for name in names if name.startswith(FORMULA_STARTS)]
    if not risky:
        return []
    note = (
        f"{risky[0]!r} begins like a formula, and is written as it is: import the column as text"
        " when you open the file in a spreadsheet"
    )
    return [note]


def parse_csv(text: str, where: str) -> Mixture:
    """Returns the mixture in a CSV export; further columns are ignored.

    Raises:
        ExportError: The text is no such export.
    """
    rows = list(csv.reader(io.StringIO(text, newline="")))
    header = rows[0] if rows else []
    for column in COLUMNS[:2]:
        if column not in header:
            raise ExportError(
                f"a mixture's CSV must have the column {column!r}, found {', '.join(header)}",
                where=where,
            )
    name, share = header.index("domain"), header.index("proportion")
    try:
        pairs = [(row[name], float(row[share])) for row in rows[1:] if row]
        return Mixture(tuple(n for n, _ in pairs), tuple(s for _, s in pairs))
    except (IndexError, ValueError) as error:
        raise ExportError(
            f"every row of a mixture's CSV must have a domain and a proportion ({error})",
            where=where,
        ) from error
    except MixtureError as error:
        raise ExportError(error.problem, where=where) from error
