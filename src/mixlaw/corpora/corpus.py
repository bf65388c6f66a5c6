"""A corpus: a folder of domains, each with token files, and a manifest that says what they are.

manifest.json
tokenizer.json               unless tokens are bytes
<folder of a domain>/
train.bin                token ids, one or two bytes each, little-endian, nothing else
validation.bin
train.documents          sorted 64-bit hashes of the documents, so that no document of one
validation.documents     domain's validation ends up in another's training text
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_origin

import numpy as np

from mixlaw.corpora.tokenizers import (
    BYTES,
    ByteTokenizer,
    Tokenizer,
    load_tokenizer,
    token_dtype,
)
from mixlaw.domains import Domain
from mixlaw.errors import CorpusError

FORMAT = "mixlaw-corpus/1"
MANIFEST = "manifest.json"
TOKENIZER_FILE = "tokenizer.json"
FOLDER_PATTERN = re.compile(r"[0-9a-f]{16}-[0-9a-f]{8}")
"""Folders of domains: hash of the name, hash of the content."""

Split = Literal["train", "validation"]
SPLITS: tuple[Split, Split] = ("train", "validation")

_REBUILD = "add the domain again with `--replace`"


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusDomain:
    """One domain's token files, counted."""

    name: str
    """As the user gave it."""
    folder: str
    """Folder inside the corpus, named by hashes of the name and of the content."""
    train_tokens: int
    validation_tokens: int
    train_bytes: int
    """Bytes of UTF-8 behind the training tokens, separators included."""
    validation_bytes: int
    train_documents: int
    validation_documents: int
    train_sha256: str
    """Of the token file."""
    validation_sha256: str
    dropped_documents: int
    """Left out: empty, twice in validation, or on the other side in this or another domain."""
    licence: str | None = None
    """Licence of the text; None: not known."""
    source: str | None = None
    """Title, authors and origin, as the licence wants them attributed; None: not known."""
    notes: tuple[str, ...] = ()
    """What was altered or left out when the text was read."""

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text per token, over all of the domain's text."""
        return (self.train_bytes + self.validation_bytes) / (
            self.train_tokens + self.validation_tokens
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """Token files of several domains, with one tokenizer."""

    path: Path
    tokenizer: str
    """Identity of the tokenizer: `bytes`, or `bpe-` and a hash of its file."""
    vocab_size: int
    domains: tuple[CorpusDomain, ...]
    """In the order in which they were added."""
    tokenizer_spec: str = BYTES
    """How the tokenizer was asked for, such as `bpe:4096`."""
    recipe: str | None = None
    """Recipe and version that made the whole corpus, such as `demo/1`; None: added one by one."""

    @classmethod
    def open(cls, path: str | Path) -> "Corpus":
        """Returns the corpus in a folder; checks the manifest and the sizes of the token files.

        Raises:
            CorpusError: There is none, or its manifest or a token file is damaged.
        """
        path = Path(path)
        corpus = read_manifest(path)
        if corpus is None:
            raise CorpusError(
                f"{path} must be a corpus, but it has no {MANIFEST}",
                do="add text with `mixlaw domains add NAME PATH...`",
            )
        for domain in corpus.domains:
            for split in SPLITS:
                corpus._check_size(domain, split)
        return corpus

    @property
    def hash(self) -> str:
        """A hash of tokens and names: the same for the same text, wherever and whenever built."""
        content = [
            self.tokenizer,
            self.vocab_size,
            sorted((d.name, d.train_sha256, d.validation_sha256) for d in self.domains),
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    @property
    def training_names(self) -> tuple[str, ...]:
        """Domains with training tokens, sorted."""
        return tuple(sorted(d.name for d in self.domains if d.train_tokens))

    @property
    def target_names(self) -> tuple[str, ...]:
        """Domains with validation tokens, sorted."""
        return tuple(sorted(d.name for d in self.domains if d.validation_tokens))

    def domain(self, name: str) -> CorpusDomain:
        """Returns a domain by its name.

        Raises:
            CorpusError: There is none of that name.
        """
        for domain in self.domains:
            if domain.name == name:
                return domain
        raise CorpusError(
            f"{name!r} is no domain of the corpus in {self.path}",
            do=f"the domains are {', '.join(sorted(d.name for d in self.domains)) or 'none'}",
        )

    def tokens(self, name: str, split: Split) -> np.memmap[Any, np.dtype[Any]]:
        """Returns a domain's tokens as a read-only map of the file: uint8 or uint16.

        Raises:
            CorpusError: There is no such domain, or it has no such tokens.
        """
        domain = self.domain(name)
        count = _count(domain, split)
        if not count:
            raise CorpusError(
                f"{name!r} has no {split} tokens",
                where=f"the corpus in {self.path}",
                do="take a domain of `Corpus.training_names`" if split == "train" else None,
            )
        path = self._check_size(domain, split)
        return np.memmap(path, dtype=token_dtype(self.vocab_size), mode="r", shape=(count,))

    def open_tokenizer(self) -> Tokenizer:
        """Returns the tokenizer of the corpus.

        Raises:
            CorpusError: Its file is missing or was changed.
            MissingExtraError: It is a BPE and the `train` extra is not installed.
        """
        if self.tokenizer == BYTES:
            return ByteTokenizer()
        tokenizer = load_tokenizer(self.path / TOKENIZER_FILE)
        if tokenizer.tokenizer_id != self.tokenizer:
            raise CorpusError(
                f"{TOKENIZER_FILE} must be {self.tokenizer}, which made the tokens, but it is"
                f" {tokenizer.tokenizer_id}",
                where=f"the corpus in {self.path}",
                do="put the old file back, or build the corpus anew",
            )
        return tokenizer

    def as_domains(self) -> tuple[Domain, ...]:
        """Returns the training domains with what is on hand of each, sorted by name."""
        return tuple(
            Domain(
                name=name,
                available_tokens=self.domain(name).train_tokens,
                documents=self.domain(name).train_documents,
                bytes_per_token=self.domain(name).bytes_per_token,
            )
            for name in self.training_names
        )

    def verify(self) -> None:
        """Reads every token file and compares its hash with the manifest.

        Raises:
            CorpusError: A file was changed since it was written.
        """
        for domain in self.domains:
            for split in SPLITS:
                path = self._check_size(domain, split)
                with path.open("rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
                expected = domain.train_sha256 if split == "train" else domain.validation_sha256
                if found != expected:
                    raise CorpusError(
                        f"the {split} tokens of {domain.name!r} must have the hash"
                        f" {expected[:12]}, but {path} has {found[:12]}",
                        do=_REBUILD,
                    )

    def _check_size(self, domain: CorpusDomain, split: Split) -> Path:
        path = token_path(self.path / domain.folder, split)
        dtype = token_dtype(self.vocab_size)
        expected = _count(domain, split) * dtype.itemsize
        found = path.stat().st_size if path.is_file() else None
        if found != expected:
            raise CorpusError(
                f"the {split} tokens of {domain.name!r} must be {expected} bytes of {dtype.name},"
                f" but {path} " + ("is missing" if found is None else f"has {found}"),
                do=_REBUILD,
            )
        return path


def token_path(folder: Path, split: Split) -> Path:
    """Returns the token file of a split in a domain's folder."""
    return folder / f"{split}.bin"


def hashes_path(folder: Path, split: Split) -> Path:
    """Returns the file of document hashes of a split in a domain's folder."""
    return folder / f"{split}.documents"


def _count(domain: CorpusDomain, split: Split) -> int:
    return domain.train_tokens if split == "train" else domain.validation_tokens


def manifest_text(corpus: Corpus) -> str:
    """Returns what `manifest.json` of a corpus holds."""
    content = {
        "format": FORMAT,
        "tokenizer": corpus.tokenizer,
        "tokenizer_spec": corpus.tokenizer_spec,
        "vocab_size": corpus.vocab_size,
        "dtype": token_dtype(corpus.vocab_size).name,
        "recipe": corpus.recipe,
        "domains": [asdict(domain) for domain in corpus.domains],
    }
    return json.dumps(content, indent=2) + "\n"


def read_manifest(path: Path) -> Corpus | None:
    """Returns the corpus that a folder's manifest describes, or None where there is no manifest.

    Raises:
        CorpusError: The manifest is damaged or of another version.
    """
    file = path / MANIFEST
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _damaged(file, f"it can't be read ({error.strerror})") from None
    except ValueError:
        raise _damaged(file, "it is no JSON") from None
    if not isinstance(content, dict):
        raise _damaged(file, "it is no JSON object")
    found = content.pop("format", None)
    if found != FORMAT:
        raise CorpusError(
            f"the format of a corpus must be {FORMAT!r}, found {found!r}",
            where=str(file),
            do="open it with the version of mixlaw that wrote it, or build it anew",
        )
    dtype = content.pop("dtype", None)
    rows = content.get("domains")
    if not isinstance(rows, list):
        raise _damaged(file, "`domains` is no list")
    content["domains"] = tuple(_parse_domain(row, file) for row in rows)
    content["path"] = path
    _check_fields(Corpus, content, file, "the manifest")
    corpus = Corpus(**content)
    if dtype != token_dtype(corpus.vocab_size).name:
        raise _damaged(file, f"tokens below {corpus.vocab_size} can't be of type {dtype!r}")
    names = [domain.name for domain in corpus.domains]
    if len(set(names)) != len(names):
        raise _damaged(file, "a domain is there twice")
    return corpus


def _parse_domain(row: Any, file: Path) -> CorpusDomain:
    if not isinstance(row, dict):
        raise _damaged(file, "a domain is no JSON object")
    values = dict(row)
    values["notes"] = tuple(values["notes"]) if isinstance(values.get("notes"), list) else None
    _check_fields(CorpusDomain, values, file, f"domain {values.get('name')!r}")
    if not FOLDER_PATTERN.fullmatch(values["folder"]):
        raise _damaged(file, f"{values['folder']!r} is no folder of a domain")
    return CorpusDomain(**values)


def _check_fields(kind: type, values: Mapping[str, Any], file: Path, what: str) -> None:
    """Checks that values have exactly the fields of a dataclass, and their types."""
    wrong = {field.name for field in fields(kind)}.symmetric_difference(values)
    if wrong:
        raise _damaged(file, f"`{min(wrong)}` of {what} is missing or unknown")
    for field in fields(kind):
        value = values[field.name]
        expected: Any = tuple if get_origin(field.type) is tuple else field.type
        is_valid = isinstance(value, expected)
        if expected is int:
            is_valid = is_valid and not isinstance(value, bool) and value >= 0
        if not is_valid:
            raise _damaged(file, f"`{field.name}` of {what} is {value!r}")


def _damaged(file: Path, found: str) -> CorpusError:
    return CorpusError(
        f"{file} must be a manifest that mixlaw wrote, but {found}", do="build the corpus anew"
    )
