"""The two-loss landscape of Figure 1, run for all starts, methods and loss scales at once."""

from mtl.experiments.figure1.config import ABSENT, COMBINES, DEFAULTS, POSITIVE, RATES, Config, bounded, grid
from mtl.experiments.figure1.ends import (
    ball_edge,
    claims,
    ends,
    predicted_end,
    predicted_x1,
    reconstructions,
    settings,
    summarise,
)
from mtl.experiments.figure1.groups import Group, make_group
from mtl.experiments.figure1.plane import STARTS, ToyProblem, landscape, on_front, pareto_front, star
from mtl.experiments.figure1.runs import ToyRuns, run_toy
from mtl.experiments.figure1.shown import predicted_ends, study
from mtl.experiments.figure1.weights import Point, alpha_fair, cagrad, edge

__all__ = [
    "ABSENT",
    "COMBINES",
    "DEFAULTS",
    "POSITIVE",
    "RATES",
    "STARTS",
    "Config",
    "Group",
    "Point",
    "ToyProblem",
    "ToyRuns",
    "alpha_fair",
    "ball_edge",
    "bounded",
    "cagrad",
    "claims",
    "edge",
    "ends",
    "grid",
    "landscape",
    "make_group",
    "on_front",
    "pareto_front",
    "predicted_end",
    "predicted_ends",
    "predicted_x1",
    "reconstructions",
    "run_toy",
    "settings",
    "star",
    "study",
    "summarise",
]
