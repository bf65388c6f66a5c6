import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixlaw.corpora import Corpus, add_domain
from mixlaw.errors import CorpusError, RunError
from mixlaw.mixtures import Mixture
from mixlaw.proxy.data import (
    SequenceOrder,
    TrainingBatches,
    bits_per_byte,
    count_positions,
    permute,
    validation_bytes_per_token,
    validation_sequences,
)

T = 16


def build_corpus(path: Path, names: Sequence[str], *, documents: int = 60) -> Corpus:
    """A corpus of numbered lines, each domain with words of its own."""
    for index, name in enumerate(names):
        text = path.parent / f"{index}.jsonl"
        lines = [
            f'{{"text": "{"abcdefgh"[index] * 3} {n} {n * n} {n**3} of domain {index}"}}'
            for n in range(documents)
        ]
        text.write_text("\n".join(lines))
        add_domain(path, name, [text], validation_share=0.2)
    return Corpus.open(path)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return build_corpus(tmp_path_factory.mktemp("data") / "corpus", ["web", "code", "wiki"])


shares = st.lists(st.floats(0.0, 1.0), min_size=2, max_size=12).filter(lambda r: sum(r) > 1e-3)


@given(r=shares, seed=st.integers(-(2**70), 2**70), count=st.integers(1, 20_000))
def test_shares_are_realised_to_within_the_golden_ratios_discrepancy(
    r: list[float], seed: int, count: int
) -> None:
    # Kuipers and Niederreiter 1974, theorem 2.3.4 with partial quotients of 1: the share of points
    # in any interval errs by at most (3 + (1/log phi + 1/log 2) log n) / n.
    mixture = Mixture.normalized({f"d{i}": share for i, share in enumerate(r)})
    order = SequenceOrder(mixture, dict.fromkeys(mixture.names, 100), seed)
    draws = dict(zip(order.names, order.count_draws(count).tolist(), strict=True))
    bound = 3 + (1 / math.log((1 + math.sqrt(5)) / 2) + 1 / math.log(2)) * math.log(count)
    assert sum(draws.values()) == count
    for name, share in mixture.items():
        assert abs(draws.get(name, 0) - share * count) <= bound


@given(r=shares, first=st.integers(0, 3000), seed=st.integers(0, 5))
def test_the_order_can_be_entered_anywhere(r: list[float], first: int, seed: int) -> None:
    mixture = Mixture.normalized({f"d{i}": share for i, share in enumerate(r)})
    positions = {name: 7 + 5 * i for i, name in enumerate(mixture.names)}
    whole = SequenceOrder(mixture, positions, seed).place(0, first + 50)
    part = SequenceOrder(mixture, positions, seed).place(first, 50)
    assert all(np.array_equal(a[first:], b) for a, b in zip(whole, part, strict=True))


