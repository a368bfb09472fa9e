"""Rows to tables, figures and verdicts, each with a side-car that says where its numbers come from."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtl.report.captions import Table, caption, manifest, show, tex
    from mtl.report.saving import captioned, save, save_figure, save_table
    from mtl.report.tables import frame, results_table

__all__ = ["Table", "caption", "captioned", "frame", "manifest", "results_table"]
__all__ += ["save", "save_figure", "save_table", "show", "tex"]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """From the first of its files that has it, so that `mtl claims` waits for no torch and no matplotlib."""
        for room in ("captions", "saving", "tables") if name in __all__ else ():
            if hasattr(module := import_module(f"mtl.report.{room}"), name):
                return getattr(module, name)
        raise AttributeError(f"module 'mtl.report' has no {name!r}")
