"""All that a report is made of: values of the earlier stages, nothing else."""

from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from mixlaw.domains import Domain, Scale
from mixlaw.fit import FitResult
from mixlaw.optimize import Optimum
from mixlaw.optimize.continual_runs import ContinualAnswer
from mixlaw.optimize.pareto import ParetoFront
from mixlaw.optimize.schedule import ScheduleOptimum
from mixlaw.selection import HoldoutScore, LawChoice
from mixlaw.selection.downstream_summary import Downstream
from mixlaw.verify import Verification


@dataclass(frozen=True, kw_only=True, slots=True)
class Attribution:
    """Where a domain's text comes from."""

    domain: str
    source: str | None
    licence: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportData:
    """What a report shows; every sentence and figure is made from it."""

    study: str
    version: str
    """Of mixlaw."""
    created: str
    """Date and time, ISO 8601 with its zone."""
    domains: tuple[Domain, ...]
    scale: Scale | None
    """The run that is to be decided; None: not known (imported runs of several lengths)."""
    proxy_params: float | None
    """Parameters of the proxies without embeddings; None: not known (imported)."""
    proxy_tokens: float | None
    """Tokens that each proxy was trained on; None: not known."""
    is_extrapolated: bool
    """Whether the scale differs from the proxies' own; the laws here know nothing of scale."""
    runs: pl.DataFrame
    """The runs table (`mixlaw.observations`)."""
    observations: pl.DataFrame
    """The observation table: loss curves of all runs."""
    fit: FitResult
    choice: LawChoice | None = None
    """Why it is that law; None: it was given by its name."""
    optimum: Optimum
    holdout: HoldoutScore | None
    """Predicted against observed on mixtures that were not fitted; None: there are none."""
    verification: Verification | None
    """The optimum and the baselines trained for real; None: not done yet."""
    downstream: Downstream | None = None
    """Task errors by losses and by mixtures; None: no task was measured."""
    bytes_per_token: Mapping[str, float]
    """Bytes of text per token, by target, where known: converts nats per token to bits per byte."""
    attributions: tuple[Attribution, ...]
    seconds: Mapping[str, float]
    """Wall seconds by stage, in the order they ran."""
    answer_fit: FitResult | None = None
    """The law at the scale that is decided, where that is another than the runs'; None: `fit`."""
    schedule: ScheduleOptimum | None = None
    """The best mixture for each stage; None: no run changes its mixture on the way."""
    critical: ContinualAnswer | None = None
    """How much original data a model that goes on keeps; None: it isn't asked."""
    front: ParetoFront | None = None
    """The trade-off between the two targets that count most; None: there are no two."""
    made_from: str
    """Hash of the tables that the report was made from."""
