"""The trainer of proxies: what an executor gives to each attempt, without importing PyTorch."""

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from mixlaw.corpora import Corpus
from mixlaw.errors import MissingExtraError, RunError
from mixlaw.proxy.recipe import recipe_of
from mixlaw.runs.attempt import Attempt
from mixlaw.runs.folder import TrainingSummary
from mixlaw.runs.spec import RunSpec


@dataclass(frozen=True, slots=True)
class ProxyTrainer:
    """Trains small language models on the text of a corpus.

    Raises:
        MissingExtraError: PyTorch is not installed.
    """

    corpus_path: Path
    """Folder of the corpus."""
    device: Literal["auto", "cpu", "cuda"] = field(default="auto", kw_only=True)
    """Where to train; auto: where the run was planned for. Another than that is an error."""
    keep_weights: bool = field(default=False, kw_only=True)
    """Keep the weights whose losses were measured, as `weights.safetensors` in the run's folder;
    runs that others start from need it."""

    def __post_init__(self) -> None:
        for module, package in (("torch", "PyTorch"), ("safetensors", "safetensors")):
            if find_spec(module) is None:
                raise MissingExtraError.of(package, "train")

    @property
    def preload(self) -> tuple[str, ...]:
        """Modules that are imported once for all attempts.

        PyTorch's optimizers import `torch._dynamo` when the first one is made, which takes longer
        than a short run's training.
        """
        return ("mixlaw.proxy.train", "torch._dynamo")

    def train(self, spec: RunSpec, attempt: Attempt) -> TrainingSummary:
        """Trains one run, from its checkpoint where there is one.

        Raises:
            Interrupted: It was asked to stop, and has saved a checkpoint.
            RunError: The run can't be trained here as it was planned.
            CorpusError: The corpus is damaged or holds too little text.
            TrainingError: The loss diverged.
        """
        from mixlaw.proxy.train import Training

        corpus = Corpus.open(self.corpus_path)
        recipe = recipe_of(spec, corpus)
        if self.device not in ("auto", recipe.device):
            raise RunError(
                f"the run was planned for {recipe.device}, but the trainer is for {self.device}",
                do=f"plan again with `device = {self.device!r}`, or train where it was planned for",
            )
        return Training(spec, attempt, corpus=corpus, recipe=recipe).run(
            keep_weights=self.keep_weights
        )
