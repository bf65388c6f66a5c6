"""mixlaw chooses the data mixture of a language model's pre-training, and says how sure it is.

The public names, nothing else; each is imported when it is first used, so that `import mixlaw` is
cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mixlaw.advise import Advice, advise_mixtures
    from mixlaw.corpora import Corpus, add_domain, fetch_demo_corpus
    from mixlaw.design import Design, sample_mixtures
    from mixlaw.domains import Domain, Scale, ShareConversion, convert_shares
    from mixlaw.errors import MixlawError
    from mixlaw.exporters import export_mixture
    from mixlaw.fit import FitResult, fit_law
    from mixlaw.fit.repetition import RepetitionFit, fit_repetition
    from mixlaw.fit.stages import Schedule, StagedFit, fit_schedules
    from mixlaw.importers import import_tables
    from mixlaw.laws.mixing import ExponentialLaw
    from mixlaw.mixtures import CappedSimplex, Mixture
    from mixlaw.optimize import (
        Constraints,
        GroupBound,
        MeanPlusSpread,
        Optimum,
        Region,
        RelativeLoss,
        TailLoss,
        TaskError,
        WeightedErrors,
        WeightedLoss,
        WorstLoss,
        baseline_mixtures,
        optimize_mixture,
    )
    from mixlaw.optimize.at_scale import fit_at_scale, locate_scale
    from mixlaw.optimize.continual import CriticalProportion, critical_proportion
    from mixlaw.optimize.continual_mixtures import LeastOriginal, minimize_original
    from mixlaw.optimize.continual_runs import ContinualAnswer, ContinualQuestion, judge_continual
    from mixlaw.optimize.pareto import ParetoFront, pareto_front
    from mixlaw.optimize.repetition import repeat_fit
    from mixlaw.optimize.savings import Savings, predict_savings
    from mixlaw.optimize.schedule import ScheduleOptimum, optimize_schedule
    from mixlaw.predict import Prediction, predict_losses, predict_weighted
    from mixlaw.proxy import ProxyTrainer
    from mixlaw.report import Attribution, ReportData, write_report
    from mixlaw.runs import LocalExecutor, RunSpec, RunStore, read_tables
    from mixlaw.runs.plan import plan_runs
    from mixlaw.runs.plan_continual import plan_continual
    from mixlaw.runs.plan_schedules import plan_schedules, sample_schedules
    from mixlaw.runs.spec import Stage
    from mixlaw.runs.starts import keep_checkpoint
    from mixlaw.selection import (
        HoldoutScore,
        LawChoice,
        Validation,
        score_holdout,
        select_law,
        validate,
    )
    from mixlaw.selection.downstream import (
        DownstreamFit,
        DownstreamPrediction,
        fit_downstream,
        predict_downstream,
    )
    from mixlaw.selection.schedules import predict_schedules, score_schedules
    from mixlaw.study import Study
    from mixlaw.study.demo import run_demo
    from mixlaw.verify import Verification, compare_runs

_HOMES = {
    "Advice": "advise",
    "Attribution": "report",
    "CappedSimplex": "mixtures",
    "Constraints": "optimize",
    "ContinualAnswer": "optimize.continual_runs",
    "ContinualQuestion": "optimize.continual_runs",
    "Corpus": "corpora",
    "CriticalProportion": "optimize.continual",
    "Design": "design",
    "Domain": "domains",
    "DownstreamFit": "selection.downstream",
    "DownstreamPrediction": "selection.downstream",
    "ExponentialLaw": "laws.mixing",
    "FitResult": "fit",
    "GroupBound": "optimize",
    "HoldoutScore": "selection",
    "LawChoice": "selection",
    "LeastOriginal": "optimize.continual_mixtures",
    "LocalExecutor": "runs",
    "MeanPlusSpread": "optimize",
    "MixlawError": "errors",
    "Mixture": "mixtures",
    "Optimum": "optimize",
    "ParetoFront": "optimize.pareto",
    "Prediction": "predict",
    "ProxyTrainer": "proxy",
    "Region": "optimize",
    "RelativeLoss": "optimize",
    "RepetitionFit": "fit.repetition",
    "ReportData": "report",
    "RunSpec": "runs",
    "RunStore": "runs",
    "Savings": "optimize.savings",
    "Scale": "domains",
    "Schedule": "fit.stages",
    "ScheduleOptimum": "optimize.schedule",
    "ShareConversion": "domains",
    "Stage": "runs.spec",
    "StagedFit": "fit.stages",
    "Study": "study",
    "TailLoss": "optimize",
    "TaskError": "optimize",
    "Validation": "selection",
    "Verification": "verify",
    "WeightedErrors": "optimize",
    "WeightedLoss": "optimize",
    "WorstLoss": "optimize",
    "add_domain": "corpora",
    "advise_mixtures": "advise",
    "baseline_mixtures": "optimize",
    "compare_runs": "verify",
    "convert_shares": "domains",
    "critical_proportion": "optimize.continual",
    "export_mixture": "exporters",
    "fetch_demo_corpus": "corpora",
    "fit_at_scale": "optimize.at_scale",
    "fit_downstream": "selection.downstream",
    "fit_law": "fit",
    "fit_repetition": "fit.repetition",
    "fit_schedules": "fit.stages",
    "import_tables": "importers",
    "judge_continual": "optimize.continual_runs",
    "keep_checkpoint": "runs.starts",
    "minimize_original": "optimize.continual_mixtures",
    "locate_scale": "optimize.at_scale",
    "optimize_mixture": "optimize",
    "optimize_schedule": "optimize.schedule",
    "pareto_front": "optimize.pareto",
    "plan_continual": "runs.plan_continual",
    "plan_runs": "runs.plan",
    "plan_schedules": "runs.plan_schedules",
    "predict_downstream": "selection.downstream",
    "predict_losses": "predict",
    "predict_savings": "optimize.savings",
    "predict_schedules": "selection.schedules",
    "predict_weighted": "predict",
    "read_tables": "runs",
    "repeat_fit": "optimize.repetition",
    "run_demo": "study.demo",
    "sample_mixtures": "design",
    "sample_schedules": "runs.plan_schedules",
    "score_holdout": "selection",
    "score_schedules": "selection.schedules",
    "select_law": "selection",
    "validate": "selection",
    "write_report": "report",
}

__all__ = [  # noqa: RUF022 - in the order of the data's path
    "__version__",
    "MixlawError",
    "Domain",
    "Scale",
    "Schedule",
    "ScheduleOptimum",
    "ShareConversion",
    "convert_shares",
    "Mixture",
    "CappedSimplex",
    "Corpus",
    "add_domain",
    "fetch_demo_corpus",
    "Design",
    "sample_mixtures",
    "RunSpec",
    "Stage",
    "plan_runs",
    "plan_continual",
    "keep_checkpoint",
    "sample_schedules",
    "plan_schedules",
    "RunStore",
    "LocalExecutor",
    "ProxyTrainer",
    "read_tables",
    "fit_schedules",
    "import_tables",
    "ExponentialLaw",
    "LawChoice",
    "score_schedules",
    "select_law",
    "Validation",
    "validate",
    "FitResult",
    "fit_law",
    "Prediction",
    "predict_losses",
    "predict_schedules",
    "predict_weighted",
    "HoldoutScore",
    "score_holdout",
    "DownstreamFit",
    "fit_downstream",
    "DownstreamPrediction",
    "predict_downstream",
    "WeightedLoss",
    "WorstLoss",
    "RelativeLoss",
    "TailLoss",
    "MeanPlusSpread",
    "TaskError",
    "WeightedErrors",
    "Constraints",
    "GroupBound",
    "Region",
    "Optimum",
    "locate_scale",
    "fit_at_scale",
    "RepetitionFit",
    "fit_repetition",
    "repeat_fit",
    "Savings",
    "predict_savings",
    "optimize_mixture",
    "ParetoFront",
    "optimize_schedule",
    "pareto_front",
    "baseline_mixtures",
    "CriticalProportion",
    "critical_proportion",
    "ContinualQuestion",
    "ContinualAnswer",
    "judge_continual",
    "LeastOriginal",
    "minimize_original",
    "Advice",
    "advise_mixtures",
    "Verification",
    "compare_runs",
    "ReportData",
    "Attribution",
    "write_report",
    "export_mixture",
    "StagedFit",
    "Study",
    "run_demo",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mixlaw' has no attribute {name!r}")
    return getattr(import_module(f"mixlaw.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
