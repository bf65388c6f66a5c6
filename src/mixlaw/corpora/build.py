"""Adds domains to a corpus: a domain is there whole or not at all, whenever the process dies."""

import contextlib
import shutil
import tempfile
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import replace as with_fields
from pathlib import Path

from filelock import FileLock, Timeout

from mixlaw.corpora.corpus import (
    FOLDER_PATTERN,
    MANIFEST,
    TOKENIZER_FILE,
    Corpus,
    CorpusDomain,
    manifest_text,
    read_manifest,
)
from mixlaw.corpora.documents import Document, Progress
from mixlaw.corpora.readers import ReadLog, SourceFile, find_files, read_documents
from mixlaw.corpora.streams import unwritable
from mixlaw.corpora.token_files import SplitRule, write_domain
from mixlaw.corpora.tokenizers import BYTES, Tokenizer, make_tokenizer
from mixlaw.domains import Domain
from mixlaw.errors import CorpusError, DomainError
from mixlaw.files import write_atomic

_BUILDING = ".building-"
_REPORT_BYTES = 1 << 18


def add_domain(
    corpus_path: str | Path,
    name: str,
    paths: str | Path | Sequence[str | Path],
    *,
    tokenizer: str | None = None,
    text_field: str = "text",
    licence: str | None = None,
    source: str | None = None,
    validation_share: float = 0.05,
    target_only: bool = False,
    replace: bool = False,
    progress: Progress | None = None,
) -> CorpusDomain:
    """Adds a domain to a corpus, which is created where it is missing, and returns its counts.

    Args:
        corpus_path: Folder of the corpus.
        name: The domain's name, any printable text.
        paths: Text, JSONL or Parquet files, or folders of them; `read_documents` says which is
            which. A text file is one document, cut into several from 40 kB on.
        tokenizer: `bytes`, `bpe:SIZE` (trained on this domain's text) or the path of a
            tokenizer.json. None: that of the corpus, `bytes` where it is new.
        text_field: Field of a JSON line, or column of a Parquet file, that holds the text.
        licence: Licence of the text.
        source: Title, authors and origin, as the licence wants them attributed.
        validation_share: Share of documents that is held out. The hash of a document's text
            decides, so that neither order nor other documents matter.
        target_only: Everything is held out: a target that no mixture trains on.
        replace: The domain may be there already, and is replaced.
        progress: Is told how many bytes have been read.

    Raises:
        CorpusError: The text can't be used, the domain is there, or the tokenizer is another.
        DomainError: The name is no printable text.
        MissingExtraError: A BPE is asked for and the `train` extra is not installed.
    """
    root = Path(corpus_path)
    check_name(name)
    rule = SplitRule(validation_share=validation_share, target_only=target_only)
    given = [paths] if isinstance(paths, str | Path) else paths
    files = find_files([Path(path) for path in given], outside=root)
    with locked(root, progress):
        corpus = read_manifest(root)
        others = () if corpus is None else tuple(d for d in corpus.domains if d.name != name)
        if corpus is not None and len(others) < len(corpus.domains) and not replace:
            raise CorpusError(
                f"the names of domains must differ, but {name!r} is in the corpus in {root}",
                do="choose another name, or pass `--replace` to put this text in its place",
            )
        chosen, spec = _choose_tokenizer(
            corpus,
            tokenizer,
            _read(files, text_field, ReadLog(), "training the tokenizer", progress),
        )
        log = ReadLog()
        texts = _read(files, text_field, log, f"reading {name}", progress)
        with building_folder(root) as folder:
            domain = write_domain(
                folder,
                (Document(text) for text in texts),
                name=name,
                tokenizer=chosen,
                rule=rule,
                others=[root / other.folder for other in others],
            )
            domain = with_fields(
                domain, licence=licence, source=source, notes=log.notes() + domain.notes
            )
            commit(
                Corpus(
                    path=root,
                    tokenizer=chosen.tokenizer_id,
                    vocab_size=chosen.vocab_size,
                    tokenizer_spec=spec,
                    domains=(*others, domain),
                ),
                {domain.folder: folder},
                tokenizer_file=chosen.file_content,
            )
    return domain


