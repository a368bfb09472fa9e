"""From T losses to one weighted update in `.grad`: per-task gradients, Gram matrix, data-parallel reduction."""

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor

from mtl.gradients.accumulate import Accumulator
from mtl.gradients.inputs import Losses, scaling
from mtl.gradients.inputs import check as check_inputs
from mtl.gradients.layers import USED, begin
from mtl.gradients.parallel import Group, Ranks
from mtl.gradients.paths import Vjp
from mtl.gradients.step import Pending, Step
from mtl.gradients.update import Update, adding, unmixed
from mtl.methods.base import Method, flag, made

__all__ = ["Accumulator", "Step", "backward"]


def backward(
    losses: Losses,
    *,
    shared: Iterable[Tensor],
    heads: Sequence[Iterable[Tensor]] | None = None,
    method: Method,
    features: Tensor | Sequence[Tensor] | None = None,
    vjp: Vjp = "auto",
    check: Literal["raise", "defer"] = "raise",
    scale: float | Tensor | None = None,
    group: Group = "auto",
    retain_graph: bool = False,
    diagnostics: bool = False,
) -> Step:
    """Add sum_t w_t g_t to `.grad` of the shared parameters and h_t dL_t/dphi_t to that of the heads.

    w = method.weights(L, K) with K = G G^T, rows g_t = dL_t/dtheta; h = w or 1 as the method says.

    `losses`: T scalars, or a vector (T,); None for a task without labels in this batch: the method acts on the others,
    the task's weight is 0, head and state rest; a player's mass comes back as `mtl.methods.absent.present` says.
    `shared`: the parameters theta, frozen ones are skipped. `heads[t]`: those of task t; list a tied parameter under
    each task that uses it. Parameters in neither list get no gradient: a warning says so of modules' parameters at a
    method's first step. Dtypes may differ as autograd allows; K is in the widest of the shared ones, float32 at least.
    Post-accumulate hooks are called once `.grad` is what it will be, other hooks whenever autograd comes by.
    `features`: tensors Z between trunk and heads; representation methods take K over dL_t/dZ, for others the result
    does not change. `vjp`: trunk task by task ("loop") or vectorised ("batched"); "auto" is the loop, which on the CPU
    keeps gradients of linear layers much wider than the batch as factors.
    `check`: losses and K are always checked; "raise" waits for the device once; "defer" raises at a later call or in
    `step.check()`, and waits only for methods that solve a problem (`Method.solves`), once, since on a GPU K comes
    along and they solve on the host. On CUDA the weights' check is always deferred, and a sparse embedding costs one
    more wait. `scale`: a loss scale; `.grad` comes out scaled, what the method sees and keeps does not; with a
    GradScaler pass `scaler.scale(torch.ones((), device=...))`. If the scaled gradients overflow, the method is not
    asked, `step.overflow` is set, no `.grad` is finite and `scaler.step` skips the update.
    `group`: ranks whose task gradients are averaged ("auto": all, if torch.distributed is initialised), each over the
    ranks that have its loss; take parameters from the module itself, not its DistributedDataParallel wrapper, and call
    the module itself too where features are given or tasks are absent: the wrapper waits for parameters that such a
    step reaches late or never. Sparse embeddings need
    a task on each rank. `diagnostics`: compute K for methods that do not need it.

    Raises ValueError or TypeError (argument, rule, value found) and NonFiniteError, of losses and of what the method
    looks at (one that looks at losses alone sees no gradient); every `.grad` is then as before.

    >>> from mtl.methods.base import Method
    >>> class Equal(Method):
    ...     needs = "gram"
    ...     def weights(self, losses, gram=None):
    ...         return torch.ones_like(losses)
    >>> theta = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> step = backward([theta[0] ** 2, 3 * theta.sum()], shared=[theta], method=Equal(2))
    >>> theta.grad.tolist(), step.gram.tolist()
    ([5.0, 3.0], [[4.0, 6.0], [6.0, 18.0]])
    """
    made(method)
    if check not in ("raise", "defer"):
        raise ValueError(f'check: must be "raise" or "defer", found {check!r}')
    if vjp not in ("auto", "loop", "batched"):
        raise ValueError(f'vjp: must be "auto", "loop" or "batched", found {vjp!r}')
    if scale is not None and check == "defer":
        raise ValueError('check: must be "raise" with a loss scale, since an overflow decides the step; found "defer"')
    flag("retain_graph", retain_graph), flag("diagnostics", diagnostics)
    Pending.read(method)
    given = check_inputs(losses, shared, heads, features, method)
    if method not in USED:
        begin(method, given)
    device = given.values.device
    factor = None if scale is None else scaling(scale, device)
    run = Update(given, method, Ranks(group), check, factor, retain_graph)
    learned = method.parameters()
    with torch.no_grad(), unmixed(device), adding([*given.parameters, *learned]):
        if method.needs == "losses" and not diagnostics:
            return run.from_losses()
        if method.needs == "features":
            return run.from_features()
        return run.from_gradients(vjp)
