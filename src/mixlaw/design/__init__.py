"""Mixtures to try: sampled between floors and caps, with a summary of what they cover."""

from mixlaw.design.coverage import Coverage, measure_coverage
from mixlaw.design.sampling import METHODS, Design, sample_mixtures

__all__ = ["METHODS", "Coverage", "Design", "measure_coverage", "sample_mixtures"]
