"""Documents: what is split into train and validation, compared, and separated in a corpus."""

import hashlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass

SEPARATOR = "\n\n"
"""Follows every document in a token file."""

PIECE_BYTES = 20_000
"""A text file of twice this size or more is cut into documents of about this size."""

HASH_RANGE = 2**64
"""Document hashes are whole numbers below this."""

Progress = Callable[[str, float, float | None], None]
"""Is told what goes on, how much is done, and of how much (None: not known)."""


@dataclass(frozen=True, slots=True)
class Document:
    """A text that is either trained on or validated on, never both."""

    text: str
    is_validation: bool | None = None
    """Which side it is on; None: its hash decides."""


def document_hash(text: str) -> int:
    """Returns a 64-bit hash of the text that ignores case and the amount of white space.

    Two documents with one hash count as one, so that copies can't end up on both sides.
    """
    normalized = " ".join(text.lower().split())
    digest = hashlib.blake2b(normalized.encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def cut_pieces(stream: io.BufferedIOBase, piece_bytes: int = PIECE_BYTES) -> Iterator[bytes]:
    """Yields a text in pieces of one to two times `piece_bytes` that together are the text.

    Pieces end at the end of a line; where a line is longer than a piece, at a space; where there
    is none, between two characters of UTF-8. A text of less than two pieces stays whole.
    """
    rest = b""
    while chunk := stream.read(16 * piece_bytes):
        rest += chunk
        start = 0
        while len(rest) - start >= 2 * piece_bytes:
            end = _piece_end(rest, start, piece_bytes)
            yield rest[start:end]
            start = end
        rest = rest[start:]
    if rest:
        yield rest


def _piece_end(data: bytes, start: int, piece_bytes: int) -> int:
    first, last = start + piece_bytes, start + 2 * piece_bytes
    line_end = data.find(b"\n", first - 1, last)
    if line_end >= 0:
        return line_end + 1
    space = data.rfind(b" ", first - 1, last)
    if space >= 0:
        return space + 1
    end = first
    while end > first - 3 and data[end] & 0xC0 == 0x80:  # a continuation byte of UTF-8
        end -= 1
    return end
