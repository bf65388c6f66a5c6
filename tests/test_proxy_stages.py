"""Runs of several stages: batches, realised shares, and stops at every place."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")

from mixlaw.corpora import Corpus
from mixlaw.errors import RunError
from mixlaw.mixtures import Mixture
from mixlaw.proxy.data import SequenceOrder, TrainingBatches
from mixlaw.runs.spec import Stage, stages_of
from tiny_proxies import NAMES, build_corpus, make_spec, train, train_until

pytestmark = pytest.mark.train

FIRST = Mixture.of(dict(zip(NAMES, (0.5, 0.3, 0.2), strict=True)))
LATER = Mixture.of({NAMES[0]: 0.1, NAMES[2]: 0.9})

names = ("a", "b", "c", "d")
weights = st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=4, max_size=4).filter(any)
schedules = st.lists(st.tuples(st.integers(1, 700), weights), min_size=1, max_size=4)
"""How many sequences each stage has, and the weights of its domains."""
POSITIONS = {"a": 11, "b": 23, "c": 50, "d": 7}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return build_corpus(tmp_path_factory.mktemp("stages") / "corpus")


def make_mixture(weights: list[float]) -> Mixture:
    return Mixture.normalized(dict(zip(names, weights, strict=True)))


def make_order(schedule: list[tuple[int, list[float]]], seed: int) -> SequenceOrder:
    starts = np.cumsum([0, *(length for length, _ in schedule)]).tolist()
    stages = [
        (start, make_mixture(weights))
        for start, (_, weights) in zip(starts[:-1], schedule, strict=True)
    ]
    return SequenceOrder(stages[0][1], POSITIONS, seed, later=stages[1:])


@given(schedule=schedules, seed=st.integers(0, 2**40))
def test_each_stage_realises_its_shares(schedule: list[tuple[int, list[float]]], seed: int) -> None:
    # The bound of Kuipers and Niederreiter for any stretch of a golden-ratio sequence, as in
    # test_proxy_data.py; a domain of share 0 is never drawn.
    order = make_order(schedule, seed)
    start = 0
    for length, weights in schedule:
        mixture = make_mixture(weights)
        before, after = order.count_draws(start), order.count_draws(start + length)
        bound = 3 + (1 / math.log((1 + math.sqrt(5)) / 2) + 1 / math.log(2)) * math.log(length)
        for name, drawn in zip(order.names, (after - before).tolist(), strict=True):
            assert abs(drawn - mixture[name] * length) <= bound
            assert drawn == 0 or mixture[name] > 0
        start += length


@given(schedule=schedules, seed=st.integers(0, 5))
def test_the_kth_sequence_of_a_domain_is_the_same_in_every_schedule(
    schedule: list[tuple[int, list[float]]], seed: int
) -> None:
    order = make_order(schedule, seed)
    uniform = SequenceOrder(Mixture.uniform(names), POSITIONS, seed)
    all_domains, all_places = uniform.place(0, 4000)
    domains, places = order.place(0, 900)
    for j, name in enumerate(order.names):
        mine = places[domains == j]
        reference = all_places[all_domains == uniform.names.index(name)]
        length = min(len(mine), len(reference))
        assert np.array_equal(mine[:length], reference[:length])


@given(schedule=schedules, first=st.integers(0, 3000))
def test_a_schedule_can_be_entered_anywhere(
    schedule: list[tuple[int, list[float]]], first: int
) -> None:
    whole = make_order(schedule, 1).place(0, first + 60)
    part = make_order(schedule, 1).place(first, 60)
    assert all(np.array_equal(a[first:], b) for a, b in zip(whole, part, strict=True))


@given(weights=weights, cuts=st.lists(st.integers(1, 500), max_size=3, unique=True))
def test_stages_of_one_mixture_give_the_order_of_that_mixture(
    weights: list[float], cuts: list[int]
) -> None:
    mixture = make_mixture(weights)
    plain = SequenceOrder(mixture, POSITIONS, 3)
    staged = SequenceOrder(mixture, POSITIONS, 3, later=[(cut, mixture) for cut in sorted(cuts)])
    assert staged.names == plain.names
    found, expected = staged.place(0, 600), plain.place(0, 600)
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_batches_change_their_mixture_between_two_steps(corpus: Corpus) -> None:
    stage = Stage(from_step=7, mixture=Mixture.of({NAMES[1]: 1.0}))
    options: dict[str, Any] = {"seed": 0, "batch_size": 4, "sequence_length": 16}
    alone = Mixture.of({NAMES[0]: 1.0})
    staged = TrainingBatches(corpus, alone, later_stages=(stage,), **options)
    first = TrainingBatches(corpus, alone, **options)
    second = TrainingBatches(corpus, stage.mixture, **options)
    for step in range(7):
        assert np.array_equal(staged.batch(step), first.batch(step))
    for step in range(7, 40):  # the domain begins here
        assert np.array_equal(staged.batch(step), second.batch(step - 7))


def test_limits_keep_the_beginning_of_a_text(corpus: Corpus) -> None:
    options: dict[str, Any] = {"seed": 0, "batch_size": 4, "sequence_length": 16}
    alone = Mixture.of({NAMES[0]: 1.0})
    limited = TrainingBatches(corpus, alone, token_limits={NAMES[0]: 10 * 16 + 1}, **options)
    text = bytes(corpus.tokens(NAMES[0], "train")[: 10 * 16 + 1])
    seen = {bytes(row.tolist()) for step in range(30) for row in limited.batch(step)}
    assert seen == {text[k * 16 : k * 16 + 17] for k in range(10)}
    assert limited.order.count_epochs(120) == {NAMES[0]: 12.0}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_staged_run_stopped_anywhere_goes_on_to_the_same_bits(
    corpus: Corpus, tmp_path: Path, precision: str
) -> None:
    spec = make_spec(corpus, precision=precision, schedule="cosine")
    spec = replace(spec, later_stages=stages_of([FIRST, LATER, FIRST], [9, 15, 24]))
    expected, _ = train(corpus, spec, tmp_path / "whole")
    assert expected != train(corpus, replace(spec, later_stages=()), tmp_path / "constant")[0]
    for cuts in ([8], [9], [10], [15], [9, 6], [3, 13]):  # at a boundary, beside and across it
        folder = tmp_path / f"cut-{cuts}"
        for steps in cuts:
            train_until(corpus, spec, folder, steps)
        assert train(corpus, spec, folder)[0] == expected, cuts


def test_a_run_is_that_of_its_first_stage_until_that_ends(corpus: Corpus, tmp_path: Path) -> None:
    spec = make_spec(corpus)
    staged = replace(spec, later_stages=(Stage(from_step=12, mixture=LATER),))
    one, other = (train(corpus, s, tmp_path / s.run_id)[0] for s in (spec, staged))
    assert one[:3] == other[:3]  # steps 0, 6 and 12
    assert one[3].values != other[3].values
    # A domain with 0.9 instead of 0.2 of the second half is learned better.
    assert other[3].values[NAMES[2]][0] < one[3].values[NAMES[2]][0]


def test_a_later_stage_without_text_is_named(corpus: Corpus, tmp_path: Path) -> None:
    stage = Stage(from_step=12, mixture=Mixture.of({"unseen": 1.0}))
    with pytest.raises(RunError, match="'unseen' has none"):
        train(corpus, make_spec(corpus, later_stages=(stage,)), tmp_path)
