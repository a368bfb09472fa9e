"""Table 2 (scene understanding): nine metrics, delta-m in both averages, the papers' own rows, what they say."""

from mtl.experiments.table2.figures import change_figure, panel_figure, training_figure
from mtl.experiments.table2.results import (
    DELTA,
    FAIRER,
    METRICS,
    beside_paper,
    lines,
    paper_says,
    ranks,
    reported,
    results,
)
from mtl.experiments.table2.verdicts import (
    best_verdict,
    fair_loss_verdict,
    fairgrad_verdict,
    metrics_verdict,
    mgda_verdict,
    stl_verdict,
)

__all__ = [
    "DELTA",
    "FAIRER",
    "METRICS",
    "beside_paper",
    "best_verdict",
    "change_figure",
    "fair_loss_verdict",
    "fairgrad_verdict",
    "lines",
    "metrics_verdict",
    "mgda_verdict",
    "panel_figure",
    "paper_says",
    "ranks",
    "reported",
    "results",
    "stl_verdict",
    "training_figure",
]
