"""What is believed of a scaling fit's parameters before any run, and after another study's runs.

Shape letters: K parameters, X exponents.
"""

import numpy as np
from jaxtyping import Float

from mixlaw.fit.mixed import Prior
from mixlaw.fit.surface import EXPONENTS, NUM_EXPONENTS, PARAMETERS

PRIOR: dict[str, tuple[float, float]] = {
    # Chinchilla's .34 (Hoffmann et al. 2022) and its replication's .35, and how far fits scatter.
    "log_a": (np.log(0.35), 0.25),
    # Forward areas: about a square root in Tissue et al. 2024; what tokens give lies around it.
    "log_b": (np.log(0.5), 0.3),
    "d": (0.1, 0.2),
    # Annealing lowers the loss, a full one by some tenths of its slope in log area. Runs that stop
    # early say little about it: without a calibration the far end leans on this guess.
    "c": (0.3, 0.3),
    "s": (0.0, 0.1),
    # Ties of the mixtures' coefficients, and shares of the mean loss: weak guesses of a scale.
    **dict.fromkeys(("tie_AE", "tie_BE", "tie_BA"), (0.0, 0.7)),
    "log_sd_E": (np.log(0.05), 1.0),
    "log_sd_A": (np.log(0.01), 1.0),
    "log_sd_B": (np.log(0.01), 1.0),
    "log_run": (np.log(0.0015), 1.0),
    "log_drift": (np.log(0.001), 1.0),
    "log_noise": (np.log(0.001), 1.0),
    "log_order": (np.log(0.001), 1.0),
    "log_step": (np.log(0.001), 1.0),
    "log_point": (np.log(0.0005), 1.0),
    # Few sizes: how far a size lies off the law is mostly this guess.
    "log_size": (np.log(0.0012), 0.5),
}
"""Mean and standard deviation of each parameter; standard deviations of losses as shares of the
mean loss."""
UNSCHEDULED = {"c": (0.0, 0.0), "log_b": (np.log(0.5), 0.5)}
"""Instead, where the schedule is not known: steps stand for its area, and mean less."""
STUDY_SD = {"log_a": 0.15, "log_b": 0.1, "d": 0.03, "c": 0.05, "s": 0.05}
"""How much exponents differ between studies of one recipe: about half of what the published studies
of five and of seven domains differ by at the same sizes and steps."""


def build_prior(level: float, *, scheduled: bool, study: Prior | None = None) -> Prior:
    """Returns the prior of losses around a level.

    Args:
        level: The mean loss.
        scheduled: Whether the learning rate's schedule is known.
        study: What another study says about the exponents.
    """
    known = PRIOR if scheduled else PRIOR | UNSCHEDULED
    mean_K, sd_K = np.array([known[name] for name in PARAMETERS], dtype=float).T
    of_losses_K = np.array([name.startswith("log_") for name in PARAMETERS])
    of_losses_K[:NUM_EXPONENTS] = False
    mean_K = mean_K + np.log(level) * of_losses_K
    covariance_KK = np.diag(sd_K**2)
    if study is not None:
        mean_K[:NUM_EXPONENTS] = study.mean_K
        covariance_KK[:NUM_EXPONENTS, :NUM_EXPONENTS] = study.covariance_KK
    return Prior(mean_K=mean_K, covariance_KK=covariance_KK)


def study_prior(
    exponent_X: Float[np.ndarray, " X"], covariance_XX: Float[np.ndarray, "X X"]
) -> Prior:
    """Returns a prior of the exponents from those of another study, as unsure as studies differ."""
    study_sd = np.array([STUDY_SD[name] for name in EXPONENTS])
    # What that study held is held.
    study_sd[np.diag(covariance_XX) == 0] = 0.0
    return Prior(mean_K=exponent_X, covariance_KK=covariance_XX + np.diag(study_sd**2))
