"""Methods by name: `method` makes one, `aggregate` is its mathematics in one call."""

import difflib
import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mtl.errors import NonFiniteError
from mtl.methods.base import Method
from mtl.methods.cones import Aligned, DualProj, GradVac, PCGrad, SDMGrad, UPGrad
from mtl.methods.elementwise import DBMTL, AdaTask, ExcessMTL, GradDrop, MoCo
from mtl.methods.emtl import CRMOGM, EMTL, FairLoss
from mtl.methods.gram import IMTL, IMTLG, MGDA, MGDAUB, CAGrad, ConFIG, FairGrad, Nash
from mtl.methods.learned import FAMO, IMTLL, UW, Bandit, GradNorm
from mtl.methods.losses import DWA, GLS, LS, PBI, RLW, SI, STCH, STL, Scalarization
from mtl.solvers import Certificate
from mtl.sources import class_digest

__all__ = ["METHODS", "Aggregate", "Method", "aggregate", "digest_of", "look_of", "method"]

METHODS: dict[str, type[Method]] = {
    "ls": LS,
    "scalarization": Scalarization,
    "si": SI,
    "rlw": RLW,
    "dwa": DWA,
    "uw": UW,
    "gradnorm": GradNorm,
    "gls": GLS,
    "stch": STCH,
    "pbi": PBI,
    "famo": FAMO,
    "db-mtl": DBMTL,
    "imtl-l": IMTLL,
    "bandit": Bandit,
    "mgda": MGDA,
    "mgda-ub": MGDAUB,
    "pcgrad": PCGrad,
    "gradvac": GradVac,
    "cagrad": CAGrad,
    "imtl-g": IMTLG,
    "imtl": IMTL,
    "config": ConFIG,
    "nash": Nash,
    "fairgrad": FairGrad,
    "aligned": Aligned,
    "upgrad": UPGrad,
    "dualproj": DualProj,
    "sdmgrad": SDMGrad,
    "graddrop": GradDrop,
    "adatask": AdaTask,
    "moco": MoCo,
    "excessmtl": ExcessMTL,
    "emtl": EMTL,
    "fair-loss": FairLoss,
    "cr-mogm": CRMOGM,
    "stl": STL,
}
LEFT_OUT = {
    "modo": "its weights follow the products of gradients of two batches at the same parameters, and a step is given "
    "one batch; 'moco' and 'sdmgrad' are its kin on one",
    "dibs-mtl": "the text of its paper, arXiv 2509.23948, was not at hand to take the formula from",
}
"""Known methods that this package does not have, and why."""


@dataclass(frozen=True)
class Aggregate:
    """What `aggregate` returns: direction (D,), weights (T,) (None for elementwise methods), certificate."""

    direction: Tensor
    weights: Tensor | None
    certificate: Certificate | None


def _unknown(kind: str, found: str, valid: Iterable[str]) -> ValueError:
    valid = list(valid)
    plain = {name.lower().replace("-", ""): name for name in valid}  # a paper writes PCGrad, IMTL-G, DB-MTL
    near = difflib.get_close_matches(found.lower().replace("-", ""), plain, 1)
    hint = f"; did you mean {plain[near[0]]!r}?" if near else ""
    return ValueError(f"{kind}: must be one of {', '.join(valid) or '(none)'}, found {found!r}{hint}")


def _valid(kind: Any) -> list[str]:
    return list(inspect.signature(kind.__init__).parameters)[2:]  # after self and n_tasks


def _seeded(name: Any, hyper: Any, seed: int) -> Any:
    """Hyperparameters with the seed where the method takes one, or the base that it names, unless they hold one."""
    kind = METHODS.get(name) if isinstance(name, str) else None
    if kind is None or not isinstance(hyper, dict | None):
        return hyper
    if "seed" in _valid(kind):
        return {"seed": seed, **(hyper or {})}
    if not (hyper and "base" in hyper):
        return hyper
    own = hyper.get("base_hyper")
    found = _seeded(hyper["base"], own, seed)
    return hyper if found is own else {**hyper, "base_hyper": found}


def method(name: str, n_tasks: int, seed: int | None = None, **hyper: Any) -> Method:
    """A fresh method by name, with its published hyperparameters or those its docstring names; one draws by `seed`.

    Raises:
        ValueError: unknown name or hyperparameter (the valid ones are listed), or a value out of range.

    >>> method("fairgrad", n_tasks=3, seed=1, alpha=1.0)
    FairGrad(3, alpha=1.0, heads=None)
    """
    if not isinstance(name, str):
        raise TypeError(f"method: must be a name, one of mtl.METHODS, found {name!r}")
    if name not in METHODS and name in LEFT_OUT:
        raise ValueError(f"method: {name!r} is left out: {LEFT_OUT[name]}")
    if name not in METHODS:
        raise _unknown("method", name, METHODS)
    kind: Any = METHODS[name]
    valid = _valid(kind)
    for key in hyper:
        if key not in valid:
            raise _unknown(f"hyperparameter of {name}", key, valid)
    if isinstance(base := hyper.get("base"), Method):
        if hyper.get("base_hyper"):
            raise ValueError(f"base_hyper: must be left out where base is made already, found {hyper['base_hyper']!r}")
        if base.n_tasks != n_tasks:
            raise ValueError(f"base: must be made for {n_tasks} tasks as well, found one for {base.n_tasks}")
    made: Method = kind(n_tasks, **(hyper if seed is None else _seeded(name, hyper, seed)))
    return made


