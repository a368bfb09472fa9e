"""The contract of a multi-task method: from losses and Gram matrix to one weight per task."""

import copy
import inspect
import math
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, ClassVar, Literal, Self, get_args

import torch
from torch import Tensor

from mtl.solvers import Certificate, rounding

Needs = Literal["losses", "gram", "features", "gradients"]
Heads = Literal["raw", "weighted"]
Kind = Literal["each", "pairs", "rows", "share", "log share"]


class Method:
    """One weight per task, w = f(losses, K); the training step does the rest.

    `needs` says what `weights` is given: "losses" (nothing but the losses), "gram" (K = G G^T of the
    task gradients over the shared parameters), "features" (K over the shared representation), or
    "gradients" (`combine` is called with the task gradients themselves, and `weights` is not). With "features" and
    `masks`, `mask` is called in place of `weights`.
    `heads` says how task-specific parameters move: "raw" (gradient of L_t) or "weighted" (of w_t L_t).
    `certificate` tells how exactly the last problem was solved; None where there is nothing to solve.
    A subclass overrides `weights` (or `combine`); all else has a default. `weights` waits for the
    device only where it `solves`: values are checked by `mtl.backward` and `mtl.aggregate`, shapes here.
    """

    label: ClassVar[str]
    """Its name in tables and figures."""
    family: ClassVar[str]
    """Methods that share a colour in figures (`mtl.report.style.FAMILIES`); `marker` tells them apart."""
    marker: ClassVar[str]
    needs: Needs = "losses"
    heads: Heads = "weighted"
    certificate: Certificate | None = None
    positive_losses: bool = False
    """The method takes logarithms or powers of the losses: one that is not positive is an error."""
    nonnegative_losses: bool = False
    """Its objective has no lower bound where a loss is negative, which is an error too."""
    state: ClassVar[tuple[str, ...]] = ()
    """Names of the attributes that a resumed run needs: tensors, generators, numbers, strings, None, lists, methods."""
    tasks: ClassVar[Mapping[str, Kind]] = {}
    """How attributes go with the tasks, for a step that lacks some of them (`mtl.methods.absent`): "each" has one entry
    per task, in its last dimension or as a list of numbers, "pairs" in its last two, "rows" in the first of each tensor
    of a list; a "share" is an "each" that sums to 1, a "log share" its logarithm."""
    alone: ClassVar[bool] = False
    """Each task has a model to itself, so that there is no common point."""
    official_hyper: ClassVar[dict[str, Any]] = {}
    """Hyperparameters with which the authors' code departs from their paper; `aggregate(official=True)` sets them."""

    def __new__(cls, *given: Any, **named: Any) -> Self:
        made = super().__new__(cls)
        made._arguments = (_plain(given), _plain(named))
        return made

    _arguments: tuple[list[Any], dict[str, Any]]

    def __init__(self, n_tasks: int) -> None:
        self.n_tasks = whole("n_tasks", n_tasks, 1)
        if self.needs not in get_args(Needs):
            raise ValueError(f"needs: must be one of {', '.join(get_args(Needs))}, found {self.needs!r}")

    def settings(self) -> dict[str, Any]:
        """The hyperparameters that it was made with, defaults included, as JSON holds them."""
        given, named = self._arguments
        bound = inspect.signature(type(self).__init__).bind(self, *given, **named)
        bound.apply_defaults()
        return {k: _plain(v) for k, v in list(bound.arguments.items())[1:] if k != "n_tasks"}

    def __repr__(self) -> str:
        rest = (f"{name}={value!r}" for name, value in self.settings().items())
        return f"{type(self).__name__}({', '.join([str(self.n_tasks), *rest])})"

    def weights(self, losses: Tensor, gram: Tensor | None = None) -> Tensor:
        """Task weights (T,) from losses (T,) and Gram matrix (T, T); learned weights get their .grad here.

        Dimensions before T are separate problems: each has its own state from the first call on, and all share what
        a method draws; `side_by_side` gives each its own hyperparameters.
        """
        raise NotImplementedError

    def combine(self, grads: Sequence[Tensor], losses: Tensor) -> list[Tensor]:
        """Shared-parameter update from per-parameter task gradients (T, *shape); only if needs == "gradients".

        With losses (..., T), gradients (..., T, *shape): separate problems, as for `weights`.
        """
        raise NotImplementedError

    masks: bool = False

    def mask(self, grads: Tensor, losses: Tensor) -> Tensor:
        """Factors (T, *shape) in front of the task gradients over the features Z (B, *shape), the same for all rows.

        `grads` (T, *shape): sum over the batch of sgn(Z) dL_t/dZ.
        """
        raise NotImplementedError

    def unusable(self, losses: Tensor) -> Tensor:
        """Which of the losses have no meaning for the method."""
        return losses <= 0 if self.positive_losses else (losses < 0) & self.nonnegative_losses

    def head_weights(self, losses: Tensor, weights: Tensor) -> Tensor:
        """Factor (T,) in front of each head's gradient."""
        return weights if self.heads == "weighted" else torch.ones_like(weights)

    def after_step(self, losses: Tensor) -> None:
        """Called with the losses (T,) of the same batch after the optimiser step, if `wants_after_step`."""

    wants_after_step: bool = False

    solves: bool = False
    """On a GPU, `weights` is given losses and K on the host, which waits for them."""

    dtype: torch.dtype | None = None
    """In which the task gradients came, if not that of K: what lies below its rounding is zero to the solvers."""

    def rounding(self, gram: Tensor) -> float:
        """Relative rounding of K, for the solvers."""
        return rounding(gram.dtype, self.dtype)

    replaces_adam: bool = False
    """`combine` is the optimiser's step on the shared parameters itself, to be applied by plain SGD."""

    def reduce(self, places: Sequence[int]) -> None:
        """Called on a copy that acts for the tasks at `places`, its `tasks` and `n_tasks` theirs; for what is left."""

    wants_validation: bool = False
    """`begin_epoch` is to be called with the mean losses (T,) over the validation rows before each epoch."""

    def begin_epoch(self, losses: Tensor) -> None:
        """Called before the first step of an epoch, if `wants_validation`."""

    def end_epoch(self) -> None:
        """Called after the last step of an epoch; for methods that compare epochs."""

    def parameters(self) -> list[Tensor]:
        """Learned weights, for the optimiser; `learning_rate` is their own."""
        return []

    learning_rate: float = 0.025

    def official_factor(self, direction: Tensor) -> float | Tensor:
        """What the authors' code multiplies the direction (D,) by, where it departs from their paper."""
        return 1.0

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs: tensors, numbers, strings."""
        return {name: _saved(getattr(self, name)) for name in self.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`; unknown or missing keys, and states of another number of tasks, raise."""
        self.check_state(state)
        for name, value in state.items():
            setattr(self, name, _loaded(getattr(self, name), value))

    def check_state(self, state: dict[str, Any]) -> None:
        """Raise ValueError for what `load_state_dict` refuses, before it changes anything."""
        if not isinstance(state, Mapping) or set(state) != set(self.state):
            found = sorted(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
            raise ValueError(f"state: {type(self).__name__} keeps {sorted(self.state)}, found {found}")
        for name, value in state.items():
            _fits(f"state[{name!r}]", getattr(self, name), value, self.n_tasks)

    def check(self, losses: Tensor, gram: Tensor | None = None) -> None:
        """Raise ValueError unless losses are (..., T) and K, where the method needs it, is (..., T, T)."""
        T, name = self.n_tasks, type(self).__name__
        if losses.shape[-1:] != (T,):
            raise ValueError(f"losses: {name} was made for {T} tasks, found shape {tuple(losses.shape)}")
        if self.needs in ("gram", "features"):
            if gram is None:
                raise ValueError(f"gram: {name} needs the Gram matrix of the task gradients, found None")
            if gram.shape != (*losses.shape, T):
                raise ValueError(f"gram: must have shape {(*losses.shape, T)}, found {tuple(gram.shape)}")


def side_by_side(methods: Sequence[Method]) -> Method:
    """One method that acts on as many problems (n, T) as methods are given, problem i as the i-th of them would.

    They are fresh, of one class and differ in nothing but numbers, which become columns (n, 1). Draws are shared.

    Raises ValueError where they differ in more.

    >>> from mtl.methods import method
    >>> both = side_by_side([method("stch", 2, mu=mu) for mu in (0.1, 1.0)])
    >>> both.weights(torch.tensor([[1.0, 1.0], [9.0, 9.0]])).tolist()
    [[0.25, 0.25], [0.25, 0.25]]
    """
    if any(type(m) is not type(methods[0]) for m in methods):
        raise ValueError(f"methods: must be of one class, found {sorted({type(m).__name__ for m in methods})}")
    made = copy.deepcopy(methods[0])
    for name, value in vars(made).items():
        values = [vars(m)[name] for m in methods]
        if isinstance(value, Method):
            setattr(made, name, side_by_side(values))
        elif isinstance(value, float) and any(x != value for x in values):
            setattr(made, name, torch.tensor(values, dtype=torch.float64).unsqueeze(-1))
        elif type(value) is not tuple and not all(_same(x, values[0]) for x in values):
            raise ValueError(f"methods: must differ in numbers alone, found {name} = {values[0]!r} and others")
    return made


def _same(value: Any, other: Any) -> bool:
    if value is other or isinstance(value, torch.Generator):  # one of them draws for all
        return True
    return torch.equal(value, other) if isinstance(value, Tensor) else bool(value == other)


def _plain(value: Any) -> Any:
    """What JSON holds of a value; a method is told by its class and settings."""
    if isinstance(value, Method):
        return {"method": type(value).__name__, **value.settings()}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if hasattr(value, "tolist"):  # tensors, NumPy's arrays and numbers
        return value.tolist()
    return [_plain(v) for v in value] if isinstance(value, Sequence) and not isinstance(value, str) else value


def _saved(value: Any) -> Any:
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, Method):
        return value.state_dict()
    if isinstance(value, list):
        return [_saved(v) for v in value]
    return value.detach().clone() if isinstance(value, Tensor) else value


