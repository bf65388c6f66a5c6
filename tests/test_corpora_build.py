"""Adding domains: the split, what is left out, kills, names that are no file names, memory."""

import json
import random
import resource
import signal
import subprocess
import sys
import sysconfig
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixlaw.corpora import Corpus, add_domain
from mixlaw.corpora.documents import Document, document_hash
from mixlaw.corpora.token_files import SplitRule, write_domain
from mixlaw.corpora.tokenizers import ByteTokenizer
from mixlaw.errors import CorpusError, DomainError

NASTY_NAMES = (
    "<script>alert(1)</script>",
    "$(id)",
    "../x",
    "/etc/passwd",
    'it\'s "quoted"',
    "🙂",
    ".",
    "con.txt ",
    "x" * 500,
)


def make_texts(count: int, *, seed: int = 0, words: int = 40) -> list[str]:
    rng = random.Random(seed)
    vocabulary = ["".join(rng.choices("abcdefghij", k=rng.randrange(2, 9))) for _ in range(500)]
    return [f"{seed} {i} " + " ".join(rng.choices(vocabulary, k=words)) for i in range(count)]


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def documents_of(corpus: Corpus, name: str, split: str) -> list[str]:
    text = corpus.tokens(name, split).tobytes().decode()  # type: ignore[arg-type]
    return text.removesuffix("\n\n").split("\n\n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "corpus"


def test_bytes_of_documents_come_back_in_order(tmp_path: Path, root: Path) -> None:
    texts = [f"{text} é 🙂" for text in make_texts(300)]
    domain = add_domain(root, "web", write_jsonl(tmp_path / "a.jsonl", texts), validation_share=0.2)
    corpus = Corpus.open(root)
    train = documents_of(corpus, "web", "train")
    validation = documents_of(corpus, "web", "validation")
    assert sorted(train + validation) == sorted(texts)
    assert train == [text for text in texts if text in set(train)]
    assert validation == [text for text in texts if text in set(validation)]
    assert (domain.train_documents, domain.validation_documents) == (len(train), len(validation))
    assert domain.train_tokens == domain.train_bytes == sum(len(t.encode()) + 2 for t in train)
    assert domain == corpus.domain("web")
    corpus.verify()


def test_share_of_validation_documents_is_as_asked(tmp_path: Path, root: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", make_texts(5_000, words=3))
    domain = add_domain(root, "web", path, validation_share=0.1)
    # A binomial count: 5,000 x 0.1, four standard deviations.
    assert abs(domain.validation_documents - 500) < 4 * (5_000 * 0.1 * 0.9) ** 0.5


@settings(max_examples=30, deadline=None)
@given(order=st.permutations(range(40)))
def test_split_is_independent_of_document_order(
    tmp_path_factory: pytest.TempPathFactory, order: list[int]
) -> None:
    texts = make_texts(40)
    folder = tmp_path_factory.mktemp("order")
    add_domain(folder / "a", "web", write_jsonl(folder / "a.jsonl", texts), validation_share=0.2)
    reordered = write_jsonl(folder / "b.jsonl", [texts[i] for i in order])
    add_domain(folder / "b", "web", reordered, validation_share=0.2)
    first, second = Corpus.open(folder / "a"), Corpus.open(folder / "b")
    for split in ("train", "validation"):
        assert sorted(documents_of(first, "web", split)) == sorted(
            documents_of(second, "web", split)
        )


texts_with_copies = st.lists(
    st.tuples(st.integers(0, 12), st.sampled_from(["{}", " {} ", "{}\n\t"]), st.booleans()),
    min_size=1,
    max_size=60,
)


@settings(max_examples=60, deadline=None)
@given(items=texts_with_copies, others=texts_with_copies)
def test_no_validation_document_occurs_in_train(
    tmp_path_factory: pytest.TempPathFactory,
    items: list[tuple[int, str, bool]],
    others: list[tuple[int, str, bool]],
) -> None:
    """Whatever side the documents are put on by hand, within a domain and between two."""
    folder = tmp_path_factory.mktemp("copies")
    written: dict[str, Counter[int]] = {"train": Counter(), "validation": Counter()}
    built: list[Path] = []
    for name, chosen in (("a", items), ("b", others)):
        documents = [
            Document(form.format(f"Document {number}"), is_validation=is_validation)
            for number, form, is_validation in chosen
        ]
        target = folder / name
        target.mkdir()
        try:
            domain = write_domain(
                target,
                documents,
                name=name,
                tokenizer=ByteTokenizer(),
                rule=SplitRule(),
                others=built,
            )
        except CorpusError:
            continue  # one side is empty
        built.append(target)
        for split in ("train", "validation"):
            texts = (target / f"{split}.bin").read_text().split("Document")[1:]
            written[split].update(document_hash(f"Document{text}") for text in texts)
        kept = domain.train_documents + domain.validation_documents
        assert kept + domain.dropped_documents == len(documents)
    assert not written["train"].keys() & written["validation"].keys()


def test_copies_and_empty_documents_are_left_out_and_noted(tmp_path: Path, root: Path) -> None:
    texts = make_texts(200)
    rule_share = 0.2 * 2**64
    held_out = [text for text in texts if document_hash(text) < rule_share]
    trained = [text for text in texts if document_hash(text) >= rule_share]
    path = write_jsonl(tmp_path / "a.jsonl", [*texts, held_out[0].upper(), trained[0], "", " \n"])
    domain = add_domain(root, "web", path, validation_share=0.2)
    assert domain.dropped_documents == 3
    assert domain.validation_documents == len(held_out)
    assert domain.train_documents == len(trained) + 1
    assert domain.notes == (
        "empty documents, left out: 2",
        "validation documents, left out as copies: 1",
        "training documents that are copies of others, kept: 1",
    )


def test_text_of_a_target_is_not_trained_on(tmp_path: Path, root: Path) -> None:
    shared = make_texts(10, seed=1)
    target = write_jsonl(tmp_path / "target.jsonl", shared)
    add_domain(root, "target", target, target_only=True)
    path = write_jsonl(tmp_path / "web.jsonl", [*make_texts(200), *shared])
    domain = add_domain(root, "web", path)
    corpus = Corpus.open(root)
    trained = documents_of(corpus, "web", "train")
    assert not set(shared) & set(trained)
    assert domain.dropped_documents == sum(document_hash(t) >= 0.05 * 2**64 for t in shared)
    assert corpus.training_names == ("web",)
    assert corpus.target_names == ("target", "web")
    assert corpus.domain("target").train_tokens == 0
    assert [domain.name for domain in corpus.as_domains()] == ["web"]


def test_a_target_of_trained_text_is_refused(tmp_path: Path, root: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", make_texts(200))
    add_domain(root, "web", path)
    trained = documents_of(Corpus.open(root), "web", "train")
    copies = write_jsonl(tmp_path / "b.jsonl", trained)
    with pytest.raises(CorpusError) as error:
        add_domain(root, "target", copies, target_only=True)
    assert str(error.value) == (
        f"domain 'target' must have a validation document, but all {len(trained)} were left out as"
        " copies of each other or of training text\n  do: give text that no domain trains on"
    )


def test_one_long_text_file_is_split(tmp_path: Path, root: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("\n".join(make_texts(4_000)))
    domain = add_domain(root, "book", path)
    assert domain.train_documents > 30
    assert domain.validation_documents > 0


def test_one_short_document_can_not_be_split(tmp_path: Path, root: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("short")
    with pytest.raises(CorpusError) as error:
        add_domain(root, "web", path)
    assert str(error.value) == (
        "domain 'web' must have training and validation text, but it has one document, which can't"
        " be split\n  do: add more text (a text file is cut into documents from 40 kB on), or hold"
        " it out as a whole with `--target-only`"
    )
    assert not (root / "manifest.json").exists()


def test_the_share_that_would_do_is_named_and_does(tmp_path: Path, root: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", make_texts(6, seed=3))
    with pytest.raises(CorpusError) as error:
        add_domain(root, "web", path, validation_share=0.01)
    assert error.value.problem == (
        "domain 'web' must have a validation document, but a share of 0.01 holds out none of 6"
    )
    assert error.value.do is not None
    share = float(error.value.do.rsplit(" ", 1)[1])
    assert add_domain(root, "web", path, validation_share=share).validation_documents == 1


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, float("nan")])
def test_a_share_outside_0_and_1_is_refused(tmp_path: Path, root: Path, share: float) -> None:
    with pytest.raises(CorpusError) as error:
        add_domain(root, "web", tmp_path, validation_share=share)
    assert str(error.value) == (
        f"the validation share must be above 0 and below 1, found {share}\n"
        "  do: give a share such as 0.05, or hold everything out with `--target-only`"
    )


def test_a_domain_is_replaced_only_when_asked(tmp_path: Path, root: Path) -> None:
    first = write_jsonl(tmp_path / "a.jsonl", make_texts(200))
    second = write_jsonl(tmp_path / "b.jsonl", make_texts(300, seed=1))
    add_domain(root, "code", first)
    add_domain(root, "web", first)
    with pytest.raises(CorpusError) as error:
        add_domain(root, "web", second)
    assert str(error.value) == (
        f"the names of domains must differ, but 'web' is in the corpus in {root}\n"
        "  do: choose another name, or pass `--replace` to put this text in its place"
    )
    old = Corpus.open(root)
    replaced = add_domain(root, "web", second, replace=True)
    new = Corpus.open(root)
    assert new.domain("web") == replaced != old.domain("web")
    assert new.domain("code") == old.domain("code")
    assert new.hash != old.hash
    assert not (root / old.domain("web").folder).exists()


def test_replacing_with_the_same_text_mends_and_keeps_the_hash(tmp_path: Path, root: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", make_texts(200))
    add_domain(root, "web", path)
    corpus = Corpus.open(root)
    (root / corpus.domain("web").folder / "train.bin").unlink()
    add_domain(root, "web", path, replace=True, licence="CC0", source="us")
    mended = Corpus.open(root)
    mended.verify()
    assert mended.hash == corpus.hash
    assert (mended.domain("web").licence, mended.domain("web").source) == ("CC0", "us")


def test_a_corpus_inside_the_folder_is_not_read(tmp_path: Path) -> None:
    for i, text in enumerate(make_texts(100)):
        (tmp_path / f"{i}.txt").write_text(text)
    add_domain(tmp_path / "corpus", "web", tmp_path)
    again = add_domain(tmp_path / "corpus", "web", tmp_path, replace=True)
    assert again.train_documents + again.validation_documents == 100


def test_a_corpus_of_the_standard_library(root: Path) -> None:
    folder = Path(sysconfig.get_paths()["stdlib"])
    add_domain(root, "json", folder / "json", validation_share=0.3)
    add_domain(root, "email", folder / "email", validation_share=0.3)
    assert Corpus.open(root).training_names == ("email", "json")


@pytest.mark.parametrize("name", NASTY_NAMES)
def test_a_name_is_data_and_writes_nothing_elsewhere(tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outer" / "inner"
    outside.mkdir(parents=True)
    path = write_jsonl(tmp_path / "a.jsonl", make_texts(100))
    add_domain(outside / "corpus", name, path)
    corpus = Corpus.open(outside / "corpus")
    assert corpus.training_names == (name,)
    assert corpus.domain(name).name == name
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_dir()) == sorted(
        ["outer", "inner", "corpus", corpus.domain(name).folder]
    )


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "a\x00b", "\ud800"])
def test_a_name_without_text_is_refused(tmp_path: Path, root: Path, name: str) -> None:
    with pytest.raises(DomainError, match="a domain's name must be printable text, found "):
        add_domain(root, name, tmp_path)
    assert not root.exists()


def test_progress_ends_at_the_bytes_of_the_files(tmp_path: Path, root: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", make_texts(20_000))
    told: list[tuple[str, float, float | None]] = []
    add_domain(root, "web", path, progress=lambda *step: told.append(step))
    size = path.stat().st_size
    assert len(told) > 5
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert told[-1] == ("reading web", size, size)


def test_memory_does_not_grow_with_the_text(tmp_path: Path, root: Path) -> None:
    path = tmp_path / "a.jsonl"
    body = " ".join(make_texts(25))
    with path.open("w") as file:
        for i in range(10_000):
            file.write(json.dumps({"text": f"{i} {body}"}) + "\n")
    size = path.stat().st_size
    assert size > 60e6
    process = psutil.Process()
    before = process.memory_info().rss
    peak = before

    def measure(text: str, done: float, total: float | None) -> None:
        nonlocal peak
        peak = max(peak, process.memory_info().rss)

    domain = add_domain(root, "web", path, progress=measure)
    assert domain.train_bytes > 55e6
    assert peak - before < 24e6


def test_a_full_disk_leaves_the_old_corpus(tmp_path: Path, root: Path) -> None:
    add_domain(root, "web", write_jsonl(tmp_path / "a.jsonl", make_texts(200)))
    before = sorted(root.rglob("*"))
    big = write_jsonl(tmp_path / "b.jsonl", make_texts(20_000, seed=1))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limit[1]))
    try:
        with pytest.raises(CorpusError) as error:
            add_domain(root, "code", big)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert str(error.value) == (
        f"{root} must be writable, but: File too large\n"
        "  do: free space, check its permissions, or choose another folder"
    )
    assert sorted(root.rglob("*")) == before
    Corpus.open(root).verify()


def test_a_corpus_where_a_file_is_says_so(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", make_texts(200))
    with pytest.raises(CorpusError) as error:
        add_domain(path, "web", path)
    assert str(error.value) == (
        f"{path} must be writable, but: File exists\n"
        "  do: free space, check its permissions, or choose another folder"
    )


ADD = """
import sys
from mixlaw.corpora import add_domain
print("ready", flush=True)
add_domain(sys.argv[1], "web", sys.argv[2], replace=True)
"""


def test_a_kill_leaves_the_old_or_the_new_corpus(tmp_path: Path, root: Path) -> None:
    old_text = write_jsonl(tmp_path / "a.jsonl", make_texts(200))
    new_text = write_jsonl(tmp_path / "b.jsonl", make_texts(20_000, seed=1))
    expected: list[str] = []
    for text in (old_text, new_text):
        started = time.monotonic()
        add_domain(tmp_path / text.stem, "web", text)
        seconds = time.monotonic() - started
        expected.append(Corpus.open(tmp_path / text.stem).hash)
    add_domain(root, "web", old_text)
    rng = random.Random(0)
    for _ in range(4):
        command = [sys.executable, "-c", ADD, str(root), str(new_text)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(rng.uniform(0, 1.2 * seconds))
            process.send_signal(signal.SIGKILL)
        corpus = Corpus.open(root)
        corpus.verify()
        assert corpus.hash in expected
    add_domain(root, "web", old_text, replace=True)
    assert Corpus.open(root).hash == expected[0]
    assert sorted(path.name for path in root.iterdir()) == sorted(
        [".lock", "manifest.json", Corpus.open(root).domain("web").folder]
    )


KILL_AT_EACH_STEP = """
import os, signal, sys
from mixlaw.corpora import Corpus, add_domain

root, old, new = sys.argv[1:]
steps_left = None

def die(event, arguments):
    global steps_left
    if steps_left is not None and event.startswith(("open", "os.", "shutil.")):
        steps_left -= 1
        if steps_left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(die)
for steps in range(1, 1000):
    add_domain(root, "web", old, replace=True)
    child = os.fork()
    if not child:
        steps_left = steps
        add_domain(root, "web", new, replace=True)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    corpus = Corpus.open(root)
    corpus.verify()
    print(corpus.hash)
    if os.WIFEXITED(status):
        break
"""


def test_a_kill_at_any_file_operation_leaves_the_old_or_the_new_corpus(
    tmp_path: Path, root: Path
) -> None:
    texts = [write_jsonl(tmp_path / f"{i}.jsonl", make_texts(100, seed=i)) for i in range(2)]
    expected: list[str] = []
    for text in texts:
        add_domain(tmp_path / text.stem, "web", text)
        expected.append(Corpus.open(tmp_path / text.stem).hash)
    command = [sys.executable, "-c", KILL_AT_EACH_STEP, str(root), *map(str, texts)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = done.stdout.split()
    assert len(found) > 30
    # There is one step before which all is old and from which on all is new.
    switch = found.index(expected[1])
    assert found == expected[:1] * switch + expected[1:] * (len(found) - switch)


def test_two_writers_wait_for_each_other(tmp_path: Path, root: Path) -> None:
    texts = [write_jsonl(tmp_path / f"{i}.jsonl", make_texts(5_000, seed=i)) for i in range(2)]
    program = ADD.replace('"web"', "sys.argv[3]")
    processes = [
        subprocess.Popen([sys.executable, "-c", program, str(root), str(text), text.stem])
        for text in texts
    ]
    assert [process.wait() for process in processes] == [0, 0]
    corpus = Corpus.open(root)
    assert corpus.training_names == ("0", "1")
    corpus.verify()
