"""Documents out of real files: made by gzip, zstandard, json and polars, and damaged by hand."""

import gzip
import io
import json
import random
import sysconfig
from pathlib import Path

import polars as pl
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from mixlaw.corpora.documents import cut_pieces, document_hash
from mixlaw.corpora.readers import ReadLog, find_files, read_documents
from mixlaw.errors import CorpusError


def read(*paths: Path, text_field: str = "text", log: ReadLog | None = None) -> list[str]:
    return list(read_documents(find_files(paths), text_field=text_field, log=log))


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


JSONL = "".join(json.dumps({"id": i, "text": f"document {i} é 🙂\n"}) + "\n" for i in range(50))
DOCUMENTS = [f"document {i} é 🙂\n" for i in range(50)]


def test_a_folder_is_read_in_sorted_order_without_hidden_files(tmp_path: Path) -> None:
    for name in ("b/2.txt", "b/1.md", "a.rst", "c.py", ".hidden", ".git/config", "Z.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        write(path, name)
    assert read(tmp_path) == ["Z.txt", "a.rst", "c.py", "b/1.md", "b/2.txt"]


def test_a_file_that_is_named_twice_is_read_once(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "once")
    assert read(path, tmp_path, path) == ["once"]


def test_the_standard_library_is_a_domain() -> None:
    folder = Path(sysconfig.get_paths()["stdlib"]) / "json"
    texts = read(*sorted(folder.glob("*.py")))
    assert "".join(texts) == "".join(p.read_text("utf-8") for p in sorted(folder.glob("*.py")))


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".JSONL"])
def test_json_lines_are_documents(tmp_path: Path, suffix: str) -> None:
    assert read(write(tmp_path / f"a{suffix}", JSONL)) == DOCUMENTS


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.ndjson.gz", "a.json.gz"])
def test_gzip_is_read_over_all_its_members(tmp_path: Path, name: str) -> None:
    half = len(JSONL.encode()) // 2
    data = gzip.compress(JSONL.encode()[:half]) + gzip.compress(JSONL.encode()[half:])
    assert read(write(tmp_path / name, data)) == DOCUMENTS


@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.json.zst"])
def test_zstd_is_read_over_all_its_frames(tmp_path: Path, name: str) -> None:
    compressor, data = zstandard.ZstdCompressor(), JSONL.encode()
    skippable = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"skip"  # RFC 8878, 3.1.2
    frames = compressor.compress(data[:700]) + skippable + compressor.compress(data[700:])
    assert read(write(tmp_path / name, frames)) == DOCUMENTS


def test_text_may_be_compressed(tmp_path: Path) -> None:
    write(tmp_path / "a.txt.gz", gzip.compress(b"gzip"))
    write(tmp_path / "b.txt.zst", zstandard.ZstdCompressor().compress(b"zstd" * 10))
    assert read(tmp_path) == ["gzip", "zstd" * 10]


def test_parquet_is_read_row_by_row_over_its_row_groups(tmp_path: Path) -> None:
    rng = random.Random(0)
    texts = [f"{i} " + rng.choice("abc") * rng.randrange(3000) for i in range(9_000)]
    pl.DataFrame({"id": range(9_000), "body": texts}).write_parquet(
        tmp_path / "a.parquet", row_group_size=1_000
    )
    log = ReadLog()
    assert read(tmp_path / "a.parquet", text_field="body", log=log) == texts
    size = (tmp_path / "a.parquet").stat().st_size
    assert 0.99 * size < log.bytes_read <= size


@pytest.mark.parametrize("name", ["a[1].parquet", "*.parquet", "$(id) ' \" 🙂.parquet"])
def test_a_path_is_no_pattern(tmp_path: Path, name: str) -> None:
    for path, text in ((tmp_path / "a1.parquet", "other"), (tmp_path / name, "this")):
        pl.DataFrame({"text": [text]}).write_parquet(path)
    assert read(tmp_path / name) == ["this"]


def test_empty_lines_and_a_byte_order_mark_are_no_documents(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"text": "one"}\n\n  \n{"text": "two"}')
    text = write(tmp_path / "b.txt", b"\xef\xbb\xbfthree")
    assert read(path, text) == ["one", "two", "three"]


def test_invalid_characters_are_replaced_and_counted(tmp_path: Path) -> None:
    first = write(tmp_path / "a.txt", b"caf\xe9 \xef\xbf\xbd is one of two")
    second = write(
        tmp_path / "b.jsonl", b'{"text": "ok"}\n{"text": "\\ud83d\\ude42 \\ud800 \xff"}\n'
    )
    log = ReadLog()
    assert read(first, second, log=log) == [
        "caf\ufffd \ufffd is one of two",
        "ok",
        "🙂 \ufffd \ufffd",
    ]
    assert log.notes() == (f"characters that were not UTF-8, replaced: 3, the first in {first}",)


