"""One style for every figure, one colour and marker per method, and a handful of plots."""

from mtl.plots.runs import intervals, trajectories, weights_over_time
from mtl.plots.style import BLACK, BLUE, GREEN, GREY, METHODS, ORANGE, PINK, RED, SKY, look, subplots
from mtl.plots.updates import cost_lines, first_updates, gradient_arrows, update_panels

__all__ = [
    "BLACK",
    "BLUE",
    "GREEN",
    "GREY",
    "METHODS",
    "ORANGE",
    "PINK",
    "RED",
    "SKY",
    "cost_lines",
    "first_updates",
    "gradient_arrows",
    "intervals",
    "look",
    "subplots",
    "trajectories",
    "update_panels",
    "weights_over_time",
]
