"""Which methods run on the landscape: all those that have a direction at a point, with `SETTINGS` of some."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from mtl.methods import METHODS, Method, method

SETTINGS: dict[str, dict[str, Any]] = {  # where the figure departs from a method's defaults
    "scalarization": {"c": (0.3, 0.7)},
    "bandit": {"rho": 0.5},
    "emtl": {"rho": 0.5, "strict": True},
    "fair-loss": {"alpha": 2.0},
}


class Config(NamedTuple):
    """One line of the table: a method, its hyperparameters and the scale of loss 1.

    `b` among them is what the method takes for the lower bound of a loss: it is told L_1 - b s and L_2 - b, while the
    gradients stay. On the front both losses are negative, so that methods which refuse such losses are undefined with
    b = 0: their runs end there. FAMO's own runs on this landscape use b = -21 (and gamma = 0).
    """

    method: str
    hyper: Mapping[str, Any]
    scale: float

    @property
    def label(self) -> str:
        """Method and what differs from the defaults: "emtl (combine=frozen_norm)"."""
        said = ", ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in self.hyper.items())
        return f"{self.method} ({said})" if said else self.method

    @property
    def b(self) -> float:
        return float(self.hyper.get("b", 0.0))

    def make(self) -> Method:
        """The method; raises ValueError for one that is unknown or has no direction at a point of the plane."""
        if self.method in METHODS and (why := absent().get(self.method)):
            raise ValueError(f"method: {self.method!r} is not on the landscape: {why}")
        rest = {k: v for k, v in self.hyper.items() if k != "b"}
        return method(self.method, 2, **{**SETTINGS.get(self.method, {}), **rest})


def absent() -> dict[str, str]:
    """The methods that do not run on the landscape, and why.

    >>> list(absent())
    ['mgda-ub', 'stl']
    """
    said = {}
    for name, kind in METHODS.items():
        if kind.needs == "features":
            said[name] = "it needs a representation, which the landscape does not have"
        elif kind.alone:
            said[name] = "one model per task has no common point; its ends are the two ends of the front"
    return said


def shown() -> list[str]:
    """The methods of the figure: a new one is among them; a rule of one's own, which has no look, is not."""
    return [name for name, kind in METHODS.items() if hasattr(kind, "label") and name not in absent()]


def defaults() -> dict[str, dict[str, Any]]:
    """Their hyperparameters."""
    return {name: Config(name, {}, 1.0).make().settings() for name in shown()}


def grid(methods: Iterable[str | tuple[str, Mapping[str, Any]]], scales: Iterable[float]) -> list[Config]:
    """Every method at every scale; a method is a name, or a name with hyperparameters.

    >>> [c.label for c in grid(["ls", ("emtl", {"combine": "frozen_norm"})], [1.0])]
    ['ls', 'emtl (combine=frozen_norm)']
    """
    pairs: list[tuple[str, Mapping[str, Any]]] = [(m, {}) if isinstance(m, str) else m for m in methods]
    return [Config(name, hyper, scale) for scale in scales for name, hyper in pairs]


def bounded(b: float = -21.0) -> list[tuple[str, dict[str, Any]]]:
    """The methods that refuse negative losses, told a lower bound of them; FAMO as its authors run it.

    >>> len(bounded()), bounded()[-1]
    (11, ('famo', {'b': -21.0, 'gamma': 0.0}))
    """
    kinds = [(name, METHODS[name]) for name in shown()]
    names = [name for name, kind in kinds if kind.positive_losses or kind.nonnegative_losses]
    return [*((name, {"b": b}) for name in names), ("famo", {"b": b, "gamma": 0.0})]
