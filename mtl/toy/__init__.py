"""The two-loss landscape of Figure 1, run for all starts, methods and loss scales at once."""

from mtl.toy.config import ABSENT, COMBINES, DEFAULTS, POSITIVE, RATES, Config, bounded, grid
from mtl.toy.ends import ball_edge, claims, ends, predicted_end, predicted_x1, reconstructions, settings, summarise
from mtl.toy.groups import Group, make_group
from mtl.toy.plane import STARTS, ToyProblem, landscape, on_front, pareto_front, star
from mtl.toy.runs import ToyRuns, run_toy
from mtl.toy.weights import Point, alpha_fair, cagrad, edge

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
    "predicted_x1",
    "reconstructions",
    "run_toy",
    "settings",
    "star",
    "summarise",
]
