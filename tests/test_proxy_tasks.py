"""The task of swapped words: its items, its error, and that it changes no loss."""

# ruff: noqa: E402 - without PyTorch the module is skipped before its imports
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

torch = pytest.importorskip("torch")

from mixlaw.corpora import Corpus, add_domain
from mixlaw.errors import CorpusError, RunError
from mixlaw.mixtures import Mixture
from mixlaw.observations import loss_table
from mixlaw.proxy import ProxyTrainer, proxy_recipe
from mixlaw.proxy.tasks import VERSIONS, SwapTask, make_swap_task
from mixlaw.runs import LocalExecutor, RunStore, read_tables
from mixlaw.runs.folder import check_metrics
from tiny_proxies import NAMES, build_corpus, make_spec, train, train_until

pytestmark = pytest.mark.train


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return build_corpus(tmp_path_factory.mktemp("tasks") / "corpus")


def texts_of(task: SwapTask, corpus: Corpus) -> list[list[str]]:
    """The scored text of each item's versions, the true one first."""
    tokenizer = corpus.open_tokenizer()
    spans = [
        tokenizer.decode(tokens[1:][scored])
        for tokens, scored in zip(task.tokens, task.scored, strict=True)
    ]
    return [spans[i : i + VERSIONS] for i in range(0, len(spans), VERSIONS)]


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe:400"])
def test_versions_are_true_text_and_that_with_two_neighbouring_words_swapped(
    tmp_path: Path, corpus: Corpus, tokenizer: str
) -> None:
    if tokenizer != "bytes":
        corpus = build_corpus(tmp_path / "corpus", tokenizer=tokenizer)
    task = make_swap_task(corpus, NAMES[1], sequence_length=128, items=50)
    assert task.items == 50
    text = corpus.open_tokenizer().decode(np.asarray(corpus.tokens(NAMES[1], "validation")))
    texts = texts_of(task, corpus)
    assert np.mean([len(true.encode()) for true, *_ in texts]) == pytest.approx(112, rel=0.1)
    for true, *swapped in texts:
        assert true in text
        assert len({true, *swapped}) == VERSIONS
        words = true.split()
        moved: list[list[int]] = []
        for version in swapped:
            others = version.split()
            moved.append([i for i, (a, b) in enumerate(zip(words, others, strict=True)) if a != b])
            assert sorted(others) == sorted(words)
            assert re.sub(r"\S+", "w", version) == re.sub(r"\S+", "w", true)  # spaces stay
        first, second, both = moved
        assert first[1] - first[0] == second[1] - second[0] == 1
        assert len({*first, *second}) == 4
        assert both == [*first, *second]


def test_all_versions_of_an_item_share_the_text_before_it(corpus: Corpus) -> None:
    task = make_swap_task(corpus, NAMES[0], sequence_length=128, items=40)
    before = task.tokens[:, :17].reshape(40, VERSIONS, 17)
    assert (before == before[:, :1]).all()
    assert not task.scored[:, :16].any()
    assert task.scored[:, 16:].all()  # 112 bytes


def test_items_depend_on_text_and_seed_alone(corpus: Corpus) -> None:
    task = make_swap_task(corpus, NAMES[0], sequence_length=128, items=40)
    again = make_swap_task(corpus, NAMES[0], sequence_length=128, items=40)
    few = make_swap_task(corpus, NAMES[0], sequence_length=128, items=10)
    other = make_swap_task(corpus, NAMES[0], sequence_length=128, items=40, seed=1)
    assert np.array_equal(task.tokens, again.tokens)
    assert np.array_equal(task.tokens[: 10 * VERSIONS], few.tokens)
    assert not np.array_equal(task.tokens, other.tokens)


def test_a_text_with_few_spans_gives_few_items(corpus: Corpus) -> None:
    spans = (corpus.domain("unseen").validation_tokens - 1) // 128
    task = make_swap_task(corpus, "unseen", sequence_length=128, items=10_000)
    assert spans // 2 < task.items <= spans


def test_text_without_words_can_not_be_a_task(tmp_path: Path) -> None:
    text = tmp_path / "molecules.txt"
    text.write_text("C1=CC=CC=C1" * 2000)
    add_domain(tmp_path / "corpus", "molecules", [text], target_only=True)
    with pytest.raises(CorpusError) as error:
        make_swap_task(Corpus.open(tmp_path / "corpus"), "molecules", sequence_length=128, items=10)
    assert "'molecules' must have spans of 112 tokens with neighbouring words" in str(error.value)
    assert "tasks = false" in str(error.value)


def make_losses(task: SwapTask, wrong: int) -> np.ndarray:
    """Losses of 1 per scored token, more for swapped versions but for one of each wrong item."""
    losses = np.where(task.scored, 1.0, np.nan)  # what is not scored must not count
    losses[:, -1] += np.tile([0.5, 1.0, 1.0, 1.0], task.items)
    losses[1 : 1 + wrong * VERSIONS : VERSIONS, -1] -= 0.75
    return losses


