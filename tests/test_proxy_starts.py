"""Runs that go on from weights: another run's, or a given file's."""

# ruff: noqa: E402 - without PyTorch the module is skipped before its imports
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
from safetensors.torch import load_file, save_file

from mixlaw.corpora import Corpus
from mixlaw.errors import RunError
from mixlaw.mixtures import Mixture
from mixlaw.proxy import ProxyTrainer, proxy_recipe
from mixlaw.proxy.optimizer import EMA_GAMMA, GIVEN_AVERAGE_STEPS, Optimizer
from mixlaw.proxy.starts import parse_weights, read_weights
from mixlaw.runs import LocalExecutor, RunSpec, RunStore, read_tables
from mixlaw.runs.plan_continual import plan_continual
from mixlaw.runs.spec import Stage
from mixlaw.runs.starts import keep_checkpoint, start_of_run
from tiny_proxies import NAMES, DyingTrainer, build_corpus, make_spec, train, train_until

pytestmark = pytest.mark.train

NEW = Mixture.of({NAMES[2]: 1.0})


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return build_corpus(tmp_path_factory.mktemp("starts") / "corpus")


@pytest.fixture(scope="module")
def original(corpus: Corpus) -> RunSpec:
    mixture = Mixture.of({NAMES[0]: 0.6, NAMES[1]: 0.4})  # two of the three domains
    return make_spec(corpus, mixture=mixture)


@pytest.fixture(scope="module")
def trained(
    corpus: Corpus, original: RunSpec, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """The original's metrics and weights."""
    folder = tmp_path_factory.mktemp("original") / original.run_id
    train(corpus, original, folder, keep_weights=True)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def runs(tmp_path: Path, original: RunSpec, trained: dict[str, bytes]) -> Path:
    """A study's folder of runs with the original in it."""
    folder = tmp_path / "study" / "runs"
    (folder / original.run_id).mkdir(parents=True)
    for name, content in trained.items():
        (folder / original.run_id / name).write_bytes(content)
    return folder


def make_child(original: RunSpec, **changes: object) -> RunSpec:
    child = replace(
        original,
        mixture=Mixture.of({NAMES[0]: 0.2, NAMES[2]: 0.8}),
        start=start_of_run(original),
        seed=5,
    )
    return replace(child, **changes)


def test_step_0_is_the_original_model_to_the_bit(
    corpus: Corpus, original: RunSpec, runs: Path
) -> None:
    rows, _ = train(corpus, make_child(original), runs / "child")
    last, _ = train(corpus, original, runs / "original", keep_weights=True)
    assert (rows[0].step, rows[0].tokens) == (0, 0)
    assert rows[0].values == last[-1].values
    # Its new domain is learned, from a loss that is the original's.
    assert rows[-1].values[NAMES[2]][0] < rows[0].values[NAMES[2]][0]


@pytest.mark.parametrize("schedule", ["constant", "wsd"])
def test_a_run_from_weights_stopped_anywhere_goes_on_to_the_same_bits(
    corpus: Corpus, original: RunSpec, runs: Path, schedule: str
) -> None:
    stage = Stage(from_step=10, mixture=NEW)
    child = make_child(original, schedule=schedule, later_stages=(stage,))
    expected, _ = train(corpus, child, runs / "whole")
    for cuts in ([0], [1], [10], [13, 4]):
        for steps in cuts:
            train_until(corpus, child, runs / f"cut-{cuts}", steps)
        assert train(corpus, child, runs / f"cut-{cuts}")[0] == expected, cuts


def test_a_given_file_starts_the_run_that_its_own_run_starts(
    corpus: Corpus, original: RunSpec, runs: Path
) -> None:
    given = runs / original.run_id / "weights.safetensors"
    start = keep_checkpoint(given, runs.parent)
    assert start.startswith("file:")
    kept = runs.parent / "checkpoints" / f"{start.removeprefix('file:')}.safetensors"
    assert kept.read_bytes() == given.read_bytes()
    assert keep_checkpoint(given, runs.parent) == start
    child = make_child(original)
    from_file = replace(child, start=start)
    assert from_file.run_id != child.run_id
    rows = [train(corpus, spec, runs / spec.run_id)[0] for spec in (child, from_file)]
    assert rows[0] == rows[1]


def test_the_seed_of_a_run_from_weights_orders_its_data_alone(
    corpus: Corpus, original: RunSpec, runs: Path
) -> None:
    rows = [train(corpus, make_child(original, seed=seed), runs / str(seed))[0] for seed in (5, 6)]
    assert rows[0][0] == rows[1][0]
    assert rows[0][1] != rows[1][1]


@pytest.mark.parametrize("averaged_steps", [50, 500])
def test_the_average_begins_at_given_weights_and_forgets_them(averaged_steps: int) -> None:
    # Weights jump from 0 to 1 at the first step; what is left of 0 after t steps is the product of
    # (1 - 1/(n + k))^17 over k = 1 ... t, that is (n/(n + t))^17 for weights of n steps.
    flat, gradient = torch.zeros(4), torch.zeros(4)
    optimizer = Optimizer(flat, gradient, averaged_steps=averaged_steps)
    assert torch.equal(optimizer.average, torch.zeros(4))
    flat.fill_(1.0)
    for step in range(60):
        optimizer.update(step=step, learning_rate=0.0, tokens=1)
        left = (averaged_steps / (averaged_steps + step + 1)) ** (EMA_GAMMA + 1)
        assert float(1 - optimizer.average[0]) == pytest.approx(left, abs=1e-5)


def test_weights_say_how_long_they_were_trained_and_strangers_count_for_50_steps(
    corpus: Corpus, original: RunSpec, runs: Path
) -> None:
    shape = proxy_recipe(corpus, sequence_length=32).shape(original.params)
    path = runs / original.run_id / "weights.safetensors"
    child = make_child(original)
    train(corpus, child, runs / child.run_id, keep_weights=True)
    kept = runs / child.run_id / "weights.safetensors"
    own, its = (parse_weights(p.read_bytes(), shape, where="") for p in (path, kept))
    assert (own.run_id, own.averaged_steps) == (original.run_id, 24)
    assert (its.run_id, its.averaged_steps) == (child.run_id, 24 + 24)
    save_file(load_file(path), path)  # without what it says
    stranger = parse_weights(path.read_bytes(), shape, where="")
    assert (stranger.run_id, stranger.averaged_steps) == (None, GIVEN_AVERAGE_STEPS)
    assert torch.equal(stranger.weights, own.weights)


def other_shape(path: Path) -> None:
    tensors = {name: tensor[:, :-1].clone() for name, tensor in load_file(path).items()}
    save_file(tensors, path)


def other_dtype(path: Path) -> None:
    save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, path)


