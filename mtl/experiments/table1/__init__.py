"""Table 1 (two-task recommendation): its rows, equal tuning grids, the paper's own numbers, what they say."""

from mtl.experiments.table1.grids import BACKBONES, BUDGET, GRIDS, POINTS, RADII, SEEDS, points, whole_grid
from mtl.experiments.table1.rows import HOW, cells_of, chosen_points, lines, point_of, searched, study, table1
from mtl.experiments.table1.says import (
    backbone_gains,
    best_verdict,
    paper_columns,
    paper_says,
    paper_steady,
    places,
    reported,
    steady_verdict,
    stl_verdict,
)

__all__ = [
    "BACKBONES",
    "BUDGET",
    "GRIDS",
    "HOW",
    "POINTS",
    "RADII",
    "SEEDS",
    "backbone_gains",
    "best_verdict",
    "cells_of",
    "chosen_points",
    "lines",
    "paper_columns",
    "paper_says",
    "paper_steady",
    "places",
    "point_of",
    "points",
    "reported",
    "searched",
    "steady_verdict",
    "stl_verdict",
    "study",
    "table1",
    "whole_grid",
]
