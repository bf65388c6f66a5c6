"""Batches as a pure function of seed, step and stages, and the sequences that losses are read on.

The n-th sequence of a run belongs to the domain in whose part of [0, 1) a golden-ratio sequence
falls, and the k-th sequence of a domain lies at the k-th place of a seeded permutation of its
positions, a new one each epoch. So shares are realised to within O(log n / n), in each stage of a
run too, nothing has to be remembered to go on after a stop, and runs with one seed see each
domain's text in one order, whatever their mixtures: a domain goes on in a stage where it stopped
in the one before.

Shape letters: B sequences, T tokens of each.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np

from mixlaw.corpora import Corpus
from mixlaw.errors import CorpusError, RunError
from mixlaw.mixtures import Mixture
from mixlaw.runs.spec import Stage

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""2^64 divided by the golden ratio: multiples of it spread evenly over the 64-bit numbers."""
CHUNK = 1 << 20
"""Sequences that are placed at once."""


def bits_per_byte(nats_per_token: float, bytes_per_token: float) -> float:
    """Returns a loss per byte of text, which is comparable between tokenizers.

    Args:
        nats_per_token: Loss.
        bytes_per_token: Bytes of the target's validation text per token of it.
    """
    return nats_per_token / (math.log(2) * bytes_per_token)


def validation_bytes_per_token(corpus: Corpus, target: str) -> float:
    """Returns the bytes of text per token of a target's validation text."""
    domain = corpus.domain(target)
    return domain.validation_bytes / domain.validation_tokens