def with_nan(path: Path) -> None:
    tensors = load_file(path)
    tensors["head"][3, 4] = math.nan
    save_file(tensors, path)


def without_head(path: Path) -> None:
    save_file({name: t for name, t in load_file(path).items() if name != "head"}, path)


def with_more(path: Path) -> None:
    save_file({**load_file(path), "bias": torch.zeros(3)}, path)


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES: list[tuple[Callable[[Path], None], str]] = [
    (other_shape, "'token-0' is 256 x 31 instead of 256 x 32"),
    (other_dtype, "'token-0' is bfloat16 instead of float32"),
    (with_nan, "'head' has numbers that are not finite"),
    (without_head, "'head' is missing"),
    (with_more, "it has no 'bias'"),
    (torn, "must be a whole safetensors file, but it is none"),
    (empty, "must be a whole safetensors file, but it is none"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
@pytest.mark.parametrize("kind", ["run", "file"])
def test_weights_that_can_not_be_started_from_are_told(
    corpus: Corpus,
    original: RunSpec,
    runs: Path,
    kind: str,
    damage: Callable[[Path], None],
    message: str,
) -> None:
    path = runs / original.run_id / "weights.safetensors"
    damage(path)
    child = make_child(original)
    if kind == "file":
        child = replace(child, start=keep_checkpoint(path, runs.parent))
    with pytest.raises(RunError) as error:
        train(corpus, child, runs / "child")
    assert message in str(error.value)
    assert str(runs if kind == "run" else runs.parent / "checkpoints") in str(error.value)


def test_missing_and_changed_weights_are_told(
    corpus: Corpus, original: RunSpec, runs: Path, tmp_path: Path
) -> None:
    path = runs / original.run_id / "weights.safetensors"
    start = keep_checkpoint(path, runs.parent)
    kept = runs.parent / "checkpoints" / f"{start.removeprefix('file:')}.safetensors"
    with_nan(kept)
    with pytest.raises(RunError, match="must have the hash"):
        train(corpus, make_child(original, start=start), runs / "child")
    kept.unlink()
    with pytest.raises(RunError, match=r"(?s)must be in the study.*keep_checkpoint"):
        train(corpus, make_child(original, start=start), runs / "child")
    stranger = replace(original, seed=77)
    (runs / stranger.run_id).mkdir()
    (runs / stranger.run_id / path.name).write_bytes(path.read_bytes())
    with pytest.raises(RunError, match=f"must be those of run {stranger.run_id}, but the file"):
        train(corpus, make_child(original, start=start_of_run(stranger)), runs / "child")
    path.unlink()
    with pytest.raises(RunError, match=r"(?s)must have kept them.*keep_weights=True"):
        train(corpus, make_child(original), runs / "child")
    with pytest.raises(RunError, match="can't be read: No such file"):
        keep_checkpoint(tmp_path / "nothing", runs.parent)


def test_weights_are_read_as_they_were_kept(corpus: Corpus, original: RunSpec, runs: Path) -> None:
    path = runs / original.run_id / "weights.safetensors"
    shape = proxy_recipe(corpus, sequence_length=32).shape(original.params)
    flat = read_weights(path, shape)
    assert flat.shape == (shape.params_total,)
    assert torch.equal(flat[: 256 * 32].view(256, 32), load_file(path)["token-0"])


def test_a_sweep_trains_the_original_first_and_keeps_the_books(
    corpus: Corpus, original: RunSpec, tmp_path: Path
) -> None:
    planned = plan_continual(original, new=NEW, old_shares=(0.2, 0.8), steps=48, replicates=1)
    store = RunStore.at(tmp_path / "study.db")
    for run in reversed(planned):  # the longer children come first, in the store and by length
        store.add([run.spec], role=run.role)
    executor = LocalExecutor(store=store, runs_folder=tmp_path / "runs", slots=2)
    children = [run.spec.run_id for run in planned[1:]]
    counts = executor.run(ProxyTrainer(corpus.path, keep_weights=True), run_ids=children)
    assert (counts.total, counts.done) == (4, 4)  # the original too
    runs, observations = read_tables(store, tmp_path / "runs")
    parents = dict(runs.select("run_id", "parent_run_id").iter_rows())
    assert parents == {original.run_id: None, **dict.fromkeys(children, original.run_id)}
    assert runs["stages"].null_count() == 4
    losses = {
        (run_id, step, target): value
        for run_id, step, target, value in observations.select(
            "run_id", "step", "target", "value"
        ).iter_rows()
    }
    for child in children:
        for target in (*NAMES, "unseen"):
            assert losses[child, 0, target] == losses[original.run_id, 24, target]


def test_children_of_a_run_without_weights_fail_with_what_to_do(
    corpus: Corpus, original: RunSpec, tmp_path: Path
) -> None:
    planned = plan_continual(original, new=NEW, old_shares=(0.2,), steps=6)
    store = RunStore.at(tmp_path / "study.db")
    store.add([run.spec for run in planned])
    executor = LocalExecutor(store=store, runs_folder=tmp_path / "runs", slots=1)
    counts = executor.run(ProxyTrainer(corpus.path))
    assert (counts.done, counts.failed) == (1, 1)
    assert "keep_weights=True" in str(store.rows([planned[1].spec.run_id])[0].error)


def test_a_sweep_under_kills_ends_as_if_there_were_none(
    corpus: Corpus, original: RunSpec, tmp_path: Path
) -> None:
    # An original, runs from its weights and a schedule, all with tasks, each killed at its start,
    # at a stage's last step, at the next one's first, and later.
    recipe = make_spec(corpus, tasks=10)
    original = replace(original, trainer=recipe.trainer)
    stage = Stage(from_step=10, mixture=NEW)
    planned = plan_continual(original, new=NEW, old_shares=(0.2,), steps=24)
    child = replace(planned[1].spec, later_stages=(stage,))
    specs = [original, child, replace(original, seed=3, later_stages=(stage,))]
    folders = [tmp_path / "undisturbed", tmp_path / "killed"]
    (tmp_path / "marks").mkdir()
    trainer = ProxyTrainer(corpus.path, keep_weights=True)
    dying = DyingTrainer(trainer=trainer, marks=tmp_path / "marks", steps=(0, 9, 10, 17))
    for folder, chosen in zip(folders, (trainer, dying), strict=True):
        folder.mkdir()
        store = RunStore.at(folder / "study.db")
        store.add(specs)
        executor = LocalExecutor(
            store=store,
            runs_folder=folder / "runs",
            slots=2,
            retries=4,
            checkpoint_seconds=0.0,
        )
        assert executor.run(chosen).done == 3
    assert len(list((tmp_path / "marks").iterdir())) == 4 * 3
    for spec in specs:
        for name in ("metrics.jsonl", "weights.safetensors"):
            one, other = (folder / "runs" / spec.run_id / name for folder in folders)
            assert one.read_bytes() == other.read_bytes()
