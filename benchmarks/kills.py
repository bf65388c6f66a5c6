"""Kills a sweep of real runs again and again, and checks that nothing comes out differently.

`python benchmarks/kills.py` trains a small sweep of proxy runs twice: once undisturbed, and once
while attempts and coordinators are ended by SIGKILL, at moments that are uniform over the sweep's
progress and also inside the writes of checkpoints, metrics, results, observations and claims.
Afterwards every run must have ended exactly once and every observation must be the same, bit for
bit. The exit code is 1 when that is not so. The text is Python's own standard library.
"""

import argparse
import importlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mortal
from mixlaw.mixtures import Mixture
from mixlaw.runs.folder import LOG_HEADER
from mixlaw.runs.spec import RunSpec

SHORTEST_SECONDS = 20.0
"""A sweep shorter than this has too few moments to be killed at."""


@dataclass(frozen=True, kw_only=True)
class Kill:
    """One planned kill."""

    progress: float
    """Share of the sweep at which it is due."""
    victim: str
    """worker, coordinator, or one of `mortal.PLACES`."""
    delay: float = 0.0
    """Seconds after that, as progress is told in steps."""


@dataclass(kw_only=True, slots=True)
class Outcome:
    """What the benchmark found."""

    runs: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    """By planned victim."""
    hits: Counter[str] = field(default_factory=Counter)
    """By what the victim was doing."""
    undelivered: int = 0
    undisturbed_seconds: float = 0.0
    disturbed_seconds: float = 0.0
    longest_orphan_seconds: float = 0.0
    """How long an attempt outlived its coordinator, at most."""
    done_once: bool = False
    bit_identical: bool = False
    store_intact: bool = False

    @property
    def passed(self) -> bool:
        """Whether all is as it must be."""
        intact = self.done_once and self.bit_identical and self.store_intact
        return intact and self.undelivered == 0


def plan_kills(*, uniform: int, inside: int, seed: int, latest: float = 0.95) -> list[Kill]:
    """Returns kills in the order in which they are due.

    Args:
        uniform: Kills of workers and coordinators at uniform moments, about half of each.
        inside: Kills inside writes, going round the places, due early enough to find such a write.
        seed: Decides the moments and victims.
        latest: Share of the sweep after which no kill is due, so that none comes too late.
    """
    rng = random.Random(seed)
    kills = [
        Kill(
            progress=rng.uniform(0.0, latest),
            victim=rng.choice(("worker", "coordinator")),
            delay=rng.uniform(0.0, 0.5),
        )
        for _ in range(uniform)
    ]
    kills += [
        Kill(progress=rng.uniform(0.0, 0.5), victim=mortal.PLACES[index % len(mortal.PLACES)])
        for index in range(inside)
    ]
    return sorted(kills, key=lambda kill: kill.progress)


class Sweep:
    """A coordinator in a process of its own that is started again whenever it has ended."""

    def __init__(
        self,
        study: Path,
        trainer: str,
        arguments: dict[str, Any],
        *,
        slots: int,
        checkpoint_seconds: float,
    ) -> None:
        self.study = study
        self.progress = 0.0
        self.results: dict[str, set[tuple[int, int]]] = {}
        self._command = [
            *(sys.executable, mortal.__file__, str(study), "--trainer", trainer),
            *("--arguments", json.dumps(arguments), "--slots", str(slots)),
            *("--checkpoint-seconds", str(checkpoint_seconds)),
        ]
        self.process = self._start()

    def _start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            self._command,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        threading.Thread(target=self._read, args=(process,), daemon=True).start()
        return process

    def restart(self) -> None:
        """Starts the next coordinator."""
        self.process = self._start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                if line.startswith("progress "):
                    self.progress = max(self.progress, float(line.split()[1]))

    def attempts(self) -> list[Any]:
        """Returns the processes of attempts: what the fork server has forked."""
        import psutil

        try:
            servers = psutil.Process(self.process.pid).children()
            return [child for server in servers for child in server.children()]
        except psutil.NoSuchProcess:
            return []

    def note_results(self) -> None:
        """Remembers each result file that is seen: the same one for ever, if it is written once."""
        for path in (self.study / "runs").glob("*/result.json"):
            found = path.stat()
            self.results.setdefault(path.parent.name, set()).add((found.st_ino, found.st_mtime_ns))

    def doing(self, pid: int) -> str:
        """Returns what the attempt with that process is writing, or that it is training."""
        for log in (self.study / "runs").glob("*/log.txt"):
            if log.read_text().rpartition(LOG_HEADER)[2].split("\n")[0] == str(pid):
                for path in log.parent.glob(".*.tmp"):
                    return f"{path.name.split('.')[1]} write"
                return "training"
        return "start of an attempt"


