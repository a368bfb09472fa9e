"""Rows to tables, figures and verdicts, each with a side-car that says where its numbers come from."""

from mtl.report.captions import VERDICTS, Table, Verdict, caption, manifest, show, tex, verdict
from mtl.report.save import save, save_figure, save_table
from mtl.report.tables import frame, results_table

__all__ = [
    "VERDICTS",
    "Table",
    "Verdict",
    "caption",
    "frame",
    "manifest",
    "results_table",
    "save",
    "save_figure",
    "save_table",
    "show",
    "tex",
    "verdict",
]
