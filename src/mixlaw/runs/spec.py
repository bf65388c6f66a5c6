"""What one training run is: mixtures, start, size, length, schedule, seeds, data and recipe."""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Any, Literal

from mixlaw.errors import RunError
from mixlaw.mixtures import Mixture

StartKind = Literal["run", "file"]
_START = re.compile(r"(run|file):([0-9a-f]{16})")


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """A later part of a run, with a mixture of its own; it lasts until the next one or the end."""

    from_step: int
    """Optimizer steps before it."""
    mixture: Mixture
    """Token shares of the training domains in this part."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSpec:
    """One training run; two specs with one `run_id` give the same losses, bit for bit."""

    mixture: Mixture
    """Token shares of the training domains; where the run has later stages, those of its first."""
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
    later_stages: tuple[Stage, ...] = ()
    """Parts of the run with other mixtures than the first. A stage that changes nothing is left
    out, so that a schedule that is constant is the run of its one mixture."""
    start: str | None = None
    """Weights that the run starts from: `run:` and the run_id of their run, which is trained first
    and keeps its weights, or `file:` and the hash of a file (`mixlaw.runs.starts`). None: weights
    drawn with `seed`. The optimizer's moments and its steps start at zero in any case."""
    token_limits: Mapping[str, int] = field(default_factory=dict[str, int], hash=False)
    """How many tokens from the beginning of a domain's training text the run may use; all of them
    where a domain is not named."""

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
        object.__setattr__(self, "later_stages", self._checked_stages())
        if self.start is not None and not _START.fullmatch(self.start):
            raise RunError(
                "a run's start must be `run:` or `file:` and 16 hexadecimal digits, found"
                f" {self.start!r}",
                do="take `start_of_run` or `keep_checkpoint` of mixlaw.runs.starts",
            )
        object.__setattr__(self, "token_limits", self._checked_limits())

    def _checked_stages(self) -> tuple[Stage, ...]:
        """Returns the stages without those that change nothing."""
        stages = [
            Stage(from_step=_whole_number("from_step", stage.from_step), mixture=stage.mixture)
            for stage in self.later_stages
        ]
        bounds = [0, *(stage.from_step for stage in stages), self.steps]
        if any(step >= later for step, later in pairwise(bounds)):
            raise RunError(
                f"stages must begin after one another, between step 0 and the last step"
                f" {self.steps}, found {bounds[1:-1]}"
            )
        kept: list[Stage] = []
        for stage in stages:
            before = kept[-1].mixture if kept else self.mixture
            if _shares(stage.mixture) != _shares(before):
                kept.append(stage)
        return tuple(kept)

    def _checked_limits(self) -> dict[str, int]:
        limits = {
            name: _whole_number("token_limits", limit)
            for name, limit in sorted(self.token_limits.items())
        }
        known = {name for _, mixture in self.stages for name in mixture}
        for name, limit in limits.items():
            if limit <= 0 or name not in known:
                raise RunError(
                    "a run's token_limits must be positive numbers of tokens of its domains, found"
                    f" {limit} for {name!r}",
                    do=f"its domains are {', '.join(sorted(known))}",
                )
        return limits

    @property
    def stages(self) -> tuple[tuple[int, Mixture], ...]:
        """All stages, the first one too: after which step each ends, and its mixture."""
        ends = [*(stage.from_step for stage in self.later_stages), self.steps]
        mixtures = [self.mixture, *(stage.mixture for stage in self.later_stages)]
        return tuple(zip(ends, mixtures, strict=True))

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains of all stages: those of the first in its order, then the others."""
        return tuple(dict.fromkeys(name for _, mixture in self.stages for name in mixture))

    @property
    def mean_mixture(self) -> Mixture:
        """Token shares of the whole run: `mixture`, where it has one stage."""
        if not self.later_stages:
            return self.mixture
        ends = [0, *(end for end, _ in self.stages)]
        lengths = [end - start for start, end in pairwise(ends)]
        return Mixture.normalized(
            {
                name: math.fsum(
                    length * mixture.get(name, 0.0)
                    for length, (_, mixture) in zip(lengths, self.stages, strict=True)
                )
                for name in self.domains
            }
        )

    @property
    def mixture_id(self) -> str:
        """That of the mixture; a hash of all stages where there are several.

        Replicates share it; a schedule and the constant mixture of the same tokens do not.
        """
        if not self.later_stages:
            return self.mixture.mixture_id
        text = json.dumps([[end, mixture.mixture_id] for end, mixture in self.stages])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def parent(self) -> tuple[StartKind, str] | None:
        """What the run starts from: kind and id or hash; None: its own initial weights."""
        match = None if self.start is None else _START.fullmatch(self.start)
        if match is None:
            return None
        return ("run" if match[1] == "run" else "file"), match[2]

    @property
    def parent_run_id(self) -> str | None:
        """The run that must be trained before this one; None: there is none."""
        parent = self.parent
        return parent[1] if parent is not None and parent[0] == "run" else None

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
        """Returns the spec as plain values that JSON keeps exactly.

        What a run does not use is left out, so that its run_id stays that of earlier versions.
        """
        values = {spec_field.name: getattr(self, spec_field.name) for spec_field in fields(self)}
        values["mixture"] = _shares(self.mixture)
        values["eval_steps"] = list(self.eval_steps)
        values["later_stages"] = [
            {"from_step": stage.from_step, "mixture": _shares(stage.mixture)}
            for stage in self.later_stages
        ]
        values["token_limits"] = dict(self.token_limits)
        return {name: value for name, value in values.items() if value or name not in _OPTIONAL}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "RunSpec":
        """Returns the spec that `to_json` gave.

        Raises:
            RunError: A field is missing or unknown.
        """
        known = {spec_field.name for spec_field in fields(cls)}
        wrong = sorted((known - values.keys() - _OPTIONAL) | (values.keys() - known))
        if wrong:
            raise RunError(
                f"a run's spec must have exactly the fields of this version, but {wrong[0]!r}"
                " is missing or unknown",
                do="run it with the version of mixlaw that wrote it",
            )
        plain = dict(values)
        plain["mixture"] = Mixture.of(plain["mixture"])
        plain["eval_steps"] = tuple(plain["eval_steps"])
        plain["later_stages"] = tuple(
            Stage(from_step=stage["from_step"], mixture=Mixture.of(stage["mixture"]))
            for stage in plain.get("later_stages", ())
        )
        return cls(**plain)


_OPTIONAL = frozenset({"later_stages", "start", "token_limits"})
"""Fields that came later: left out of JSON and of the hash where a run does not use them."""


def stages_of(mixtures: Sequence[Mixture], ends: Sequence[int]) -> tuple[Stage, ...]:
    """Returns the later stages of a run, all but the first of its mixtures.

    Args:
        mixtures: One per stage.
        ends: After which step each stage ends; the last one is the run's last step.
    """
    if len(mixtures) != len(ends):
        raise RunError(f"each stage needs an end, found {len(ends)} for {len(mixtures)} mixtures")
    return tuple(
        Stage(from_step=start, mixture=mixture)
        for start, mixture in zip(ends[:-1], mixtures[1:], strict=True)
    )


def _shares(mixture: Mixture) -> dict[str, float]:
    return dict(sorted(mixture.items()))


def _whole_number(name: str, value: float) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        number = None
    if number is None or number != value:
        raise RunError(f"a run's {name} must be a whole number, found {value!r}")
    return number
