"""Losses of the runs of Ye et al. 2025 (arXiv:2403.16952), as their repository has them.

A set is a folder of one tab-separated file per model size: `<run folder>/<step>`, validation file,
loss in nats per token. The run folder's name is the size, a name, and one share per domain. The
order of domains is given where the files or the paper prove it; where they don't, a domain is
called by its place.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from mixlaw.errors import TableError
from mixlaw.importers.standard import PublishedRuns, count, publish, read_text
from mixlaw.observations import PROPORTION_PREFIX

TOKENS_PER_STEP = 4096 * 256
"""Sequence length times batch size."""
SCHEDULE_STEPS = 100_000
"""Where the cosine of the learning rate ends, also for the runs that were stopped before."""
DOMAINS: dict[str, tuple[str, ...]] = {
    "2Mix": ("Github", "Pile-CC"),
    "3Mix": ("Github", "Books3", "Pile-CC"),
    "5Mix": ("domain1", "domain2", "domain3", "domain4", "domain5"),
    "RedPajama": ("CC", "C4", "GitHub", "domain4", "domain5", "domain6", "domain7"),
    "ct": ("Pile", "Python"),
}
"""Domains of each set, in the order of the shares. Of 5Mix no order is known, of RedPajama only
that of the first three; the losses of 2Mix and ct show theirs."""
VOCABULARY = 50_304
MODEL_SIZES: dict[str, tuple[int, int]] = {
    "70M": (18_915_328, 512),
    "160M": (85_056_000, 768),
    "305M": (201_541_632, 1024),
    "410M": (302_311_424, 1024),
    "1B": (805_736_448, 2048),
}
"""Parameters without embeddings, and the width. Pythia's input and output embeddings are two."""

_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?"
_FOLDER = re.compile(rf"(?P<name>.+?)(?P<shares>(?:-{_NUMBER})+)", re.IGNORECASE)
_GRID = 128
"""The shares are multiples of 1/128; one that was rounded to fewer digits is that multiple."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Folder:
    """What the name of a run's folder says."""

    label: str
    """The name without the size."""
    name: str
    shares: tuple[float, ...]


def read_mixinglaws(folder: str | Path, *, domains: Sequence[str] | None = None) -> PublishedRuns:
    """Returns the runs of one set, such as `mixinglaws/RedPajama`, of all its sizes.

    Losses at a step that has no number (`last`, or none at all) are left out and counted: in the
    published files they repeat a numbered step. In `ct`, runs continue `pythia_70m_step20000`: that
    model is their `parent_run_id`, its losses are theirs at step 0, their schedule is not known.

    Args:
        folder: The set's folder, with `<size>.txt` files.
        domains: Names of the domains, in the order of the shares; those of `DOMAINS` by default,
            or `domain1`, `domain2`, ... for a set that is not there.

    Raises:
        TableError: A file or line is not what it must be; the message names it.
        MixtureError: Shares that are too far from a sum of one.
    """
    folder = Path(folder)
    lines = pl.concat([_read_lines(path) for path in _size_files(folder)])
    names = DOMAINS.get(folder.name) if domains is None else tuple(domains)
    folders = _read_folders(lines, None if names is None else len(names))
    if names is None:
        fewest = min(len(found.shares) for found in folders.values())
        names = tuple(f"domain{j + 1}" for j in range(fewest))
    runs = _runs_frame(folders, lines, names, set_name=folder.name)
    losses, notes = _losses_frame(lines, runs)
    parents = lines.filter(pl.col("kind") == "parent")
    runs = runs.with_columns(
        pl.lit(parents["folder"][0] if parents.height else None, pl.String).alias("parent_run_id"),
        pl.lit(None if parents.height else "cosine", pl.String).alias("schedule"),
        pl.lit(None if parents.height else SCHEDULE_STEPS, pl.Int64).alias("schedule_steps"),
    )
    runs = runs.unique("run_id", keep="first", maintain_order=True)
    return publish(runs, losses, domains=names, source=f"mixinglaws/{folder.name}", notes=notes)


def _size_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.txt"))
    if not files:
        raise TableError("a set is a folder of <size>.txt files, found none", where=str(folder))
    for path in files:
        if path.stem not in MODEL_SIZES:
            raise TableError(
                f"a file's name must be a model size, one of {', '.join(MODEL_SIZES)}",
                where=str(path),
            )
    return sorted(files, key=lambda path: MODEL_SIZES[path.stem][0])


