"""Laws judged out of sample, simple baselines beside them, and the choice between them."""

from mixlaw.selection.choice import LearnerChoice, LearnerScore, choose_learner
from mixlaw.selection.holdout import HoldoutScore, Score, score_holdout

__all__ = [
    "HoldoutScore",
    "LearnerChoice",
    "LearnerScore",
    "Score",
    "choose_learner",
    "score_holdout",
]
