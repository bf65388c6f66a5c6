"""The neutral file: a mixture with tokens and epochs per domain, for people's own tools."""

import json
from collections.abc import Mapping
from typing import Any, cast

from mixlaw import __version__
from mixlaw.errors import ExportError, MixtureError
from mixlaw.exporters.table import ExportTable
from mixlaw.mixtures import Mixture

FORMAT = "mixlaw-mixture/1"
"""Changes when a reader of the old format would misread the new one."""


def format_json(table: ExportTable) -> tuple[str, list[str]]:
    """Returns the text of a mixture as JSON, and no notes."""
    scale = table.scale
    content = {
        "format": FORMAT,
        "mixlaw_version": __version__,
        "mixture_id": table.mixture.mixture_id,
        "unit": "share of tokens",
        "scale": None if scale is None else {"params": scale.params, "tokens": scale.tokens},
        "domains": [
            {
                "name": row.name,
                "proportion": row.proportion,
                "tokens": row.tokens,
                "epochs": row.epochs,
            }
            for row in table.rows
        ],
    }
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", []


def parse_json(text: str, where: str) -> Mixture:
    """Returns the mixture in a JSON export.

    Raises:
        ExportError: The text is no such export.
    """
    try:
        content: Any = json.loads(text)
    except ValueError as error:
        raise ExportError(
            f"a mixture's JSON must be readable, but: {error}", where=where
        ) from error
    found = cast("Mapping[str, Any]", content).get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise ExportError(
            f"a mixture's JSON must have the format {FORMAT!r}, found {found!r}", where=where
        )
    try:
        rows = [(row["name"], float(row["proportion"])) for row in content["domains"]]
        return Mixture(tuple(name for name, _ in rows), tuple(share for _, share in rows))
    except (KeyError, TypeError, ValueError) as error:
        raise ExportError(
            "every domain in a mixture's JSON must have a name and a proportion, but one lacks"
            f" them ({error!r})",
            where=where,
        ) from error
    except MixtureError as error:
        raise ExportError(error.problem, where=where) from error
