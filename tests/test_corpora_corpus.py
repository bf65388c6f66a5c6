"""Opening a corpus: what it tells, and every way in which a folder is no corpus."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixlaw.corpora import Corpus, add_domain
from mixlaw.domains import Domain
from mixlaw.errors import CorpusError


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    rng = random.Random(0)
    for name, count in (("web", 200), ("code", 100), ("wiki", 50)):
        for i in range(count):
            path = folder / name / f"{i}.txt"
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"{name} {i} " + "".join(rng.choices("abc ", k=100)))
        add_domain(
            folder / "corpus",
            name,
            folder / name,
            validation_share=0.2,
            target_only=name == "wiki",
            licence="CC0 (https://creativecommons.org/publicdomain/zero/1.0/)",
            source="a seeded generator",
        )
    return folder / "corpus"


@pytest.fixture
def root(built: Path, tmp_path: Path) -> Path:
    return shutil.copytree(built, tmp_path / "corpus")


def edit(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    file = root / "manifest.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_it_tells_what_is_on_hand(root: Path) -> None:
    corpus = Corpus.open(str(root))
    assert corpus.training_names == ("code", "web")
    assert corpus.target_names == ("code", "web", "wiki")
    assert (corpus.tokenizer, corpus.vocab_size) == ("bytes", 256)
    code = corpus.domain("code")
    assert corpus.as_domains()[0] == Domain(
        name="code",
        available_tokens=code.train_tokens,
        documents=code.train_documents,
        bytes_per_token=1.0,
    )
    assert code.train_documents + code.validation_documents == 100
    assert code.licence == "CC0 (https://creativecommons.org/publicdomain/zero/1.0/)"
    assert code.source == "a seeded generator"


def test_tokens_are_a_read_only_map(root: Path) -> None:
    tokens = Corpus.open(root).tokens("web", "train")
    assert isinstance(tokens, np.memmap)
    assert tokens.dtype == np.uint8
    assert tokens.tobytes().startswith(b"web ")
    with pytest.raises(ValueError, match="read-only"):
        tokens[0] = 0


def test_hash_is_of_content_and_not_of_place_or_order(root: Path, tmp_path: Path) -> None:
    first = Corpus.open(root).hash
    edit(root, lambda content: content["domains"].reverse())
    edit(root, lambda content: content["domains"][0].update(licence=None, source="elsewhere"))
    assert Corpus.open(shutil.copytree(root, tmp_path / "moved")).hash == first
    edit(root, lambda content: content["domains"][0].update(train_sha256="0"))
    assert Corpus.open(root).hash != first


def test_manifest_is_the_same_twice(root: Path, tmp_path: Path) -> None:
    edit(root, lambda _: None)
    corpus = Corpus.open(root)
    assert corpus == Corpus.open(root)
    assert len(corpus.hash) == 16


def test_verify_finds_a_changed_byte(root: Path) -> None:
    corpus = Corpus.open(root)
    corpus.verify()
    path = root / corpus.domain("web").folder / "validation.bin"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorpusError) as error:
        Corpus.open(root).verify()
    assert error.value.problem.startswith(
        "the validation tokens of 'web' must have the hash "
        f"{corpus.domain('web').validation_sha256[:12]}, but {path} has "
    )
    assert error.value.do == "add the domain again with `--replace`"


def test_questions_without_an_answer_name_what_there_is(root: Path) -> None:
    corpus = Corpus.open(root)
    with pytest.raises(CorpusError) as unknown:
        corpus.domain("wbe")
    assert str(unknown.value) == (
        f"'wbe' is no domain of the corpus in {root}\n  do: the domains are code, web, wiki"
    )
    with pytest.raises(CorpusError) as none:
        corpus.tokens("wiki", "train")
    assert str(none.value) == (
        f"'wiki' has no train tokens, in the corpus in {root}\n"
        "  do: take a domain of `Corpus.training_names`"
    )


MANIFEST = "ROOT/manifest.json must be a manifest that mixlaw wrote, but"
ANEW = "\n  do: build the corpus anew"
REPLACE = "\n  do: add the domain again with `--replace`"


MANIFESTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another version": (
        lambda c: c.update(format="mixlaw-corpus/2"),
        (
            "the format of a corpus must be 'mixlaw-corpus/1', found 'mixlaw-corpus/2', in"
            " ROOT/manifest.json\n  do: open it with the version of mixlaw that wrote it, or build it"
            " anew"
        ),
    ),
    "no format": (
        lambda c: c.pop("format"),
        (
            "the format of a corpus must be 'mixlaw-corpus/1', found None, in ROOT/manifest.json\n"
            "  do: open it with the version of mixlaw that wrote it, or build it anew"
        ),
    ),
    "no domains": (lambda c: c.pop("domains"), f"{MANIFEST} `domains` is no list{ANEW}"),
    "a domain that is no object": (
        lambda c: c["domains"].append(3),
        f"{MANIFEST} a domain is no JSON object{ANEW}",
    ),
    "a field that is missing": (
        lambda c: c["domains"][0].pop("train_sha256"),
        f"{MANIFEST} `train_sha256` of domain 'web' is missing or unknown{ANEW}",
    ),
    "a field that is unknown": (
        lambda c: c.update(colour="red"),
        f"{MANIFEST} `colour` of the manifest is missing or unknown{ANEW}",
    ),
    "a negative count": (
        lambda c: c["domains"][0].update(train_tokens=-1),
        f"{MANIFEST} `train_tokens` of domain 'web' is -1{ANEW}",
    ),
    "a count that is text": (
        lambda c: c["domains"][0].update(train_documents="many"),
        f"{MANIFEST} `train_documents` of domain 'web' is 'many'{ANEW}",
    ),
    "a count that is a truth value": (
        lambda c: c["domains"][0].update(train_documents=True),
        f"{MANIFEST} `train_documents` of domain 'web' is True{ANEW}",
    ),
    "a folder outside": (
        lambda c: c["domains"][0].update(folder="../../etc"),
        f"{MANIFEST} '../../etc' is no folder of a domain{ANEW}",
    ),
    "a domain twice": (
        lambda c: c["domains"].append(c["domains"][0]),
        f"{MANIFEST} a domain is there twice{ANEW}",
    ),
    "another type of token": (
        lambda c: c.update(dtype="uint32"),
        f"{MANIFEST} tokens below 256 can't be of type 'uint32'{ANEW}",
    ),
    "a type that the vocabulary does not fit": (
        lambda c: c.update(vocab_size=1000),
        f"{MANIFEST} tokens below 1000 can't be of type 'uint8'{ANEW}",
    ),
}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_damaged_manifest_says_what_is_wrong(root: Path, kind: str) -> None:
    change, message = MANIFESTS[kind]
    edit(root, change)
    with pytest.raises(CorpusError) as error:
        Corpus.open(root)
    assert str(error.value) == message.replace("ROOT", str(root))


@pytest.mark.parametrize(
    ("content", "found"),
    [(b"{", "it is no JSON"), (b"[]", "it is no JSON object"), (b"\xff", "it is no JSON")],
)
def test_manifest_that_is_no_json_object_is_refused(root: Path, content: bytes, found: str) -> None:
    (root / "manifest.json").write_bytes(content)
    with pytest.raises(CorpusError) as error:
        Corpus.open(root)
    assert str(error.value) == f"{MANIFEST} {found}{ANEW}".replace("ROOT", str(root))


def test_token_file_that_is_cut_off_or_missing_is_named(root: Path) -> None:
    corpus = Corpus.open(root)
    path = root / corpus.domain("web").folder / "train.bin"
    size = corpus.domain("web").train_tokens
    path.write_bytes(path.read_bytes()[:-1])
    expected = f"the train tokens of 'web' must be {size} bytes of uint8, but {path} "
    for found in (f"has {size - 1}", "is missing"):
        with pytest.raises(CorpusError) as error:
            Corpus.open(root)
        assert str(error.value) == f"{expected}{found}{REPLACE}"
        with pytest.raises(CorpusError) as later:
            corpus.tokens("web", "train")
        assert str(later.value) == str(error.value)
        path.unlink(missing_ok=True)


@pytest.mark.parametrize("name", ["", "nowhere", "corpus/manifest.json"])
def test_folder_without_a_manifest_is_no_corpus(root: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(CorpusError) as error:
        Corpus.open(tmp_path / name)
    assert str(error.value) == (
        f"{tmp_path / name} must be a corpus, but it has no manifest.json\n"
        "  do: add text with `mixlaw domains add NAME PATH...`"
    )


@pytest.mark.train
def test_changed_tokenizer_file_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    path = tmp_path / "a.txt"
    path.write_text("\n".join(f"line {i} of a text" for i in range(20_000)))
    add_domain(tmp_path / "corpus", "web", path, tokenizer="bpe:300", validation_share=0.3)
    file = tmp_path / "corpus" / "tokenizer.json"
    corpus = Corpus.open(tmp_path / "corpus")
    changed = file.read_text() + "\n"
    file.write_text(changed)
    with pytest.raises(CorpusError) as error:
        corpus.open_tokenizer()
    assert error.value.problem.startswith(
        f"tokenizer.json must be {corpus.tokenizer}, which made the tokens, but it is bpe-"
    )
