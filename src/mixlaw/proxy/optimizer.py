"""AdamW, clipping, learning-rate schedules and the average of weights, on one flat buffer each."""

import math

import torch
from torch import Tensor

SCHEDULES = ("constant", "cosine", "wsd")
WARM_UP_STEPS = 50
"""Not a share of the steps: a constant schedule's losses must not depend on where the run ends."""
FINAL_COSINE_FACTOR = 0.1
DECAY_SHARE = 0.2
"""Last part of a WSD run, in which the learning rate falls to zero."""
BETAS = (0.9, 0.98)
WEIGHT_DECAY = 0.1
LARGEST_NORM = 1.0
"""Gradients are clipped to this norm."""
EMA_GAMMA = 16
"""The average of weights reaches back about a seventeenth of the steps, however many there were."""
GIVEN_AVERAGE_STEPS = 50
"""Weights of unknown origin count in the average like those of so many steps: their loss is where
its curve begins, and after as many steps of training less than a hundred-thousandth is left. Of
weights that were trained here the number of steps is known, and the average goes on."""


def schedule_factor(schedule: str, *, step: int, steps: int) -> float:
    """Returns the learning rate after `step` of `steps` steps, as a share of its peak.

    Args:
        schedule: constant; cosine (to a tenth); wsd (constant, then linear to zero).
        step: Optimizer steps so far: the rate is that of the next one.
        steps: Steps of the whole run.

    Raises:
        ValueError: There is no such schedule.
    """
    warm_up = min(1.0, (step + 1) / WARM_UP_STEPS)
    if schedule == "constant":
        return warm_up
    if schedule == "cosine":
        wave = 0.5 * (1 + math.cos(math.pi * step / steps))
        return warm_up * (FINAL_COSINE_FACTOR + (1 - FINAL_COSINE_FACTOR) * wave)
    if schedule == "wsd":
        return warm_up * min(1.0, (steps - step) / (DECAY_SHARE * steps))
    raise ValueError(schedule)


def averages_weights(schedule: str) -> bool:
    """Whether losses are those of averaged weights: where the learning rate does not fall."""
    return schedule == "constant"


class Optimizer:
    """Updates the weights; owns their moments and their average.

    Args:
        flat: All weights, updated in place.
        gradient: Where the gradient is, clipped in place.
        averaged_steps: How many steps the weights count for in their average: 0 for weights that
            were drawn, which it forgets at once; those of their own training for given ones.
    """

    def __init__(self, flat: Tensor, gradient: Tensor, *, averaged_steps: int = 0) -> None:
        self.weights = flat
        self._averaged_steps = averaged_steps
        self.average = flat.clone()
        self.first_moment = torch.zeros_like(flat)
        self.second_moment = torch.zeros_like(flat)
        self._gradient = gradient
        self._parameter = torch.nn.Parameter(flat, requires_grad=False)
        self._parameter.grad = gradient
        self._adamw = torch.optim.AdamW(
            [self._parameter], betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True
        )
        self.go_on_after(0)

    def go_on_after(self, step: int) -> None:
        """Takes the moments to be those after so many steps."""
        self._adamw.state[self._parameter] = {
            "step": torch.tensor(float(step), device=self.weights.device),
            "exp_avg": self.first_moment,
            "exp_avg_sq": self.second_moment,
        }

    def update(self, *, step: int, learning_rate: float, tokens: int) -> None:
        """Makes one step.

        Args:
            step: Steps before this one.
            learning_rate: The rate of this step.
            tokens: The gradient is a sum over so many; it becomes their mean, clipped.
        """
        norm = torch.linalg.vector_norm(self._gradient) / tokens
        self._gradient.mul_((LARGEST_NORM / (norm + 1e-6)).clamp_(max=1.0) / tokens)
        self._adamw.param_groups[0]["lr"] = learning_rate
        self._adamw.step()
        # beta_t = (1 - 1/t)^(gamma + 1): the average forgets where the run began.
        kept = (1 - 1 / (self._averaged_steps + step + 1)) ** (EMA_GAMMA + 1)
        self.average.lerp_(self.weights, 1 - kept)
