"""Writes one domain's token files: splits, tokenises and counts documents as they stream by.

What is kept in memory is one batch of documents, 8 bytes for every document of the corpus, and 24
for one that is held out.
"""

import hashlib
import math
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from mixlaw.corpora.corpus import CorpusDomain, Split, hashes_path, token_path
from mixlaw.corpora.documents import HASH_RANGE, SEPARATOR, Document, document_hash
from mixlaw.corpora.tokenizers import Tokenizer, token_dtype
from mixlaw.errors import CorpusError

BATCH_CHARACTERS = 1 << 20
"""Documents are tokenised in batches of this many characters, or of one longer document."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitRule:
    """Which documents are held out for validation."""

    validation_share: float = 0.05
    """Share of documents, by their hashes."""
    target_only: bool = False
    """Everything is held out: nothing trains on this domain."""

    def __post_init__(self) -> None:
        if not 0 < self.validation_share < 1:
            raise CorpusError(
                f"the validation share must be above 0 and below 1, found {self.validation_share}",
                do="give a share such as 0.05, or hold everything out with `--target-only`",
            )

    def is_validation(self, document: Document, hash_value: int) -> bool:
        """Whether a document is held out."""
        if self.target_only:
            return True
        if document.is_validation is not None:
            return document.is_validation
        return hash_value < self.validation_share * HASH_RANGE


def write_domain(
    folder: Path,
    documents: Iterable[Document],
    *,
    name: str,
    tokenizer: Tokenizer,
    rule: SplitRule,
    others: Sequence[Path] = (),
) -> CorpusDomain:
    """Writes a domain's token files into an empty folder and returns their counts and hashes.

    A validation document that is there twice, or that occurs in the training text of this domain
    or of others, is left out; so is a training document that others hold out.

    Args:
        folder: An empty folder.
        documents: The documents, read once.
        name: The domain's name.
        tokenizer: The tokenizer of the corpus.
        rule: Which documents are held out.
        others: Folders of the corpus' other domains.

    Raises:
        CorpusError: There is no document with text, or the split leaves one side empty.
    """
    with (
        _TokenWriter(token_path(folder, "train")) as train,
        _TokenWriter(folder / "validation.draft", keeps_sizes=True) as draft,
    ):
        tally = _distribute(
            documents, train, draft, tokenizer, rule, _load_hashes(others, "validation")
        )
    train_hashes = np.unique(train.hashes)
    trained_on = np.concatenate([train_hashes, _load_hashes(others, "train")])
    validation = _without_copies(draft, token_path(folder, "validation"), trained_on)
    tally.dropped = len(draft.hashes) - len(validation.hashes)
    tally.copies = len(train.hashes) - len(train_hashes)
    _check_split(name, train, validation, rule, tally)
    _save_hashes(hashes_path(folder, "train"), train_hashes)
    _save_hashes(hashes_path(folder, "validation"), np.unique(validation.hashes))

    itemsize = token_dtype(tokenizer.vocab_size).itemsize
    return CorpusDomain(
        name=name,
        folder=folder_name(name, train.sha256, validation.sha256),
        train_tokens=train.file_bytes // itemsize,
        validation_tokens=validation.file_bytes // itemsize,
        train_bytes=train.text_bytes,
        validation_bytes=validation.text_bytes,
        train_documents=len(train.hashes),
        validation_documents=len(validation.hashes),
        train_sha256=train.sha256,
        validation_sha256=validation.sha256,
        dropped_documents=tally.empty + tally.held_out + tally.dropped,
        notes=tally.notes(),
    )


@dataclass(slots=True)
class _Tally:
    """What happened to documents that did not simply become tokens."""

    empty: int = 0
    held_out: int = 0
    """By other domains."""
    dropped: int = 0
    """From validation."""
    copies: int = 0
    """In training text."""
    smallest_hash: int = HASH_RANGE

    def notes(self) -> tuple[str, ...]:
        """Returns a phrase for each kind of thing that was left out or is worth knowing."""
        counted = (
            ("empty documents, left out", self.empty),
            ("validation documents, left out as copies", self.dropped),
            ("training documents, left out since another domain holds them out", self.held_out),
            ("training documents that are copies of others, kept", self.copies),
        )
        return tuple(f"{what}: {count}" for what, count in counted if count)


def _distribute(
    documents: Iterable[Document],
    train: "_TokenWriter",
    validation: "_TokenWriter",
    tokenizer: Tokenizer,
    rule: SplitRule,
    held_out_elsewhere: np.ndarray,
) -> _Tally:
    """Writes each document to its side, copies and all."""
    tally = _Tally()
    for batch in _batches(documents):
        hashes = [document_hash(document.text) for document in batch]
        is_elsewhere = _occur(np.array(hashes, dtype=np.uint64), held_out_elsewhere)
        tokens = tokenizer.encode([document.text + SEPARATOR for document in batch])
        for document, hash_value, encoded, elsewhere in zip(
            batch, hashes, tokens, is_elsewhere.tolist(), strict=True
        ):
            if not document.text.strip():
                tally.empty += 1
                continue
            size = len((document.text + SEPARATOR).encode("utf-8"))
            if rule.is_validation(document, hash_value):
                validation.add(encoded, size, hash_value)
            elif elsewhere:
                tally.held_out += 1
            else:
                train.add(encoded, size, hash_value)
            tally.smallest_hash = min(tally.smallest_hash, hash_value)
    return tally


def folder_name(name: str, *content_hashes: str) -> str:
    """Returns the folder of a domain: hashes of its name and of its content, no part of a name."""
    content = hashlib.sha256("".join(content_hashes).encode()).hexdigest()
    return f"{hashlib.sha256(name.encode()).hexdigest()[:16]}-{content[:8]}"


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _occur(hashes: np.ndarray, sorted_hashes: np.ndarray) -> np.ndarray:
    """Returns which hashes occur among sorted ones, in time that hardly grows with their number."""
    if not len(sorted_hashes):
        return np.zeros(len(hashes), dtype=bool)
    nearest = np.searchsorted(sorted_hashes, hashes).clip(max=len(sorted_hashes) - 1)
    return sorted_hashes[nearest] == hashes


def _save_hashes(path: Path, hashes: np.ndarray) -> None:
    path.write_bytes(hashes.astype("<u8").tobytes())


def _load_hashes(folders: Sequence[Path], split: Split) -> np.ndarray:
    """Returns the hashes of the documents of several domains, sorted."""
    found = [np.fromfile(hashes_path(folder, split), dtype="<u8") for folder in folders]
    return np.unique(np.concatenate([np.empty(0, dtype=np.uint64), *found]))


def _check_split(
    name: str,
    train: "_TokenWriter",
    validation: "_TokenWriter",
    rule: SplitRule,
    tally: _Tally,
) -> None:
    """Raises an error where a side is empty, with what the user can do about it."""
    dropped, held_out = tally.dropped, tally.held_out
    count = len(train.hashes) + len(validation.hashes) + dropped + held_out
    side = "training" if len(validation.hashes) else "validation"
    share = f"a share of {rule.validation_share:g}"
    more = "add more text (a text file is cut into documents from 40 kB on)"
    if count == 0:
        found, do = "text, but no document holds any", "check its files"
    elif dropped and not len(validation.hashes):
        found = (
            f"a validation document, but all {dropped} were left out as copies of each other or of"
            " training text"
        )
        do = "give text that no domain trains on"
    elif len(validation.hashes) and (len(train.hashes) or rule.target_only):
        return
    elif count == 1:
        found = "training and validation text, but it has one document, which can't be split"
        do = f"{more}, or hold it out as a whole with `--target-only`"
    elif side == "validation":
        found = f"a validation document, but {share} holds out none of {count}"
        # The smallest share that holds out a document is known; show it with two digits.
        enough = math.ceil(tally.smallest_hash / HASH_RANGE * 100) / 100
        do = more + (f", or give a share of {enough:g}" if enough < 1 else "")
    elif held_out:
        found = f"a training document, but other domains hold out {held_out} of {count}"
        do = "give text that no other domain has, or hold it out as a whole with `--target-only`"
    else:
        found = f"a training document, but {share} holds out all {count}"
        do = f"{more}, or hold it out as a whole with `--target-only`"
    raise CorpusError(f"domain {name!r} must have {found}", do=do)


class _TokenWriter:
    """A token file that grows document by document."""

    def __init__(self, path: Path, *, keeps_sizes: bool = False) -> None:
        self.path = path
        self.file_bytes = 0
        self.text_bytes = 0
        self.sizes: list[array[int]] | None = [array("Q"), array("Q")] if keeps_sizes else None
        """Bytes of tokens and of text of each document."""
        self._hash_values = array("Q")
        self._sha256 = hashlib.sha256()
        self._file = path.open("wb")

    @property
    def hashes(self) -> np.ndarray:
        """Hashes of the documents, in order."""
        return np.frombuffer(self._hash_values, dtype=np.uint64)

    @property
    def sha256(self) -> str:
        """Hash of the file."""
        return self._sha256.hexdigest()

    def add(self, tokens: bytes, text_bytes: int, hash_value: int) -> None:
        """Appends a document."""
        self._file.write(tokens)
        self._sha256.update(tokens)
        self._hash_values.append(hash_value)
        self.file_bytes += len(tokens)
        self.text_bytes += text_bytes
        if self.sizes is not None:
            self.sizes[0].append(len(tokens))
            self.sizes[1].append(text_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        finally:
            self._file.close()


def _without_copies(draft: _TokenWriter, path: Path, train_hashes: np.ndarray) -> _TokenWriter:
    """Returns the validation file less what is there twice or occurs in training text."""
    kept = np.zeros(len(draft.hashes), dtype=bool)
    kept[np.unique(draft.hashes, return_index=True)[1]] = True
    kept &= ~np.isin(draft.hashes, train_hashes)
    assert draft.sizes is not None
    with _TokenWriter(path) as final, draft.path.open("rb") as file:
        for is_kept, hash_value, token_bytes, text_bytes in zip(
            kept.tolist(), draft.hashes.tolist(), *draft.sizes, strict=True
        ):
            tokens = file.read(token_bytes)
            if is_kept:
                final.add(tokens, text_bytes, hash_value)
    draft.path.unlink()
    return final
