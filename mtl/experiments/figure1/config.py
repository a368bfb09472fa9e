"""Which methods run on the landscape, with which hyperparameters, and which do not and why."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

CAP = 0.95 * math.log(2)  # from ln 2 on the KL ball is the whole simplex and the player's state winds up


class Config(NamedTuple):
    """One line of the table: a method, its hyperparameters (of `mtl.methods`) and the scale of loss 1.

    Two are not as there: `c` of "scalarization" is the weight of loss 1 (loss 2 has 1 - c), and `b` is what the method
    takes for the lower bound of a loss: it is told L_1 - b s and L_2 - b, while the gradients stay. On the front both
    losses are negative, so that methods which take logarithms or ratios of losses are undefined with b = 0: their
    runs end there. FAMO's own runs on this landscape use b = -21 (and gamma = 0).
    """

    method: str
    hyper: Mapping[str, Any]
    scale: float

    @property
    def label(self) -> str:
        """Method and what differs from the defaults: "emtl (combine=frozen_norm)"."""
        said = ", ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in self.hyper.items())
        return f"{self.method} ({said})" if said else self.method


# Numbers may differ from run to run within one batch; anything else makes a batch of its own.
DEFAULTS: dict[str, dict[str, Any]] = {
    "ls": {},
    "scalarization": {"c": 0.3},
    "si": {"b": 0.0},
    "rlw": {},
    "dwa": {"b": 0.0, "tau": 2.0},
    "uw": {"b": 0.0},
    "gradnorm": {"b": 0.0, "alpha": 1.5},
    "gls": {"b": 0.0},
    "stch": {"b": 0.0, "mu": 1.0},
    "famo": {"b": 0.0, "gamma": 1e-3},
    "db-mtl": {"b": 0.0, "beta": 0.9},
    "imtl-l": {"b": 0.0},
    "bandit": {"rho": 0.5, "eta": 0.5},
    "mgda": {},
    "pcgrad": {},
    "gradvac": {"beta": 0.5},
    "cagrad": {"c": 0.4},
    "imtl-g": {},
    "imtl": {"b": 0.0},
    "nash": {},
    "fairgrad": {"alpha": 2.0},
    "aligned": {},
    "upgrad": {},
    "dualproj": {},
    "sdmgrad": {"lam": 0.3},
    "graddrop": {},
    "adatask": {},
    "moco": {"beta": 0.5, "gamma": 0.1, "sigma": 0.5},
    "emtl": {"b": 0.0, "rho": 0.5, "eta": 0.5, "alpha": 0.5, "rate": "weighted", "combine": "literal", "strict": False},
    "fair-loss": {"b": 0.0, "alpha": 2.0},
}
ABSENT = {
    "stl": "one model per task has no common point; its ends are the two ends of the front",
    "mgda-ub": "the landscape has no shared representation; with the plane itself for one it is MGDA",
    "pbi": "it is younger than the figure's methods",
    "config": "for two tasks its direction is that of IMTL-G",
    "excessmtl": "it is younger than the figure's methods",
    "cr-mogm": "it averages another method's weights, and the landscape has no noise to average out",
}
POSITIVE = ("si", "dwa", "gradnorm", "gls", "famo", "db-mtl", "fair-loss")  # logarithms or ratios of losses
RATES, COMBINES = ("weighted", "raw"), ("literal", "frozen_norm", "product")


def grid(methods: Iterable[str | tuple[str, Mapping[str, Any]]], scales: Iterable[float]) -> list[Config]:
    """Every method at every scale; a method is a name, or a name with hyperparameters.

    >>> [c.label for c in grid(["ls", ("emtl", {"combine": "frozen_norm"})], [1.0])]
    ['ls', 'emtl (combine=frozen_norm)']
    """
    pairs: list[tuple[str, Mapping[str, Any]]] = [(m, {}) if isinstance(m, str) else m for m in methods]
    return [Config(name, hyper, scale) for scale in scales for name, hyper in pairs]


def bounded(b: float = -21.0) -> list[tuple[str, dict[str, Any]]]:
    """The methods that need to be told a lower bound of the losses here, told it; FAMO as its authors run it.

    >>> len(bounded()), bounded()[-1]
    (11, ('famo', {'b': -21.0, 'gamma': 0.0}))
    """
    names = [name for name, known in DEFAULTS.items() if "b" in known and name not in ("emtl", "stch")]
    return [*((name, {"b": b}) for name in names), ("famo", {"b": b, "gamma": 0.0})]


def check(config: Config) -> None:
    """Raise ValueError for a method or hyperparameter that the toy does not have, listing those it has."""
    if config.method not in DEFAULTS:
        why = f"; {ABSENT[config.method]}" if config.method in ABSENT else ""
        raise ValueError(f"method: the toy has {', '.join(DEFAULTS)}, found {config.method!r}{why}")
    known = DEFAULTS[config.method]
    for name, value in config.hyper.items():
        if name not in known:
            raise ValueError(f"{name}: {config.method} takes {', '.join(known) or 'no hyperparameters'}")
        allowed = {"rate": RATES, "combine": COMBINES}.get(name, (value,))
        if value not in allowed:
            raise ValueError(f"{name}: one of {', '.join(allowed)}, found {value!r}")