def count_positions(tokens: int, sequence_length: int) -> int:
    """Returns how many sequences a text holds; each also reads the token after it, as a label."""
    return max(0, (tokens - 1) // sequence_length)


def validation_sequences(
    tokens: np.ndarray, *, sequence_length: int, count: int, where: str
) -> np.ndarray:
    """Returns evenly spaced sequences of T + 1 tokens, at most `count`, the same for every run.

    Raises:
        CorpusError: The text is shorter than one sequence.
    """
    positions = count_positions(len(tokens), sequence_length)
    _check_length(positions, len(tokens), sequence_length, f"validation text of {where}")
    count = min(count, positions)
    starts = np.arange(count) * positions // count * sequence_length
    return np.asarray(tokens)[starts[:, None] + np.arange(sequence_length + 1)].astype(np.int64)


class SequenceOrder:
    """Which sequence of which domain comes when.

    Args:
        mixture: Token shares, those of the first stage where there are later ones.
        positions: Sequences that each domain's text holds.
        seed: Decides the order of domains and the order inside each.
        later: The later stages: the sequence with which each begins, and its token shares.
    """

    def __init__(
        self,
        mixture: Mixture,
        positions: Mapping[str, int],
        seed: int,
        *,
        later: Sequence[tuple[int, Mixture]] = (),
    ) -> None:
        mixtures = [mixture, *(stage for _, stage in later)]
        self.names = _used_names(mixtures)
        self._positions = [positions[name] for name in self.names]
        self._seed = seed
        self._offset = np.uint64(_key(seed, "slots"))
        self._starts = [0, *(first for first, _ in later)]
        self._parts = [_domain_parts(stage, self.names) for stage in mixtures]
        self._counted = 0
        self._counts = np.zeros(len(self.names), dtype=np.int64)

    def place(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns domain (index into `names`) and position of the sequences from `first` on."""
        before = self.count_draws(first)
        domains = self._domains(first, count)
        places = np.empty(count, dtype=np.int64)
        for j in range(len(self.names)):
            mine = np.flatnonzero(domains == j)
            places[mine] = self._permuted(j, before[j] + np.arange(len(mine)))
        return domains, places

    def count_draws(self, sequences: int) -> np.ndarray:
        """Returns how many of a run's first sequences belong to each domain."""
        if sequences < self._counted:
            self._counted, self._counts = 0, np.zeros_like(self._counts)
        while self._counted < sequences:
            count = min(CHUNK, sequences - self._counted)
            drawn = self._domains(self._counted, count)
            self._counts = self._counts + np.bincount(drawn, minlength=len(self.names))
            self._counted += count
        return self._counts

    def count_epochs(self, sequences: int) -> dict[str, float]:
        """Returns how often a run of so many sequences goes through each domain's text."""
        draws = self.count_draws(sequences)
        return {name: float(draws[j] / self._positions[j]) for j, name in enumerate(self.names)}

    def _domains(self, first: int, count: int) -> np.ndarray:
        slots = np.arange(first, first + count, dtype=np.uint64) * GOLDEN + self._offset
        parts = [
            index[np.searchsorted(bounds, slots[start - first : end - first], side="right")]
            for (start, end), (bounds, index) in self._overlaps(first, first + count)
        ]
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def _overlaps(
        self, first: int, end: int
    ) -> Iterator[tuple[tuple[int, int], tuple[np.ndarray, np.ndarray]]]:
        """Yields the stages of some sequences: first and last one in it, its parts of [0, 1)."""
        for (start, stop), parts in zip(
            pairwise([*self._starts, max(end, self._starts[-1])]), self._parts, strict=True
        ):
            if max(start, first) < min(stop, end):
                yield (max(start, first), min(stop, end)), parts

    def _permuted(self, domain: int, draws: np.ndarray) -> np.ndarray:
        """Returns the positions of a domain's draws: each epoch in an order of its own."""
        size = self._positions[domain]
        places = np.empty_like(draws)
        for epoch in np.unique(draws // size).tolist():
            mine = draws // size == epoch
            places[mine] = permute(
                draws[mine] - epoch * size,
                size=size,
                key=_key(self._seed, "order", self.names[domain], epoch),
            )
        return places


def _used_names(mixtures: Sequence[Mixture]) -> tuple[str, ...]:
    return tuple(sorted({name for m in mixtures for name, share in m.items() if share > 0}))


def _domain_parts(mixture: Mixture, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns where in [0, 1) the part of each domain but the last ends, and which domains.

    The ends are in units of 2^-64; domains of share 0 have no part.
    """
    used = [name for name in names if mixture.get(name, 0.0) > 0]
    shares = [mixture[name] for name in used]
    ends = [math.fsum(shares[: j + 1]) for j in range(len(shares) - 1)]
    bounds = np.array([min(int(end * 2**64), 2**64 - 1) for end in ends], dtype=np.uint64)
    return bounds, np.array([names.index(name) for name in used], dtype=np.int64)


def permute(index: np.ndarray, *, size: int, key: int) -> np.ndarray:
    """Returns where a keyed permutation of 0, ..., size - 1 sends each index.

    Four Feistel rounds permute the smallest 4^h that holds `size`; what falls outside goes round
    again (cycle walking), which takes less than four turns on average. No table, whatever the size.
    """
    half_bits = np.uint64(max(1, math.ceil(math.log2(max(2, size)) / 2)))
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    round_keys = _mix(np.arange(1, 5, dtype=np.uint64) * GOLDEN + np.uint64(key))
    values = index.astype(np.uint64)
    outside = np.ones(len(values), dtype=bool)
    while outside.any():
        moved = values[outside]
        left, right = moved >> half_bits, moved & mask
        for round_key in round_keys:
            left, right = right, left ^ (_mix(right + round_key) & mask)
        values[outside] = (left << half_bits) | right
        outside = values >= size
    return values.astype(np.int64)


class TrainingBatches:
    """The batches of a run.

    Args:
        corpus: Where the tokens are.
        mixture: Token shares of its training domains, in the first stage.
        seed: Decides the order of the data.
        batch_size: Sequences per batch, B.
        sequence_length: Tokens per sequence, T.
        later_stages: The later stages.
        token_limits: How many tokens from the beginning of a domain's text may be used; all of
            them where a domain is not named.

    Raises:
        RunError: The mixture has a domain that the corpus can't train on.
        CorpusError: A domain's text is shorter than one sequence.
    """

    def __init__(
        self,
        corpus: Corpus,
        mixture: Mixture,
        *,
        seed: int,
        batch_size: int,
        sequence_length: int,
        later_stages: Sequence[Stage] = (),
        token_limits: Mapping[str, int] | None = None,
    ) -> None:
        self.batch_size = batch_size
        self._length = sequence_length
        limits = token_limits or {}
        used = _used_names([mixture, *(stage.mixture for stage in later_stages)])
        texts = {name: _text(corpus, name)[: limits.get(name)] for name in used}
        positions = {
            name: count_positions(len(text), sequence_length) for name, text in texts.items()
        }
        for name, count in positions.items():
            _check_length(count, len(texts[name]), sequence_length, f"training text of {name!r}")
        later = [(stage.from_step * batch_size, stage.mixture) for stage in later_stages]
        self.order = SequenceOrder(mixture, positions, seed, later=later)
        self._texts = [texts[name] for name in self.order.names]
        self._chunk_steps = max(1, 4096 // batch_size)
        self._chunk: tuple[int, np.ndarray, np.ndarray] | None = None

    def batch(self, step: int) -> np.ndarray:
        """Returns the sequences of the step after `step` steps, B x (T + 1) tokens.

        Tokens 0, ..., T - 1 of a sequence are the input, 1, ..., T the labels.
        """
        number = step // self._chunk_steps
        if self._chunk is None or self._chunk[0] != number:
            count = self._chunk_steps * self.batch_size
            self._chunk = (number, *self.order.place(number * count, count))
        _, domains, places = self._chunk
        row = step % self._chunk_steps * self.batch_size
        tokens = np.empty((self.batch_size, self._length + 1), dtype=np.int64)
        for b in range(self.batch_size):
            start = places[row + b] * self._length
            tokens[b] = self._texts[domains[row + b]][start : start + self._length + 1]
        return tokens


def _text(corpus: Corpus, name: str) -> np.ndarray:
    if name not in corpus.training_names:
        raise RunError(
            f"a mixture must be of domains with training text, but {name!r} has none",
            where=f"the corpus in {corpus.path}",
            do=f"its training domains are {', '.join(corpus.training_names)}",
        )
    return np.asarray(corpus.tokens(name, "train"))  # slices of a plain array are quicker


def _check_length(positions: int, tokens: int, sequence_length: int, what: str) -> None:
    if positions < 1:
        raise CorpusError(
            f"the {what} must hold at least {sequence_length + 1} tokens, one sequence and the"
            f" token after it, found {tokens}",
            do="add more text to this domain, or leave it out",
        )


def _key(seed: int, *parts: object) -> int:
    """Returns a 64-bit key of a seed and whatever it shall be used for."""
    text = repr((seed, *parts)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little")


def _mix(values: np.ndarray) -> np.ndarray:
    """Returns 64-bit numbers with every bit depending on every bit.

    References:
        Steele, Lea and Flood 2014, the finaliser of SplitMix64 (variant 13 of Stafford).
    """
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
