"""A smaller version of benchmarks/kills.py, whose runs are those of a small trainer."""

import sys
from collections import Counter
from pathlib import Path

import pytest

import runs_sgd

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def test_a_sweep_under_kills_ends_as_if_there_were_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import kills
    import mortal

    outcome = kills.run_benchmark(
        tmp_path,
        runs_sgd.make_specs(6, steps=120),
        kills.plan_kills(uniform=4, inside=len(mortal.PLACES), seed=0, latest=0.5),
        trainer="runs_sgd:SgdTrainer",
        arguments={"step_seconds": 0.01},
        slots=2,
        checkpoint_seconds=0.1,
        say=sys.stderr.write,
    )
    assert outcome.undelivered == 0
    inside = Counter({place: outcome.kills[place] for place in mortal.PLACES})
    assert inside == Counter(mortal.PLACES)  # one each
    assert outcome.kills["worker"] + outcome.kills["coordinator"] == 4
    assert outcome.done_once
    assert outcome.bit_identical
    assert outcome.store_intact
    assert outcome.longest_orphan_seconds < 5
