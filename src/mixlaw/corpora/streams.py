"""Bytes of plain, gzip and zstd files, read in order, with errors for damaged ones."""

import gzip
import io
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mixlaw.errors import CorpusError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

COMPRESSED_SUFFIXES = (".gz", ".zst")

# A compressed chunk is small since it may hold thousands of times its size.
_CHUNK_BYTES = 1 << 14


class ByteCounter:
    """How many bytes have been read from disk so far, over all files."""

    def __init__(self) -> None:
        self.bytes_read = 0


@contextmanager
def open_bytes(path: Path, counter: ByteCounter) -> Generator[io.BufferedIOBase]:
    """Opens a file for reading, decompressed where its name ends in .gz or .zst.

    Raises:
        CorpusError: It can't be read, is cut off, or is not compressed as its name says.
    """
    kind = path.suffix.lower()
    try:
        with io.BufferedReader(_CountedFile(path, counter)) as file:
            if kind == ".gz":
                with gzip.GzipFile(fileobj=file) as stream:
                    yield stream
            elif kind == ".zst":
                with io.BufferedReader(_ZstdFile(file)) as stream:
                    yield stream
            else:
                yield file
    except EOFError:
        raise CorpusError(
            f"{path} must be a whole {kind} file, but it ends in the middle",
            do="copy or download it again",
        ) from None
    except (gzip.BadGzipFile, zlib.error, _DamagedZstdError) as error:
        raise CorpusError(
            f"{path} must be a {kind} file, but it can't be decompressed ({error})",
            do="copy or download it again, or name it after what it holds",
        ) from None
    except OSError as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: OSError) -> CorpusError:
    """Returns the error for a file or folder that the operating system does not let us read."""
    return CorpusError(
        f"{path} must be readable, but: {error.strerror or error}",
        do="check the path and its permissions",
    )


def unwritable(path: Path, error: OSError) -> CorpusError:
    """Returns the error for a folder that can't be written, or whose disk is full."""
    return CorpusError(
        f"{path} must be writable, but: {error.strerror or error}",
        do="free space, check its permissions, or choose another folder",
    )


class _CountedFile(io.FileIO):
    """A file that counts what is read from it."""

    def __init__(self, path: Path, counter: ByteCounter) -> None:
        super().__init__(path)
        self._counter = counter

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        count = super().readinto(buffer) or 0
        self._counter.bytes_read += count
        return count


class _DamagedZstdError(Exception):
    """What zstandard says of a damaged file; it is imported only where it is needed."""


class _ZstdFile(io.RawIOBase):
    """Decompresses zstd frames; the library's own reader takes a file that is cut off for whole."""

    def __init__(self, file: io.BufferedIOBase) -> None:
        import zstandard

        self._file = file
        self._error = zstandard.ZstdError
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=2**31)
        self._frame = None
        self._compressed = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        while not self._ready:
            compressed = self._compressed or self._file.read(_CHUNK_BYTES)
            if not compressed:
                if self._frame is not None:
                    raise EOFError
                return 0
            self._decompress(compressed)
        target = memoryview(buffer)
        count = min(len(target), len(self._ready))
        target[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _decompress(self, compressed: bytes) -> None:
        if self._frame is None:
            self._frame = self._decompressor.decompressobj()
        try:
            self._ready = memoryview(self._frame.decompress(compressed))
        except self._error as error:
            raise _DamagedZstdError(str(error)) from None
        self._compressed = self._frame.unused_data
        if self._frame.eof:
            self._frame = None
