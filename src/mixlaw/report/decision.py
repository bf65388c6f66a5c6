"""What the data say a team should do: measurements decide, predictions where there are none."""

import math
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
from jaxtyping import Float

from mixlaw.mixtures import Mixture
from mixlaw.report.data import ReportData
from mixlaw.verify import OPTIMUM, Comparison, VerifiedMixture

Verdict = Literal["gain", "no evidence", "loss", "no baseline"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """The mixture to train on, and why."""

    name: str
    """`optimum` or a baseline's name."""
    mixture: Mixture
    baseline: str | None
    """The baseline that decides: the first one, or the one that beat the optimum."""
    verdict: Verdict
    """What the optimum is, against that baseline."""
    is_measured: bool
    """Whether trained runs say so; else the law does."""


def decide(data: ReportData) -> Decision:
    """Returns what to do.

    The first baseline, what the team would do anyway, stays unless something is known to be better:
    the optimum, if it beat that baseline when both were trained, or, where that was not done, if
    its predicted gain is certain; or another baseline that beat such an optimum.
    """
    gains = data.optimum.gains
    decisive = {c.baseline: c for c in comparisons(data) if is_decisive(c)}
    first = gains[0].baseline if gains else next(iter(decisive), None)
    if first is None:
        return Decision(
            name=OPTIMUM,
            mixture=data.optimum.mixture,
            baseline=None,
            verdict="no baseline",
            is_measured=False,
        )
    verdict: Verdict
    if first in decisive:
        winner = decisive[first].winner
        verdict = "gain" if winner == OPTIMUM else "loss" if winner == first else "no evidence"
    else:
        verdict = cast("Verdict", data.optimum.gain_over(first).verdict)
    better = [c for c in decisive.values() if c.winner == c.baseline]
    if verdict == "gain" and better:
        best = min(better, key=lambda c: c.difference)
        return _keep(data, best.baseline, "loss", is_measured=True)
    if verdict == "gain":
        return Decision(
            name=OPTIMUM,
            mixture=data.optimum.mixture,
            baseline=first,
            verdict=verdict,
            is_measured=first in decisive,
        )
    return _keep(data, first, verdict, is_measured=first in decisive)


def _keep(data: ReportData, baseline: str, verdict: Verdict, *, is_measured: bool) -> Decision:
    mixtures = {gain.baseline: gain.mixture for gain in data.optimum.gains}
    if data.verification is not None:
        mixtures |= {verified.name: verified.mixture for verified in data.verification.mixtures}
    return Decision(
        name=baseline,
        mixture=mixtures[baseline],
        baseline=baseline,
        verdict=verdict,
        is_measured=is_measured,
    )


def comparisons(data: ReportData) -> tuple[Comparison, ...]:
    """Returns the measured comparisons, none where nothing was verified."""
    return () if data.verification is None else data.verification.comparisons


def is_decisive(comparison: Comparison) -> bool:
    """Whether there were enough seeds for an interval."""
    return math.isfinite(comparison.low) and math.isfinite(comparison.high)


def missed_mixtures(data: ReportData) -> tuple[VerifiedMixture, ...]:
    """Returns the verified mixtures whose mean loss lies outside the predicted interval."""
    verified = () if data.verification is None else data.verification.mixtures
    return tuple(m for m in verified if m.mean < m.predicted_low or m.mean > m.predicted_high)


def target_weights(data: ReportData) -> dict[str, float]:
    """Returns what each target counts in the objective, scaled to sum to one.

    An objective that is no weighted sum comes down to one near the optimum: those are its weights.
    """
    weights = {name: weight for name, weight in data.optimum.weights.items() if weight > 0}
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def weight_array(data: ReportData) -> Float[np.ndarray, " T"]:
    """Returns the same weights in the order of the fit's targets."""
    weights = target_weights(data)
    return np.array([weights.get(target, 0.0) for target in data.fit.targets])


def bits_per_byte(data: ReportData, losses: dict[str, float]) -> float | None:
    """Returns the weighted sum of losses, by target in nats per token, in bits per byte.

    None: the unit is another one, or a weighted target's bytes per token are not known.
    """
    shares = target_weights(data)
    if data.fit.table.unit != "nats_per_token" or any(
        target not in data.bytes_per_token for target in shares
    ):
        return None
    return sum(
        weight * losses[target] / (math.log(2) * data.bytes_per_token[target])
        for target, weight in shares.items()
    )


def predicted_losses(data: ReportData, mixture: Mixture) -> dict[str, float]:
    """Returns the law's loss of every target on a mixture."""
    fit = data.fit if data.answer_fit is None else data.answer_fit
    r_M = mixture.array(fit.domains)
    return dict(zip(fit.targets, map(float, fit.losses(r_M[None])[0]), strict=True))


def measured_losses(verified: VerifiedMixture) -> dict[str, float]:
    """Returns the mean over seeds of every target's measured loss; NaN where there is none."""
    return {
        target: float(np.mean(values)) if values else math.nan
        for target, values in verified.target_measured.items()
    }
