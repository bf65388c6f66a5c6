"""Which columns hold what: patterns such as `mix/{domain}`, guesses where none are given.

A pattern has one `{domain}` (for losses also `{target}`), which stands for any text; a column that
fits it holds the shares, or losses, of the domain that stands there. Where no pattern is given the
usual ones are tried, and it is an error when two of them fit: a wrong guess would go unnoticed.
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mixlaw.errors import TableError
from mixlaw.importers.reading import RawTable

FIELDS: dict[str, tuple[str, ...]] = {
    "params_non_embedding": ("params_non_embedding", "params", "n_params", "num_params"),
    "params_total": ("params_total", "total_params"),
    "tokens": ("tokens", "n_tokens", "num_tokens", "train_tokens"),
    "tokens_per_step": ("tokens_per_step",),
    "step": ("step", "steps", "iteration", "global_step"),
    "seed": ("seed",),
    "role": ("role",),
    "learning_rate": ("learning_rate", "lr"),
    "schedule": ("schedule",),
    "schedule_steps": ("schedule_steps",),
    "tokenizer": ("tokenizer",),
    "corpus": ("corpus",),
    "trainer": ("trainer",),
    "parent_run_id": ("parent_run_id",),
    "stages": ("stages",),
    "target": ("target", "metric", "domain", "dataset"),
    "value": ("value", "loss"),
    "standard_error": ("standard_error", "stderr", "se"),
}
"""What a column can hold beside shares and losses, and the names that are recognised."""
KEY_NAMES = ("run_id", "run", "run_name", "key", "id", "name", "index", "uid")
PROPORTION_PATTERNS = (
    "r:{domain}",
    "proportion:{domain}",
    "proportion/{domain}",
    "proportions/{domain}",
    "proportions.{domain}",
    "mixture/{domain}",
    "mixture.{domain}",
    "mix/{domain}",
    "mix.{domain}",
    "weight/{domain}",
    "weights/{domain}",
    "weights.{domain}",
    "train_{domain}",
    "{domain}_proportion",
    "{domain}_weight",
)
LOSS_PATTERNS = (
    "metric/{target}_val_loss",
    "eval/{target}/loss",
    "val/{target}/loss",
    "loss/{target}",
    "loss:{target}",
    "loss.{target}",
    "val_loss/{target}",
    "{target}_val_loss",
    "eval_{target}_loss",
    "{target}_loss",
    "metric/{target}",
    "val/{target}",
)
"""Tried in this order; where one fits, later ones that fit only the same columns are ignored."""
ANY = "{any}"
"""Where none of the usual patterns fits: every other column of numbers (shares: from 0 to 1)."""


RUN_FIELDS = (
    "params_non_embedding", "params_total", "tokens_per_step", "seed", "role", "learning_rate",
    "schedule", "schedule_steps", "tokenizer", "corpus", "trainer", "parent_run_id",
    "stages",
)  # fmt: skip
LOSS_FIELDS = ("step", "tokens", "target", "value", "standard_error")


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What the caller said about the columns; None: guess."""

    key: str | None = None
    proportions: str | Mapping[str, str] | None = None
    losses: str | Mapping[str, str] | None = None
    columns: Mapping[str, str] = field(default_factory=dict[str, str])
    """Column of each further field."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Matched:
    """Columns that hold one kind of thing."""

    pattern: str
    """The pattern that they fit."""
    columns: Mapping[str, str]
    """Column of each domain or target."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Which columns hold what."""

    key: str | None
    """Column that names the run; None: the row does."""
    shares: Matched
    losses: Matched | None
    """None: losses stand one per row, in the fields `target` and `value`."""
    run_fields: Mapping[str, str]
    """Column of each further field of a run."""
    loss_fields: Mapping[str, str]
    """Column of each further field of a loss."""
    ignored: tuple[str, ...]