def _read_lines(path: Path) -> pl.DataFrame:
    """Returns one row per line: size, folder, step, target, value, kind and where."""
    raw = read_text(path).splitlines()
    lines = pl.DataFrame({"line": raw}, schema={"line": pl.String}).with_columns(
        (pl.lit(f"{path}, line ") + pl.int_range(1, len(raw) + 1).cast(pl.String)).alias("where")
    )
    lines = lines.filter(pl.col("line").str.strip_chars() != "")
    if not lines.height:
        raise TableError("the file must have losses, but is empty", where=str(path))
    parts = pl.col("line").str.split("\t")
    _refuse(lines.filter(parts.list.len() != 3), "a line must have three cells between tabs")
    lines = lines.with_columns(
        parts.list.get(0).str.strip_chars(" /\r").alias("path"),
        parts.list.get(1).str.strip_chars().alias("file"),
        parts.list.get(2).str.strip_chars().alias("cell"),
    )
    last = pl.col("path").str.extract(r"([^/]*)$")
    before = pl.col("path").str.extract(r"([^/]+)/[^/]*$")
    shares = rf"^.+?(-{_NUMBER})+$"
    kind = (
        pl.when(last.str.contains(r"^\d+$") & before.str.contains(shares)).then(pl.lit("step"))
        .when((last == "last") & before.str.contains(shares)).then(pl.lit("last"))
        .when(last.str.contains(shares)).then(pl.lit("no step"))
        .when(before == "model_configs").then(pl.lit("parent"))
    )  # fmt: skip
    lines = lines.with_columns(
        kind.alias("kind"),
        pl.lit(path.stem).alias("size"),
        pl.col("file")
        .str.extract(r"([^/]*)$")
        .str.replace(r"\.bin$", "")
        .str.replace(r"^pythia-pile\.valid\.", "")
        .str.replace(r"\.valid$", "")
        .alias("target"),
        pl.col("cell").cast(pl.Float64, strict=False).fill_nan(None).alias("value"),
    ).with_columns(
        pl.when(pl.col("kind").is_in(["no step", "parent"])).then(last).otherwise(before)
        .alias("folder"),
        pl.when(pl.col("kind") == "step").then(last)
        .when(pl.col("kind") == "parent").then(pl.lit("0")).cast(pl.Int64).alias("step"),
    )  # fmt: skip
    _refuse(lines.filter(pl.col("kind").is_null()), "a path must be <run folder>/<step>")
    _refuse(lines.filter(pl.col("target") == ""), "a line must name its validation file")
    empty = pl.col("cell").str.to_lowercase().is_in(["", "nan", "none", "null"])
    finite = pl.col("value").is_finite().fill_null(value=False)
    _refuse(lines.filter(~empty & ~finite), "a loss must be a finite number")
    return lines.select("size", "folder", "kind", "step", "target", "value", "where")


def _refuse(unfit: pl.DataFrame, rule: str) -> None:
    """Raises an error that names the first of the lines, if there is one."""
    if unfit.height:
        line = str(unfit["line"][0])
        shown = line if len(line) <= 120 else line[:117] + "..."
        raise TableError(f"{rule}, found {shown!r}", where=unfit["where"][0])


def _read_folders(lines: pl.DataFrame, num_domains: int | None) -> dict[tuple[str, str], _Folder]:
    """Returns what each run folder's name says, by size and folder."""
    rows = lines.filter(pl.col("kind") != "parent").unique(["size", "folder"], maintain_order=True)
    found: dict[tuple[str, str], _Folder] = {}
    for size, folder, where in rows.select("size", "folder", "where").iter_rows():
        label = re.sub(rf"^{size}[_-]", "", folder)
        match = _FOLDER.fullmatch(label)
        texts = [] if match is None else match["shares"][1:].split("-")
        if match is None or (num_domains is not None and len(texts) < num_domains):
            raise TableError(
                f"a run folder must end in {num_domains or 'its'} shares, found {folder!r}",
                where=where,
            )
        extra = 0 if num_domains is None else len(texts) - num_domains
        name = "-".join([match["name"], *texts[:extra]])
        shares = tuple(_share(text) for text in texts[extra:])
        found[size, folder] = _Folder(label=label, name=name, shares=shares)
    if not found:
        raise TableError("a set must have runs, found none", where=lines["where"][0])
    return found


def _share(text: str) -> float:
    """Returns the share that was written, to all its digits where it was rounded to four or more.

    0.01562 is 1/64 as much as 0.015625 is. Shares of up to three digits are taken as they stand.
    """
    share = float(text)
    digits = len(text.partition(".")[2])
    nearest = round(share * _GRID) / _GRID
    rounded = digits >= 4 and 0 < abs(share - nearest) < 10.0**-digits
    return nearest if rounded else share


