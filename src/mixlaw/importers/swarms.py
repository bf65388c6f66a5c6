"""Many mixtures in wide CSV files: RegMix's, and those of 7 SlimPajama domains.

RegMix is Liu et al. 2024, arXiv:2407.01492. The SlimPajama runs are those of the repository
meiqwq/Explaining-Data-Mixing-Scaling-Laws.
"""

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import polars as pl

from mixlaw.errors import TableError
from mixlaw.importers.standard import PublishedRuns, count, publish, read_text
from mixlaw.observations import PROPORTION_PREFIX

REGMIX_FILES: dict[str, tuple[str, str]] = {
    "train": ("train_mixture_1m.csv", "train_pile_loss_1m.csv"),
    "1m": ("test_mixture_1m.csv", "test_pile_loss_1m.csv"),
    "60m": ("test_mixture_60m.csv", "test_pile_loss_60m.csv"),
    "1b": ("test_mixture_1B.csv", "test_pile_loss_1B.csv"),
}
"""Mixtures and losses of RegMix: the training runs of 1M parameters, and the test runs by size."""


def read_regmix(
    folder: str | Path, which: Literal["train", "1m", "60m", "1b"] = "train"
) -> PublishedRuns:
    """Returns RegMix's runs, mixtures and losses joined by `index`.

    A run's label is its index. The files say neither steps, tokens nor parameters (the sizes in
    their names are rounded): losses are those at the runs' ends, as step 0.

    Args:
        folder: The folder of the CSV files.
        which: The training runs, or the test runs of one size.

    Raises:
        TableError: A file, column or cell is not what it must be; the message names it.
        MixtureError: Shares that are too far from a sum of one.
    """
    mixture_path, loss_path = (Path(folder) / name for name in REGMIX_FILES[which])
    notes: list[str] = []
    mixtures = _read_numbers(mixture_path, needed=["index"], used=r"^train_", notes=notes)
    losses = _read_numbers(loss_path, needed=["index"], used=r"_loss$", notes=notes)
    shares = {name: _short(name) for name in _columns(mixtures)}
    targets = {name: _short(name) for name in _columns(losses)}
    mixtures, losses = (
        _drop_repeats(frame, path, notes)
        for frame, path in ((mixtures, mixture_path), (losses, loss_path))
    )
    for frame, other, names in (
        (mixtures, losses, (mixture_path.name, loss_path.name)),
        (losses, mixtures, (loss_path.name, mixture_path.name)),
    ):
        alone = frame.join(other, on="index", how="anti").height
        if alone:
            notes.append(f"left out: {count(alone, 'row')} of {names[0]} not in {names[1]}")
    mixtures = mixtures.join(losses, on="index", how="semi", maintain_order="left")
    losses = losses.join(mixtures, on="index", how="semi", maintain_order="left")
    if not mixtures.height:
        raise TableError(
            f"{mixture_path.name} and {loss_path.name} must share values of `index`, but have none",
            where=str(folder),
        )
    run_id = pl.format("regmix/{}/{}", pl.lit(which), "label").alias("run_id")
    runs = mixtures.rename({name: PROPORTION_PREFIX + short for name, short in shares.items()})
    long = losses.rename(targets).unpivot(
        on=list(targets.values()), index=["label", "where"], variable_name="target"
    )
    return publish(
        runs.with_columns(run_id),
        long.select(
            run_id,
            pl.lit(0, pl.Int64).alias("step"),
            pl.lit(None, pl.Float64).alias("tokens"),
            "target",
            "value",
            pl.lit("nats_per_token").alias("unit"),
            "where",
        ),
        domains=list(shares.values()),
        source=f"regmix/{which}",
        notes=notes,
    )


