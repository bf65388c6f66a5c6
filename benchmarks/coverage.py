# ruff: noqa: E402 - threads are pinned before NumPy is imported
"""How often intervals hold what they should, on simulated studies.

    python benchmarks/coverage.py [--json] [--studies N] [--workers N] [--folder DIR]

Every study runs what `mixlaw optimize` runs by default: the law is chosen by left-out error, fitted
with 200 bootstrap draws, and its optimum is judged against baselines. `coverage_studies.py` has the
two layouts of designs, `coverage_truths.py` the truths: in half of the studies a law that the
choice may find, in the other half one that no law of the library is. Studies are numbered from
10,000 on, which none of the intervals was tuned to; each is kept in the folder once judged, so that
the same command goes on where it was stopped. Critical proportions are those of
`coverage_continual.py`.

The loss of the optimum is that of one new run with a fresh seed; the probability that it lies
inside is exact, given the truth. The gain is the difference of expected losses. All intervals are
meant to hold 90%. Standard errors are over studies: the baselines of one share its optimum.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from coverage_continual import judge_seed, summarize_all
from coverage_studies import LAYOUTS
from coverage_summary import FIRST_NUMBER, HALVES, LEVEL, USUAL, judge_all, summarize

BASELINES = (*USUAL, "close", "true optimum")


def main() -> None:
    """Judges the studies and prints tables, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=100, help="of each half of each layout")
    parser.add_argument("--critical", type=int, default=400, help="studies of critical proportions")
    parser.add_argument("--first", type=int, default=FIRST_NUMBER, help="number of the first study")
    parser.add_argument("--folder", type=Path, default=Path("bench") / "coverage")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    started = time.perf_counter()
    # In turn, so that a run that is stopped has as many of each.
    jobs = [
        (layout, half, options.first + i)
        for i in range(options.studies)
        for layout in LAYOUTS
        for half in HALVES
    ]
    records = judge_all(jobs, options.folder, options.workers)
    with ProcessPoolExecutor(options.workers, get_context("spawn")) as pool:
        seeds = range(options.first, options.first + options.critical)
        critical = list(pool.map(judge_seed, seeds, chunksize=8))
    layouts = {name: (name,) for name in LAYOUTS} | {"both": tuple(LAYOUTS)}
    result = {
        "layouts": {
            name: {
                half: summarize(
                    [r for r in records if r["half"] == half and r["layout"] in members]
                )
                for half in HALVES
            }
            for name, members in layouts.items()
        },
        "critical_proportion": summarize_all(critical),
        "level": LEVEL,
        "wall_seconds": round(time.perf_counter() - started, 1),
    }
    print(json.dumps(result, indent=1) if options.json else show_tables(result))


def show_tables(result: dict[str, Any]) -> str:
    """Returns the tables of the documentation: halves of layouts, then critical proportions."""
    columns = [
        (f"{layout}, {half}", summary)
        for layout, halves in result["layouts"].items()
        for half, summary in halves.items()
    ]
    lines = [
        f"| | {' | '.join(name for name, _ in columns)} |",
        f"|---|{'---|' * len(columns)}",
        *(
            f"| {title} | {' | '.join(show(summary) for _, summary in columns)} |"
            for title, show in ROWS
        ),
        "",
        "| critical proportion | studies | inside (standard error) | width, median | open |",
        "|---|---|---|---|---|",
    ]
    for name, found in result["critical_proportion"].items():
        lines.append(
            f"| {name} | {found['studies']} | {_percent(found['coverage'])}"
            f" ({_percent(found['coverage_se'])}) | {found['width_median']:.3f}"
            f" | {_percent(found['open'])} |"
        )
    return "\n".join((*lines, "", f"{result['wall_seconds']:.0f} s"))


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _inside(found: dict[str, float]) -> str:
    return f"{_percent(found['coverage'])} ({_percent(found['coverage_se'])})"


def _widths(found: dict[str, float]) -> str:
    return f"{found['width']:.4f}, {found['score']:.4f}"


def _claims(found: dict[str, float]) -> str:
    return " / ".join(_percent(found[key]) for key in ("claimed", "wrong", "missed"))


ROWS: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
    ("studies", lambda s: str(s["studies"])),
    ("left-out error over spread, median", lambda s: f"{s['left_out_over_spread']:.2f}"),
    ("**loss of the optimum** inside (standard error)", lambda s: _inside(s["optimum_loss"])),
    ("its width, interval score", lambda s: _widths(s["optimum_loss"])),
    ("its measured less its predicted value", lambda s: f"{s['optimum_loss_error']:+.4f}"),
    ("**gain**, three baselines, inside", lambda s: _inside(s["gain"])),
    ("its width, interval score", lambda s: _widths(s["gain"])),
    ("promised too much, too little",
     lambda s: f"{_percent(s['gain']['too_high'])}, {_percent(s['gain']['too_low'])}"),
    *(
        (f"gain over {name} inside", lambda s, name=name: _inside(s["gain_by_baseline"][name]))
        for name in BASELINES
    ),
    *(
        (f"gain over {name}: claimed / wrongly / missed",
         lambda s, name=name: _claims(s["verdicts"][name]))
        for name in BASELINES
    ),
    ("regret of the optimum", lambda s: f"{s['regret']:.4f}"),
    ("true optimum in the near-optimal set",
     lambda s: _percent(s["near_optimal_holds_true_optimum"])),
    ("true shares in the draws' ranges", lambda s: _percent(s["draws_hold_true_share"])),
    ("sign of a floor's price right", lambda s: _percent(s["price_sign_right"])),
    ("held-out losses inside", lambda s: _percent(s["heldout_coverage"])),
    ("stacks chosen", lambda s: _percent(s["stacks"])),
)  # fmt: skip


if __name__ == "__main__":
    main()
