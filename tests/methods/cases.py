"""The one list of methods that every common test runs over: a new method adds a line here and nothing else."""

from dataclasses import dataclass, field
from typing import Any

from mtl.methods import METHODS, Method, method


@dataclass(frozen=True)
class Case:
    """A method as it is tested, and what is to hold for it beside the contract."""

    name: str
    hyper: dict[str, Any] = field(default_factory=dict)
    positive: bool = False  # refuses losses that are zero or negative
    bounded: bool = False  # refuses those that are negative
    draws: bool = False  # takes a seed
    elementwise: bool = False  # combines the gradients itself
    learned: bool = False  # has parameters for the optimiser
    degree: float | None = None  # direction(s G) = s^degree direction(G)
    harmless: bool = False  # no task's loss grows along the direction
    blind: bool = False  # the scale of one task's gradient does not turn the direction
    golden: str | None = None  # its name in the recorded cases where that is not its label; "" where there are none

    def __str__(self) -> str:
        return self.name

    def make(self, n_tasks: int, **hyper: Any) -> Method:
        return method(self.name, n_tasks, **{**self.hyper, **hyper})

    @property
    def recorded(self) -> str:
        return METHODS[self.name].label if self.golden is None else self.golden


CASES = [
    Case("ls"),
    Case("scalarization", golden="scalarisation"),
    Case("si", positive=True),
    Case("rlw", draws=True),
    Case("dwa", positive=True),
    Case("uw", bounded=True, learned=True),
    Case("gradnorm", positive=True, learned=True),
    Case("gls", positive=True),
    Case("stch"),
    Case("pbi", golden=""),
    Case("famo", positive=True),
    Case("db-mtl", positive=True, elementwise=True),
    Case("imtl-l", bounded=True, learned=True),
    Case("bandit", {"rho": 0.1}),
    Case("mgda", degree=1, harmless=True),
    Case("mgda-ub", degree=1, harmless=True),
    Case("pcgrad", draws=True, degree=1),
    Case("gradvac", draws=True),
    Case("cagrad", degree=1),
    Case("imtl-g", degree=1, blind=True),
    Case("imtl", bounded=True, learned=True),
    Case("config", degree=1),
    Case("nash", degree=0, harmless=True, blind=True),
    Case("fairgrad", degree=-1 / 3, harmless=True),
    Case("aligned", degree=1),
    Case("upgrad", degree=1, harmless=True),
    Case("dualproj", degree=1, harmless=True),
    Case("sdmgrad", degree=1),
    Case("graddrop", draws=True, elementwise=True),
    Case("adatask", elementwise=True),
    Case("moco", elementwise=True),
    Case("excessmtl", elementwise=True),
    Case("emtl", {"rho": 0.1}),
    Case("fair-loss", {"base": "mgda", "alpha": 0.5}, positive=True, golden="alpha_fair_loss(LS)"),
    Case("cr-mogm", golden=""),
    Case("stl", golden=""),
]
BY_NAME = {case.name: case for case in CASES}
GRAM = [case for case in CASES if METHODS[case.name].needs == "gram" or case.name == "fair-loss"]
FIXED = [case for case in GRAM if not case.draws]  # one answer to one question


def make(name: str, n_tasks: int, **hyper: Any) -> Method:
    """A method as it stands in the list."""
    return BY_NAME[name].make(n_tasks, **hyper)
