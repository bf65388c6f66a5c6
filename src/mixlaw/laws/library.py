"""Every mixing law by its name: what `--law` takes and what selection tries."""

from mixlaw.laws.base import MixingLaw
from mixlaw.laws.exp_power import ExponentialPowerLaw
from mixlaw.laws.implicit import ImplicitDomainLaw
from mixlaw.laws.mixing import ExponentialLaw, LinearLaw, LogLinearLaw
from mixlaw.laws.reciprocal import (
    PowerReciprocalLaw,
    PowerReciprocalSharedLaw,
    ReciprocalLaw,
    ReciprocalSharedLaw,
)
from mixlaw.laws.sums import BiMixLaw, ProductLaw, SharedWeightLaw, SumOfExponentialsLaw

MIXING_LAWS: dict[str, MixingLaw] = {
    law.name: law
    for law in (
        SumOfExponentialsLaw(),
        SharedWeightLaw(),
        ProductLaw(),
        ExponentialLaw(),
        LinearLaw(),
        LogLinearLaw(),
        BiMixLaw(),
        ReciprocalLaw(),
        ReciprocalSharedLaw(),
        PowerReciprocalLaw(),
        PowerReciprocalSharedLaw(),
        ExponentialPowerLaw(),
        ImplicitDomainLaw(),
    )
}
"""Laws by name, those of the paper first."""