def match_layout(runs: RawTable, metrics: RawTable | None, wanted: Wanted) -> Layout:
    """Returns which columns hold what, in one table or in two.

    Raises:
        TableError: A column that was asked for is not there, or it is not clear what holds what.
    """
    tables = [runs] if metrics is None else [runs, metrics]
    for name, column in wanted.columns.items():
        if name not in FIELDS:
            raise TableError(f"a column can't hold {name!r}", do=_nearest(name, list(FIELDS)))
        _check_column(tables, column, f"the column of {name!r}")
    key = _choose_key(runs, metrics, wanted.key)
    losses_table = tables[-1]
    loss_fields = _match_fields(losses_table, wanted.columns, LOSS_FIELDS, key)
    is_long = wanted.losses is None and {"target", "value"} <= set(loss_fields)
    if not is_long:
        for name in ("target", "value", "standard_error"):
            loss_fields.pop(name, None)
    run_fields = _match_fields(runs, wanted.columns, RUN_FIELDS, key)
    if metrics is not None:
        run_fields |= _match_fields(runs, wanted.columns, ["tokens"], key)
    elif "step" in loss_fields and "learning_rate" not in wanted.columns:
        run_fields.pop("learning_rate", None)  # that of a step, not of a run
    taken = {key, *run_fields.values(), *loss_fields.values()}
    shares = match_columns(runs, wanted.proportions, kind="domain", taken=taken)
    if len(shares.columns) < 2:
        raise TableError(
            f"a mixture needs two domains or more, but {shares.pattern!r} fits only"
            f" {next(iter(shares.columns.values()))!r} of {runs.name}"
        )
    losses = None
    if not is_long:
        if metrics is None and wanted.losses is None:
            taken |= set(shares.columns.values())
        losses = match_columns(losses_table, wanted.losses, kind="target", taken=taken)
        _check_apart(runs, shares, losses, is_single=metrics is None)
    taken |= {*shares.columns.values(), *(losses.columns.values() if losses else ())}
    ignored = dict.fromkeys(c for table in tables for c in table.columns if c not in taken)
    return Layout(
        key=key,
        shares=shares,
        losses=losses,
        run_fields=run_fields,
        loss_fields=loss_fields,
        ignored=tuple(ignored),
    )


def _check_apart(table: RawTable, shares: Matched, losses: Matched, *, is_single: bool) -> None:
    """Makes sure that no column of a single table was taken for a share and for a loss."""
    if not is_single:
        return
    both = sorted(set(shares.columns.values()) & set(losses.columns.values()))
    if both:
        raise TableError(
            f"a column must hold shares or losses, but {both[0]!r} of {table.name} fits both"
            f" {shares.pattern!r} and {losses.pattern!r}"
        )
    if shares.pattern == losses.pattern == ANY:
        raise TableError(
            f"it must be clear which columns of {table.name} hold shares and which losses, but"
            " their names don't say",
            do="say so with `--proportions` and `--losses`",
        )


def _match_fields(
    table: RawTable, given: Mapping[str, str], fields: Iterable[str], key: str | None
) -> dict[str, str]:
    """Returns the column of each field that the table has, given or recognised by its name."""
    lower = {column.lower(): column for column in table.columns if column != key}
    matched: dict[str, str] = {}
    for name in fields:
        if name in given:
            if given[name] in table.columns:
                matched[name] = given[name]
            continue
        known = next((lower[alias] for alias in FIELDS[name] if alias in lower), None)
        if known is not None:
            matched[name] = known
    return matched


def _check_column(tables: Sequence[RawTable], column: str, what: str) -> None:
    if any(column in table.columns for table in tables):
        return
    names = list(dict.fromkeys(name for table in tables for name in table.columns))
    raise TableError(
        f"{what} must be a column of {' or '.join(table.name for table in tables)}, but there is"
        f" no {column!r}",
        do=_nearest(column, names),
    )


def _choose_key(runs: RawTable, metrics: RawTable | None, key: str | None) -> str | None:
    """Returns the column that names the run; None: a single table has none."""
    if key is not None:
        for table in [runs] if metrics is None else [runs, metrics]:
            _check_column([table], key, "the key")
        return key
    if metrics is None:
        return next((name for name in KEY_NAMES if name in runs.columns), None)
    common = [name for name in runs.columns if name in metrics.columns]
    known = [name for name in KEY_NAMES if name in common]
    if known or len(common) == 1:
        return (known or common)[0]
    found = _some(common) if common else "none"
    raise TableError(
        f"{runs.name} and {metrics.name} must have one column in common that names the run, found"
        f" {found}",
        do="say which it is with `--key`",
    )