@pytest.mark.parametrize("wrong", [0, 1, 20, 40])
def test_error_is_the_share_of_items_in_which_a_swapped_version_has_less_loss(
    corpus: Corpus, wrong: int
) -> None:
    task = make_swap_task(corpus, NAMES[0], sequence_length=128, items=40)
    error, standard_error = task.error(make_losses(task, wrong))
    assert error == wrong / 40
    # Binomial, sqrt(p (1 - p) / n), and never 0.
    assert standard_error == pytest.approx(math.sqrt(error * (1 - error) / 40), rel=0.01, abs=0.03)
    assert standard_error > 0.02


def test_a_model_that_knows_nothing_is_wrong_three_times_in_four(corpus: Corpus) -> None:
    # Random losses of three neighbouring tokens: what a model without training has. Pairs would not
    # do, since swapped words keep their spaces.
    table = np.random.default_rng(0).standard_normal(1 << 20)
    wrong: list[float] = []
    for name in NAMES:
        task = make_swap_task(corpus, name, sequence_length=128, items=300)
        three = task.tokens[:, 2:] + 257 * task.tokens[:, 1:-1] + 65_539 * task.tokens[:, :-2]
        losses = np.pad(table[three * 2_654_435_761 % len(table)], ((0, 0), (1, 0)))
        wrong += [task.error(losses)[0]] * task.items
    assert len(wrong) > 500
    assert abs(np.mean(wrong) - 0.75) < 3 * math.sqrt(0.75 * 0.25 / len(wrong))


def test_tasks_change_no_loss_and_only_their_own_run_ids(corpus: Corpus, tmp_path: Path) -> None:
    plain = make_spec(corpus)
    with_tasks = make_spec(corpus, tasks=20)
    assert with_tasks.trainer == "proxy/1-T32-V12-cpu-W20"
    assert with_tasks == replace(plain, trainer=with_tasks.trainer)
    expected, _ = train(corpus, plain, tmp_path / "plain")
    rows, _ = train(corpus, with_tasks, tmp_path / "tasks")
    tasks = [f"task:{name}" for name in corpus.target_names]
    for row, plain_row in zip(rows, expected, strict=True):
        assert [name for name in row.values if row.unit_of(name) == "error"] == tasks
        assert {n: v for n, v in row.values.items() if n not in tasks} == plain_row.values
        assert all(0 <= row.values[name][0] <= 1 for name in tasks)
    assert check_metrics(tmp_path / "tasks", with_tasks) == rows


def test_a_run_with_tasks_stopped_anywhere_goes_on_to_the_same_bits(
    corpus: Corpus, tmp_path: Path
) -> None:
    spec = make_spec(corpus, tasks=20)
    expected, _ = train(corpus, spec, tmp_path / "whole")
    for steps in (1, 6, 13):
        train_until(corpus, spec, tmp_path / f"cut-{steps}", steps)
        assert train(corpus, spec, tmp_path / f"cut-{steps}")[0] == expected


def test_error_falls_with_training(corpus: Corpus, tmp_path: Path) -> None:
    spec = make_spec(
        corpus,
        sequence_length=128,
        params=49_152,
        steps=200,
        eval_steps=(0, 200),
        mixture=Mixture.of({NAMES[0]: 1.0}),
        tasks=150,
    )
    rows, _ = train(corpus, spec, tmp_path)
    (start, _), (end, error) = (row.values[f"task:{NAMES[0]}"] for row in rows)
    assert error is not None
    assert abs(start - 0.75) < 4 * error
    assert end < start - 4 * error


def test_tables_have_errors_in_their_own_unit_and_fits_take_losses(
    corpus: Corpus, tmp_path: Path
) -> None:
    spec = make_spec(corpus, tasks=20, steps=4, eval_steps=(0, 4))
    store = RunStore.at(tmp_path / "study.db")
    store.add([spec])
    executor = LocalExecutor(store=store, runs_folder=tmp_path / "runs", slots=1)
    assert executor.run(ProxyTrainer(corpus.path)).done == 1
    runs, observations = read_tables(store, tmp_path / "runs")
    is_task = pl.col("target").str.starts_with("task:")
    assert set(observations.filter(is_task)["unit"]) == {"error"}
    assert set(observations.filter(~is_task)["unit"]) == {"nats_per_token"}
    assert loss_table(runs, observations).targets == corpus.target_names
    errors = loss_table(runs, observations, targets=["task:unseen"])
    assert (errors.unit, errors.step) == ("error", 4)
    assert 0 <= errors.y_RT[0, 0] <= 1


def test_a_recipe_says_how_many_items(corpus: Corpus) -> None:
    assert proxy_recipe(corpus, device="cpu").trainer == "proxy/1-T128-V192-cpu"
    assert proxy_recipe(corpus, device="cpu", tasks=True).trainer == "proxy/1-T128-V192-cpu-W400"
    spec = make_spec(corpus)
    plain, more = (make_spec(corpus, tasks=tasks) for tasks in (0, 40))
    recipe = proxy_recipe(corpus, device="cpu", precision="fp32")
    slow = replace(recipe, task_items=400)
    assert slow.estimate_seconds(more) > 2 * recipe.estimate_seconds(plain)
    with pytest.raises(RunError, match="items of a task must be at least 1, found -3"):
        proxy_recipe(corpus, tasks=-3)
    with pytest.raises(RunError, match="found 'proxy/1-T32-V12-cpu-W0'"):
        train(corpus, replace(spec, trainer="proxy/1-T32-V12-cpu-W0"), Path())
