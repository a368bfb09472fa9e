"""Your own method from one function: registered under a name that changes whenever the function does."""

from collections.abc import Callable
from types import FunctionType
from typing import Any

from torch import Tensor

from mtl.methods import METHODS
from mtl.methods.base import Heads, Method, Needs
from mtl.sources import code_digest


def rule(name: str, weights: Callable[..., Tensor], *, needs: Needs = "gram", heads: Heads = "weighted") -> str:
    """Register w = weights(losses, K) as a method and return its name, e.g. "inverse-norm@1f0c2a9b".

    losses (T,), K (T, T) the Gram matrix of the task gradients; weights (T,). With needs="losses" the function
    gets the losses alone. The digits in the name are a hash of the function, its defaults, what it took from a function
    around it, needs and heads, so that a ledger never takes the runs of an edited rule for those of the old one; what
    it reads from its module is not part of it. Raises ValueError for a name that a built-in method has.

    >>> import torch, mtl
    >>> name = rule("inverse-norm", lambda losses, K: 1 / K.diagonal().sqrt())
    >>> G = torch.tensor([[2.0, 0.0], [0.0, 4.0]])
    >>> mtl.aggregate(name, grads=G, losses=torch.ones(2)).direction.tolist()
    [1.0, 1.0]
    >>> _ = mtl.METHODS.pop(name)
    """
    if not isinstance(name, str) or not isinstance(weights, FunctionType):
        raise TypeError(f"rule: takes a name and a function of Python, found {name!r} and {weights!r}")
    if name in METHODS or "@" in name:
        raise ValueError(f"name: must be new and without '@', found {name!r}")
    if needs not in ("losses", "gram"):
        raise ValueError(f"needs: must be 'losses' or 'gram' for a rule, found {needs!r}")
    if heads not in ("weighted", "raw"):
        raise ValueError(f"heads: must be 'weighted' or 'raw', found {heads!r}")
    chosen = (needs, heads)

    class Rule(Method):
        needs, heads = chosen

        def weights(self, losses: Tensor, gram: Tensor | None = None) -> Tensor:
            given: tuple[Any, ...] = (losses,) if self.needs == "losses" else (losses, gram)
            w = weights(*given)
            if not isinstance(w, Tensor) or w.shape != losses.shape:
                found = tuple(w.shape) if isinstance(w, Tensor) else type(w).__name__
                raise ValueError(
                    f"weights: {name} must return one weight per task, shape {tuple(losses.shape)}, found {found}"
                )
            return w.to(losses.dtype)

    full = f"{name}@{code_digest(weights, chosen)}"
    Rule.__qualname__ = full  # by which checkpoints tell rules apart
    METHODS[full] = Rule
    return full