def _fits(name: str, present: Any, value: Any, n_tasks: int) -> None:
    """Raise ValueError unless the value may take the place of what is present."""
    if isinstance(present, Method):
        present.check_state(value)
    elif isinstance(present, torch.Generator):
        try:
            torch.Generator(present.device).set_state(value)
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"{name}: must be a generator's state, found {type(value).__name__}") from error
    elif isinstance(present, Tensor):
        if not isinstance(value, Tensor) or value.shape != present.shape:
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{name}: must be a tensor of shape {tuple(present.shape)}, found {found}")
    elif isinstance(present, list) and present and type(present[0]) in (int, bool):
        kind = type(present[0])
        if not isinstance(value, list) or len(value) != n_tasks or any(type(x) is not kind for x in value):
            raise ValueError(f"{name}: must be a list of {n_tasks} of type {kind.__name__}, found {value!r}")
    elif type(present) is int and type(value) is not int:
        raise ValueError(f"{name}: must be a whole number, found {value!r}")
    elif type(present) is float and not (type(value) is float and math.isfinite(value)):
        raise ValueError(f"{name}: must be a finite number, found {value!r}")


def _loaded(present: Any, value: Any) -> Any:
    if isinstance(present, Method):
        present.load_state_dict(value)
        return present
    if isinstance(present, torch.Generator):
        present.set_state(value)
        return present
    if isinstance(present, Tensor):
        if present.requires_grad:
            with torch.no_grad():
                present.copy_(value)
            return present
        return value.detach().clone().to(present)
    return _saved(value)


