"""What a lower loss saves: steps, tokens and FLOPs until the optimum has the baseline's last loss.

Shape letters: S steps, B draws of a curve, G draws of a gain, K points of a curve that is searched.

The definition is that of `mixlaw.verify`, where it is measured: the step at which the optimum's run
reaches the loss that the baseline's has at its end. Predicted, it needs the gain at the end and how
fast the loss falls there. The optimum's curve is the law at every step at which the runs were
observed; between these steps it is a power of the step.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mixlaw.fit.power import fit_power
from mixlaw.laws.power import STEP_LAW
from mixlaw.optimize.step_curves import StepCurve

LEVEL = 0.9
EXPONENTS = (0.05, 1.5)
"""Range of the step law's exponent."""
MOST_LONGER = 2.0
"""How much longer a run may last, in lengths of the runs, for its loss to be extrapolated."""
NUM_DRAWS = 2000


@dataclass(frozen=True, kw_only=True, slots=True)
class Savings:
    """What an optimum saves against a baseline; None: not known, and `note` says why."""

    baseline: str
    steps: int
    """Length of the runs."""
    steps_to_match: float | None
    """Step at which the optimum has the loss that the baseline has at the end."""
    steps_saved: float | None
    low: float | None
    """Limits of the 90% interval of the steps saved; None: beyond what the runs show."""
    high: float | None
    tokens_saved: float | None
    flops_saved: float | None
    """6 per parameter and token."""
    longer: float | None
    """Factor by which the baseline would have to train longer for the optimum's last loss."""
    longer_low: float | None
    longer_high: float | None
    note: str | None = None
    """What could not be said, in a sentence."""

    def sentence(self) -> str:
        """Returns the savings in a sentence."""
        if self.steps_saved is None or self.steps_to_match is None:
            return self.note or "the steps saved are not known"
        share = self.steps_to_match / self.steps
        text = f"reaches the baseline's loss after {share:.2f} of its steps"
        if self.low is not None or self.high is not None:
            ends = (
                "?" if saved is None else f"{1 - saved / self.steps:.2f}"
                for saved in (self.high, self.low)
            )
            text += f" ({' to '.join(ends)})"
        amounts: list[str] = []
        if self.tokens_saved is not None:
            amounts.append(f"{_count(self.tokens_saved)} tokens")
        if self.flops_saved is not None:
            amounts.append(f"{self.flops_saved:.2g} FLOPs")
        text += f": {' and '.join(amounts) or f'{self.steps_saved:.0f} steps'} saved"
        if self.longer is not None:
            text += f"; the baseline would have to train {self.longer:.2f} times as long"
        return f"{text}; {self.note}" if self.note else text


def predict_savings(
    gain: tuple[float, float, float],
    curve: StepCurve,
    *,
    baseline: str,
    baseline_curve: StepCurve | None = None,
    params: float | None = None,
    seed: int = 0,
) -> Savings:
    """Returns what a gain saves.

    Args:
        gain: By how much the baseline's last loss lies above the optimum's: value, and the limits
            of its 90% interval.
        curve: The optimum's loss by step.
        baseline: Name of the baseline.
        baseline_curve: The baseline's loss by step; as steep as the optimum's, by default.
        params: Parameters without embeddings, for the FLOPs.
        seed: Seed of the draws.
    """
    value, low, high = gain
    steps = curve.steps[-1] if curve.steps else 0  # imported without steps
    if len(curve.steps) < 2:
        note = "the steps saved are not known: the runs were observed at one step only"
        return _nothing(baseline, steps, note)
    rng = np.random.default_rng(seed)
    gain_G = _draw_gain(value, low, high, rng)
    pick_G = rng.integers(len(curve.draws_BS), size=NUM_DRAWS)
    match = float(_matching_steps(curve.steps, curve.loss_S[None], np.array([value]))[0])
    match_G = _matching_steps(curve.steps, curve.draws_BS, gain_G, pick_G)
    after = baseline_curve or curve
    longer, longer_low, longer_high = _longer(after, value, gain_G, rng)
    low_step, high_step = _limits(match_G, curve.steps)
    if not math.isfinite(match):
        note = (
            _describe_early(match_G, curve.steps)
            if value > 0
            else "the optimum is not predicted to reach the baseline's last loss within the steps"
            " of the runs: nothing is saved"
        )
        return _nothing(baseline, steps, note, longer=(longer, longer_low, longer_high))
    per_step = curve.tokens_per_step
    saved = steps - match
    tokens = None if per_step is None else saved * per_step
    return Savings(
        baseline=baseline,
        steps=steps,
        steps_to_match=match,
        steps_saved=saved,
        low=None if high_step is None else steps - high_step,
        high=None if low_step is None else steps - low_step,
        tokens_saved=tokens,
        flops_saved=None if tokens is None or params is None else 6 * params * tokens,
        longer=longer,
        longer_low=longer_low,
        longer_high=longer_high,
        note=_describe_limits(low_step, high_step, curve.steps),
    )


def _matching_steps(
    steps: Sequence[int],
    loss_BS: Float[np.ndarray, "B S"],
    gain_G: Float[np.ndarray, " G"],
    pick_G: np.ndarray | None = None,
) -> Float[np.ndarray, " G"]:
    """Returns where each curve lies as far above its end as a gain says.

    `-inf`: before the first step; `inf`: after the last.
    """
    step_K = np.geomspace(steps[0], steps[-1], 400)
    rise_BK = _rises(np.array(steps, dtype=float), loss_BS, step_K)
    rise_BK = rise_BK if pick_G is None else rise_BK[pick_G]
    found_G = np.empty(len(gain_G))
    for b, gain in enumerate(gain_G):
        rise_K = rise_BK[b]
        if gain < 0:
            found_G[b] = np.inf
        elif gain > rise_K[0]:
            found_G[b] = -np.inf
        else:  # falls monotonically along the steps
            found_G[b] = np.exp(np.interp(gain, rise_K[::-1], np.log(step_K[::-1])))
    return found_G