def disturb(sweep: Sweep, kills: Sequence[Kill], outcome: Outcome) -> None:
    """Carries out the kills while the sweep goes on, until it has ended."""
    left = list(kills)
    armed: set[str] = set()
    while True:
        time.sleep(0.02)
        sweep.note_results()
        for place in [p for p in armed if not (sweep.study / "armed" / p).exists()]:
            armed.remove(place)
            count_kill(outcome, place, place)
        code = sweep.process.poll()
        if code is not None and code not in (0, -signal.SIGKILL):
            raise SystemExit(f"a coordinator ended with exit code {code}, which it must not")
        if code == 0:
            outcome.undelivered = len(left) + len(armed)
            return
        if code is not None:
            sweep.restart()
        for kill in [k for k in left if k.progress <= sweep.progress]:
            if kill.victim in mortal.PLACES:
                if kill.victim not in armed:
                    (sweep.study / "armed" / kill.victim).touch()
                    armed.add(kill.victim)
                    left.remove(kill)
            elif attempts := sweep.attempts():
                time.sleep(kill.delay)
                if strike(sweep, kill, attempts, outcome):
                    left.remove(kill)
                break


def strike(sweep: Sweep, kill: Kill, attempts: Sequence[Any], outcome: Outcome) -> bool:
    """Kills a worker, or a coordinator of which it then awaits that its attempts end."""
    if kill.victim == "worker":
        import psutil

        victim = attempts[int(kill.delay * 1000) % len(attempts)]
        doing = sweep.doing(victim.pid)
        try:
            victim.kill()
        except psutil.NoSuchProcess:
            return False
        count_kill(outcome, "worker", doing)
        return True
    attempts = sweep.attempts()
    if sweep.process.poll() is not None:
        return False
    sweep.process.kill()
    sweep.process.wait()
    count_kill(outcome, "coordinator", "coordinator, anywhere")
    started = time.monotonic()
    sweep.restart()  # at once: it takes over while the orphans still end
    while any(is_alive(attempt) for attempt in attempts):
        if time.monotonic() - started > 60:
            raise SystemExit("an attempt still runs a minute after its coordinator was killed")
        time.sleep(0.01)
    lived = time.monotonic() - started
    outcome.longest_orphan_seconds = max(outcome.longest_orphan_seconds, lived)
    return True


def is_alive(process: Any) -> bool:
    """Whether a process still runs; one that has ended may stay in the table for a while."""
    import psutil

    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def count_kill(outcome: Outcome, victim: str, hit: str) -> None:
    """Counts a kill that was carried out."""
    outcome.kills[victim] += 1
    outcome.hits[hit] += 1


def check(undisturbed: Path, sweep: Sweep, outcome: Outcome) -> None:
    """Compares the two sweeps and inspects what the kills have left."""
    from mixlaw.runs import RunStore, read_tables

    store = RunStore.at(sweep.study / "study.db")
    tables = [
        read_tables(RunStore.at(study / "study.db"), study / "runs")
        for study in (undisturbed, sweep.study)
    ]
    outcome.bit_identical = all(
        left.sort(left.columns).equals(right.sort(right.columns), null_equal=True)
        for left, right in zip(*tables, strict=True)
    )
    sweep.note_results()
    rows = store.rows()
    outcome.runs = len(rows)
    outcome.done_once = all(
        row.status == "done" and row.owner is None and len(sweep.results[row.run_id]) == 1
        for row in rows
    )
    with sqlite3.connect(sweep.study / "study.db") as database:
        (verdict,) = database.execute("PRAGMA integrity_check").fetchone()
        (coordinators,) = database.execute("SELECT count(*) FROM coordinators").fetchone()
    database.close()
    locks = list((sweep.study / "coordinators").iterdir())
    outcome.store_intact = verdict == "ok" and coordinators == 0 and not locks


