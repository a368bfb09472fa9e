"""One style for every figure, one colour per family of methods; with its marker it is one method's own."""

from typing import Any, Literal

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure

from mtl.methods import look_of

WIDTHS = {"column": 3.3, "text": 6.9}  # inches
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    **dict.fromkeys(("font.size", "axes.labelsize"), 7.5),
    **dict.fromkeys(("axes.titlesize", "figure.titlesize"), 8),
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 7),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    **dict.fromkeys(("axes.linewidth", "xtick.major.width", "ytick.major.width"), 0.6),
    **dict.fromkeys(("axes.grid", "axes.axisbelow", "figure.constrained_layout.use"), True),
    **dict.fromkeys(("figure.constrained_layout.w_pad", "figure.constrained_layout.h_pad"), 0.02),
    **dict.fromkeys(("xtick.major.size", "ytick.major.size"), 2.5),
    "grid.color": "0.9",
    "grid.linewidth": 0.5,
    **dict.fromkeys(("xtick.minor.size", "ytick.minor.size"), 1.5),
    **dict.fromkeys(("xtick.minor.width", "ytick.minor.width"), 0.4),
    "lines.linewidth": 1.1,
    "lines.markersize": 4,
    "legend.handlelength": 1.4,
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,  # TrueType: text in the PDF stays text, as most venues ask
}

# Okabe and Ito's palette without its yellow, which vanishes on white; colour and marker together are unique.
BLACK, GREY, ORANGE, SKY = "#000000", "#8A8A8A", "#E69F00", "#56B4E9"
GREEN, BLUE, RED, PINK = "#009E73", "#0072B2", "#D55E00", "#CC79A7"
FAMILIES = {"simple": BLACK, "levels": GREY, "conflicts": ORANGE, "min-norm": SKY}
FAMILIES |= {"geometry": GREEN, "fairness": BLUE, "rates": RED, "impartial": PINK}


def look(method: str) -> tuple[str, str, str]:
    """Label, colour and marker of a method; "emtl (rho=.5)" looks like "emtl" and keeps its parenthesis.

    >>> look("emtl (raw)")
    ('EMTL (raw)', '#D55E00', 'o')
    """
    base, bracket, rest = method.partition(" (")
    label, family, marker = look_of(base)
    if family not in FAMILIES:
        raise ValueError(f"family: must be one of {', '.join(FAMILIES)}, found {family!r} for {base}")
    return label + bracket + rest, FAMILIES[family], marker


def subplots(
    rows: int = 1, columns: int = 1, *, width: Literal["column", "text"] = "text", height: float = 2.2, **options: Any
) -> tuple[Figure, np.ndarray]:
    """A figure at its printed size (inches) in the style of the project, and its axes as a 2-D array."""
    if width not in WIDTHS:
        raise ValueError(f"width: one of {', '.join(WIDTHS)}, found {width!r}")
    sns.set_theme(style="ticks", palette=list(FAMILIES.values()), rc=STYLE)
    return plt.subplots(rows, columns, figsize=(WIDTHS[width], height), squeeze=False, **options)