def _rises(
    step_S: Float[np.ndarray, " S"],
    loss_BS: Float[np.ndarray, "B S"],
    step_K: Float[np.ndarray, " K"],
) -> Float[np.ndarray, "B K"]:
    """Returns how far curves lie above their ends, by a step law with one exponent for all.

    With two steps it is a straight line in the logarithm of the step.
    """
    if len(step_S) == 2:
        slope_B1 = np.maximum(loss_BS[:, :1] - loss_BS[:, 1:], 1e-12) / math.log(
            step_S[1] / step_S[0]
        )
        return slope_B1 * np.log(step_S[-1] / step_K)
    fit = fit_power(
        STEP_LAW,
        step_S[:, None],
        loss_BS,
        group_S=np.zeros(len(loss_BS), dtype=int),
        exponent_bounds=EXPONENTS,
    )
    value_BK = fit.predict(step_K[:, None])
    return value_BK - fit.predict(step_S[-1:, None])


def _longer(
    curve: StepCurve, value: float, gain_G: Float[np.ndarray, " G"], rng: np.random.Generator
) -> tuple[float | None, float | None, float | None]:
    """Returns how much longer the baseline must train for the optimum's last loss, with limits."""
    if value <= 0 or len(curve.steps) < 3:
        return None, None, None
    step_S = np.array(curve.steps, dtype=float)
    step_K = np.geomspace(step_S[-1], MOST_LONGER * step_S[-1], 200)
    fall_BK = -_rises(step_S, np.vstack([curve.loss_S[None], curve.draws_BS]), step_K)
    if value > fall_BK[0, -1]:
        return None, None, None
    found = float(np.interp(value, fall_BK[0], step_K)) / step_S[-1]
    pick_G = 1 + rng.integers(len(curve.draws_BS), size=len(gain_G))
    factor_G = np.array(
        [
            np.interp(gain, fall_BK[b], step_K, left=step_S[-1], right=np.inf)
            for gain, b in zip(gain_G, pick_G, strict=True)
        ]
    )
    ends = np.sort(factor_G)[[int(0.05 * len(factor_G)), int(0.95 * len(factor_G))]] / step_S[-1]
    low, high = (float(end) if math.isfinite(end) else None for end in ends)
    return found, low, high


def _draw_gain(
    value: float, low: float, high: float, rng: np.random.Generator
) -> Float[np.ndarray, " G"]:
    """Returns draws with these limits of 90%: the halves of two normals."""
    from scipy.stats import norm

    half = float(norm.ppf((1 + LEVEL) / 2))
    normal_G = rng.standard_normal(NUM_DRAWS)
    # The limits need not hold the value: they know of the winner's curse.
    middle = min(max(value, low), high)
    sd_G = np.where(normal_G < 0, middle - low, high - middle) / half
    return middle + normal_G * sd_G


def _limits(
    match_G: Float[np.ndarray, " G"], steps: Sequence[int]
) -> tuple[float | None, float | None]:
    ordered_G = np.sort(match_G)
    count = len(ordered_G)
    low = ordered_G[int((1 - LEVEL) / 2 * count)]
    high = ordered_G[min(int((1 + LEVEL) / 2 * count), count - 1)]
    return (
        float(low) if math.isfinite(low) else None,
        float(high) if math.isfinite(high) else None,
    )


def _describe_early(match_G: Float[np.ndarray, " G"], steps: Sequence[int]) -> str:
    """Returns what is saved at least where the loss is reached before the runs were observed."""
    latest = float(np.sort(match_G)[int(LEVEL * len(match_G))])
    sure = (
        "that it saves nothing is within the error"
        if latest == math.inf
        else f"{steps[-1] - max(latest, steps[0]):.0f} with {LEVEL:.0%}"
    )
    return (
        f"the optimum is predicted to have the baseline's last loss before step {steps[0]}, the"
        f" first at which the runs were observed: at least {steps[-1] - steps[0]} of {steps[-1]}"
        f" steps are saved ({sure})"
    )


def _describe_limits(
    low_step: float | None, high_step: float | None, steps: Sequence[int]
) -> str | None:
    told: list[str] = []
    if high_step is None:
        told.append(
            "it may save nothing: its loss may not fall to the baseline's in the same steps"
        )
    if low_step is None:
        told.append(
            f"it may save more than {steps[-1] - steps[0]} steps: nothing is known of the runs"
            f" before step {steps[0]}"
        )
    return "; ".join(told) or None


def _nothing(
    baseline: str,
    steps: int,
    note: str,
    *,
    longer: tuple[float | None, float | None, float | None] = (None, None, None),
) -> Savings:
    return Savings(
        baseline=baseline,
        steps=steps,
        steps_to_match=None,
        steps_saved=None,
        low=None,
        high=None,
        tokens_saved=None,
        flops_saved=None,
        longer=longer[0],
        longer_low=longer[1],
        longer_high=longer[2],
        note=note,
    )


def _count(number: float) -> str:
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= 0.9995 * size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"
