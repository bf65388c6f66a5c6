"""The choice between joint laws, by larger sizes and later steps that each has not seen."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from threadpoolctl import threadpool_limits

from mixlaw.errors import FitError
from mixlaw.fit.joint_holdout import LeftOut, leave_out
from mixlaw.fit.joint_table import JointTable, check_mixtures
from mixlaw.laws.joint import JOINT_LAWS, JointLaw

CANDIDATES = tuple(law for law in JOINT_LAWS.values() if law.amplitude != "log-linear")
"""What is chosen from by default. A log-linear amplitude alone is the special case of joint-mixture
that does not follow the mixing term; with few sizes its A(r) and m(r) are confounded."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class JointChoice:
    """Joint laws by their errors beyond the fitted runs."""

    best: JointLaw
    score: Mapping[str, float]
    """For each law, the geometric mean of its relative errors on what was left out."""
    left_out: Mapping[str, tuple[LeftOut, ...]]
    """For each law, what it predicted; `fit_joint_table` takes the best one's."""

    def report(self) -> str:
        """Returns the laws with their errors, the least first."""
        lines: list[str] = []
        for name in sorted(self.score, key=self.score.__getitem__):
            parts = "; ".join(f"{p.relative_error:.2%} {p.name}" for p in self.left_out[name])
            chosen = " (chosen)" if name == self.best.name else ""
            lines.append(f"{name}{chosen}: {self.score[name]:.2%} ({parts})")
        return "\n".join(lines)


def choose_joint(
    table: JointTable, laws: Iterable[JointLaw] | None = None, *, pooled: bool = True
) -> JointChoice:
    """Returns the law with the least error on left-out sizes and steps.

    Sizes and steps count alike, and in each every hold-out: errors are compared as logarithms, so
    that a far hold-out, where all laws are worse, does not outweigh the near ones. Of the laws
    within one standard error (of the paired differences over targets) the one with the fewest
    parameters is taken.

    Args:
        table: Losses of runs.
        laws: The laws to choose from; `CANDIDATES` by default.
        pooled: As in `fit_joint`.

    Raises:
        FitError: There is neither a third size nor a later step to leave out, or a target has
            losses of fewer than four mixtures.
    """
    check_mixtures(table)
    laws = CANDIDATES if laws is None else tuple(laws)
    with threadpool_limits(limits=1):
        left_out = {law.name: leave_out(law, table, pooled=pooled) for law in laws}
    if not any(left_out.values()):
        raise FitError(
            "a joint law is chosen by leaving out the largest of three sizes, or late steps; these"
            " runs have neither",
            do="name a law, or add runs",
        )
    log_T = {name: _log_errors(parts) for name, parts in left_out.items()}
    ahead = min(laws, key=lambda law: float(log_T[law.name].mean()))
    tied = [law for law in laws if _is_tied(log_T[law.name] - log_T[ahead.name])]
    num_domains = len(table.domains)
    return JointChoice(
        best=min(
            tied, key=lambda law: (law.num_parameters(num_domains), float(log_T[law.name].mean()))
        ),
        score={name: float(np.exp(errors_T.mean())) for name, errors_T in log_T.items()},
        left_out=left_out,
    )


def _log_errors(left_out: tuple[LeftOut, ...]) -> Float[np.ndarray, " T"]:
    """Returns each target's mean log relative error: over sizes, over steps, then over both."""
    kinds: list[np.ndarray] = []
    for beyond_size in (True, False):
        parts = [
            np.log(np.maximum(part.relative_error_T, 1e-12))
            for part in left_out
            if (part.distance_R2[:, 0].max() > 0) == beyond_size
        ]
        if parts:
            kinds.append(np.mean(parts, axis=0))
    return np.mean(kinds, axis=0)


def _is_tied(worse_T: Float[np.ndarray, " T"]) -> bool:
    if len(worse_T) < 2:
        return bool(worse_T.mean() <= 0)
    return bool(worse_T.mean() <= worse_T.std(ddof=1) / np.sqrt(len(worse_T)))
