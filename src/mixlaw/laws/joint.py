r"""Joint laws: one formula for the loss of every mixture at every model size and token count.

Shape letters: B any leading axes of parameters, R rows, M training domains, X = M + 2 inputs (the
shares, then params, then tokens or steps), P parameters, Q shrinkage residuals, S starts.

$L(r, N, D) = c + m(r) + A(r) N^{-a} + B(r) N^d D^{-b}$, with m a mixing term. Params and tokens are
in units of the caller's choice: A and B are the reducible losses where both are 1.

What scale can remove depends on the mixture (`amplitude`): not at all, log-linearly in the shares,
or as a power of the mixing term itself. The last costs one parameter each for A and B where the
second costs M, and two sizes are enough to fit it. N^d: the larger a model is, the more of the loss
is left to further tokens (`interaction`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from mixlaw.laws.joint_priors import PRIORS, default_shrinkage, slot_index
from mixlaw.laws.joint_terms import (
    Amplitude,
    Form,
    Term,
    amplitude_names,
    amplitude_term,
    mixing_names,
    mixing_term,
)

Interaction = Literal["none", "size", "product"]
"""none; B grows as N^d; a further term K N^-a D^-b."""
LIMITS: Mapping[str, tuple[float, float]] = {
    "log a": (float(np.log(0.02)), float(np.log(3.0))),
    "log b": (float(np.log(0.02)), float(np.log(3.0))),
    "d": (-1.0, 1.0),
    "log g": (float(np.log(0.02)), 0.0),
    "log q": (-3.0, 3.0),
    "kappa A": (-3.0, 3.0),
    "kappa B": (-3.0, 3.0),
    "power A": (-3.0, 3.0),
    "power B": (-3.0, 3.0),
}
LOG_LIMIT = 12.0
"""Bound of every other logarithm."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JointLaw:
    """Loss of one target as a function of the token shares, params, and tokens or steps.

    References:
        Shukor et al. 2025, arXiv:2507.09404: reciprocal with own exponents; additive with a
        constant amplitude, joint with a power-sum. Ye et al. 2025, arXiv:2403.16952: exponential.
    """

    name: str = "joint-additive"
    """Short name, as `--law` takes it."""
    form: Form = "reciprocal"
    """The mixing term m(r)."""
    own_exponents: bool = False
    """Whether each domain has its own g in the mixing term."""
    interaction: Interaction = "none"
    amplitude: Amplitude = "constant"
    """How A and B depend on the mixture."""

    @property
    def formula(self) -> str:
        """The formula as plain text."""
        own = "_j" if self.own_exponents else ""
        power = "-q" if self.form == "power-reciprocal" else "-1"
        mixing = (
            "exp(sum_j t_j r_j)"
            if self.form == "exponential"
            else f"(sum_j C_j (r_j + e)^g{own})^{power}"
        )
        of = "" if self.amplitude == "constant" else "(r)"
        grows = "N^d " if self.interaction == "size" else ""
        product = " + K N^-a D^-b" if self.interaction == "product" else ""
        return f"L = c + {mixing} + A{of} N^-a + B{of} {grows}D^-b{product}"

    @property
    def slots(self) -> tuple[str, ...]:
        """Parameters in their order; a name that ends in [] stands for one per domain."""
        return (
            "c",
            *mixing_names(self.form, own_exponents=self.own_exponents),
            *amplitude_names(self.amplitude, "A"),
            *amplitude_names(self.amplitude, "B"),
            "log a",
            "log b",
            *{"none": (), "size": ("d",), "product": ("log K",)}[self.interaction],
        )

    def index(self, num_domains: int) -> Mapping[str, Int[np.ndarray, " K"]]:
        """Returns, for each slot, the places of its parameters."""
        return slot_index(self.slots, num_domains)

    def num_parameters(self, num_domains: int) -> int:
        """Returns P."""
        return sum(num_domains if slot.endswith("[]") else 1 for slot in self.slots)

    def parameter_names(self, domains: tuple[str, ...]) -> tuple[str, ...]:
        """Returns the names of the P parameters, in the order of `theta_BP`."""
        return tuple(
            name
            for slot in self.slots
            for name in (
                [f"{slot[:-2]}[{domain}]" for domain in domains] if slot.endswith("[]") else [slot]
            )
        )

    def predict(
        self, x_RX: Float[np.ndarray, "R X"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Float[np.ndarray, "*B R"]:
        """Returns the loss of each row: its shares, params, and tokens or steps."""
        mixing, *powers = self._terms(x_RX, theta_BP)
        return theta_BP[..., :1] + np.exp(mixing.log_BR) + sum(np.exp(p.log_BR) for p in powers)

    def jacobian(
        self, x_RX: Float[np.ndarray, "R X"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Float[np.ndarray, "*B R P"]:
        """Returns the derivatives of `predict` by the parameters."""
        return self.predict_with_jacobian(x_RX, theta_BP)[1]

    def predict_with_jacobian(
        self, x_RX: Float[np.ndarray, "R X"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> tuple[Float[np.ndarray, "*B R"], Float[np.ndarray, "*B R P"]]:
        """Returns both, for the price of the second."""
        terms = self._terms(x_RX, theta_BP)
        parts = [np.exp(term.log_BR) for term in terms]
        total_BRP = parts[0][..., None] * terms[0].by_theta_BRP
        for part_BR, term in zip(parts[1:], terms[1:], strict=True):
            total_BRP += part_BR[..., None] * term.by_theta_BRP
        total_BRP[..., 0] = 1.0
        return theta_BP[..., :1] + sum(parts), total_BRP

    def gradient(
        self, x_RX: Float[np.ndarray, "R X"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Float[np.ndarray, "*B R M"]:
        """Returns the derivatives of `predict` by the shares."""
        terms = self._terms(x_RX, theta_BP)
        return np.asarray(sum(np.exp(t.log_BR)[..., None] * t.by_share_BRM for t in terms))

    def bounds(
        self, x_RX: Float[np.ndarray, "R X"], y_BR: Float[np.ndarray, "*B R"]
    ) -> tuple[Float[np.ndarray, "*B P"], Float[np.ndarray, "*B P"]]:
        """Returns the least and the largest value of each parameter; NaN losses are not there."""
        index = self.index(x_RX.shape[1] - 2)
        shape = (*y_BR.shape[:-1], self.num_parameters(x_RX.shape[1] - 2))
        low_BP, high_BP = np.full(shape, -LOG_LIMIT), np.full(shape, LOG_LIMIT)
        for slot, (low, high) in LIMITS.items():
            if slot in index:
                low_BP[..., index[slot]], high_BP[..., index[slot]] = low, high
        low_BP[..., 0], high_BP[..., 0] = 0.0, np.nanmin(y_BR, axis=-1)
        return low_BP, high_BP

    def starts(
        self, x_RX: Float[np.ndarray, "R X"], y_BR: Float[np.ndarray, "*B R"]
    ) -> Float[np.ndarray, "*B S P"]:
        """Returns guesses: a slow and a fast decay with scale, each a share of the losses.

        They are for params and tokens in units of about their mean.
        """
        num_domains = x_RX.shape[1] - 2
        index = self.index(num_domains)
        least_B1 = np.nanmin(y_BR, axis=-1)[..., None]
        middle_B1 = np.nanmedian(y_BR, axis=-1)[..., None]
        guess_BP = np.zeros((*y_BR.shape[:-1], self.num_parameters(num_domains)))
        for slot, (mean, _) in PRIORS.items():
            if slot in index:
                guess_BP[..., index[slot]] = mean
        guess_BP[..., index["c"]] = 0.3 * least_B1
        # Where all shares are equal, the mixing term is 0.4 of the least loss.
        log_mixing_B1 = np.log(0.4 * least_B1)
        if self.form == "exponential":
            guess_BP[..., index["t[]"]] = log_mixing_B1
        else:
            even = np.log(num_domains) - np.exp(PRIORS["log g"][0]) * np.log(num_domains)
            guess_BP[..., index["log C[]"]] = -log_mixing_B1 - even
        for letter in "AB":
            slot = f"log {letter}[]" if f"log {letter}[]" in index else f"log {letter}"
            guess_BP[..., index[slot]] = np.log(0.15 * middle_B1)
        guesses = []
        for a, b in ((0.35, 0.7), (0.2, 0.4)):
            guess_BP[..., index["log a"]], guess_BP[..., index["log b"]] = np.log(a), np.log(b)
            guesses.append(guess_BP.copy())
        return np.stack(guesses, axis=-2)

    def penalty(self, theta_BP: Float[np.ndarray, "*B P"]) -> Float[np.ndarray, "*B Q"]:
        """Returns the residuals of the shrinkage, in units of the priors."""
        weight_QP, offset_Q = default_shrinkage(self.slots, theta_BP.shape[-1])
        return theta_BP @ weight_QP.T - offset_Q

    def penalty_jacobian(self, theta_BP: Float[np.ndarray, "*B P"]) -> Float[np.ndarray, "*B Q P"]:
        """Returns the derivatives of `penalty` by the parameters."""
        weight_QP, _ = default_shrinkage(self.slots, theta_BP.shape[-1])
        return np.broadcast_to(weight_QP, (*theta_BP.shape[:-1], *weight_QP.shape))

    def _terms(
        self, x_RX: Float[np.ndarray, "R X"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> list[Term]:
        """Returns the mixing term and the powers of scale, as functions of all parameters."""
        num_domains = x_RX.shape[1] - 2
        r_RM, log_scale_R2 = x_RX[:, :-2], np.log(x_RX[:, -2:])
        index = self.index(num_domains)
        places = [index[s] for s in mixing_names(self.form, own_exponents=self.own_exponents)]
        own_P = np.concatenate(places)
        mixing = mixing_term(
            self.form, r_RM, theta_BP[..., own_P], own_exponents=self.own_exponents
        )
        mixing = _spread(mixing, own_P, theta_BP.shape[-1])
        terms = [mixing]
        for letter, exponent, column in (("A", "log a", 0), ("B", "log b", 1)):
            names = amplitude_names(self.amplitude, letter)
            own_P = np.concatenate([index[name] for name in names])
            term, kappa_B1 = amplitude_term(self.amplitude, r_RM, theta_BP[..., own_P], mixing)
            term = _spread(term, own_P, theta_BP.shape[-1])
            by_theta_BRP = term.by_theta_BRP + kappa_B1[..., None] * mixing.by_theta_BRP
            rate_B1 = np.exp(theta_BP[..., index[exponent]])
            decay_BR = -rate_B1 * log_scale_R2[:, column]
            by_theta_BRP[..., index[exponent]] += decay_BR[..., None]
            log_BR = term.log_BR + decay_BR
            if letter == "B" and self.interaction == "size":
                log_BR = log_BR + theta_BP[..., index["d"]] * log_scale_R2[:, 0]
                by_theta_BRP[..., index["d"]] += log_scale_R2[:, :1]
            terms.append(Term(log_BR, by_theta_BRP, term.by_share_BRM))
        if self.interaction == "product":
            terms.append(self._product(theta_BP, log_scale_R2, index, r_RM))
        return terms

    def _product(
        self,
        theta_BP: Float[np.ndarray, "*B P"],
        log_scale_R2: Float[np.ndarray, "R 2"],
        index: Mapping[str, Int[np.ndarray, " K"]],
        r_RM: Float[np.ndarray, "R M"],
    ) -> Term:
        places = np.concatenate([index["log a"], index["log b"]])
        decay_BR2 = -np.exp(theta_BP[..., None, places]) * log_scale_R2
        by_theta_BRP = np.zeros((*decay_BR2.shape[:-1], theta_BP.shape[-1]))
        by_theta_BRP[..., places] = decay_BR2
        by_theta_BRP[..., index["log K"]] = 1.0
        log_BR = theta_BP[..., index["log K"]] + decay_BR2.sum(-1)
        return Term(log_BR, by_theta_BRP, np.zeros((*log_BR.shape, r_RM.shape[1])))


ADDITIVE = JointLaw()
INTERACTION = JointLaw(name="joint-interaction", interaction="size")
MIXTURE = JointLaw(name="joint-mixture", interaction="size", amplitude="mixing-log-linear")
JOINT_LAWS: Mapping[str, JointLaw] = {
    law.name: law
    for law in (
        ADDITIVE,
        INTERACTION,
        MIXTURE,
        JointLaw(name="joint-product", interaction="product"),
        JointLaw(name="joint-mixing", interaction="size", amplitude="mixing"),
        JointLaw(name="joint-log-linear", interaction="size", amplitude="log-linear"),
        JointLaw(
            name="joint-mixture-power",
            form="power-reciprocal",
            interaction="size",
            amplitude="mixing-log-linear",
        ),
        JointLaw(
            name="joint-mixture-exponential",
            form="exponential",
            interaction="size",
            amplitude="mixing-log-linear",
        ),
        JointLaw(name="shukor-additive", own_exponents=True),
        JointLaw(name="shukor-joint", own_exponents=True, amplitude="power-sum"),
    )
}
"""Laws by name: the three that are always shown first."""


def _spread(term: Term, places_K: Int[np.ndarray, " K"], num_parameters: int) -> Term:
    """Returns a term with the derivatives by its own parameters among those of all."""
    by_theta_BRP = np.zeros((*term.by_theta_BRP.shape[:-1], num_parameters))
    by_theta_BRP[..., places_K] = term.by_theta_BRP
    return Term(term.log_BR, by_theta_BRP, term.by_share_BRM)
