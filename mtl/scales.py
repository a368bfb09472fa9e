"""The sizes that everything comes in, and what each means; the budgets themselves stand in each experiment's file."""

from collections.abc import Iterable

SCALES: dict[str, str] = {
    "smoke": "Seconds: enough to see that everything runs; its figures lie in a folder of their own.",
    "quick": "Minutes on two CPU cores: the default of `make figures`.",
    "study": "Hours on two CPU cores; its rows are published, and notebooks show them at every scale.",
    "gpu": "Minutes on one data-centre GPU; its rows are published, and notebooks show them at every scale.",
    "paper": "The papers' own sizes.",
}
NOTEBOOKS = ("smoke", "quick", "paper")  # those that notebooks run at; `mtl run` makes the rows of the others


def known_scale(scale: str, known: Iterable[str] = NOTEBOOKS) -> str:
    """`scale` itself if it is among those known; else ValueError lists them.

    >>> known_scale("quick")
    'quick'
    """
    names = list(known)
    if scale not in names:
        raise ValueError(f"scale: must be one of {', '.join(names)}, found {scale!r}")
    return scale