def norms(gram: Tensor) -> Tensor:
    """|g_t| (..., T) from K (..., T, T)."""
    return gram.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()


def on(value: Tensor, like: Tensor) -> Tensor:
    """`value` in float64 on the device of `like`; learned weights and players are kept in float64."""
    return value.detach().to(device=like.device, dtype=torch.float64)


def counted(counts: Sequence[int], like: Tensor) -> int | Tensor:
    """How often each task was there: one number where it is the same for all, else (T,) in float64 beside `like`."""
    if len(set(counts)) == 1:
        return counts[0]
    return torch.tensor(counts, dtype=torch.float64).to(like.device, non_blocking=True)


def per_task(values: Tensor, like: Tensor, lead: int | None = None) -> Tensor:
    """One number per task (..., T) in the shape and dtype in which it multiplies (..., T, *shape).

    `lead`: dimensions before T in `like`, where `values` have none.
    """
    before = values.dim() - 1 if lead is None else lead
    return values.to(like).reshape(*values.shape, *[1] * (like.dim() - before - 1))


LARGEST = 1e100  # of a hyperparameter: its square is finite


def _real(value: Any) -> float:
    """A number as Python has it, those of NumPy and single entries of arrays among them; else, and for True, NaN."""
    if getattr(value, "ndim", None) == 0:
        value = value.item()
    return value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def number(name: str, value: Any) -> float:
    """The number itself if it is finite, else ValueError."""
    if not abs(found := _real(value)) <= LARGEST:
        raise ValueError(f"{name}: must be a finite number of at most {LARGEST:g}, found {value!r}")
    return float(found)


