r"""Losses of larger or longer runs from smaller ones on the same training set.

Shape letters: R runs, T targets, K = 2 variables, G campaigns.

The law is $E + A N^{-a} + B D^{-b}$ on log losses, with Huber's rho: with one exponent (Gadre et
al. 2024), with two, or the mean of both; hold-outs of larger runs choose between the three
(`extrapolation`). Runs that were made at another time, with other code or
another build of the corpus, are a campaign of their own: their log losses differ from the law by a
shift that is estimated with it, and shrunk by what its own noise would make of nothing.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from mixlaw.errors import FitError
from mixlaw.fit.power import PowerFit, fit_power
from mixlaw.laws.power import OVERTRAINING_LAW, SIZE_TOKEN_LAW, PowerLaw

FORMS: dict[str, tuple[PowerLaw, ...]] = {
    "tied": (OVERTRAINING_LAW,),
    "own": (SIZE_TOKEN_LAW,),
    "mean": (OVERTRAINING_LAW, SIZE_TOKEN_LAW),
}
"""Exponents tied, own, or the geometric mean of both predictions."""
HUBER = 0.01
"""Log residuals beyond this count linearly: about the spread of equal runs (docs/log.md)."""
LEAST_MULTIPLIER = 10.0
"""Tokens per parameter that a fitted run must have. Runs with fewer end in or just after their
warm-up: on the published ones their losses lie 4% to 20% above any law."""
SHIFT_ROUNDS = 4
"""Fits of the law and the shifts in turn; they settle in three."""
LEAST_NOISE = 0.002
"""Floor of the log residuals' spread: few runs can be fitted too well."""
LEAST_RUNS = 7
"""Runs that a hold-out must leave for the fit: one more than there are parameters."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ScaledRuns:
    """Final losses of runs of several sizes and lengths on one training set."""

    targets: tuple[str, ...]
    params_R: Float[np.ndarray, " R"]
    """Total parameters, N."""
    tokens_R: Float[np.ndarray, " R"]
    """Training tokens, D."""
    campaign_R: Int[np.ndarray, " R"]
    """Runs made together, by one code on one build of the corpus; 0 is the main campaign."""
    y_TR: Float[np.ndarray, "T R"]
    """Losses, NaN where there is none."""

    @property
    def x_RK(self) -> Float[np.ndarray, "R 2"]:
        """N and D, as the laws take them."""
        return np.stack([self.params_R, self.tokens_R], axis=1)

    @property
    def flops_R(self) -> Float[np.ndarray, " R"]:
        """C = 6 N D."""
        return 6 * self.params_R * self.tokens_R

    @property
    def multiplier_R(self) -> Float[np.ndarray, " R"]:
        """M = D / N."""
        return self.tokens_R / self.params_R

    def take(self, keep_R: Bool[np.ndarray, " R"]) -> "ScaledRuns":
        """Returns some of the runs."""
        return replace(
            self,
            params_R=self.params_R[keep_R],
            tokens_R=self.tokens_R[keep_R],
            campaign_R=self.campaign_R[keep_R],
            y_TR=self.y_TR[:, keep_R],
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class OvertrainingFit:
    """One form of the law, fitted to every target of one training set."""

    form: str
    runs: ScaledRuns
    """The runs that were fitted."""
    fits: tuple[PowerFit, ...]
    """One per law of the form."""
    shift_GT: Float[np.ndarray, "G T"]
    """What a campaign adds to log losses; 0 for the main one, NaN for one without runs."""
    noise_T: Float[np.ndarray, " T"]
    """Spread of the log residuals, robust, by target."""

    def predict(
        self,
        params_R: Float[np.ndarray, " R"],
        tokens_R: Float[np.ndarray, " R"],
        campaign_R: Int[np.ndarray, " R"] | None = None,
    ) -> Float[np.ndarray, "T R"]:
        """Returns losses; a campaign that the fit has not seen is taken for the main one."""
        x_RK = np.stack([params_R, tokens_R], axis=1)
        log_TR = np.mean([np.log(fit.predict(x_RK)) for fit in self.fits], axis=0)
        if campaign_R is not None:
            known_R = campaign_R < len(self.shift_GT)
            shift_RT = self.shift_GT[np.where(known_R, campaign_R, 0)]
            log_TR = log_TR + np.nan_to_num(shift_RT).T
        return np.exp(log_TR)

    def campaign_spread(self, campaign_R: Int[np.ndarray, " R"]) -> Float[np.ndarray, "T R"]:
        """Returns the size of the shift that campaigns may have which the fit has not seen.

        It is the root mean square of those it has seen, and 0 for these themselves.
        """
        inside_R = campaign_R < len(self.shift_GT)
        seen_R = inside_R & np.isfinite(self.shift_GT[np.where(inside_R, campaign_R, 0)]).all(
            axis=1
        )
        known_T = np.nansum(self.shift_GT**2, axis=0)
        count_T = np.maximum(np.isfinite(self.shift_GT[1:]).sum(axis=0), 1)
        return np.sqrt(known_T / count_T)[:, None] * ~seen_R

    def distance(
        self, params_R: Float[np.ndarray, " R"], tokens_R: Float[np.ndarray, " R"]
    ) -> Float[np.ndarray, " R"]:
        """Returns how far runs lie beyond the fit: in log compute and in log size, added up."""
        beyond_R = np.log(6 * params_R * tokens_R / self.runs.flops_R.max())
        larger_R = np.log(params_R / self.runs.params_R.max())
        return np.maximum(beyond_R, 0.0) + np.maximum(larger_R, 0.0)


def fit_overtraining(
    runs: ScaledRuns,
    *,
    form: str = "mean",
    huber: float | None = HUBER,
    least_multiplier: float = LEAST_MULTIPLIER,
) -> OvertrainingFit:
    """Returns the law of every target, with the shifts of campaigns.

    Args:
        runs: The runs; those with fewer tokens per parameter than `least_multiplier` are left out.
        form: `tied`, `own` or `mean`.
        huber: Log residuals beyond this count linearly; None: least squares.
        least_multiplier: Least tokens per parameter.

    Raises:
        FitError: If too few runs are left.
    """
    runs = runs.take(runs.multiplier_R >= least_multiplier * (1 - 1e-6))
    if runs.params_R.size < LEAST_RUNS or np.unique(runs.params_R).size < 2:
        raise FitError(
            f"the law needs {LEAST_RUNS} runs of two sizes with at least {least_multiplier:g}"
            f" tokens per parameter, but has {runs.params_R.size}"
        )
    shift_GT = np.zeros((int(runs.campaign_R.max()) + 1, len(runs.targets)))
    fits, residual_TR = _fit_shifted(runs, form, huber, shift_GT, None)
    for _ in range(SHIFT_ROUNDS if len(shift_GT) > 1 else 0):
        noise_T = _residual_spread(residual_TR - shift_GT[runs.campaign_R].T)
        shift_GT = _estimate_shifts(residual_TR, runs.campaign_R, noise_T)
        fits, residual_TR = _fit_shifted(runs, form, huber, shift_GT, fits)
    noise_T = _residual_spread(residual_TR - shift_GT[runs.campaign_R].T)
    return OvertrainingFit(form=form, runs=runs, fits=fits, shift_GT=shift_GT, noise_T=noise_T)


def _fit_shifted(
    runs: ScaledRuns,
    form: str,
    huber: float | None,
    shift_GT: np.ndarray,
    before: tuple[PowerFit, ...] | None,
) -> tuple[tuple[PowerFit, ...], np.ndarray]:
    """Returns the laws at given shifts, and what log losses have beyond the law."""
    shifted_TR = runs.y_TR * np.exp(-shift_GT[runs.campaign_R].T)
    laws = FORMS[form]
    fits = tuple(
        fit_power(law, runs.x_RK, shifted_TR, huber=huber, log=True, start=start)
        for law, start in zip(laws, before or (None,) * len(laws), strict=True)
    )
    mean_TR = np.mean([np.log(fit.predict(runs.x_RK)) for fit in fits], axis=0)
    return fits, np.log(runs.y_TR) - mean_TR


def _residual_spread(residual_TR: np.ndarray) -> np.ndarray:
    """Returns the scale of normal noise with these absolute residuals, for 5 parameters."""
    count_T = np.sum(np.isfinite(residual_TR), axis=1)
    inflation_T = np.sqrt(count_T / np.maximum(count_T - 5, 1))
    middle_T = np.nanmedian(np.abs(residual_TR), axis=1)
    return np.maximum(1.4826 * middle_T * inflation_T, LEAST_NOISE)


def _estimate_shifts(
    residual_TR: np.ndarray, campaign_R: np.ndarray, noise_T: np.ndarray
) -> np.ndarray:
    """Returns each campaign's median residual, shrunk as James and Stein do (positive part)."""
    shift_GT = np.full((int(campaign_R.max()) + 1, len(residual_TR)), np.nan)
    shift_GT[0] = 0.0
    for campaign in np.unique(campaign_R[campaign_R > 0]):
        member_TR = residual_TR[:, campaign_R == campaign]
        seen_T = np.isfinite(member_TR).any(axis=1)
        raw_T = np.nanmedian(member_TR[seen_T], axis=1)
        variance_T = noise_T[seen_T] ** 2 / np.sum(np.isfinite(member_TR[seen_T]), axis=1)
        shift_GT[campaign, seen_T] = raw_T * np.maximum(
            1 - variance_T / np.maximum(raw_T**2, 1e-30), 0.0
        )
    return shift_GT