def check_name(name: str) -> None:
    """Raises an error for a name that is no printable text; anything else is a name.

    Raises:
        DomainError: The name is empty, or has control characters or half a surrogate pair.
    """
    Domain(name=name)
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise DomainError(
            f"a domain's name must be printable text, found {name!r}",
            do="give it a name in UTF-8",
        ) from None


def _choose_tokenizer(
    corpus: Corpus | None, spec: str | None, texts: Iterable[str]
) -> tuple[Tokenizer, str]:
    """Returns the tokenizer that the corpus has or gets, and how it was asked for."""
    if corpus is None or not corpus.domains:
        new = make_tokenizer(BYTES if spec is None else spec, texts)
        # A path says nothing on another machine; the identity does.
        is_path = spec is not None and spec.endswith(".json")
        return new, new.tokenizer_id if is_path or spec is None else spec
    own = corpus.open_tokenizer()
    is_own = spec in (None, corpus.tokenizer, corpus.tokenizer_spec)
    if not is_own and spec is not None and spec.endswith(".json"):
        is_own = make_tokenizer(spec, ()).tokenizer_id == corpus.tokenizer
    if not is_own:
        raise CorpusError(
            f"a corpus has one tokenizer, and that of {corpus.path} is"
            f" {corpus.tokenizer_spec!r}, found {spec!r}",
            do="leave `--tokenizer` out, or build another corpus",
        )
    return own, corpus.tokenizer_spec


def _read(
    files: Sequence[SourceFile],
    text_field: str,
    log: ReadLog,
    doing: str,
    progress: Progress | None,
) -> Iterator[str]:
    """Yields the documents and tells of the bytes read, a few times per megabyte."""
    total = sum(file.path.stat().st_size for file in files)
    told = -_REPORT_BYTES
    for text in read_documents(files, text_field=text_field, log=log):
        if progress is not None and log.bytes_read - told >= _REPORT_BYTES:
            told = log.bytes_read
            progress(doing, told, total)
        yield text
    if progress is not None:
        progress(doing, total, total)


@contextlib.contextmanager
def locked(root: Path, progress: Progress | None) -> Generator[None]:
    """Makes the folder of a corpus and keeps other writers out of it.

    Raises:
        CorpusError: The folder can't be written.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if progress is not None:
                progress(f"waiting for another process that writes {root}", 0, None)
            lock.acquire()
    except OSError as error:
        raise unwritable(root, error) from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def building_folder(root: Path) -> Generator[Path]:
    """Makes a folder inside the corpus for what is not yet part of it, and removes it afterwards.

    Raises:
        CorpusError: The folder can't be written, or the disk is full.
    """
    folder = None
    try:
        folder = Path(tempfile.mkdtemp(prefix=_BUILDING, dir=root))
        yield folder
    except OSError as error:
        raise unwritable(root, error) from None
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def commit(corpus: Corpus, built: dict[str, Path], *, tokenizer_file: str | None) -> None:
    """Makes built folders part of a corpus; the moment its manifest is replaced is the moment.

    Args:
        corpus: What the corpus is from then on.
        built: For each new folder of a domain, where it was built.
        tokenizer_file: What `tokenizer.json` holds; None: none is needed.
    """
    root = corpus.path
    old = read_manifest(root)
    in_use = set() if old is None else {domain.folder for domain in old.domains}
    for name, folder in built.items():
        folder.chmod(0o755)
        if name in in_use and (root / name).is_dir():
            for file in folder.iterdir():  # the same content, so that each file may change alone
                file.replace(root / name / file.name)
        else:
            shutil.rmtree(root / name, ignore_errors=True)
            folder.rename(root / name)
    if tokenizer_file is not None:
        write_atomic(root / TOKENIZER_FILE, tokenizer_file)
    write_atomic(root / MANIFEST, manifest_text(corpus))
    _remove_leftovers(corpus)


def _remove_leftovers(corpus: Corpus) -> None:
    """Removes replaced domains, and what an attempt that was killed has left."""
    in_use = {domain.folder for domain in corpus.domains}
    for folder in corpus.path.iterdir():
        is_domain = FOLDER_PATTERN.fullmatch(folder.name) and folder.name not in in_use
        if folder.is_dir() and (is_domain or folder.name.startswith(_BUILDING)):
            shutil.rmtree(folder, ignore_errors=True)
