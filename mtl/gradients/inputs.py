"""What `backward` is given: checked once, brought into one shape, before any `.grad` is touched."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from mtl.methods.base import Method, positive

Output = Tensor | GradientEdge
Losses = Tensor | Sequence[Tensor] | Sequence[Tensor | None]
Grads = Sequence[Tensor | None]
_kept: WeakKeyDictionary[Method, dict[str, Tensor]] = WeakKeyDictionary()


def workspace(method: Method | None, use: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """A buffer by method and use, kept between steps on the CPU, where fresh pages cost as much as filling them.

    It lives through the step anyway, so that the peak is the same; it is freed with the method.
    """
    if method is None or like.device.type != "cpu":
        return like.new_empty(shape)
    mine = _kept.setdefault(method, {})
    if (buffer := mine.get(use)) is None or buffer.shape != shape or buffer.dtype != like.dtype:
        buffer = mine[use] = like.new_empty(shape)
    return buffer


@dataclass(frozen=True)
class Inputs:
    """The losses as given and as graph outputs, those of the tasks at `here`; their values (T,), NaN elsewhere; and the
    parameters that take part, the features."""

    roots: list[Tensor]
    outputs: list[Output]
    here: Sequence[int]
    values: Tensor
    shared: list[Tensor]
    heads: list[list[Tensor]]
    features: list[Tensor]

    @property
    def n_tasks(self) -> int:
        return len(self.values)

    @property
    def absent(self) -> list[int]:
        """Tasks without a loss."""
        return [t for t in range(self.n_tasks) if t not in self.here] if len(self.here) < self.n_tasks else []

    @property
    def dtype(self) -> torch.dtype:
        """That of K and of the losses that a method sees: of the widest shared parameter, float32 at least."""
        return reduce(torch.promote_types, self.kinds, torch.float32)

    @cached_property
    def kinds(self) -> set[torch.dtype]:
        """The dtypes of the shared parameters, and so of their gradients."""
        return {p.dtype for p in self.shared}

    @property
    def own(self) -> list[Tensor]:
        """Head parameters, each once."""
        return _once(p for head in self.heads for p in head)

    @property
    def parameters(self) -> list[Tensor]:
        """Shared and head parameters, each once."""
        return [*self.shared, *self.own]


def _once(tensors: Iterable[Tensor]) -> list[Tensor]:
    return list({id(t): t for t in tensors}.values())


def _parameters(name: str, given: Iterable[Tensor]) -> list[Tensor]:
    """The parameters that require a gradient, each once; frozen ones are left out."""
    if isinstance(given, Tensor) or not isinstance(given, Iterable):
        raise TypeError(f"{name}: must be a list of parameters, found {type(given).__name__}")
    found = list(given)
    for i, p in enumerate(found):
        if not isinstance(p, Tensor):
            raise TypeError(f"{name}[{i}]: must be a parameter, found {type(p).__name__}")
        if p.layout != torch.strided:
            raise ValueError(f"{name}[{i}]: must be dense, found layout {p.layout}")
        if p.requires_grad and not p.is_leaf:
            raise ValueError(f"{name}[{i}]: must be a leaf tensor, found one computed by {p.grad_fn}")
    return _once(p for p in found if p.requires_grad)


def _outputs(losses: Losses) -> tuple[list[Output], Tensor | None, Sequence[int]]:
    """The differentiable scalars, the values (T,) (None where there is no scalar), and whose the scalars are.

    A vector made by torch.stack is taken apart again along its graph, since a gradient that enters through the
    stack would run through all T heads for each task.
    """
    rule = "losses: must hold one scalar per task, shape (T,)"
    if isinstance(losses, Tensor):
        if losses.dim() != 1:
            raise ValueError(f"{rule}, found shape {tuple(losses.shape)}")
        if not losses.requires_grad:
            raise ValueError("losses: must be differentiable, found a tensor without a graph (requires_grad=False)")
        node = losses.grad_fn
        if node is not None and node.name() == "StackBackward0":
            for t, (source, _) in enumerate(node.next_functions):
                if source is None:
                    raise ValueError(f"losses: must be differentiable, found no graph behind task {t}")
            edges: list[Output] = [GradientEdge(*edge) for edge in node.next_functions]  # type: ignore[arg-type]
            return edges, losses.detach(), range(len(losses))
        with torch.enable_grad():
            return list(losses.unbind()), losses.detach(), range(len(losses))
    given, here, scalars = list(losses), [], []
    for t, loss in enumerate(given):
        if loss is None:
            continue
        if not isinstance(loss, Tensor):
            raise TypeError(f"{rule}, found {type(loss).__name__} for task {t}")
        if loss.dim() != 0:
            raise ValueError(f"{rule}, found shape {tuple(loss.shape)} for task {t}")
        if not loss.requires_grad:
            raise ValueError(f"losses: must be differentiable, found no graph behind task {t} (requires_grad=False)")
        here.append(t)
        scalars.append(loss)
    _one_device("losses", scalars)
    if not scalars:
        return [], None if given else torch.empty(0), here
    values = [loss.detach() for loss in scalars]
    if len(here) < len(given):
        nan, known = values[0].new_full((), torch.nan), dict(zip(here, values, strict=True))
        values = [known.get(t, nan) for t in range(len(given))]
    return list(scalars), torch.stack(values), here


def _one_device(names: str, tensors: Iterable[Tensor]) -> None:
    if len(found := {x.device for x in tensors}) > 1:
        raise ValueError(f"{names}: must have one device, found {' and '.join(sorted(map(str, found)))}")


def scaling(scale: float | Tensor, device: torch.device) -> Tensor:
    """A loss scale on the device. One that lies there is checked along with the losses."""
    one = isinstance(scale, Tensor) and scale.numel() == 1
    if isinstance(scale, Tensor) and not one:
        raise ValueError(f"scale: must be one number, found shape {tuple(scale.shape)}")
    if not (isinstance(scale, Tensor) and scale.is_cuda):
        scale = positive("scale", scale.item() if isinstance(scale, Tensor) else scale)
    return torch.as_tensor(scale, dtype=torch.float32).detach().reshape(()).to(device, non_blocking=True)


def check(
    losses: Losses,
    shared: Iterable[Tensor],
    heads: Sequence[Iterable[Tensor]] | None,
    features: Tensor | Sequence[Tensor] | None,
    method: Method,
) -> Inputs:
    """Inputs of one step. Raises ValueError or TypeError, naming the argument, the rule and what was found."""
    if not isinstance(losses, Tensor | Sequence) or isinstance(losses, str):
        raise TypeError(f"losses: must be a list of T scalars or a vector (T,), found {type(losses).__name__}")
    outputs, values, here = _outputs(losses)
    n, name = len(losses), type(method).__name__
    if n != method.n_tasks:
        raise ValueError(f"losses: {name} was made for {method.n_tasks} tasks, found {n} losses")
    common = _parameters("shared", shared)
    if not common:
        raise ValueError("shared: must hold at least one parameter that requires a gradient, found none")
    if values is None:  # another rank may have some
        values = common[0].new_full((n,), torch.nan)
    if heads is not None and (isinstance(heads, Tensor) or not isinstance(heads, Sequence) or len(heads) != n):
        size = f"{len(heads)}" if isinstance(heads, Sequence) else type(heads).__name__
        raise ValueError(f"heads: must hold one list of parameters per task, {n} of them, found {size}")
    own = [_parameters(f"heads[{t}]", head) for t, head in enumerate(heads or [[] for _ in range(n)])]
    places = {id(p): i for i, p in enumerate(common)}
    for t, head in enumerate(own):
        for p in head:
            if id(p) in places:
                raise ValueError(
                    f"heads[{t}]: a parameter belongs to shared or to heads, "
                    f"found shared[{places[id(p)]}] of shape {tuple(p.shape)} in both"
                )
    cut = [features] if isinstance(features, Tensor) else list(features or [])
    for i, z in enumerate(cut):
        if not isinstance(z, Tensor):
            raise TypeError(f"features[{i}]: must be a tensor, found {type(z).__name__}")
    roots = [losses] if isinstance(losses, Tensor) else [loss for loss in losses if loss is not None]
    inputs = Inputs(roots, outputs, here, values, common, own, _once(z for z in cut if z.requires_grad))
    if method.needs == "features" and not inputs.features:
        raise ValueError(f"features: {name} needs the shared representation, found no tensor that requires a gradient")
    _one_device("losses, shared, heads", [*inputs.parameters, values])
    return inputs
