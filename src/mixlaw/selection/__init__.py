"""Laws judged out of sample, simple baselines beside them, and the choice between them."""

from mixlaw.selection.choice import LearnerChoice, LearnerScore, choose_learner
from mixlaw.selection.holdout import HoldoutScore, Score, score_holdout
from mixlaw.selection.select import LawChoice, read_choice, select_law
from mixlaw.selection.validation import Validation, validate

__all__ = [
    "HoldoutScore",
    "LawChoice",
    "LearnerChoice",
    "LearnerScore",
    "Score",
    "Validation",
    "choose_learner",
    "read_choice",
    "score_holdout",
    "select_law",
    "validate",
]