@given(st.permutations(["a", "b", "c", "d"]))
def test_the_order_does_not_depend_on_the_order_of_domains(names: list[str]) -> None:
    share = {"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.4}
    positions = {"a": 10, "b": 20, "c": 30, "d": 40}
    expected = SequenceOrder(Mixture.of(share), positions, 3).place(0, 500)
    found = SequenceOrder(Mixture.of({n: share[n] for n in names}), positions, 3).place(0, 500)
    assert all(np.array_equal(a, b) for a, b in zip(expected, found, strict=True))


@given(r=shares, seed=st.integers(0, 100))
def test_the_kth_sequence_of_a_domain_is_the_same_in_every_mixture(
    r: list[float], seed: int
) -> None:
    mixture = Mixture.normalized({f"d{i}": share for i, share in enumerate(r)})
    positions = {name: 11 + i for i, name in enumerate(mixture.names)}
    uniform = SequenceOrder(Mixture.uniform(mixture.names), positions, seed)
    order = SequenceOrder(mixture, positions, seed)
    all_domains, all_places = uniform.place(0, 600)
    domains, places = order.place(0, 200)
    for j, name in enumerate(order.names):
        mine = places[domains == j]
        reference = all_places[all_domains == uniform.names.index(name)]
        length = min(len(mine), len(reference))
        assert np.array_equal(mine[:length], reference[:length])


def test_another_seed_gives_another_order_of_domains_and_of_their_text() -> None:
    mixture = Mixture.uniform(["a", "b"])
    orders = [SequenceOrder(mixture, {"a": 1000, "b": 1000}, seed) for seed in (0, 1)]
    (domains, places), (other_domains, other_places) = (order.place(0, 100) for order in orders)
    assert not np.array_equal(domains, other_domains)
    assert not np.array_equal(places, other_places)


def test_the_text_of_one_domain_is_not_in_the_order_of_another() -> None:
    order = SequenceOrder(Mixture.uniform(["a", "b"]), {"a": 1000, "b": 1000}, 0)
    domains, places = order.place(0, 200)
    assert not np.array_equal(places[domains == 0][:90], places[domains == 1][:90])


@given(size=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
def test_permute_is_a_permutation(size: int, key: int) -> None:
    assert np.array_equal(np.sort(permute(np.arange(size), size=size, key=key)), np.arange(size))


def test_permute_spreads_neighbours_evenly() -> None:
    # Displacements of a random permutation of n are spread over all n; their correlation with the
    # index has standard deviation 1/sqrt(n).
    n = 10_000
    for key in range(5):
        places = permute(np.arange(n), size=n, key=key)
        assert abs(np.corrcoef(np.arange(n), places)[0, 1]) < 4 / math.sqrt(n)
        assert abs(np.corrcoef(places[:-1], places[1:])[0, 1]) < 4 / math.sqrt(n)


def test_permute_reaches_positions_of_a_huge_domain() -> None:
    size = 10**12 + 39
    places = permute(np.arange(10_000), size=size, key=5)
    assert len(np.unique(places)) == 10_000
    assert places.min() >= 0
    assert places.max() < size


def test_every_epoch_goes_through_all_text_in_another_order() -> None:
    order = SequenceOrder(Mixture.of({"a": 1.0}), {"a": 50}, 0)
    _, places = order.place(0, 150)
    epochs = places.reshape(3, 50)
    assert all(np.array_equal(np.sort(epoch), np.arange(50)) for epoch in epochs)
    assert not np.array_equal(epochs[0], epochs[1])
    assert order.count_epochs(125) == {"a": 2.5}


def test_counting_backwards_and_across_chunks_gives_the_same_counts() -> None:
    order = SequenceOrder(Mixture.of({"a": 0.3, "b": 0.7}), {"a": 5, "b": 5}, 0)
    far = order.count_draws(3_000_000).tolist()
    near = order.count_draws(1000).tolist()
    assert (
        near
        == SequenceOrder(Mixture.of({"a": 0.3, "b": 0.7}), {"a": 5, "b": 5}, 0)
        .count_draws(1000)
        .tolist()
    )
    assert abs(far[0] - 900_000) < 60
    assert order.count_draws(3_000_000).tolist() == far


def test_batches_are_sequences_of_the_text(corpus: Corpus) -> None:
    mixture = Mixture.of({"web": 0.5, "code": 0.25, "wiki": 0.25})
    batches = TrainingBatches(corpus, mixture, seed=0, batch_size=4, sequence_length=T)
    texts = {name: bytes(corpus.tokens(name, "train")) for name in mixture}
    for step in range(30):
        batch = batches.batch(step)
        assert batch.shape == (4, T + 1)
        domains, places = batches.order.place(4 * step, 4)
        for row, domain, place in zip(batch, domains, places, strict=True):
            text = texts[batches.order.names[domain]]
            assert bytes(row.tolist()) == text[place * T : place * T + T + 1]


def test_batches_are_a_function_of_the_step(corpus: Corpus) -> None:
    mixture = Mixture.uniform(["web", "code"])
    batches = TrainingBatches(corpus, mixture, seed=0, batch_size=4, sequence_length=T)
    later = batches.batch(5000)
    batches.batch(3)
    fresh = TrainingBatches(corpus, mixture, seed=0, batch_size=4, sequence_length=T)
    assert np.array_equal(fresh.batch(5000), later)


def test_domain_without_training_text_is_named(corpus: Corpus) -> None:
    with pytest.raises(RunError, match="'law' has none"):
        TrainingBatches(
            corpus, Mixture.uniform(["web", "law"]), seed=0, batch_size=4, sequence_length=T
        )


def test_domain_shorter_than_a_sequence_is_named(corpus: Corpus) -> None:
    length = corpus.domain("web").train_tokens
    with pytest.raises(CorpusError, match=f"'web' must hold at least {length + 1} tokens"):
        TrainingBatches(
            corpus, Mixture.uniform(["web"]), seed=0, batch_size=4, sequence_length=length
        )


def test_a_domain_of_share_zero_may_have_no_text(corpus: Corpus) -> None:
    mixture = Mixture.of({"web": 1.0, "nothing": 0.0})
    batches = TrainingBatches(corpus, mixture, seed=0, batch_size=4, sequence_length=T)
    assert batches.order.names == ("web",)


@given(tokens=st.integers(T + 1, 3000), count=st.integers(1, 40))
def test_validation_sequences_are_evenly_spaced_and_do_not_overlap(tokens: int, count: int) -> None:
    text = np.arange(tokens, dtype=np.uint16)
    sequences = validation_sequences(text, sequence_length=T, count=count, where="x")
    assert len(sequences) == min(count, count_positions(tokens, T))
    starts = sequences[:, 0]
    assert np.array_equal(sequences, starts[:, None] + np.arange(T + 1))
    gaps = np.diff(starts)
    assert (gaps >= T).all()
    assert gaps.size == 0 or gaps.max() - gaps.min() <= T


def test_validation_text_shorter_than_a_sequence_is_named() -> None:
    with pytest.raises(CorpusError, match="validation text of 'x' must hold at least 17 tokens"):
        validation_sequences(np.zeros(T, np.uint8), sequence_length=T, count=4, where="'x'")


def test_bits_per_byte_of_a_uniform_guess_over_bytes_is_eight() -> None:
    assert bits_per_byte(math.log(256), 1.0) == pytest.approx(8.0)
    assert bits_per_byte(math.log(2), 2.0) == pytest.approx(0.5)


def test_bytes_have_one_byte_per_token(corpus: Corpus) -> None:
    assert validation_bytes_per_token(corpus, "web") == 1.0
