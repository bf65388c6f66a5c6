# ruff: noqa: E402 - without PyTorch the module is skipped before its imports
import json
import logging
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from safetensors.torch import load_file, save_file

from mixlaw.corpora import Corpus, add_domain
from mixlaw.errors import RunError, TrainingError
from mixlaw.mixtures import Mixture
from mixlaw.proxy import ProxyTrainer, proxy_recipe
from mixlaw.proxy.checkpoint import load_checkpoint
from mixlaw.proxy.data import validation_sequences
from mixlaw.proxy.model import FlatTensors, ProxyModel
from mixlaw.runs import Attempt, LocalExecutor, RunStore
from mixlaw.runs.folder import METRICS_FILE
from tiny_proxies import NAMES, STDLIB, build_corpus, make_spec, train, train_until

pytestmark = pytest.mark.train


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return build_corpus(tmp_path_factory.mktemp("train") / "corpus")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_repeats_bit_for_bit(corpus: Corpus, tmp_path: Path, precision: str) -> None:
    spec = make_spec(corpus, precision=precision)
    first, summary = train(corpus, spec, tmp_path / "first")
    assert first == train(corpus, spec, tmp_path / "second")[0]
    assert [row.step for row in first] == [0, 6, 12, 24]
    assert [row.tokens for row in first] == [0, 6 * 256, 12 * 256, 24 * 256]
    assert set(first[0].values) == {*NAMES, "unseen"}
    assert summary.params_non_embedding == 12_288
    assert summary.params_total == 12_288 + 32 * (4 * 256 + 32)
    assert summary.tokens == 24 * 256
    assert summary.learning_rate == pytest.approx(5e-3 * 2**0.5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_stopped_anywhere_goes_on_to_the_same_bits(
    corpus: Corpus, tmp_path: Path, precision: str
) -> None:
    spec = make_spec(corpus, precision=precision)
    expected, _ = train(corpus, spec, tmp_path / "whole")
    for cuts in ([0], [1], [6], [13], [23], [3, 4, 5]):
        folder = tmp_path / f"cut-{cuts}"
        for steps in cuts:
            train_until(corpus, spec, folder, steps)
        assert train(corpus, spec, folder)[0] == expected, cuts


@pytest.mark.parametrize(("precision", "schedule"), [("fp32", "cosine"), ("bf16", "constant")])
def test_another_process_goes_on_to_the_same_bits(
    corpus: Corpus, tmp_path: Path, precision: str, schedule: str
) -> None:
    spec = make_spec(corpus, precision=precision, schedule=schedule)
    expected, _ = train(corpus, spec, tmp_path / "whole")
    train_until(corpus, spec, tmp_path / "cut", 9)
    (tmp_path / "spec.json").write_text(json.dumps(spec.to_json()))
    program = """
import json, sys
from pathlib import Path
from mixlaw.proxy import ProxyTrainer
from mixlaw.runs import Attempt, RunSpec
folder = Path(sys.argv[1])
spec = RunSpec.from_json(json.loads((folder / "spec.json").read_text()))
ProxyTrainer(Path(sys.argv[2])).train(spec, Attempt(folder=folder / "cut"))
"""
    subprocess.run([sys.executable, "-c", program, tmp_path, corpus.path], check=True)
    assert Attempt(folder=tmp_path / "cut").metrics() == expected


def test_losses_after_the_checkpoint_are_measured_again(corpus: Corpus, tmp_path: Path) -> None:
    spec = make_spec(corpus)
    expected, _ = train(corpus, spec, tmp_path / "whole")
    train_until(corpus, spec, tmp_path / "cut", 8)
    checkpoint = (tmp_path / "cut" / "checkpoint.safetensors").read_bytes()
    train_until(corpus, spec, tmp_path / "cut", 14 - 8)  # measures step 12
    assert [row.step for row in Attempt(folder=tmp_path / "cut").metrics()] == [0, 6, 12]
    (tmp_path / "cut" / "checkpoint.safetensors").write_bytes(checkpoint)
    assert train(corpus, spec, tmp_path / "cut")[0] == expected


def test_checkpoints_are_saved_as_often_as_asked(corpus: Corpus, tmp_path: Path) -> None:
    spec = make_spec(corpus)
    attempt = Attempt(folder=tmp_path, checkpoint_seconds=0.0)
    ProxyTrainer(corpus.path).train(spec, attempt)
    found = load_checkpoint(attempt.checkpoint_path, spec.run_id)
    assert found is not None
    assert found[0].step == 23
    assert found[0].wall_seconds > 0
    assert list(tmp_path.glob(".*.tmp")) == []


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "torn":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "zeros":
        path.write_bytes(bytes(len(content)))
    elif how == "other run":
        path.write_bytes(
            content.replace(
                json.loads(_header(content))["__metadata__"]["run_id"].encode(), b"0" * 16
            )
        )
    elif how == "other size":
        metadata = json.loads(_header(content))["__metadata__"]
        tensors = {name: tensor[:-1].clone() for name, tensor in load_file(path).items()}
        save_file(tensors, path, metadata=metadata)


def _header(content: bytes) -> bytes:
    return content[8 : 8 + int.from_bytes(content[:8], "little")]


@pytest.mark.parametrize("how", ["torn", "empty", "zeros", "other run", "other size"])
def test_a_useless_checkpoint_is_told_and_the_run_starts_again(
    corpus: Corpus, tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    spec = make_spec(corpus)
    expected, _ = train(corpus, spec, tmp_path / "whole")
    train_until(corpus, spec, tmp_path / "cut", 9)
    damage(tmp_path / "cut" / "checkpoint.safetensors", how)
    with caplog.at_level(logging.WARNING, logger="mixlaw"):
        assert train(corpus, spec, tmp_path / "cut")[0] == expected
    assert "starts again" in caplog.text


def test_a_checkpoint_whose_losses_are_lost_is_of_no_use(corpus: Corpus, tmp_path: Path) -> None:
    spec = make_spec(corpus)
    expected, _ = train(corpus, spec, tmp_path / "whole")
    train_until(corpus, spec, tmp_path / "cut", 9)
    (tmp_path / "cut" / METRICS_FILE).unlink()
    assert train(corpus, spec, tmp_path / "cut")[0] == expected


def test_executor_trains_to_the_bits_of_this_process(corpus: Corpus, tmp_path: Path) -> None:
    specs = [make_spec(corpus, seed=seed, precision="bf16") for seed in (0, 1)]
    store = RunStore(f"sqlite:///{tmp_path}/study.db")
    store.add(specs, "design")
    executor = LocalExecutor(store=store, runs_folder=tmp_path / "runs", slots=2)
    counts = executor.run(ProxyTrainer(corpus.path))
    assert counts.done == 2
    for spec in specs:
        expected, _ = train(corpus, spec, tmp_path / "here" / spec.run_id)
        assert Attempt(folder=tmp_path / "runs" / spec.run_id).metrics() == expected
    losses = [Attempt(folder=tmp_path / "runs" / s.run_id).metrics()[-1].values for s in specs]
    assert losses[0] != losses[1]


def test_the_order_of_domains_changes_neither_run_id_nor_bits(
    corpus: Corpus, tmp_path: Path
) -> None:
    spec = make_spec(corpus)
    turned = replace(spec, mixture=spec.mixture.reordered(NAMES[::-1]))
    assert turned.run_id == spec.run_id
    rows = [train(corpus, s, tmp_path / str(i))[0] for i, s in enumerate((spec, turned))]
    assert rows[0] == rows[1]


def test_mixtures_start_from_the_same_weights_and_seeds_do_not(
    corpus: Corpus, tmp_path: Path
) -> None:
    spec = make_spec(corpus, steps=6, eval_steps=(0, 6))
    other = replace(spec, mixture=Mixture.uniform(NAMES))
    fresh = replace(spec, seed=1)
    first, same, different = (
        train(corpus, s, tmp_path / str(i))[0] for i, s in enumerate((spec, other, fresh))
    )
    assert first[0] == same[0]
    assert first[1] != same[1]
    assert first[0] != different[0]


def test_loss_falls_below_that_of_single_bytes_on_real_text(corpus: Corpus, tmp_path: Path) -> None:
    spec = make_spec(corpus, params=49_152, steps=300, eval_steps=(0, 100, 300))
    rows, _ = train(corpus, spec, tmp_path)
    for name in NAMES:
        losses = [row.values[name][0] for row in rows]
        assert losses[0] == pytest.approx(5.5452, abs=0.2)  # ln 256
        assert losses[0] > losses[1] > losses[2]
        assert losses[2] < entropy_of_bytes(corpus, name) - 0.4


def entropy_of_bytes(corpus: Corpus, name: str) -> float:
    counts = torch.bincount(torch.tensor(corpus.tokens(name, "validation").tolist()))
    return float(torch.distributions.Categorical(counts.double()).entropy())


def test_a_domain_with_more_weight_is_learned_better(corpus: Corpus, tmp_path: Path) -> None:
    finals: list[Mapping[str, tuple[float, float | None]]] = []
    for index, name in enumerate(NAMES[:2]):
        mixture = Mixture.of({n: 0.9 if n == name else 0.05 for n in NAMES})
        spec = make_spec(corpus, steps=120, eval_steps=(120,), mixture=mixture)
        finals.append(train(corpus, spec, tmp_path / str(index))[0][-1].values)
    assert finals[0][NAMES[0]][0] < finals[1][NAMES[0]][0]
    assert finals[1][NAMES[1]][0] < finals[0][NAMES[1]][0]


def test_standard_errors_shrink_with_the_root_of_sequences(corpus: Corpus, tmp_path: Path) -> None:
    few = make_spec(corpus, steps=30, eval_steps=(30,), validation_sequences=40)
    many = make_spec(corpus, steps=30, eval_steps=(30,), validation_sequences=160)
    (few_row,), _ = train(corpus, few, tmp_path / "few")
    (many_row,), _ = train(corpus, many, tmp_path / "many")
    name = NAMES[1]
    few_loss, few_error = few_row.values[name]
    many_loss, many_error = many_row.values[name]
    assert few_error is not None
    assert many_error is not None
    assert few_error / many_error == pytest.approx(2.0, rel=0.4)
    assert abs(few_loss - many_loss) < 4 * few_error


def test_one_sequence_has_no_standard_error(corpus: Corpus, tmp_path: Path) -> None:
    spec = make_spec(corpus, steps=1, eval_steps=(1,), validation_sequences=1)
    rows, _ = train(corpus, spec, tmp_path)
    assert all(error is None for _, error in rows[0].values.values())


@pytest.mark.parametrize("schedule", ["constant", "wsd"])
def test_kept_weights_have_the_losses_that_were_measured(
    corpus: Corpus, tmp_path: Path, schedule: str
) -> None:
    spec = make_spec(corpus, schedule=schedule)
    rows, _ = train(corpus, spec, tmp_path, keep_weights=True)
    shape = proxy_recipe(corpus, sequence_length=32).shape(spec.params)
    named = load_file(tmp_path / "weights.safetensors")
    weights = FlatTensors(shape, torch.zeros(shape.params_total))
    for name, view in weights.views.items():
        view.copy_(named[name])
    model = ProxyModel(shape, dtype=torch.float32, device=torch.device("cpu"))
    sequences = validation_sequences(
        corpus.tokens("unseen", "validation"), sequence_length=32, count=12, where="unseen"
    )
    losses = model.sequence_losses(weights, weights, torch.from_numpy(sequences))
    assert float(losses.double().mean()) == pytest.approx(rows[-1].values["unseen"][0], rel=1e-5)


def test_two_byte_tokens_train(tmp_path: Path) -> None:
    path = tmp_path / "corpus"
    for name in ("email", "asyncio"):
        files = sorted((STDLIB / name).glob("*.py"))
        add_domain(path, name, files, tokenizer="bpe:400", validation_share=0.2)
    corpus = Corpus.open(path)
    assert corpus.tokens("email", "train").dtype == "uint16"
    spec = make_spec(
        corpus, mixture=Mixture.uniform(["email", "asyncio"]), steps=60, eval_steps=(0, 60)
    )
    rows, summary = train(corpus, spec, tmp_path / "run")
    assert summary.params_total == 12_288 + 32 * (4 * corpus.vocab_size + 32)
    assert rows[0].values["email"][0] > rows[1].values["email"][0] + 0.5


def test_a_diverged_loss_ends_the_run_with_what_to_do(corpus: Corpus, tmp_path: Path) -> None:
    spec = make_spec(corpus, learning_rate=1e30)
    with pytest.raises(TrainingError, match=r"(?s)finite, but .*nan.*learning rate"):
        train(corpus, spec, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corpus": "0" * 16}, "the run was planned for corpus 0000000000000000"),
        ({"trainer": "proxy/0-T32-V12-cpu"}, "found 'proxy/0-T32-V12-cpu'"),
        ({"trainer": "theirs/1"}, "found 'theirs/1'"),
        ({"tokens_per_step": 250}, "a multiple of the sequence length 32, found 250"),
        ({"schedule": "linear"}, "one of constant, cosine, wsd, found 'linear'"),
        ({"mixture": Mixture.of({"law": 1.0})}, "'law' has none"),
        ({"mixture": Mixture.of({"unseen": 1.0})}, "'unseen' has none"),
    ],
)
def test_a_run_that_can_not_be_trained_as_planned_is_told(
    corpus: Corpus, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RunError) as error:
        train(corpus, replace(make_spec(corpus), **changes), tmp_path)
    assert message in str(error.value)


def test_a_run_planned_for_a_gpu_is_told_when_there_is_none(corpus: Corpus, tmp_path: Path) -> None:
    spec = make_spec(corpus)
    spec = replace(spec, trainer=spec.trainer.replace("cpu", "cuda"))
    with pytest.raises(RunError, match="planned for cuda, but the trainer is for cpu"):
        train(corpus, spec, tmp_path, device="cpu")
    if not torch.cuda.is_available():
        with pytest.raises(RunError, match="PyTorch finds none here"):
            train(corpus, spec, tmp_path)
