"""Tokenizers: bytes, or a BPE of Hugging Face's `tokenizers`; a corpus has one for all domains."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mixlaw.corpora.documents import SEPARATOR
from mixlaw.corpora.streams import unreadable
from mixlaw.errors import CorpusError, MissingExtraError

if TYPE_CHECKING:
    import tokenizers as hf

BYTES = "bytes"
"""Identity of the byte tokenizer, the default."""

MAX_VOCAB_SIZE = 1 << 16
"""Token files have at most two bytes per token."""

MAX_TRAINING_CHARACTERS = 1 << 26
"""A BPE is trained on this much of the text at most, from its beginning."""


class Tokenizer(Protocol):
    """Turns text into the bytes of a token file, and back."""

    @property
    def tokenizer_id(self) -> str:
        """Identity: corpora with one id have the same tokens for the same text."""
        ...

    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""
        ...

    @property
    def file_content(self) -> str | None:
        """What `tokenizer.json` of the corpus must hold; None: no file is needed."""
        ...

    def encode(self, texts: Sequence[str]) -> list[bytes]:
        """Returns the tokens of each text, little-endian, as they stand in a token file."""
        ...

    def decode(self, tokens: np.ndarray) -> str:
        """Returns the text of tokens."""
        ...


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Returns the type of a token file: one byte per token where the vocabulary allows it."""
    return np.dtype(np.uint8) if vocab_size <= 256 else np.dtype("<u2")


@dataclass(frozen=True, slots=True)
class ByteTokenizer:
    """One token per byte of UTF-8."""

    tokenizer_id: str = field(default=BYTES, init=False)
    vocab_size: int = field(default=256, init=False)
    file_content: str | None = field(default=None, init=False)

    def encode(self, texts: Sequence[str]) -> list[bytes]:
        """Returns each text in UTF-8."""
        return [text.encode("utf-8") for text in texts]

    def decode(self, tokens: np.ndarray) -> str:
        """Returns the text of bytes; what a cut leaves of a character becomes U+FFFD."""
        return tokens.astype(np.uint8).tobytes().decode("utf-8", "replace")


class BpeTokenizer:
    """A tokenizer of the `tokenizers` library, as its `tokenizer.json` describes it."""

    def __init__(self, content: str, *, where: str) -> None:
        self._tokenizer = _parse_tokenizer(content, where)
        self.file_content: str | None = content
        self.tokenizer_id = "bpe-" + hashlib.sha256(content.encode("utf-8")).hexdigest()[:12]
        self.vocab_size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())
        if self.vocab_size > MAX_VOCAB_SIZE:
            raise CorpusError(
                f"a tokenizer must have at most {MAX_VOCAB_SIZE:,} tokens, found"
                f" {self.vocab_size:,}",
                where=where,
                do="take a smaller one: proxies spend their parameters better than on a vocabulary",
            )

    def encode(self, texts: Sequence[str]) -> list[bytes]:
        """Returns the tokens of each text as little-endian numbers."""
        dtype = token_dtype(self.vocab_size)
        encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=dtype).tobytes() for encoding in encoded]

    def decode(self, tokens: np.ndarray) -> str:
        """Returns the text of tokens."""
        return self._tokenizer.decode(tokens.tolist(), skip_special_tokens=False)


def _parse_tokenizer(content: str, where: str) -> "hf.Tokenizer":
    library = _import_tokenizers()
    try:
        has_model = "model" in json.loads(content)
    except (ValueError, TypeError):
        has_model = False
    tokenizer = None
    if has_model:
        try:
            tokenizer = library.Tokenizer.from_str(content)
        except Exception:  # noqa: BLE001 - the library raises a bare Exception for a bad model
            tokenizer = None
    if tokenizer is None or not tokenizer.get_vocab_size():
        raise CorpusError(
            f"{where} must be a `tokenizer.json` of Hugging Face's tokenizers, but it is none",
            do="give the file of a trained tokenizer, or `bpe:4096` to train one on the text",
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # a document that spells one is text like any other
    return tokenizer


def _import_tokenizers() -> Any:
    try:
        import tokenizers
    except ModuleNotFoundError:
        raise MissingExtraError.of("tokenizers", "train") from None
    return tokenizers


def load_tokenizer(path: Path) -> BpeTokenizer:
    """Returns the tokenizer of a `tokenizer.json`.

    Raises:
        CorpusError: The file can't be read or is no such tokenizer.
        MissingExtraError: The `train` extra is not installed.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        content = ""
    except OSError as error:
        raise unreadable(path, error) from None
    return BpeTokenizer(content, where=str(path))


def train_bpe(texts: Iterable[str], *, vocab_size: int) -> BpeTokenizer:
    """Returns a byte-level BPE trained on texts, at most the first 64 million characters of them.

    Raises:
        CorpusError: `vocab_size` is not in 257 to 65,536.
        MissingExtraError: The `train` extra is not installed.
    """
    if not 256 < vocab_size <= MAX_VOCAB_SIZE:
        raise CorpusError(
            f"a BPE must have 257 to {MAX_VOCAB_SIZE:,} tokens, found {vocab_size:,}",
            do="give a size in that range, such as `bpe:4096`",
        )
    library = _import_tokenizers()
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_beginning(texts), trainer)
    return BpeTokenizer(tokenizer.to_str(), where="the trained tokenizer")


def _beginning(texts: Iterable[str]) -> Iterator[str]:
    left = MAX_TRAINING_CHARACTERS
    for text in texts:
        yield text[:left] + SEPARATOR
        left -= len(text)
        if left <= 0:
            return


def make_tokenizer(spec: str, texts: Iterable[str]) -> Tokenizer:
    """Returns the tokenizer that `bytes`, `bpe:SIZE` (trained on `texts`) or a file's path names.

    Raises:
        CorpusError: It is none of these, or the file is no tokenizer.
        MissingExtraError: The `train` extra is not installed.
    """
    if spec == BYTES:
        return ByteTokenizer()
    if match := re.fullmatch(r"bpe:(\d{1,9})", spec):
        return train_bpe(texts, vocab_size=int(match[1]))
    if spec.endswith(".json"):
        return load_tokenizer(Path(spec))
    raise CorpusError(
        f"a tokenizer must be `bytes`, `bpe:SIZE` or the path of a tokenizer.json, found {spec!r}",
        do="give one of these, such as `bpe:4096`",
    )
