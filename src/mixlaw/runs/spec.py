"""What one training run is: mixture, size, length, schedule, seeds, data and recipe."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from mixlaw.errors import RunError
from mixlaw.mixtures import Mixture


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSpec:
    """One training run; two specs with one `run_id` give the same losses, bit for bit."""

    mixture: Mixture
    """Token shares of the training domains."""
    params: int
    """Parameters without embeddings, as asked for; the trainer takes its nearest shape."""
    steps: int
    """Optimizer steps."""
    tokens_per_step: int
    """Tokens per optimizer step."""
    eval_steps: tuple[int, ...]
    """Steps after which every target's loss is measured; the last one is `steps`."""
    seed: int = 0
    """Seeds the initialisation and the data order. Runs that share it share both, whatever their
    mixture (common random numbers)."""
    schedule: str = "constant"
    """Learning-rate schedule: constant, cosine or wsd."""
    learning_rate: float | None = None
    """Peak learning rate; None: the trainer's own for this size."""
    corpus: str
    """Hash of the corpus' manifest."""
    tokenizer: str
    """Identity of the tokenizer."""
    trainer: str
    """Recipe and version of the trainer, such as `proxy/1`."""
    precision: str = "fp32"
    """Resolved precision of matrix products: fp32 or bf16."""

    def __post_init__(self) -> None:
        # One value, one run_id: 5e4, NumPy's 50000 and 50000 are the same.
        for name in ("params", "steps", "tokens_per_step", "seed"):
            object.__setattr__(self, name, _whole_number(name, getattr(self, name)))
        steps = tuple(_whole_number("eval_steps", step) for step in self.eval_steps)
        object.__setattr__(self, "eval_steps", steps)
        if self.learning_rate is not None:
            object.__setattr__(self, "learning_rate", float(self.learning_rate))
            if not 0 < self.learning_rate < math.inf:
                raise RunError(
                    f"a run's learning_rate must be positive, found {self.learning_rate}"
                )
        for name in ("params", "steps", "tokens_per_step"):
            if getattr(self, name) <= 0:
                raise RunError(f"a run's {name} must be positive, found {getattr(self, name)}")
        if (
            not self.eval_steps
            or list(self.eval_steps) != sorted(set(self.eval_steps))
            or self.eval_steps[0] < 0
            or self.eval_steps[-1] != self.steps
        ):
            raise RunError(
                f"eval_steps must rise and end at the last step {self.steps},"
                f" found {list(self.eval_steps)}"
            )

    @property
    def tokens(self) -> int:
        """Tokens that the run trains on."""
        return self.steps * self.tokens_per_step

    @property
    def flops(self) -> float:
        """About the floating-point operations of the run: 6 per parameter and token."""
        return 6.0 * self.params * self.tokens

    @property
    def run_id(self) -> str:
        """A hash of everything that decides the run's losses."""
        text = json.dumps(self.to_json(), sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """Returns the spec as plain values that JSON keeps exactly."""
        values = asdict(self)
        values["mixture"] = dict(sorted(self.mixture.items()))
        values["eval_steps"] = list(self.eval_steps)
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "RunSpec":
        """Returns the spec that `to_json` gave.

        Raises:
            RunError: A field is missing or unknown.
        """
        known = {field.name for field in fields(cls)}
        wrong = sorted(known.symmetric_difference(values))
        if wrong:
            raise RunError(
                f"a run's spec must have exactly the fields of this version, but {wrong[0]!r}"
                " is missing or unknown",
                do="run it with the version of mixlaw that wrote it",
            )
        plain = dict(values)
        plain["mixture"] = Mixture.of(plain["mixture"])
        plain["eval_steps"] = tuple(plain["eval_steps"])
        return cls(**plain)


def _whole_number(name: str, value: float) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        number = None
    if number is None or number != value:
        raise RunError(f"a run's {name} must be a whole number, found {value!r}")
    return number
