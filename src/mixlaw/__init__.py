"""mixlaw chooses the data mixture of a language model's pre-training, and says how sure it is.

The public names, nothing else; each is imported when it is first used, so that `import mixlaw` is
cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mixlaw.corpora import Corpus, add_domain, fetch_demo_corpus
    from mixlaw.design import Design, sample_mixtures
    from mixlaw.domains import Domain, Scale
    from mixlaw.errors import MixlawError
    from mixlaw.exporters import export_mixture
    from mixlaw.fit import FitResult, fit_law
    from mixlaw.importers import import_tables
    from mixlaw.laws.mixing import ExponentialLaw
    from mixlaw.mixtures import CappedSimplex, Mixture
    from mixlaw.optimize import Optimum, WeightedLoss, baseline_mixtures, optimize_mixture
    from mixlaw.predict import Prediction, predict_losses, predict_weighted
    from mixlaw.proxy import ProxyTrainer
    from mixlaw.report import Attribution, ReportData, write_report
    from mixlaw.runs import LocalExecutor, RunSpec, RunStore, read_tables
    from mixlaw.runs.plan import plan_runs
    from mixlaw.selection import (
        HoldoutScore,
        LawChoice,
        Validation,
        score_holdout,
        select_law,
        validate,
    )
    from mixlaw.study import Study
    from mixlaw.study.demo import run_demo
    from mixlaw.verify import Verification, compare_runs

_HOMES = {
    "Attribution": "report",
    "CappedSimplex": "mixtures",
    "Corpus": "corpora",
    "Design": "design",
    "Domain": "domains",
    "ExponentialLaw": "laws.mixing",
    "FitResult": "fit",
    "HoldoutScore": "selection",
    "LawChoice": "selection",
    "LocalExecutor": "runs",
    "MixlawError": "errors",
    "Mixture": "mixtures",
    "Optimum": "optimize",
    "Prediction": "predict",
    "ProxyTrainer": "proxy",
    "ReportData": "report",
    "RunSpec": "runs",
    "RunStore": "runs",
    "Scale": "domains",
    "Study": "study",
    "Validation": "selection",
    "Verification": "verify",
    "WeightedLoss": "optimize",
    "add_domain": "corpora",
    "baseline_mixtures": "optimize",
    "compare_runs": "verify",
    "export_mixture": "exporters",
    "fetch_demo_corpus": "corpora",
    "fit_law": "fit",
    "import_tables": "importers",
    "optimize_mixture": "optimize",
    "plan_runs": "runs.plan",
    "predict_losses": "predict",
    "predict_weighted": "predict",
    "read_tables": "runs",
    "run_demo": "study.demo",
    "sample_mixtures": "design",
    "score_holdout": "selection",
    "select_law": "selection",
    "validate": "selection",
    "write_report": "report",
}

__all__ = [  # noqa: RUF022 - in the order of the data's path
    "__version__",
    "MixlawError",
    "Domain",
    "Scale",
    "Mixture",
    "CappedSimplex",
    "Corpus",
    "add_domain",
    "fetch_demo_corpus",
    "Design",
    "sample_mixtures",
    "RunSpec",
    "plan_runs",
    "RunStore",
    "LocalExecutor",
    "ProxyTrainer",
    "read_tables",
    "import_tables",
    "ExponentialLaw",
    "LawChoice",
    "select_law",
    "Validation",
    "validate",
    "FitResult",
    "fit_law",
    "Prediction",
    "predict_losses",
    "predict_weighted",
    "HoldoutScore",
    "score_holdout",
    "WeightedLoss",
    "Optimum",
    "optimize_mixture",
    "baseline_mixtures",
    "Verification",
    "compare_runs",
    "ReportData",
    "Attribution",
    "write_report",
    "export_mixture",
    "Study",
    "run_demo",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mixlaw' has no attribute {name!r}")
    return getattr(import_module(f"mixlaw.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
