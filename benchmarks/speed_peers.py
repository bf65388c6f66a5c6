"""How others fit M4: the official notebook's many LBFGS starts, and SciPy's curve_fit.

The official recipe is written down from its description (yegcjs/mixinglaws, `law.py`): parameters
log c, log k and t; the sum over runs of Huber's loss on raw residuals; `torch.optim.LBFGS` with
learning rate 0.01, history 10, 20 iterations per step and a strong Wolfe search; starts on a grid
of levels with random t. How many steps a start takes is not in that description: here it ends as
soon as a step lowers the objective by less than a billionth, which favors the recipe.

Shape letters: R runs, M training domains, P parameters.
"""

import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.optimize import OptimizeWarning, curve_fit

CLOCK = time.process_time
"""Seconds of the processor: all of it is one thread."""
DELTA = 0.01
"""Huber's threshold, in nats: the default of the released code."""
MAX_STEPS = 100
"""LBFGS steps, of 20 iterations each, after which a start is given up."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One start of another fit."""

    seconds: float
    objective: float
    """Sum of Huber's loss at its end, in squared nats."""


def huber_sum(residual_R: np.ndarray) -> float:
    """Returns the official objective of some residuals."""
    size_R = np.abs(residual_R)
    inside_R = np.minimum(size_R, DELTA)
    return float(np.sum(inside_R * (size_R - inside_R / 2)))


def official_starts(r_RM: np.ndarray, y_R: np.ndarray, *, num_starts: int) -> Iterator[Trial]:
    """Yields the trials of the official recipe, one start after the other, in random order."""
    import torch

    torch.set_num_threads(1)
    r, y = torch.tensor(r_RM), torch.tensor(y_R)
    rng = np.random.default_rng(0)
    for _ in range(num_starts):
        level_c = np.log(y_R.min() * rng.choice(np.linspace(0.1, 0.99, 10)))
        level_k = rng.choice(np.linspace(-2.0, 2.0, 10))
        start_P = np.concatenate([[level_c, level_k], rng.normal(0.0, 1.0, size=r_RM.shape[1])])
        parameters = torch.tensor(start_P, requires_grad=True)
        optimizer = torch.optim.LBFGS(
            [parameters], lr=0.01, history_size=10, max_iter=20, line_search_fn="strong_wolfe"
        )

        def closure(p: torch.Tensor = parameters, o: torch.optim.LBFGS = optimizer) -> torch.Tensor:
            o.zero_grad()
            predicted = torch.exp(p[0]) + torch.exp(p[1] + r @ p[2:])
            loss = torch.nn.functional.huber_loss(predicted, y, reduction="sum", delta=DELTA)
            loss.backward()
            return loss

        began, before = CLOCK(), np.inf
        for _ in range(MAX_STEPS):
            optimizer.step(closure)
            value = float(closure().detach())
            if not before - value > 1e-9 * value:
                break
            before = value
        yield Trial(seconds=CLOCK() - began, objective=min(before, value))


def curve_fit_starts(r_RM: np.ndarray, y_R: np.ndarray, *, num_starts: int) -> Iterator[Trial]:
    """Yields the trials of curve_fit on c + k exp(r t): least squares, without Huber's loss.

    The first start is that of aioli's baseline (c = k = 1, t = -1), the others are random.
    """
    rng = np.random.default_rng(0)
    size = r_RM.shape[1]

    def law(r_RM: np.ndarray, *p_P: float) -> np.ndarray:
        # M4 with the gauge fixed: with the redundant k, curve_fit has no covariance.
        return p_P[0] + np.exp(r_RM @ np.array(p_P[1:]))

    for i in range(num_starts):
        t_M = np.full(size, -1.0) if i == 0 else rng.normal(0.0, 1.0, size=size)
        began = CLOCK()
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore", OptimizeWarning)
                found_P, _ = curve_fit(law, r_RM, y_R, p0=[1.0, *t_M], maxfev=20_000)
        except RuntimeError:  # it did not converge
            yield Trial(seconds=CLOCK() - began, objective=np.inf)
            continue
        seconds = CLOCK() - began
        yield Trial(seconds=seconds, objective=huber_sum(law(r_RM, *found_P) - y_R))
