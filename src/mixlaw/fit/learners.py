"""What learns the losses of mixtures from runs: laws, and baselines that have no formula.

Shape letters: R runs, M training domains, T targets, K folds (sets of runs that are kept), X
mixtures that are predicted, B problems, P parameters.

Selection compares learners by what they predict for runs that they did not see; it asks nothing
else of them.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from mixlaw.errors import FitError
from mixlaw.fit.strength import choose_strength, retry_strengths, try_strengths
from mixlaw.laws.base import MixingLaw

REACH = 1.0
"""How far a prediction may lie beyond the fitted losses, in units of their range: a law that
explodes at a corner is still only wrong by that much."""
FEWEST_IN_LEAF = 20
"""LightGBM's default `min_child_samples`, which is meant for thousands of rows."""
ROWS_PER_LEAF = 25
"""Rows for one of `min_child_samples`: a leaf of 20 runs among 32 would learn nothing."""
NUM_TREES = 1000
LEARNING_RATE = 0.01
NUM_LEAVES = 8
"""Leaves of a tree. Of 3 to 31, those that did best with 64 and 400 of RegMix's runs."""
ROWS_PER_TREE = 0.7
"""Share of the runs that each tree sees, drawn anew: better than all of them at every number."""


@dataclass(frozen=True, slots=True)
class Learner(ABC):
    """Something that learns losses from the token shares of runs."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Short name, as tables show it."""

    @abstractmethod
    def num_parameters(self, num_domains: int) -> float:
        """Returns how many numbers are learned for one target; infinite: as many as runs allow."""

    @abstractmethod
    def predict_folds(
        self,
        r_RM: Float[np.ndarray, "R M"],
        y_RT: Float[np.ndarray, "R T"],
        *,
        keep_KR: Bool[np.ndarray, "K R"],
        r_XM: Float[np.ndarray, "X M"],
        start_K: Int[np.ndarray, " K"] | None = None,
    ) -> Float[np.ndarray, "K X T"]:
        """Returns what is predicted for mixtures after learning from the runs that are kept.

        Args:
            r_RM: Token shares of the runs.
            y_RT: Their losses; NaN: not there.
            keep_KR: Which runs each fold learns from.
            r_XM: Token shares of the mixtures to predict.
            start_K: The fold from whose fit a descent starts, which has a start of its own (-1):
                several times as fast, and harmless where that fold is allowed to see what this one
                leaves out. Own starts for all, by default: then nothing that a fold leaves out can
                matter.
        """

    def predict(
        self,
        r_RM: Float[np.ndarray, "R M"],
        y_RT: Float[np.ndarray, "R T"],
        *,
        r_XM: Float[np.ndarray, "X M"],
    ) -> Float[np.ndarray, "X T"]:
        """Returns what is predicted for mixtures after learning from all runs."""
        everything_KR = np.ones((1, len(r_RM)), dtype=bool)
        return self.predict_folds(r_RM, y_RT, keep_KR=everything_KR, r_XM=r_XM)[0]


