"""Rows to tables, figures and verdicts, each with a side-car that says where its numbers come from."""

from mtl.report.results import frame, results_table
from mtl.report.saved import save_figure, save_table
from mtl.report.words import VERDICTS, Verdict, caption, manifest, show, tex, verdict

__all__ = [
    "VERDICTS",
    "Verdict",
    "caption",
    "frame",
    "manifest",
    "results_table",
    "save_figure",
    "save_table",
    "show",
    "tex",
    "verdict",
]
