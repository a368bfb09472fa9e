"""The two-loss landscape of Figure 1, run for all starts, methods and loss scales at once."""

from mtl.toy.ends import ball_edge, claims, predicted_end, predicted_x1, settings, summarise
from mtl.toy.plane import STARTS, ToyProblem, landscape, on_front, pareto_front, star
from mtl.toy.runs import ToyRuns, run_toy
from mtl.toy.weights import COMBINES, DEFAULTS, RATES, Config, Group, Point, alpha_fair, cagrad, edge, grid

__all__ = [
    "COMBINES",
    "DEFAULTS",
    "RATES",
    "STARTS",
    "Config",
    "Group",
    "Point",
    "ToyProblem",
    "ToyRuns",
    "alpha_fair",
    "ball_edge",
    "cagrad",
    "claims",
    "edge",
    "grid",
    "landscape",
    "on_front",
    "pareto_front",
    "predicted_end",
    "predicted_x1",
    "run_toy",
    "settings",
    "star",
    "summarise",
]
