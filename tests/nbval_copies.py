"""Copies of all notebooks at scale smoke for nbval: `python -m tests.nbval_copies`, then pytest over build/nbval.

Committed outputs are those of scale quick. A copy keeps the outputs of the cells that are marked for comparison, which
therefore must not depend on the scale; all other cells only have to run.
"""

import sys
from pathlib import Path

import nbformat
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

ROOT = Path(__file__).resolve().parent.parent
MARK = "NBVAL_CHECK_OUTPUT"


def copies(folder: Path, scale: str = "smoke") -> list[Path]:
    """Write them into `folder`, which then holds nothing else that ends in .ipynb; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.ipynb"):
        old.unlink()
    made = []
    for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        notebook = parameterize_notebook(load_notebook_node(str(path)), {"scale": scale})
        for cell in notebook.cells:
            if cell.cell_type == "code" and MARK not in cell.source:
                cell.outputs = []
        made.append(folder / path.name)
        nbformat.write(notebook, made[-1])
    return made


if __name__ == "__main__":
    print(*copies(Path(sys.argv[1]) if sys.argv[1:] else ROOT / "build" / "nbval"), sep="\n")