def digest_of(name: str) -> str:
    """Eight digits of a method whose class is not of this package, "" of all others and of unknown names."""
    return class_digest(METHODS[name]) if name in METHODS else ""


def look_of(name: str) -> tuple[str, str, str]:
    """Label, plot family and marker of a method, attributes of its class.

    Raises:
        ValueError: unknown name, or a class that has no look.

    >>> look_of("nash")
    ('Nash-MTL', 'geometry', 'D')
    """
    if name not in METHODS:
        raise ValueError(f"method: no look is fixed for {name!r}; known are {', '.join(METHODS)}")
    kind = METHODS[name]
    if missing := [key for key in ("label", "family", "marker") if not hasattr(kind, key)]:
        raise ValueError(f"method: {kind.__name__} must have a label, a family and a marker, found no {missing[0]}")
    return kind.label, kind.family, kind.marker


def _check(name: str, grads: Tensor, losses: Tensor) -> None:
    if not isinstance(grads, Tensor) or grads.dim() != 2 or 0 in grads.shape:
        found = tuple(grads.shape) if isinstance(grads, Tensor) else type(grads).__name__
        raise ValueError(f"grads: must have shape (T, D), found {found}")
    if not isinstance(losses, Tensor) or losses.shape != grads.shape[:1]:
        found = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise ValueError(f"losses: must have shape ({len(grads)},), one for each row of grads, found {found}")
    for label, value in (("grads", grads), ("losses", losses)):
        if value.layout != torch.strided or value.is_meta:
            kind = "the meta device" if value.is_meta else f"layout {value.layout}"
            raise ValueError(f"{label}: must be dense and hold values, found {kind}")
        if not value.is_floating_point():
            raise ValueError(f"{label}: must be floating point, found {value.dtype}")
    if losses.dtype != grads.dtype or losses.device != grads.device:
        raise ValueError(
            f"losses: must have the dtype and device of grads ({grads.dtype}, {grads.device}), "
            f"found {losses.dtype}, {losses.device}"
        )
    for label, finite in (("losses", losses.isfinite()), ("grads", grads.isfinite().all(-1))):
        if not bool(finite.all()):
            task = int(finite.logical_not().nonzero()[0])
            raise NonFiniteError(f"{label}: must be finite, found NaN or infinity for task {task}")


def aggregate(name: str, grads: Tensor, losses: Tensor, official: bool = False, **hyper: Any) -> Aggregate:
    """The first update of one method from task gradients (T, D) and losses (T,): the paper's mathematics.

    `official` adds the authors' own scaling, clipping and regularisation where these differ. The Gram matrix is formed
    in float64. Methods with state start fresh; drive `method(...)` for more steps.

    Raises:
        ValueError: shapes, dtypes, devices, names or hyperparameters that do not fit; losses <= 0 where a method takes
            their logarithm.
        NonFiniteError: a loss or gradient is NaN or infinite, with the task's name; or what comes out is.

    >>> aggregate("mgda", grads=torch.tensor([[1.0, 0.0], [0.0, 3.0]]), losses=torch.ones(2)).weights.tolist()
    [0.8999999761581421, 0.10000000149011612]
    """
    _check(name, grads, losses)
    if name in METHODS and official:
        hyper = {**METHODS[name].official_hyper, **hyper}
    m = method(name, n_tasks=len(losses), **hyper)
    if bool((bad := m.unusable(losses)).any()):
        task, rule = int(bad.nonzero()[0]), "positive" if m.positive_losses else "at least 0"
        raise ValueError(f"losses: must be {rule} for {name}, found {float(losses[task]):g} for task {task}")
    if m.masks:
        raise ValueError(f"on: {name} must act on parameters where there is no network, found 'features'")
    with torch.no_grad():
        if m.needs == "gradients":
            direction, w = m.combine([grads], losses)[0], None
        else:
            G, m.dtype = grads.double(), grads.dtype
            w = m.weights(losses.double(), G @ G.T)
            direction = w @ G
        factor = m.official_factor(direction) if official else 1.0
        w = None if w is None else (factor * w).to(losses.dtype)
        direction = (factor * direction).to(grads.dtype)
        if not bool(direction.isfinite().all()) or not (w is None or bool(w.isfinite().all())):
            raise NonFiniteError(f"direction: {name} must give finite numbers in {grads.dtype}, found others here")
        return Aggregate(direction, w, m.certificate)