def run_benchmark(
    folder: Path,
    specs: Sequence[RunSpec],
    kills: Sequence[Kill],
    *,
    trainer: str,
    arguments: dict[str, Any],
    slots: int,
    checkpoint_seconds: float,
    say: Callable[[str], None] = print,
) -> Outcome:
    """Trains a sweep undisturbed and disturbed, and returns how they compare.

    Args:
        folder: Where both sweeps go.
        specs: The runs.
        kills: What happens to the second one.
        trainer: The trainer's class, as `package.module:Class`.
        arguments: What it is made with, as JSON can hold it.
        slots: Runs that train at a time.
        checkpoint_seconds: How often they save a checkpoint.
        say: Is told how it goes.
    """
    from mixlaw.runs import RunStore

    outcome = Outcome()
    sweeps: list[Sweep] = []
    for name in ("undisturbed", "disturbed"):
        study = folder / name
        (study / "armed").mkdir(parents=True)
        RunStore.at(study / "study.db").add(specs)
        started = time.monotonic()
        sweeps.append(
            Sweep(study, trainer, arguments, slots=slots, checkpoint_seconds=checkpoint_seconds)
        )
        disturb(sweeps[-1], kills if name == "disturbed" else (), outcome)
        seconds = time.monotonic() - started
        setattr(outcome, f"{name}_seconds", seconds)
        say(f"the {name} sweep of {len(specs)} runs took {seconds:.1f} s")
    check(sweeps[0].study, sweeps[1], outcome)
    return outcome


# ---------------------------------------------------------------------- the sweep of proxy runs


def make_corpus(path: Path) -> Any:
    """Returns a corpus of three packages of the standard library."""
    from mixlaw.corpora import Corpus, add_domain

    for name in ("asyncio", "email", "unittest"):
        folder = Path(importlib.import_module(name).__path__[0])
        files = sorted(file for file in folder.rglob("*.py") if file.stat().st_size)
        add_domain(path, name, files, validation_share=0.2)
    return Corpus.open(path)


def make_specs(corpus: Any, *, runs: int, steps: int, params: int) -> list[RunSpec]:
    """Returns runs of different mixtures, losses measured at five steps."""
    from mixlaw.proxy import proxy_recipe

    recipe = proxy_recipe(corpus)
    specs: list[RunSpec] = []
    for seed in range(runs):
        rng = random.Random(seed)
        shares = {name: rng.uniform(0.1, 1.0) for name in corpus.training_names}
        specs.append(
            RunSpec(
                mixture=Mixture.normalized(shares),
                params=params,
                steps=steps,
                tokens_per_step=recipe.tokens_per_step,
                eval_steps=tuple(sorted({0, steps // 8, steps // 4, steps // 2, steps})),
                seed=seed,
                corpus=recipe.corpus,
                tokenizer=recipe.tokenizer,
                trainer=recipe.trainer,
                precision=recipe.precision,
            )
        )
    return specs


def describe(outcome: Outcome) -> str:
    """Returns the outcome as lines."""
    lines = [
        f"{sum(outcome.kills.values())} kills, {outcome.undelivered} planned ones not carried out:"
    ]
    lines += [f"  {count:3d} {victim}" for victim, count in sorted(outcome.kills.items())]
    lines.append("they hit:")
    lines += [f"  {count:3d} {hit}" for hit, count in sorted(outcome.hits.items())]
    lines += [
        f"an attempt outlived its coordinator by {outcome.longest_orphan_seconds:.2f} s at most",
        f"every one of {outcome.runs} runs ended exactly once: {_yes(outcome.done_once)}",
        f"observations are bit-identical: {_yes(outcome.bit_identical)}",
        f"store intact, nothing left over: {_yes(outcome.store_intact)}",
    ]
    return "\n".join(lines)


def _yes(claim: bool) -> str:
    return "yes" if claim else "NO"


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--kills", type=int, default=50, help="at uniform moments")
    parser.add_argument("--inside", type=int, default=2 * len(mortal.PLACES), help="inside writes")
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=80, help="of each run")
    parser.add_argument("--params", type=int, default=50_000, help="without embeddings")
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--checkpoint-seconds", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mixlaw-kills-") as name:
        folder = Path(name)
        corpus = make_corpus(folder / "corpus")
        outcome = run_benchmark(
            folder,
            make_specs(corpus, runs=given.runs, steps=given.steps, params=given.params),
            plan_kills(uniform=given.kills, inside=given.inside, seed=given.seed),
            trainer="mixlaw.proxy:ProxyTrainer",
            arguments={"corpus_path": str(folder / "corpus")},
            slots=given.slots,
            checkpoint_seconds=given.checkpoint_seconds,
            say=lambda text: print(text, file=sys.stderr, flush=True),
        )
    if given.json:
        values = {name: getattr(outcome, name) for name in (*outcome.__slots__, "passed")}
        print(json.dumps(values, indent=2))
    else:
        print(describe(outcome))
    if outcome.undisturbed_seconds < SHORTEST_SECONDS:
        sys.exit(f"the sweep must take {SHORTEST_SECONDS:.0f} s at least: raise --steps")
    sys.exit(0 if outcome.passed else 1)


if __name__ == "__main__":
    main()