def positive(name: str, value: Any, *, zero: bool = False) -> float:
    """The number itself if it is finite and positive (or zero, if allowed), else ValueError; 1e100 has a square."""
    if not ((zero and _real(value) == 0) or 0 < _real(value) < math.inf):
        raise ValueError(f"{name}: must be finite and {'>= 0' if zero else '> 0'}, found {value!r}")
    if _real(value) > LARGEST:
        raise ValueError(f"{name}: must be at most {LARGEST:g}, found {value!r}")
    return float(_real(value))


def share(name: str, value: Any, interval: str = "[0, 1]") -> float:
    """The number itself if it lies in the interval from 0 to 1, whose brackets tell which ends belong to it."""
    x = _real(value)
    if not (0 <= x <= 1) or (x == 0 and interval[0] == "(") or (x == 1 and interval[-1] == ")"):
        raise ValueError(f"{name}: must be in {interval}, found {value!r}")
    return float(x)


def whole(name: str, value: Any, least: int | None = None) -> int:
    """The number itself if it is whole, of a whole type and not too small, else ValueError."""
    x = _real(value)
    if not isinstance(x, int) or (least is not None and x < least):
        raise ValueError(
            f"{name}: must be a whole number{'' if least is None else f' of at least {least}'}, found {value!r}"
        )
    return x


def flag(name: str, value: Any) -> bool:
    """True or False itself, else ValueError."""
    found = value.item() if getattr(value, "ndim", None) == 0 else value
    if not isinstance(found, bool):
        raise ValueError(f"{name}: must be True or False, found {value!r}")
    return found


def single(value: Any) -> bool:
    """Whether it is one number and not one for each task."""
    return _real(value) == _real(value)


def numbers(name: str, values: Any, n_tasks: int, *, of: str = "number") -> list[Any]:
    """One entry per task as a list, in the order in which they are given, else ValueError."""
    if isinstance(values, Mapping | Set):
        raise ValueError(f"{name}: must be in the order of the tasks, as a list is, found {values!r}")
    one = isinstance(values, str) or not isinstance(values, Iterable) or getattr(values, "ndim", 1) == 0
    found = [values] if one else list(values)
    if len(found) != n_tasks or isinstance(values, str):
        raise ValueError(
            f"{name}: must have one {of} for each of {n_tasks} tasks, found {values if one else len(found)!r}"
        )
    return found


def made(method: Any) -> Method:
    """The method itself, else TypeError: its name or class does not know how many tasks there are."""
    if not isinstance(method, Method):
        found = f"the class {method.__name__}" if isinstance(method, type) else repr(method)
        raise TypeError(f"method: must be one made by mtl.method(name, n_tasks=...), found {found}")
    return method


def chosen(name: str, value: str, valid: Sequence[str]) -> str:
    """The string itself if it is one of `valid`, else ValueError."""
    if not isinstance(value, str) or value not in valid:
        raise ValueError(f"{name}: must be one of {', '.join(valid)}, found {value!r}")
    return value