def test_a_file_without_text_is_skipped_in_a_folder_and_noted(tmp_path: Path) -> None:
    write(tmp_path / "a.png", b"\x89PNG\r\n\x1a\n\x00\x00")
    write(tmp_path / "b.txt", "text")
    write(tmp_path / "empty.py", "")
    log = ReadLog()
    assert read(tmp_path, log=log) == ["text"]
    assert log.notes() == (f"files without text, skipped: 1, the first is {tmp_path / 'a.png'}",)


def test_bytes_read_are_those_on_disk(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl.gz", gzip.compress(JSONL.encode()))
    write(tmp_path / "b.jsonl.zst", zstandard.ZstdCompressor().compress(JSONL.encode()))
    write(tmp_path / "c.txt", "x" * 100_000)
    log = ReadLog()
    read(tmp_path, log=log)
    assert log.bytes_read == sum(path.stat().st_size for path in tmp_path.iterdir())


@settings(deadline=None)
@given(st.binary(max_size=400), st.integers(4, 20))
def test_pieces_together_are_the_text(data: bytes, piece_bytes: int) -> None:
    pieces = list(cut_pieces(io.BytesIO(data), piece_bytes))
    assert b"".join(pieces) == data
    assert all(len(piece) < 2 * piece_bytes + 1 for piece in pieces)
    assert all(len(piece) >= piece_bytes - 3 for piece in pieces[:-1])


@settings(deadline=None)
@given(st.text(max_size=300), st.integers(4, 20))
def test_a_cut_never_splits_a_character(text: str, piece_bytes: int) -> None:
    pieces = cut_pieces(io.BytesIO(text.encode()), piece_bytes)
    assert "".join(piece.decode() for piece in pieces) == text


def test_pieces_end_at_lines_where_lines_are_short() -> None:
    text = b"".join(b"line %d of a long text\n" % i for i in range(10_000))
    pieces = list(cut_pieces(io.BytesIO(text)))
    assert len(pieces) == len(text) // 20_000
    assert all(piece.endswith(b"\n") for piece in pieces)


@settings(deadline=None)
@given(st.text(), st.sampled_from([" ", "\n", "\t ", "\r\n"]))
def test_hashes_ignore_case_and_white_space(text: str, space: str) -> None:
    spaced = space + text.upper().lower().replace(" ", space + " ") + space
    assert document_hash(spaced) == document_hash(text.upper().lower())
    assert 0 <= document_hash(text) < 2**64


GZIP, ZSTD = gzip.compress(JSONL.encode()), zstandard.ZstdCompressor().compress(JSONL.encode())
LINE_DO = "  do: correct or remove the line"
FIELD_DO = "  do: correct or remove the line, or name another field with `--text-field`"

MALFORMED: dict[str, tuple[str, bytes, str]] = {
    "broken JSON": (
        "a.jsonl",
        b'{"text": "ok"}\n\n{"text": oops}\n',
        (
            "a line must be a JSON object, but it is no JSON (Expecting value, column 10), in line 3"
            f" of PATH\n{LINE_DO}"
        ),
    ),
    "JSON that is cut off": (
        "a.jsonl",
        b'{"text": "ok"}\n{"text": "cut',
        (
            "a line must be a JSON object, but it is no JSON (Unterminated string starting at, column"
            f" 10), in line 2 of PATH\n{LINE_DO}"
        ),
    ),
    "a list for an object": (
        "a.jsonl",
        b"[1, 2]\n",
        f"a line must be a JSON object, but it is a list, in line 1 of PATH\n{LINE_DO}",
    ),
    "brackets without end": (
        "a.jsonl",
        b"[" * 100_000 + b"\n",
        (
            "a line must be a JSON object, but it is JSON that can't be read (too long a number, or"
            f" nested too deep), in line 1 of PATH\n{LINE_DO}"
        ),
    ),
    "a missing field": (
        "a.jsonl",
        b'{"text": "ok"}\n{"txt": "a", "id": 1}\n',
        (
            "a line must have the field 'text', but it has 'txt', 'id', in line 2 of PATH\n"
            "  do: the nearest is 'txt': pass `--text-field txt` if that is meant"
        ),
    ),
    "an empty object": (
        "a.jsonl",
        b"{}\n",
        (
            "a line must have the field 'text', but it has none, in line 1 of PATH\n"
            "  do: name what holds the text with `--text-field`"
        ),
    ),
    "a number for a text": (
        "a.jsonl",
        b'{"text": 3}\n',
        f"the field 'text' must be a string, but it is a number, in line 1 of PATH\n{FIELD_DO}",
    ),
    "null for a text": (
        "a.jsonl",
        b'{"text": null}\n',
        f"the field 'text' must be a string, but it is null, in line 1 of PATH\n{FIELD_DO}",
    ),
    "gzip that is cut off": (
        "a.jsonl.gz",
        GZIP[:-20],
        "PATH must be a whole .gz file, but it ends in the middle\n  do: copy or download it again",
    ),
    "zstd that is cut off": (
        "a.jsonl.zst",
        ZSTD[:-20],
        (
            "PATH must be a whole .zst file, but it ends in the middle\n"
            "  do: copy or download it again"
        ),
    ),
    "text named gzip": (
        "a.txt.gz",
        b"plain text",
        (
            "PATH must be a .gz file, but it can't be decompressed (Not a gzipped file (b'pl'))\n"
            "  do: copy or download it again, or name it after what it holds"
        ),
    ),
    "text named zstd": (
        "a.txt.zst",
        b"plain text",
        (
            "PATH must be a .zst file, but it can't be decompressed (zstd decompressor error: Unknown"
            " frame descriptor)\n  do: copy or download it again, or name it after what it holds"
        ),
    ),
    "UTF-16": (
        "a.txt",
        "text".encode("utf-16"),
        (
            "PATH must be text in UTF-8, but it holds zero bytes\n"
            "  do: convert it (from UTF-16, for one) or leave it out"
        ),
    ),
    "an empty file": ("a.txt", b"", "PATH must hold text, but it is empty\n  do: leave it out"),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_file_names_the_place_and_the_way_out(tmp_path: Path, kind: str) -> None:
    name, content, message = MALFORMED[kind]
    path = write(tmp_path / name, content)
    with pytest.raises(CorpusError) as error:
        read(path)
    assert str(error.value) == message.replace("PATH", str(path))


def test_damaged_parquet_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", b"PAR1 and then nothing of the kind")
    with pytest.raises(CorpusError) as error:
        read(path)
    assert error.value.problem.startswith(f"{path} must be a Parquet file, but it can't be read (")
    assert error.value.do == "copy or download it again, or name it after what it holds"


@pytest.mark.parametrize(
    ("columns", "text_field", "message"),
    [
        (
            {"texts": ["a"], "id": [1]},
            "text",
            (
                "the table must have the column 'text', but it has 'texts', 'id', in PATH\n"
                "  do: the nearest is 'texts': pass `--text-field texts` if that is meant"
            ),
        ),
        (
            {"article_text": ["a"], "id": [1]},
            "text",
            (
                "the table must have the column 'text', but it has 'article_text', 'id', in PATH\n"
                "  do: the nearest is 'article_text': pass `--text-field article_text` if that is meant"
            ),
        ),
        (
            {"text": [1, 2]},
            "text",
            (
                "the column 'text' must hold text, but it holds Int64, in PATH\n"
                "  do: name the column that holds the text with `--text-field`"
            ),
        ),
        (
            {"text": ["a", None]},
            "text",
            (
                "the column 'text' must hold text, but row 2 holds null, in PATH\n"
                "  do: remove such rows"
            ),
        ),
    ],
)
def test_parquet_without_text_names_the_column(
    tmp_path: Path, columns: dict[str, list[object]], text_field: str, message: str
) -> None:
    path = tmp_path / "a.parquet"
    pl.DataFrame(columns).write_parquet(path)
    with pytest.raises(CorpusError) as error:
        read(path, text_field=text_field)
    assert str(error.value) == message.replace("PATH", str(path))


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixlaw.corpora.readers.MAX_LINE_BYTES", 1 << 20)
    path = write(tmp_path / "a.jsonl", b'{"text": "ok"}\n{"text": "' + b"x" * (1 << 20) + b'"}\n')
    with pytest.raises(CorpusError) as error:
        read(path)
    assert str(error.value) == (
        f"a line of JSON must be shorter than 1 MB, but line 2 is longer, in {path}\n"
        "  do: write one document per line"
    )


def test_paths_without_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder" / ".hidden", "text")
    with pytest.raises(CorpusError) as missing:
        find_files([tmp_path / "nowhere"])
    assert str(missing.value) == (
        f"{tmp_path / 'nowhere'} must be a file or a folder, but it is not there"
    )
    with pytest.raises(CorpusError) as empty:
        find_files([tmp_path / "folder"])
    assert str(empty.value) == (
        f"a folder must hold files to read, but {tmp_path / 'folder'} has none\n"
        "  do: give the folder or the files that hold the text (hidden ones don't count)"
    )
    with pytest.raises(
        CorpusError, match=r"^a domain needs at least one file or folder, found none$"
    ):
        find_files([])