@dataclass(frozen=True, slots=True)
class LawLearner(Learner):
    """A mixing law, fitted to each target with `fit_law`'s rule."""

    law: MixingLaw

    @property
    def name(self) -> str:
        """The law's name."""
        return self.law.name

    def num_parameters(self, num_domains: int) -> float:
        """Returns the law's own number."""
        names = self.law.parameter_names(tuple(f"d{j}" for j in range(num_domains)))
        return float(len(names))

    def predict_folds(
        self,
        r_RM: Float[np.ndarray, "R M"],
        y_RT: Float[np.ndarray, "R T"],
        *,
        keep_KR: Bool[np.ndarray, "K R"],
        r_XM: Float[np.ndarray, "X M"],
        start_K: Int[np.ndarray, " K"] | None = None,
    ) -> Float[np.ndarray, "K X T"]:
        """Returns predictions of all folds, which are fitted together."""
        num_folds, num_targets = len(keep_KR), y_RT.shape[1]
        seen_R = keep_KR.any(axis=0)
        r_RM, y_RT, keep_KR = r_RM[seen_R], y_RT[seen_R], keep_KR[:, seen_R]
        y_KTR = np.where(keep_KR[:, None], y_RT.T, np.nan)
        own_K = np.full(num_folds, True) if start_K is None else start_K < 0
        tried = try_strengths(self.law, r_RM, y_KTR[own_K].reshape(-1, len(r_RM)))
        chosen = choose_strength(tried)
        theta_KTP = np.empty((num_folds, num_targets, chosen.theta_BP.shape[1]))
        theta_KTP[own_K] = chosen.theta_BP.reshape(-1, num_targets, theta_KTP.shape[2])
        if start_K is not None and not own_K.all():
            place_K = np.cumsum(own_K) - 1
            index_B = place_K[start_K[~own_K], None] * num_targets + np.arange(num_targets)
            again = [part.select(index_B.ravel()) for part in tried]
            y_BR = y_KTR[~own_K].reshape(-1, len(r_RM))
            theta_BP = retry_strengths(self.law, r_RM, y_BR, tried=again).theta_BP
            theta_KTP[~own_K] = theta_BP.reshape(-1, *theta_KTP.shape[1:])
        value_KXT = np.swapaxes(self.law.predict(r_XM, theta_KTP), 1, 2)
        return within_reach(value_KXT, y_RT, keep_KR)


@dataclass(frozen=True, slots=True)
class MeanLearner(Learner):
    """The mean of the losses: the simplest prediction there is."""

    @property
    def name(self) -> str:
        """The name in tables."""
        return "mean"

    def num_parameters(self, num_domains: int) -> float:
        """Returns one."""
        return 1.0

    def predict_folds(
        self,
        r_RM: Float[np.ndarray, "R M"],
        y_RT: Float[np.ndarray, "R T"],
        *,
        keep_KR: Bool[np.ndarray, "K R"],
        r_XM: Float[np.ndarray, "X M"],
        start_K: Int[np.ndarray, " K"] | None = None,
    ) -> Float[np.ndarray, "K X T"]:
        """Returns the mean of what each fold keeps."""
        known_KRT = keep_KR[..., None] & np.isfinite(y_RT)
        total_KT = np.where(known_KRT, y_RT, 0.0).sum(axis=1)
        mean_KT = total_KT / np.maximum(known_KRT.sum(axis=1), 1)
        return np.repeat(mean_KT[:, None], len(r_XM), axis=1)


