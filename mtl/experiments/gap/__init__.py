"""The pre-registered study of variance and generalisation gap (notebook 08)."""

from mtl.experiments.gap.shown import GapStudy, study

__all__ = ["GapStudy", "study"]
