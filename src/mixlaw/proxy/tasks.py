"""A small task that needs no download: choose the true text among versions with words swapped.

An item is about 112 bytes of a target's validation text, with some of the text before it, and three
versions of it: with two neighbouring words swapped, with two others swapped, and with both. The
model chooses the version with the least summed loss. One that knows nothing likes each swap or not
with even chances, so it is wrong three times in four. (Among three single swaps it would be wrong
seven times in eight, as untrained proxies were: the true text lies between all of them.) Items
depend on the text and a seed alone, so all models answer the same ones.

Shape letters: Q items, C versions of each, the true one first, T tokens.
"""

import math
import re
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

import numpy as np

from mixlaw.corpora import Corpus
from mixlaw.corpora.tokenizers import Tokenizer, token_dtype
from mixlaw.errors import CorpusError
from mixlaw.proxy.data import count_positions, permute, validation_bytes_per_token

TASK_PREFIX = "task:"
"""Names of task targets are this and the name of the target whose text they are made of."""
VERSIONS = 4
SPAN_BYTES = 112
"""Text of an item. Choosing 48 true bytes among others told models apart less (docs/log.md)."""
SPAN_SHARE = 7 / 8
"""Of a sequence, at most: the rest is text before it, which all versions share."""
_WORD = re.compile(r"\S+")
_Pair = tuple[tuple[int, int], tuple[int, int]]
"""Where in a text two neighbouring words begin and end."""
_CUT_CHARACTER = "\N{REPLACEMENT CHARACTER}"
_KEY = 0x7461736B
"""Tells the order of spans from orders of training text."""


def task_target(name: str) -> str:
    """Returns the name of the target that is the task's error on a domain's text."""
    return TASK_PREFIX + name


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SwapTask:
    """The items of one target."""

    tokens: np.ndarray
    """(Q C) x (T + 1) tokens: the versions of the first item, the true one first, of the second
    item, and so on. After a version's end comes token 0."""
    scored: np.ndarray
    """(Q C) x T, whether the loss of the token after each counts: those of the span do."""

    @property
    def items(self) -> int:
        """How many there are."""
        return len(self.tokens) // VERSIONS

    def error(self, losses: np.ndarray) -> tuple[float, float]:
        """Returns the share of items in which a swapped version is chosen, and its standard error.

        The standard error is binomial, of a share moved towards a half by one item each way: a
        model that makes no mistake on 400 items may make one on the next.

        Args:
            losses: (Q C) x T losses of a model, in nats.
        """
        summed_QC = np.where(self.scored, losses, 0.0).sum(1, dtype=np.float64)
        summed_QC = summed_QC.reshape(-1, VERSIONS)
        wrong = int(np.count_nonzero(summed_QC[:, 1:].min(1) <= summed_QC[:, 0]))
        smoothed = (wrong + 1) / (self.items + 2)
        return wrong / self.items, math.sqrt(smoothed * (1 - smoothed) / self.items)


def make_swap_task(
    corpus: Corpus, name: str, *, sequence_length: int, items: int, seed: int = 0
) -> SwapTask:
    """Returns the task on a target's validation text: at most `items`, as many as there are.

    Args:
        corpus: Where the text is.
        name: The target.
        sequence_length: Tokens per sequence of the models, T.
        items: How many spans.
        seed: Decides which spans, and which words are swapped.

    Raises:
        CorpusError: No span has words that can be swapped.
        MissingExtraError: Tokens are those of a BPE, and the `train` extra is not installed.
    """
    tokens = corpus.tokens(name, "validation")
    tokenizer = corpus.open_tokenizer()
    dtype = token_dtype(corpus.vocab_size)
    length = sequence_length + 1
    bytes_per_token = validation_bytes_per_token(corpus, name)
    span = min(round(SPAN_BYTES / bytes_per_token), int(SPAN_SHARE * sequence_length))
    context = min(length - span, max(1, sequence_length // 8 + 1))
    count = count_positions(len(tokens), sequence_length)
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed % 2**64, _KEY])))
    order = permute(np.arange(count), size=count, key=(seed + _KEY) % 2**64) if count else ()
    rows: list[np.ndarray] = []
    for place in order:
        start = int(place) * sequence_length
        window = np.asarray(tokens[start + context : start + context + span])
        versions = _encode_versions(window, tokenizer, rng, dtype)
        if versions is not None and max(map(len, versions)) <= length - context:
            before = np.asarray(tokens[start : start + context])
            rows += [np.concatenate([before, version]) for version in versions]
        if len(rows) == items * VERSIONS:
            break
    if not rows:
        raise CorpusError(
            f"the validation text of {name!r} must have spans of {span} tokens with neighbouring"
            " words to swap, found none",
            where=f"the corpus in {corpus.path}",
            do="measure no tasks ([proxies] tasks = false), or give it more text with spaces",
        )
    return _pad(rows, context=context, length=length)


def _encode_versions(
    window: np.ndarray, tokenizer: Tokenizer, rng: np.random.Generator, dtype: np.dtype[Any]
) -> list[np.ndarray] | None:
    """Returns the tokens of a span and of its versions; None: it can't be one of an item.

    The true text is encoded anew as well, so that nothing but the order of words tells it apart.
    """
    text = tokenizer.decode(window)
    pairs = _pairs_to_swap(text)
    if _CUT_CHARACTER in text or not pairs:
        return None
    early, late = pairs[int(rng.integers(len(pairs)))]
    texts = [text, _swap(text, early), _swap(text, late), _swap(_swap(text, late), early)]
    return [np.frombuffer(encoded, dtype=dtype) for encoded in tokenizer.encode(texts)]


def _pairs_to_swap(text: str) -> list[tuple[_Pair, _Pair]]:
    """Returns all choices of two pairs of different neighbouring words without a word in common.

    Words at the edges of the text may be cut, so they stay.
    """
    words = [m.span() for m in _WORD.finditer(text) if m.start() > 0 and m.end() < len(text)]
    pairs = [(p, q) for p, q in pairwise(words) if text[slice(*p)] != text[slice(*q)]]
    return [(one, other) for one, other in combinations(pairs, 2) if one[1] < other[0]]


def _swap(text: str, pair: _Pair) -> str:
    """Returns a text with two words swapped, and what is between them kept."""
    (a, b), (c, d) = pair
    return text[:a] + text[c:d] + text[b:c] + text[a:b] + text[d:]


def _pad(rows: list[np.ndarray], *, context: int, length: int) -> SwapTask:
    tokens = np.zeros((len(rows), length), dtype=np.int64)
    scored = np.zeros((len(rows), length - 1), dtype=bool)
    for row, values in enumerate(rows):
        tokens[row, : len(values)] = values
        scored[row, context - 1 : len(values) - 1] = True
    return SwapTask(tokens=tokens, scored=scored)