@dataclass(frozen=True, slots=True)
class LightGBMLearner(Learner):
    """Boosted trees as RegMix has them, without its early stopping on the test set.

    RegMix (arXiv:2407.01492) fits 1,000 trees at a learning rate of 0.01. `min_child_samples` is
    scaled to the number of runs; its default leaves nothing to learn from 32. Small trees of a part
    of the runs are not RegMix's, but better than its defaults (docs/benchmarks/regmix.md).
    """

    seed: int = 0

    @property
    def name(self) -> str:
        """The name in tables."""
        return "lightgbm"

    def num_parameters(self, num_domains: int) -> float:
        """Returns infinity: trees grow with the runs."""
        return float("inf")

    def predict_folds(
        self,
        r_RM: Float[np.ndarray, "R M"],
        y_RT: Float[np.ndarray, "R T"],
        *,
        keep_KR: Bool[np.ndarray, "K R"],
        r_XM: Float[np.ndarray, "X M"],
        start_K: Int[np.ndarray, " K"] | None = None,
    ) -> Float[np.ndarray, "K X T"]:
        """Returns predictions of one model for each fold and target."""
        regressor = _light_gbm()

        def predict(x_NM: Float[np.ndarray, "N M"], y_N: Float[np.ndarray, " N"]) -> np.ndarray:
            # Each tree draws rows by their places: these must not depend on the runs' order.
            order_N = np.argsort(y_N)
            model = regressor(
                n_estimators=NUM_TREES,
                learning_rate=LEARNING_RATE,
                num_leaves=NUM_LEAVES,
                min_child_samples=int(np.clip(len(y_N) // ROWS_PER_LEAF, 2, FEWEST_IN_LEAF)),
                subsample=ROWS_PER_TREE,
                subsample_freq=1,
                random_state=self.seed,
                deterministic=True,
                force_row_wise=True,
                n_jobs=1,
                verbosity=-1,
            )
            model.fit(x_NM[order_N], y_N[order_N])
            return np.asarray(model.booster_.predict(r_XM), dtype=np.float64)

        return _predict_each(r_RM, y_RT, keep_KR, predict)


@dataclass(frozen=True, slots=True)
class GaussianProcessLearner(Learner):
    """A Gaussian process over the shares: constant times RBF with a length per domain, plus noise.

    As Olmix has it. Its own intervals are not used.
    """

    num_restarts: int = 1
    seed: int = 0

    @property
    def name(self) -> str:
        """The name in tables."""
        return "gp"

    def num_parameters(self, num_domains: int) -> float:
        """Returns infinity: it remembers every run."""
        return float("inf")

    def predict_folds(
        self,
        r_RM: Float[np.ndarray, "R M"],
        y_RT: Float[np.ndarray, "R T"],
        *,
        keep_KR: Bool[np.ndarray, "K R"],
        r_XM: Float[np.ndarray, "X M"],
        start_K: Int[np.ndarray, " K"] | None = None,
    ) -> Float[np.ndarray, "K X T"]:
        """Returns predictions of one process for each fold and target."""

        def predict(x_NM: Float[np.ndarray, "N M"], y_N: Float[np.ndarray, " N"]) -> np.ndarray:
            model = _gaussian_process(r_RM.shape[1], self.num_restarts, self.seed)
            with warnings.catch_warnings():
                # A length at its bound, "this domain does not matter", is no news.
                warnings.filterwarnings("ignore", message="The optimal value found")
                warnings.filterwarnings("ignore", message="lbfgs failed to converge")
                model.fit(x_NM, y_N)
            return model.predict(r_XM)

        return _predict_each(r_RM, y_RT, keep_KR, predict)


def _predict_each(
    r_RM: Float[np.ndarray, "R M"],
    y_RT: Float[np.ndarray, "R T"],
    keep_KR: Bool[np.ndarray, "K R"],
    predict: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> Float[np.ndarray, "K X T"]:
    """Returns what a model of each fold and target, which sees only its runs, predicts."""
    known_TR = np.isfinite(y_RT.T)
    by_fold = [
        [predict(r_RM[keep_R & known_R], y_R[keep_R & known_R])
         for y_R, known_R in zip(y_RT.T, known_TR, strict=True)]
        for keep_R in keep_KR
    ]  # fmt: skip
    return np.array(by_fold).swapaxes(1, 2)


def within_reach(
    value_KXT: Float[np.ndarray, "K X T"],
    y_RT: Float[np.ndarray, "R T"],
    keep_KR: Bool[np.ndarray, "K R"],
) -> Float[np.ndarray, "K X T"]:
    """Returns predictions that lie at most `REACH` ranges beyond the losses of what is kept."""
    kept_KRT = np.where(keep_KR[..., None], y_RT, np.nan)
    low_K1T, high_K1T = (side(kept_KRT, axis=1, keepdims=True) for side in (np.nanmin, np.nanmax))
    far_K1T = REACH * (high_K1T - low_K1T)
    return np.clip(value_KXT, low_K1T - far_K1T, high_K1T + far_K1T)


def has_baselines() -> bool:
    """Whether the packages of the extra `baselines` are installed."""
    from importlib.util import find_spec

    return find_spec("lightgbm") is not None and find_spec("sklearn") is not None


def _light_gbm() -> Any:
    try:
        from lightgbm import LGBMRegressor
    except ImportError as error:
        raise _no_baselines("LightGBM") from error
    return LGBMRegressor


def _gaussian_process(num_domains: int, num_restarts: int, seed: int) -> Any:
    try:
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
    except ImportError as error:
        raise _no_baselines("scikit-learn") from error
    lengths: Any = np.full(num_domains, 0.5)
    kernel = ConstantKernel(1.0) * RBF(lengths, (0.05, 50.0)) + WhiteKernel(1e-2)
    return GaussianProcessRegressor(
        kernel, normalize_y=True, n_restarts_optimizer=num_restarts, random_state=seed
    )


def _no_baselines(package: str) -> FitError:
    return FitError(f"{package} is not installed", do="pip install 'mixlaw[baselines]'")
