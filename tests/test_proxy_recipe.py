import subprocess
import sys
from pathlib import Path

import pytest

from mixlaw.corpora import Corpus
from mixlaw.errors import MissingExtraError, RunError
from mixlaw.mixtures import Mixture
from mixlaw.proxy import ProxyTrainer, proxy_recipe
from mixlaw.proxy.recipe import BF16_FEATURES, processor_features, recipe_of
from mixlaw.runs import RunSpec
from test_proxy_data import build_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return build_corpus(tmp_path_factory.mktemp("recipe") / "corpus", ["web", "code"])


def make_spec(corpus: Corpus, *, params: int = 49_000, steps: int = 500) -> RunSpec:
    recipe = proxy_recipe(corpus, device="cpu")
    return RunSpec(
        mixture=Mixture.uniform(["web", "code"]),
        params=params,
        steps=steps,
        tokens_per_step=recipe.tokens_per_step,
        eval_steps=(steps,),
        corpus=recipe.corpus,
        tokenizer=recipe.tokenizer,
        trainer=recipe.trainer,
        precision=recipe.precision,
    )


def test_the_trainers_name_holds_what_decides_losses(corpus: Corpus) -> None:
    recipe = proxy_recipe(corpus, device="cpu", precision="fp32")
    assert recipe.trainer == "proxy/1-T128-V192-cpu"
    assert recipe.tokens_per_step == 2048
    assert recipe.corpus == corpus.hash
    other = proxy_recipe(
        corpus, device="cuda", sequence_length=64, batch_size=8, validation_sequences=10
    )
    assert other.trainer == "proxy/1-T64-V10-cuda"
    assert (other.tokens_per_step, other.precision) == (512, "bf16")


def test_the_recipe_is_read_back_from_a_spec(corpus: Corpus) -> None:
    assert recipe_of(make_spec(corpus), corpus) == proxy_recipe(corpus, device="cpu")


def test_auto_takes_bf16_where_the_processor_multiplies_it(corpus: Corpus) -> None:
    fast = bool(processor_features() & BF16_FEATURES)
    recipe = proxy_recipe(corpus, device="cpu", precision="auto")
    assert recipe.precision == ("bf16" if fast else "fp32")


def test_settings_too_small_are_told(corpus: Corpus) -> None:
    with pytest.raises(RunError, match="sequence_length must be at least 4, found 3"):
        proxy_recipe(corpus, sequence_length=3)
    with pytest.raises(RunError, match="batch_size must be at least 1, found 0"):
        proxy_recipe(corpus, batch_size=0)


def test_larger_and_longer_runs_take_longer(corpus: Corpus) -> None:
    recipe = proxy_recipe(corpus, device="cpu")
    small = recipe.estimate_seconds(make_spec(corpus))
    assert small > 0
    assert recipe.estimate_seconds(make_spec(corpus, steps=2000)) > 3 * small
    assert recipe.estimate_seconds(make_spec(corpus, params=400_000)) > 3 * small
    assert recipe.tokens_per_second(49_000) > recipe.tokens_per_second(400_000) > 0


def test_planning_needs_no_pytorch(corpus: Corpus) -> None:
    program = """
import sys
from pathlib import Path
from mixlaw.corpora import Corpus
from mixlaw.proxy import ProxyTrainer, nearest_shape, proxy_recipe
recipe = proxy_recipe(Corpus.open(Path(sys.argv[1])), device="cpu")
recipe.tokens_per_second(49_000)
nearest_shape(49_000).params_total
assert not {"torch", "scipy", "polars"} & set(sys.modules), set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program, corpus.path], check=True)


def test_missing_pytorch_is_told_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        MissingExtraError, match=r"needs PyTorch(?s:.)*pip install 'mixlaw\[train\]'"
    ):
        ProxyTrainer(Path("corpus"))
