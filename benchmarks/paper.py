"""Mixing laws and scaling on the published runs of Ye et al. (arXiv 2403.16952).

    python benchmarks/paper.py --fit DIR [--predict DIR] [--json]

DIR is `mixinglaws` of the published runs, or a folder that holds it. Without `--predict`: 2Mix and
5Mix mixtures left out one at a time, 3Mix in random splits into 18 and the rest, RedPajama and 5Mix
from smaller sizes to the largest, from early steps to later ones, and new mixtures at a new size;
the critical proportion of `ct`.

With it: losses in the second folder that the first has not, predicted from the first. RedPajama and
5Mix are predicted at any size and step, other sets and `ct` where mixtures were fitted. RedPajama
is fitted to at most 410M (5Mix's long runs calibrate the steps), and predicted overall, by domain,
and as the difference of each pair of mixtures at one size and step.

The mixture of a difference is two names joined by ` - `: the first one's loss less the second's.
"""

import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

# Pins threads: before NumPy.
from records import Records, benchmark_arguments  # isort: skip

import paper_mixing
import paper_scale
from mixlaw.errors import MixlawError
from mixlaw.importers.published import read_mixinglaws

Task = Callable[[], list[dict[str, Any]]]
NUM_WORKERS = 2


def main() -> None:
    """Runs all parts, two at a time, and prints their records."""
    options = benchmark_arguments(__doc__, source="mixinglaws")
    records = Records("paper")
    fit, predict = options.fit, options.predict
    labels = {}
    for folder in (fit, predict):
        for name in ("2Mix", "3Mix", "5Mix", "RedPajama", "ct"):
            if folder is not None and (folder / name).is_dir():
                labels |= read_mixinglaws(folder / name).labels
    tasks = hold_outs(fit) if predict is None else predictions(fit, predict)
    spawn = get_context("spawn")  # Polars does not survive a fork
    with ProcessPoolExecutor(NUM_WORKERS, mp_context=spawn) as pool:
        for name, future in [(name, pool.submit(task)) for name, task in tasks]:
            try:
                rows = future.result()
            except MixlawError as error:  # the other parts are worth having
                print(f"{name}: {error}", file=sys.stderr)
                continue
            print(f"{name}: {len(rows)} records", file=sys.stderr)
            for row in rows:
                add(records, row, labels)
    records.finish(options.json)


def hold_outs(fit: Path) -> list[tuple[str, Task]]:
    """Returns the parts that need no second folder, the longest first."""
    scale = [
        (f"{set_name}, {name}", partial(paper_scale.run_holdout, fit, set_name, name))
        for set_name, name in paper_scale.holdout_names()
        if (fit / set_name).is_dir()
    ]
    mixing = [
        (f"{name}, {size}", partial(function, fit, size))
        for name, function, sizes in (
            ("RedPajama", paper_mixing.seven_domains, ("70M", "160M", "305M", "410M")),
            ("5Mix", paper_mixing.five_domains, ("70M", "160M", "305M", "410M")),
            ("2Mix", paper_mixing.two_domains, ("70M", "160M")),
        )
        for size in sizes
        if (fit / name / f"{size}.txt").is_file()
    ]
    if (fit / "3Mix" / "410M.txt").is_file():
        mixing.append(("3Mix", partial(paper_mixing.three_domains, fit)))
    return [*scale, *mixing, *continued(fit, None)]


def predictions(fit: Path, predict: Path) -> list[tuple[str, Task]]:
    """Returns the parts that predict a second folder's losses."""
    tasks: list[tuple[str, Task]] = [
        (f"{name}, beyond", partial(paper_scale.predict_beyond, fit, predict, name))
        for name in ("RedPajama", "5Mix")
        if (predict / name).is_dir() and (fit / name).is_dir()
    ]
    tasks += [
        (f"{name}, new mixtures", partial(paper_mixing.predict_mixtures, fit, predict, name))
        for name in ("RedPajama", "5Mix", "3Mix", "2Mix")
        if (predict / name).is_dir() and (fit / name).is_dir()
    ]
    return [*tasks, *continued(fit, predict)]


def continued(fit: Path, predict: Path | None) -> list[tuple[str, Task]]:
    """Returns the part on continued runs."""
    if not (fit / "ct").is_dir():
        return []
    return [("ct", partial(paper_mixing.critical_proportion, fit, predict))]


def add(records: Records, row: dict[str, Any], labels: dict[str, str]) -> None:
    """Adds a record, with the source's names of mixtures; `values` stand for one per split."""
    row = dict(row)
    run_id, other = row.pop("run_id", None), row.pop("other_run_id", None)
    if run_id is not None:
        names = [labels[one] for one in (run_id, other) if one is not None]
        row["mixture"] = " - ".join(names)
    if "values" in row:
        records.aggregate(row.pop("values"), **row)
    else:
        records.add(**row)


if __name__ == "__main__":
    main()
