"""What mixlaw decides, put to the test by training: four parts, one table, one JSON file.

(a) continual: the critical proportion of old data; (b) schedule: a two-stage schedule against the
best constant mixture; (c) downstream: task errors of held-out mixtures from their proportions;
(d) cap: a shadow price, by moving the cap. About an hour on two cores in all. What is trained stays
in the folder, so that a run that was cut off goes on, and each part runs alone as well.

    python benchmarks/decide.py [--parts cap,continual,schedule,downstream] [--folder bench/decide]
                                [--slots 2] [--seed 0] [--json]
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from mixlaw import __version__
from mixlaw.cli.show import print_lines
from mixlaw.errors import MixlawError
from mixlaw.study.plain import to_plain

PARTS = ("continual", "schedule", "downstream", "cap")
"""Each is `decide_<part>.py` with a `run_part(folder, slots, seed)`."""
RESULT = "decide.json"


def run_parts(
    parts: tuple[str, ...], folder: Path, *, slots: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Runs the parts one after the other, and returns what each found; one may fail alone."""
    found: dict[str, dict[str, Any]] = {}
    for part in parts:
        start = time.monotonic()
        print(f"== {part}", file=sys.stderr, flush=True)
        figures: dict[str, Any]
        try:
            module = import_module(f"decide_{part}")
            figures = dict(module.run_part(folder / part, slots=slots, seed=seed))
        except (MixlawError, SystemExit) as error:
            figures = {"failed": str(error)}
        figures["seconds"] = round(time.monotonic() - start, 1)
        found[part] = to_plain(figures)
        save(found, folder / RESULT, seed=seed)
    return found


def save(found: Mapping[str, Mapping[str, Any]], path: Path, *, seed: int) -> Path:
    """Writes what is known so far, with the command and the date; parts of earlier calls stay."""
    earlier: dict[str, Any] = {}
    if path.exists():
        earlier = json.loads(path.read_text(encoding="utf-8")).get("parts", {})
    whole = {
        "command": " ".join(["python", "benchmarks/decide.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": __version__,
        "seed": seed,
        "parts": {**earlier, **found},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    return path


def show(found: Mapping[str, Mapping[str, Any]]) -> None:
    """Prints one line per figure, part after part."""
    width = max((len(key) for figures in found.values() for key in figures), default=0)
    for part, figures in found.items():
        print_lines("", part)
        for key, value in figures.items():
            if key == "part" or (isinstance(value, Mapping | list) and len(str(value)) > 400):
                continue
            print_lines(f"  {key:{width}}  {_words(value)}")


def _words(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_words(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(_words(item) for item in value)
    return str(value)


def main() -> int:
    """Runs the parts, prints their figures, and returns the exit code: 1 where one failed."""
    parser = argparse.ArgumentParser(description="Puts what mixlaw decides to the test.")
    parser.add_argument("--parts", default=",".join(PARTS), help="which of them, with commas")
    parser.add_argument("--folder", type=Path, default=Path("bench/decide"))
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    given = parser.parse_args()
    parts = tuple(part.strip() for part in given.parts.split(",") if part.strip())
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        parser.error(f"there is no part {unknown[0]!r}; the parts are {', '.join(PARTS)}")
    found = run_parts(parts, given.folder, slots=given.slots, seed=given.seed)
    if given.json:
        json.dump(found, sys.stdout, indent=1)
    else:
        show(found)
    return 1 if any("failed" in figures for figures in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
