"""Problems: one file per benchmark; `problem(name, scale, ...)` builds one from the data found."""

from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Any

from mtl import lacking
from mtl.files import canonical
from mtl.sources import class_digest

if TYPE_CHECKING:
    from mtl.problems.registry import PROBLEMS, SPLITS, Batch, BinaryProblem, Metric, MissingDataError, Problem

__all__ = [
    "PROBLEMS",
    "SPLITS",
    "Batch",
    "BinaryProblem",
    "Metric",
    "MissingDataError",
    "Problem",
    "digest_of",
    "problem",
    "registered",
]


def _registry() -> Any:
    """The file of all problems, or what to install for it."""
    try:
        return import_module("mtl.problems.registry")
    except ModuleNotFoundError as missing:
        if said := lacking(missing):
            raise ImportError(f"mtl.problem {said}") from missing
        raise


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """What the registry has, and no sooner: to list data sets needs none of the problems, nor torch."""
        if name in __all__:
            return getattr(_registry(), name)
        raise AttributeError(f"module 'mtl.problems' has {', '.join(__all__)}, found no {name!r}")


def problem(name: str, scale: str = "smoke", *, fallback: str | None = None, **options: Any) -> "Problem":
    """Build a problem by name at a scale; options are the problem's own (tasks=3, ...).

    A data set that is nowhere to be found raises DataError saying what to run; with fallback="digits" the
    digits that come with scikit-learn take its place (for scenes: fallback="rooms", rendered ones; for AliExpress:
    fallback="aliexpress_like", for KuaiRand: fallback="shortvideo", for QM9: fallback="molecules", generated ones),
    which `embedded_default` and `describe()` then say.
    Damaged data always raise. Raises ValueError for an unknown name, scale, option or fallback.

    >>> problem("digits", tasks=3).tasks
    ('odd', 'five-or-more', 'prime')
    """
    known = _registry()
    if not isinstance(name, str) or name not in known.PROBLEMS:
        near = get_close_matches(str(name), known.PROBLEMS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"problem must be one of {', '.join(known.PROBLEMS)}, found {name!r}{hint}")
    stand_in = known.STAND_INS.get(name, known.PROBLEMS["digits"])
    if fallback not in (None, stand_in.name):
        raise ValueError(f"fallback of {name} must be {stand_in.name!r} or None, found {fallback!r}")
    kind = known.PROBLEMS[name]
    valid = kind.option_names()
    if unknown := sorted(set(options) - valid):
        raise ValueError(f"options of {name} are {', '.join(sorted(valid)) or 'none'}, found {', '.join(unknown)}")
    options = canonical(options, "options")
    try:
        built: Problem = kind(scale, **options)
    except known.MissingDataError:
        if fallback is None:
            raise
        kept = {key: value for key, value in {"tasks": 2, **options}.items() if key in stand_in.option_names()}
        built = stand_in(scale, stands_in_for=name, **kept)
    return built


def digest_of(name: str) -> str:
    """Eight digits of a problem whose class is not of this package, "" of all others and of unknown names."""
    kinds = _registry().PROBLEMS
    return class_digest(kinds[name]) if name in kinds else ""


def registered(name: str, options: Mapping[str, Any]) -> str:
    """The key in PROBLEMS of a problem that calls itself `name`: the first with these options.

    >>> registered("census", {"tasks": 3}), registered("census", {"factor": 0.1})
    ('census', 'census_scaled')
    """
    kinds = [
        key for key, kind in _registry().PROBLEMS.items() if kind.name == name and set(options) <= kind.option_names()
    ]
    return kinds[0] if kinds else name
