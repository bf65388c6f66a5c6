"""Results as plain values, for `--json` and for the files of a study."""

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from mixlaw.fit import FitResult
from mixlaw.mixtures import Mixture
from mixlaw.optimize import Optimum, WeightedLoss
from mixlaw.optimize.objective import Objective
from mixlaw.optimize.prices import ShadowPrice
from mixlaw.optimize.rivals import LawOptimum
from mixlaw.selection import LawChoice, Validation


def to_plain(value: object) -> Any:
    """Returns a result as what JSON knows; a number that is not finite becomes null."""
    if isinstance(value, Mixture):
        return dict(value)
    if isinstance(value, WeightedLoss):
        return value.shares
    if isinstance(value, Objective):
        return value.describe()
    if isinstance(value, FitResult | LawChoice | Validation):
        return to_plain(value.to_json())
    if is_dataclass(value) and not isinstance(value, type):
        plain = {field.name: to_plain(getattr(value, field.name)) for field in fields(value)}
        if isinstance(value, Optimum):
            plain["certificate"] = value.certificate
            plain["verdict"] = value.verdict
            plain["objective_unit"] = value.objective_unit
        if isinstance(value, ShadowPrice):
            plain["sentence"] = value.sentence("in the objective's unit")
        if isinstance(value, LawOptimum):
            plain["regret"] = value.regret
        return plain
    if isinstance(value, Mapping):
        pairs = cast("Mapping[object, object]", value).items()
        return {str(key): to_plain(item) for key, item in pairs}
    if isinstance(value, np.ndarray):
        return to_plain(value.tolist())
    if isinstance(value, list | tuple | set):
        return [to_plain(item) for item in cast("list[object]", value)]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value
