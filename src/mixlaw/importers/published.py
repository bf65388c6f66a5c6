"""Readers of the four published sets of runs, each as the two standard tables.

| reader | of | label of a run |
|---|---|---|
| `read_mixinglaws` | Ye et al. 2025, one set (`5Mix`, ...) | the run folder without the size |
| `read_regmix` | Liu et al. 2024, training or test runs | the index |
| `read_slimpajama` | 7 SlimPajama domains at several sizes | the shares, joined by '-' |
| `read_overtraining` | Gadre et al. 2024 | the model's name |
"""

from mixlaw.importers.mixinglaws import read_mixinglaws
from mixlaw.importers.overtraining import read_overtraining, read_random_baselines
from mixlaw.importers.standard import PublishedRuns
from mixlaw.importers.swarms import read_regmix, read_slimpajama
from mixlaw.importers.weights import add_overall, read_valid_weights

__all__ = [
    "PublishedRuns",
    "add_overall",
    "read_mixinglaws",
    "read_overtraining",
    "read_random_baselines",
    "read_regmix",
    "read_slimpajama",
    "read_valid_weights",
]