def read_slimpajama(folder: str | Path) -> PublishedRuns:
    """Returns the SlimPajama runs of `runs.csv`: one row per mixture, model size and checkpoint.

    A run's label is its shares as the file has them, joined by '-'. The file says tokens, not
    steps: a step here is a million tokens. Model sizes are total parameters.

    Raises:
        TableError: A file, column or cell is not what it must be; the message names it.
        MixtureError: Shares that are too far from a sum of one.
    """
    path = Path(folder) / "runs.csv"
    notes: list[str] = []
    rows = _read_numbers(
        path, needed=["model_size", "n_tokens"], used=r"^weight_|_loss$", notes=notes
    )
    shares = [name for name in rows.columns if name.startswith("weight_")]
    losses = [name for name in rows.columns if name.endswith("_loss")]
    if len(shares) < 2 or not losses:
        raise TableError(
            "the columns must be weight_<domain> and <target>_loss, found "
            + ", ".join(rows.drop("where").columns),
            where=str(path),
        )
    _refuse_empty(rows, [*shares, "model_size", "n_tokens"])
    label = pl.concat_str([pl.col(name).cast(pl.String) for name in shares], separator="-")
    rows = rows.with_columns(label.alias("label")).with_columns(
        pl.format("slimpajama/{}/{}", pl.col("model_size").cast(pl.Int64), pl.col("label")).alias(
            "run_id"
        )
    )
    domains = [name.removeprefix("weight_") for name in shares]
    runs = rows.unique("run_id", keep="first", maintain_order=True).select(
        "run_id",
        "label",
        "where",
        pl.col("model_size").alias("params_total"),
        *(pl.col(f"weight_{domain}").alias(PROPORTION_PREFIX + domain) for domain in domains),
    )
    long = (
        rows.rename({name: name.removesuffix("_loss") for name in losses})
        .unpivot(
            on=[name.removesuffix("_loss") for name in losses],
            index=["run_id", "n_tokens", "where"],
            variable_name="target",
        )
        .select(
            "run_id",
            (pl.col("n_tokens") / 1e6).round().cast(pl.Int64).alias("step"),
            pl.col("n_tokens").alias("tokens"),
            "target",
            "value",
            pl.lit("nats_per_token").alias("unit"),
            "where",
        )
    )
    return publish(runs, long, domains=domains, source="slimpajama", notes=notes)


def _columns(frame: pl.DataFrame) -> list[str]:
    return [name for name in frame.columns if name not in ("index", "label", "where")]


def _short(name: str) -> str:
    """Returns `arxiv` of `train_the_pile_arxiv` and of `metric/the_pile_arxiv_val_loss`."""
    return re.sub(r"^(?:train_|metric/)(?:the_pile_)?|_val_loss$", "", name)


def _drop_repeats(frame: pl.DataFrame, path: Path, notes: list[str]) -> pl.DataFrame:
    """Returns each index once; the same index with other numbers is an error."""
    _refuse_empty(frame, ["index"])
    once = frame.unique([name for name in frame.columns if name != "where"], maintain_order=True)
    clash = once.filter(pl.col("index").is_duplicated())
    if clash.height:
        places = clash.filter(pl.col("index") == clash["index"][0])["where"]
        raise TableError(
            f"index {clash['index'][0]:g} must be there once, but differs in {places[1]}",
            where=places[0],
        )
    if once.height < frame.height:
        notes.append(f"doubled: {count(frame.height - once.height, 'row')} of {path.name}")
    return once.with_columns(pl.col("index").cast(pl.Int64).cast(pl.String).alias("label"))


def _refuse_empty(rows: pl.DataFrame, names: Sequence[str]) -> None:
    for name in names:
        empty = rows.filter(pl.col(name).is_null())
        if empty.height:
            raise TableError(f"`{name}` must not be empty", where=empty["where"][0])


def _read_numbers(
    path: Path, *, needed: Sequence[str], used: str, notes: list[str]
) -> pl.DataFrame:
    """Returns the needed and used columns of a CSV as numbers, and a column `where`.

    Empty and NaN cells are null; columns that are not used are noted.

    Raises:
        TableError: The file, a column or a cell is not what it must be.
    """
    text = read_text(path)
    if not text.strip():
        raise TableError("the file must have rows, but is empty", where=str(path))
    try:
        cells = pl.read_csv(io.StringIO(text), infer_schema=False, truncate_ragged_lines=False)
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0]
        raise TableError(f"the file must be CSV ({reason})", where=str(path)) from error
    for name in needed:
        if name not in cells.columns:
            raise TableError(
                f"the file must have a column `{name}`, found {', '.join(cells.columns)}",
                where=str(path),
            )
    if not cells.height:
        raise TableError("the file must have rows, but has none", where=str(path))
    known = [name for name in cells.columns if name in needed or re.search(used, name)]
    if len(known) == len(needed):
        raise TableError(
            f"the file must have columns like {used}, found {', '.join(cells.columns)}",
            where=str(path),
        )
    if len(known) < len(cells.columns):
        others = ", ".join(name for name in cells.columns if name not in known)
        notes.append(f"ignored columns of {path.name}: {others}")
    cells = cells.select(known).with_columns(
        pl.all().str.strip_chars().replace(["", "nan", "NaN"], None)
    )
    numbers = cells.with_columns(pl.all().cast(pl.Float64, strict=False)).with_columns(
        (pl.lit(f"{path}, line ") + pl.int_range(2, cells.height + 2).cast(pl.String)).alias(
            "where"
        )
    )
    for name in cells.columns:
        unfit = cells[name].is_not_null() & ~numbers[name].is_finite().fill_null(value=False)
        row = unfit.arg_max()
        if row is not None and unfit[row]:
            raise TableError(
                f"`{name}` must be a finite number, found {cells[name][row]!r}",
                where=numbers["where"][row],
            )
    return numbers