def _runs_frame(
    folders: Mapping[tuple[str, str], _Folder],
    lines: pl.DataFrame,
    domains: Sequence[str],
    *,
    set_name: str,
) -> pl.DataFrame:
    """Returns one row per run folder; spellings of one run share its id."""
    where = {
        (size, folder): place
        for size, folder, place in lines.unique(["size", "folder"], keep="first")
        .select("size", "folder", "where")
        .iter_rows()
    }
    return pl.DataFrame(list(_run_rows(folders, where, domains, set_name)))


def _run_rows(
    folders: Mapping[tuple[str, str], _Folder],
    where: Mapping[tuple[str, str], str],
    domains: Sequence[str],
    set_name: str,
) -> Iterator[dict[str, object]]:
    for (size, folder), found in folders.items():
        params, width = MODEL_SIZES[size]
        shares = found.shares[len(found.shares) - len(domains) :]
        spelled = "-".join(f"{share:.10g}" for share in shares)
        yield {
            "run_id": f"{set_name}/{size}/{found.name}-{spelled}",
            "label": found.label,
            "size": size,
            "folder": folder,
            "where": where[size, folder],
            "params_non_embedding": float(params),
            "params_total": float(params + 2 * VOCABULARY * width),
            "tokens_per_step": float(TOKENS_PER_STEP),
            **{
                PROPORTION_PREFIX + domain: share
                for domain, share in zip(domains, shares, strict=True)
            },
        }


def _losses_frame(lines: pl.DataFrame, runs: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """Returns one row per loss of the numbered steps, and what was left out."""
    ids = runs.select("size", "folder", "run_id")
    losses = lines.filter(pl.col("kind") == "step").join(
        ids, on=["size", "folder"], maintain_order="left"
    )
    notes: list[str] = []
    parent = lines.filter(pl.col("kind") == "parent")
    if parent["folder"].n_unique() > 1:
        raise TableError(
            f"runs continue one model, found {parent['folder'].unique().sort().to_list()}",
            where=parent["where"][-1],
        )
    if parent.height:
        own = parent.drop("folder").join(
            ids.unique("run_id"), on="size", maintain_order="left_right"
        )
        losses = pl.concat([own.select(losses.columns), losses])
        notes.append(
            f"step 0: {count(parent.height, 'loss', 'losses')} of {parent['folder'][0]}, which"
            f" {count(ids['run_id'].n_unique(), 'run continues', 'runs continue')}"
        )
    notes += _describe_unnumbered(lines)
    notes += _describe_gaps(losses)
    losses = losses.with_columns(
        (pl.col("step") * float(TOKENS_PER_STEP)).alias("tokens"),
        pl.lit("nats_per_token").alias("unit"),
    )
    return losses.select("run_id", "step", "tokens", "target", "value", "unit", "where"), notes


def _describe_unnumbered(lines: pl.DataFrame) -> Iterator[str]:
    """Yields how many losses have no number for their step, and how many repeat one that has."""
    cell = ["size", "folder", "target", "value"]
    for kind, words in (("last", "at the step `last`"), ("no step", "without a step")):
        rows = lines.filter(pl.col("kind") == kind)
        if rows.height:
            again = rows.join(lines.filter(pl.col("kind") == "step"), on=cell, how="semi").height
            yield (
                f"left out: {count(rows.height, 'loss', 'losses')} {words}; {again} of them"
                " repeat one of a numbered step"
            )


def _describe_gaps(losses: pl.DataFrame) -> Iterator[str]:
    """Yields which checkpoints and losses are missing, measured by what most runs have."""
    size = pl.col("run_id").str.extract(r"^[^/]*/([^/]*)/")
    have = losses.filter(pl.col("step") > 0).with_columns(size.alias("size"))
    shared = (
        have.group_by("size", "step")
        .agg(pl.col("run_id").n_unique().alias("there"))
        .join(have.group_by("size").agg(pl.col("run_id").n_unique().alias("runs")), on="size")
        .filter(pl.col("there") * 2 > pl.col("runs"))
    )
    gaps = int((shared["runs"] - shared["there"]).cast(pl.Int64).sum())
    if gaps:
        yield f"missing: {count(gaps, 'checkpoint')} of steps that most runs of a size have"
    targets = have["target"].n_unique()
    lacking = have.group_by("run_id", "step").agg(pl.col("target").n_unique())
    partial = lacking.filter(pl.col("target") < targets).height
    if partial:
        yield f"missing: {count(partial, 'checkpoint has', 'checkpoints have')} not all targets"