def match_columns(
    table: RawTable,
    pattern: str | Mapping[str, str] | None,
    *,
    kind: str,
    taken: Iterable[str | None],
) -> Matched:
    """Returns the columns that hold shares (kind `domain`) or losses (kind `target`).

    Args:
        table: The table.
        pattern: A pattern, the column of each name, or None to try the usual patterns.
        kind: `domain` or `target`.
        taken: Columns that hold something else, such as the key.

    Raises:
        TableError: No column fits, or two usual patterns do.
    """
    free = [column for column in table.columns if column not in set(taken)]
    if isinstance(pattern, Mapping):
        for name, column in pattern.items():
            _check_column([table], column, f"the column of {name!r}")
        return Matched(pattern="the columns given", columns=dict(pattern))
    if pattern is not None:
        columns = _fitting(free, pattern, kind)
        if not columns:
            raise TableError(
                f"{pattern!r} must fit a column of {table.name}, but it fits none of"
                f" {_some(list(table.columns))}",
                do=f"write {{{kind}}} where the column's name holds the {kind}",
            )
        return Matched(pattern=pattern, columns=columns)
    return _guess(table, free, kind)


def _guess(table: RawTable, free: Sequence[str], kind: str) -> Matched:
    numeric = [column for column in free if table.share_of_numbers(column) > 0.5]
    least = 2 if kind == "domain" else 1
    fitting: list[Matched] = []
    covered: set[str] = set()
    for pattern in PROPORTION_PATTERNS if kind == "domain" else LOSS_PATTERNS:
        columns = _fitting(numeric, pattern, kind)
        if len(columns) >= least and not covered.issuperset(columns.values()):
            fitting.append(Matched(pattern=pattern, columns=columns))
            covered.update(columns.values())
    if len(fitting) > 1:
        raise TableError(
            f"it must be clear which columns of {table.name} hold the"
            f" {'shares' if kind == 'domain' else 'losses'}, but they fit both"
            f" {fitting[0].pattern!r} and {fitting[1].pattern!r}",
            do=f"say which with `{_OPTION[kind]}`",
        )
    if fitting:
        return fitting[0]
    numeric = [column for column in numeric if _all_numbers(table, column, kind)]
    if len(numeric) < least:
        raise TableError(
            f"no columns of {table.name} look like {_LOOK[kind]}: {_some(list(table.columns))}",
            do=f"name them with `{_OPTION[kind]}`, such as `{_OPTION[kind]} '{_SAMPLE[kind]}'`",
        )
    return Matched(pattern=ANY, columns={column: column for column in numeric})


_OPTION = {"domain": "--proportions", "target": "--losses"}
_LOOK = {"domain": "shares of two domains or more", "target": "losses"}
_SAMPLE = {"domain": "mix/{domain}", "target": "eval/{target}/loss"}


def _fitting(columns: Sequence[str], pattern: str, kind: str) -> dict[str, str]:
    """Returns the columns that fit a pattern, by what stands in the place of its braces."""
    parts = re.split(r"\{domain\}" if kind == "domain" else r"\{(?:domain|target)\}", pattern)
    if len(parts) != 2:
        raise TableError(
            f"the pattern {pattern!r} must have {{{kind}}} once", do=f"such as '{_SAMPLE[kind]}'"
        )
    whole = re.compile(f"{re.escape(parts[0])}(.+){re.escape(parts[1])}", re.DOTALL)
    found = ((whole.fullmatch(column), column) for column in columns)
    return {match.group(1): column for match, column in found if match}


def _all_numbers(table: RawTable, column: str, kind: str) -> bool:
    """Whether a column whose name says nothing holds numbers that can be shares, or losses."""
    if table.share_of_numbers(column) < 1:
        return False
    numbers = [
        n for row in range(len(table.places)) if (n := table.number(column, row)) is not None
    ]
    return bool(numbers) and (kind == "target" or all(0 <= n <= 1.05 for n in numbers))


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"there are {_some(known)}"


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:12])
    return shown if len(names) <= 12 else f"{shown} and {len(names) - 12} more"
