"""Bytes and BPE: ids, file types, round trips, and one tokenizer per corpus."""

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixlaw.corpora import Corpus, add_domain
from mixlaw.corpora.tokenizers import ByteTokenizer, load_tokenizer, make_tokenizer, train_bpe
from mixlaw.errors import CorpusError, MissingExtraError


def make_texts(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefgé", k=rng.randrange(2, 9))) for _ in range(200)]
    return [f"{i} " + " ".join(rng.choices(words, k=50)) for i in range(count)]


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@settings(deadline=None)
@given(st.text())
def test_bytes_come_back_as_text(text: str) -> None:
    (tokens,) = ByteTokenizer().encode([text])
    assert ByteTokenizer().decode(np.frombuffer(tokens, dtype=np.uint8)) == text


@pytest.mark.train
def test_bpe_comes_back_as_text_and_is_the_same_twice() -> None:
    pytest.importorskip("tokenizers")
    texts = make_texts(200)
    tokenizer = train_bpe(texts, vocab_size=600)
    assert tokenizer.vocab_size == 600
    assert train_bpe(texts, vocab_size=600).tokenizer_id == tokenizer.tokenizer_id
    for text in [*texts, "never seen: 🙂 \x00 <|endoftext|> ٣", ""]:
        (tokens,) = tokenizer.encode([text])
        assert tokenizer.decode(np.frombuffer(tokens, dtype="<u2")) == text
    assert len(tokenizer.encode([texts[0]])[0]) < len(texts[0].encode())


@pytest.mark.train
def test_a_corpus_of_bpe_tokens_has_its_tokenizer_and_bytes_per_token(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    root, texts = tmp_path / "corpus", make_texts(300)
    path = write_jsonl(tmp_path / "a.jsonl", texts)
    domain = add_domain(root, "web", path, tokenizer="bpe:600")
    corpus = Corpus.open(root)
    tokens = corpus.tokens("web", "train")
    assert tokens.dtype == np.uint16
    assert len(tokens) == domain.train_tokens < domain.train_bytes
    assert corpus.as_domains()[0].bytes_per_token == pytest.approx(
        (domain.train_bytes + domain.validation_bytes)
        / (domain.train_tokens + domain.validation_tokens)
    )
    text = corpus.open_tokenizer().decode(tokens)
    assert len(text.encode()) == domain.train_bytes
    assert set(text.removesuffix("\n\n").split("\n\n")) <= set(texts)


@pytest.mark.train
def test_the_next_domain_takes_the_tokenizer_of_the_corpus(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    root = tmp_path / "corpus"
    path = write_jsonl(tmp_path / "a.jsonl", make_texts(300))
    add_domain(root, "a", path, tokenizer="bpe:600")
    tokenizer = Corpus.open(root).tokenizer
    other = write_jsonl(tmp_path / "b.jsonl", make_texts(300, seed=1))
    for name, spec in (("b", None), ("c", "bpe:600"), ("d", tokenizer)):
        add_domain(root, name, other, tokenizer=spec)
    add_domain(root, "e", other, tokenizer=str(root / "tokenizer.json"))
    assert Corpus.open(root).tokenizer == tokenizer
    with pytest.raises(CorpusError) as error:
        add_domain(root, "f", other, tokenizer="bytes")
    assert str(error.value) == (
        f"a corpus has one tokenizer, and that of {root} is 'bpe:600', found 'bytes'\n"
        "  do: leave `--tokenizer` out, or build another corpus"
    )


@pytest.mark.train
def test_a_given_tokenizer_is_taken_without_its_truncation(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    given_one = tokenizers.Tokenizer.from_str(
        train_bpe(make_texts(50), vocab_size=300).file_content
    )
    given_one.add_special_tokens(["<|endoftext|>"])
    given_one.enable_truncation(5)
    given_one.enable_padding(length=5)
    given_one.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    assert loaded.vocab_size == 301
    text = "a longer text <|endoftext|> that spells a special token"
    ids = np.frombuffer(loaded.encode([text])[0], dtype="<u2")
    assert len(ids) > 5
    assert 300 not in ids
    assert loaded.decode(ids) == text

    root = tmp_path / "corpus"
    path = write_jsonl(tmp_path / "a.jsonl", make_texts(300))
    add_domain(root, "web", path, tokenizer=str(tmp_path / "tokenizer.json"))
    corpus = Corpus.open(root)
    assert corpus.tokenizer == corpus.tokenizer_spec == loaded.tokenizer_id
    assert corpus.open_tokenizer().tokenizer_id == loaded.tokenizer_id
    assert str(tmp_path) not in (root / "manifest.json").read_text()


def test_a_byte_corpus_refuses_another_tokenizer(tmp_path: Path) -> None:
    root = tmp_path / "corpus"
    path = write_jsonl(tmp_path / "a.jsonl", make_texts(300))
    add_domain(root, "a", path)
    with pytest.raises(CorpusError) as error:
        add_domain(root, "b", path, tokenizer="bpe:600")
    assert str(error.value) == (
        f"a corpus has one tokenizer, and that of {root} is 'bytes', found 'bpe:600'\n"
        "  do: leave `--tokenizer` out, or build another corpus"
    )


def no_tokenizer(path: Path) -> str:
    return (
        f"{path} must be a `tokenizer.json` of Hugging Face's tokenizers, but it is none\n"
        "  do: give the file of a trained tokenizer, or `bpe:4096` to train one on the text"
    )


@pytest.mark.train
@pytest.mark.parametrize("content", [b"", b"text", b"[]", b'{"model": 3}', b"\xff\xfe", b"{}"])
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path, content: bytes) -> None:
    pytest.importorskip("tokenizers")
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(CorpusError) as error:
        make_tokenizer(str(path), [])
    assert str(error.value) == no_tokenizer(path)


@pytest.mark.train
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda _: make_tokenizer("bpe:256", []),
            (
                "a BPE must have 257 to 65,536 tokens, found 256\n"
                "  do: give a size in that range, such as `bpe:4096`"
            ),
        ),
        (
            lambda _: make_tokenizer("bpe:100000", []),
            (
                "a BPE must have 257 to 65,536 tokens, found 100,000\n"
                "  do: give a size in that range, such as `bpe:4096`"
            ),
        ),
        (
            lambda _: make_tokenizer("gpt2", []),
            (
                "a tokenizer must be `bytes`, `bpe:SIZE` or the path of a tokenizer.json, found 'gpt2'\n"
                "  do: give one of these, such as `bpe:4096`"
            ),
        ),
        (
            lambda folder: make_tokenizer(str(folder / "no.json"), []),
            (
                "FOLDER/no.json must be readable, but: No such file or directory\n"
                "  do: check the path and its permissions"
            ),
        ),
    ],
)
def test_a_tokenizer_that_can_not_be_is_refused(
    tmp_path: Path, make: Callable[[Path], object], message: str
) -> None:
    pytest.importorskip("tokenizers")
    with pytest.raises(CorpusError) as error:
        make(tmp_path)
    assert str(error.value) == message.replace("FOLDER", str(tmp_path))


@pytest.mark.train
def test_a_vocabulary_that_two_bytes_can_not_hold_is_refused(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {f"t{i}": i for i in range(70_000)}
    path = tmp_path / "tokenizer.json"
    tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="t0")).save(str(path))
    with pytest.raises(CorpusError) as error:
        load_tokenizer(path)
    assert str(error.value) == (
        f"a tokenizer must have at most 65,536 tokens, found 70,000, in {path}\n"
        "  do: take a smaller one: proxies spend their parameters better than on a vocabulary"
    )


def test_a_missing_extra_names_the_install_line() -> None:
    program = (
        "import sys; sys.modules['tokenizers'] = None\n"
        "from mixlaw.corpora.tokenizers import train_bpe\n"
        "from mixlaw.errors import MissingExtraError\n"
        "try: train_bpe([], vocab_size=300)\n"
        "except MissingExtraError as error: print(error)"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout == f"{MissingExtraError.of('tokenizers', 'train')}\n"
    assert "pip install 'mixlaw[train]'" in done.stdout
