"""Methods that need the task gradients themselves, coordinate by coordinate."""

import copy
from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from mtl.methods.base import (
    Heads,
    Kind,
    Method,
    Needs,
    chosen,
    counted,
    numbers,
    on,
    per_task,
    positive,
    share,
    single,
    whole,
)
from mtl.solvers import project_simplex

PIECE = 1 << 17  # numbers of all tasks: some tensors of them stay in the cache


def pieces(*tensors: Tensor, lead: int = 0) -> Iterator[tuple[Tensor, ...]]:
    """The same columns of tensors (T, *shape), or (1, *shape), as views (T, n), a few at a time on the CPU.

    What is computed in between then never leaves the cache. Tensors whose rows cannot be flattened, or with `lead`
    dimensions before T, come whole.
    """
    if lead or tensors[0].device.type != "cpu" or not all(x[0].is_contiguous() for x in tensors):
        yield tensors
    else:
        n = max(PIECE // len(tensors[0]) // 64 * 64, 64)  # whole vectors, so that sums over tasks round as in one piece
        yield from zip(*(x.reshape(len(x), -1).split(n, 1) for x in tensors), strict=True)


def mixed(w: Tensor, grads: Tensor) -> Tensor:
    """sum_t w_t g_t (..., *shape) of w (..., T) and gradients (..., T, *shape)."""
    if w.dim() == 1:
        return torch.tensordot(w.to(grads.dtype), grads, 1)
    return (per_task(w, grads) * grads).sum(w.dim() - 1)


class GradDrop(Method):
    """GradDrop (Chen et al., NeurIPS 2020, algorithm 1): one sign survives per coordinate, drawn by its share.

    Purity P = (1 + sum_t g_t/sum_t|g_t|)/2; u ~ U(0,1); d = sum_t (l + (1-l) M_t) g_t with M_t keeping g_t > 0 where
    P > u and g_t < 0 where P < u; leak l = 0. on="features" is the paper's: signs of sum_b sgn(Z) dL_t/dZ over the
    batch, one draw for all of it. Default, as public codes do: on the shared parameters' gradients. Its own generator
    (`seed`) lives on the device of the gradients. Heads: raw.

    >>> GradDrop(2).combine([torch.tensor([[1.0, 2.0], [3.0, -2.0]])], torch.ones(2))[0][0].item()
    4.0
    """

    label, family, marker = "GradDrop", "conflicts", "v"
    needs: Needs = "gradients"
    heads: Heads = "raw"
    state = ("generator",)
    tasks: ClassVar[dict[str, Kind]] = {"leak": "each"}

    def __init__(
        self,
        n_tasks: int,
        leak: float | Sequence[float] = 0.0,
        on: Literal["parameters", "features"] = "parameters",
        seed: int = 0,
    ) -> None:
        super().__init__(n_tasks)
        leaks = [leak] * n_tasks if single(leak) else numbers("leak", leak, n_tasks)
        leaks = [share("leak", x) for x in leaks]
        self.masks = chosen("on", on, ("parameters", "features")) == "features"
        self.needs = "features" if self.masks else "gradients"
        self.leak, self.seed = torch.tensor(leaks, dtype=torch.float64), whole("seed", seed)
        self.generator: torch.Generator | Tensor | None = None  # None until the device is known; resumed: its state

    def combine(self, grads: Sequence[Tensor], losses: Tensor) -> list[Tensor]:
        self.check(losses)
        lead = losses.dim() - 1
        found = [torch.empty_like(g.select(lead, 0)) for g in grads]
        for g, d in zip(grads, found, strict=True):
            for part, total in pieces(g, d[None], lead=lead):
                torch.sum(self.mask(part, losses).mul_(part), lead, out=total[0])
        return found

    def mask(self, grads: Tensor, losses: Tensor) -> Tensor:
        g, lead = grads, losses.dim() - 1
        if not isinstance(self.generator, torch.Generator):
            resumed, self.generator = self.generator, torch.Generator(g.device).manual_seed(self.seed)
            if resumed is not None:
                self.generator.set_state(resumed)
        purity = 0.5 * (1 + g.sum(lead, keepdim=True) / g.abs().sum(lead, keepdim=True))
        u = torch.rand(g.shape[lead + 1 :], generator=self.generator, dtype=g.dtype, device=g.device)
        kept = ((g > 0) & (purity > u)) | ((g < 0) & (purity < u))
        self.leak = self.leak.to(g.device)
        leak = per_task(self.leak, g, lead)
        return leak + (1 - leak) * kept

    def check_state(self, state: dict[str, Any]) -> None:
        fresh = copy.copy(self)
        fresh.generator = None
        Method.check_state(fresh, state)
        found = state["generator"]
        if found is not None and not (isinstance(found, Tensor) and found.dtype == torch.uint8 and found.dim() == 1):
            raise ValueError(f"state['generator']: must be a generator's state or None, found {type(found).__name__}")

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.check_state(state)
        self.generator = None
        super().load_state_dict(state)


class Buffers(Method):
    """A method that keeps one tensor per shared parameter and name; shapes are learned at the first step."""

    needs = "gradients"
    kept: ClassVar[tuple[str, ...]] = ()

    def __init__(self, n_tasks: int) -> None:
        super().__init__(n_tasks)
        self.steps = 0
        for name in self.kept:
            setattr(self, name, [])

    def check_state(self, state: dict[str, Any]) -> None:
        super().check_state(state)
        for name in self.kept:
            value = state[name]
            if not isinstance(value, list) or not all(isinstance(x, Tensor) for x in value):
                raise ValueError(f"state[{name!r}]: must be a list of tensors, found {type(value).__name__}")
            found = [tuple(x.shape) for x in value]
            alike = takewhile(lambda sizes: len(set(sizes)) == 1, zip(*found, strict=False))  # the leading dimensions
            if value and not any(size == self.n_tasks for size, *_ in alike):
                raise ValueError(f"state[{name!r}]: must have a row for each of {self.n_tasks} tasks, found {found}")

    def take(self, grads: Sequence[Tensor]) -> None:
        """One step more; buffers start at zero."""
        shapes = [tuple(g.shape) for g in grads]
        for name in self.kept:
            if (began := [tuple(b.shape) for b in getattr(self, name)]) and began != shapes:
                raise ValueError(f"grads: {type(self).__name__} began with shapes {began}, found {shapes}")
        self.steps += 1
        for name in self.kept:
            buffers: list[Tensor] = getattr(self, name) or [torch.zeros_like(g) for g in grads]
            setattr(self, name, [b.to(g) for b, g in zip(buffers, grads, strict=True)])  # resumed on another device


class AdaTask(Buffers):
    """AdaTask with Adam (Yang et al., AAAI 2023, algorithm 2): moments m_t, v_t of each task's own gradient.

    d = sum_t mhat_t/(sqrt(vhat_t) + eps): an update at the level of the optimiser, so give the shared parameters plain
    SGD; under Adam it would be normalised twice. Scaling one loss leaves d unchanged up to eps. Heads: raw.

    >>> m = AdaTask(2)
    >>> [round(x, 6) for x in m.combine([torch.tensor([[1.0, -5.0], [100.0, -1.0]])], torch.ones(2))[0].tolist()]
    [2.0, -2.0]
    """

    label, family, marker = "AdaTask", "geometry", "v"
    heads: Heads = "raw"
    replaces_adam = True
    kept = ("first", "second")
    state = ("seen", *kept)
    tasks: ClassVar[dict[str, Kind]] = {"seen": "each", "first": "rows", "second": "rows"}
    first: list[Tensor]
    second: list[Tensor]

    def __init__(self, n_tasks: int, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> None:
        super().__init__(n_tasks)
        self.beta1, self.beta2 = share("beta1", beta1, "[0, 1)"), share("beta2", beta2, "[0, 1)")
        self.eps = positive("eps", eps, zero=True)
        self.seen = [0] * n_tasks

    def combine(self, grads: Sequence[Tensor], losses: Tensor) -> list[Tensor]:
        self.check(losses)
        self.take(grads)
        lead = losses.dim() - 1
        update = [torch.empty_like(g.select(lead, 0)) for g in grads]
        self.seen = [k + 1 for k in self.seen]
        k = counted(self.seen, losses)
        biases = [1 - beta**k for beta in (self.beta1, self.beta2)]
        for *all_three, found in zip(self.first, self.second, grads, update, strict=True):
            for m, v, g, d in pieces(*all_three, found[None], lead=lead):
                m.lerp_(g, 1 - self.beta1)
                v.mul_(self.beta2).addcmul_(g, g, value=1 - self.beta2)
                first, second = (b if isinstance(b, float) else per_task(b, g, lead) for b in biases)
                root = (v / second).sqrt_().add_(self.eps)
                if self.eps == 0:  # never a gradient there: no step, and not 0/0
                    root.masked_fill_(root == 0, 1.0)
                torch.sum((m / first).div_(root), lead, out=d[0])
        return update


class DBMTL(Buffers):
    """DB-MTL (Lin et al., arXiv 2308.12029): gradients of log L_t, smoothed, all scaled to the largest of their norms.

    b_t <- g_t/(L_t + 1e-8) + (beta/k^sigma)(b_t - g_t/(L_t + 1e-8)), b = 0 at the start, without bias correction;
    d = sum_t (max_s|b_s|/(|b_t| + 1e-8)) b_t. beta = 0.9, sigma = 0. Losses must be positive. Heads: 1/(L_t + 1e-8).

    >>> m = DBMTL(2, beta=0.0)
    >>> [round(x, 4) for x in m.combine([torch.tensor([[3.0, 0.0], [0.0, 1.0]])], torch.ones(2))[0].tolist()]
    [3.0, 3.0]
    """

    label, family, marker = "DB-MTL", "levels", "P"
    positive_losses = True
    kept = ("mean",)
    state = ("steps", *kept)
    tasks: ClassVar[dict[str, Kind]] = {"mean": "rows"}
    mean: list[Tensor]

    def __init__(self, n_tasks: int, beta: float = 0.9, sigma: float = 0.0) -> None:
        super().__init__(n_tasks)
        self.beta, self.sigma = share("beta", beta, "[0, 1)"), positive("sigma", sigma, zero=True)

    def combine(self, grads: Sequence[Tensor], losses: Tensor) -> list[Tensor]:
        self.check(losses)
        self.take(grads)
        rate = self.beta / self.steps**self.sigma
        for mean, grad in zip(self.mean, grads, strict=True):
            for b, g in pieces(mean, grad, lead=losses.dim() - 1):
                b.lerp_(g / (per_task(losses, g) + 1e-8), 1 - rate)
        norms = _norms(self.mean, losses.dim())
        lift = norms.amax(-1, keepdim=True) / (norms + 1e-8)
        return [mixed(lift, b) for b in self.mean]

    def head_weights(self, losses: Tensor, weights: Tensor) -> Tensor:
        return (1 / (losses + 1e-8)).to(weights.dtype)


class MoCo(Buffers):
    """MoCo (Fernando et al., ICLR 2023): MGDA by small steps, on running means y_t of the gradients.

    y_t <- y_t - beta_k (y_t - g_t); w <- projection of w - gamma_k (Y Y' + rho I) w on the simplex; d = sum_t w_t y_t.
    beta_k = beta/k^sigma, gamma_k = gamma/k^sigma; y = 0 and w = 1/T at the start; beta = 0.5, gamma = 0.1,
    sigma = 0.5, rho = 0 are LibMTL's. form="libmtl" is its code: g_t L_t/(|g_t| + 1e-8) in place of g_t, softmax in
    place of the projection. Heads: raw.

    >>> m = MoCo(2, beta=1.0, gamma=1.0)
    >>> m.combine([torch.tensor([[1.0, 0.0], [0.0, 0.5]])], torch.ones(2))[0].tolist()
    [0.3125, 0.34375]
    """

    label, family, marker = "MoCo", "min-norm", "P"
    heads: Heads = "raw"
    kept = ("mean",)
    state = ("steps", "w", *kept)
    tasks: ClassVar[dict[str, Kind]] = {"w": "share", "mean": "rows"}
    mean: list[Tensor]

    def __init__(
        self,
        n_tasks: int,
        beta: float = 0.5,
        gamma: float = 0.1,
        sigma: float = 0.5,
        rho: float = 0.0,
        form: Literal["paper", "libmtl"] = "paper",
    ) -> None:
        super().__init__(n_tasks)
        self.beta, self.gamma = share("beta", beta, "(0, 1]"), positive("gamma", gamma)
        self.sigma = positive("sigma", sigma, zero=True)
        self.rho, self.form = positive("rho", rho, zero=True), chosen("form", form, ("paper", "libmtl"))
        self.w = torch.full((n_tasks,), 1 / n_tasks, dtype=torch.float64)

    def combine(self, grads: Sequence[Tensor], losses: Tensor) -> list[Tensor]:
        self.check(losses)
        self.take(grads)
        ease, dim = self.steps**-self.sigma, losses.dim()
        lift = torch.ones_like(losses)
        if self.form == "libmtl":
            lift = losses / (_norms(grads, dim).to(losses) + 1e-8)
        for y, g in zip(self.mean, grads, strict=True):
            for mean, part in pieces(y, g, lead=dim - 1):
                mean.lerp_(per_task(lift, part) * part, self.beta * ease)
        w = on(self.w, losses)
        wide = (rows(part, dim).double() for y in self.mean for (part,) in pieces(y, lead=dim - 1))
        K = sum((part @ part.mT for part in wide), w.new_zeros(self.n_tasks, self.n_tasks))
        w = w - self.gamma * ease * ((K @ w.unsqueeze(-1)).squeeze(-1) + self.rho * w)
        self.w = project_simplex(w) if self.form == "paper" else w.softmax(-1)
        return [mixed(self.w, y) for y in self.mean]


def rows(x: Tensor, dim: int) -> Tensor:
    """(..., T, *shape) as (..., T, n); T is dimension number `dim`, counted from 1."""
    return x.reshape(*x.shape[:dim], -1)


def _norms(tensors: Sequence[Tensor], dim: int) -> Tensor:
    """Lengths (..., T) of T vectors in parts (..., T, *shape)."""
    parts = [torch.linalg.vector_norm(rows(x, dim), dim=-1) for x in tensors]
    return torch.stack(parts).square().sum(0).sqrt()


class ExcessMTL(Buffers):
    """ExcessMTL (He et al., ICML 2024, eq. 9): weights follow the excess risks, estimated from the gradients.

    e_t = sum g_t^2 / sqrt(s_t + 1e-7) by coordinate, s_t the sum of the squares of task t so far (eq. 6 and 7); then
    w_t ~ w_t exp(eta e_t/e_t(0)), sum w = 1, in logarithms, so that no weight is lost for good. e(0) is the estimate of
    the first step, which leaves w = 1/T (the authors' code; the paper's appendix takes the mean of three epochs), or of
    a task's first gradient that is not zero. eta = 0.01 is their code's, whose weights sum to T (official=True). One
    buffer of the size of all task gradients. Heads: w.

    >>> m = ExcessMTL(2, eta=1.0)
    >>> steps = [torch.tensor([[1.0, 0.0], [0.0, 4.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])]
    >>> [[round(x, 4) for x in m.combine([g], torch.ones(2))[0].tolist()] for g in steps]
    [[0.5, 2.0], [0.6562, 0.3438]]
    """

    label, family, marker = "ExcessMTL", "simple", "X"
    kept = ("squares",)
    state = ("steps", "log_w", "initial", *kept)
    tasks: ClassVar[dict[str, Kind]] = {"log_w": "log share", "initial": "each", "squares": "rows"}
    squares: list[Tensor]

    def __init__(self, n_tasks: int, eta: float = 0.01) -> None:
        super().__init__(n_tasks)
        self.eta = positive("eta", eta, zero=True)
        self.log_w = torch.full((n_tasks,), 1 / n_tasks, dtype=torch.float64).log()
        self.initial = torch.zeros(n_tasks, dtype=torch.float64)

    def combine(self, grads: Sequence[Tensor], losses: Tensor) -> list[Tensor]:
        self.check(losses)
        self.take(grads)
        excess = torch.zeros(losses.shape, dtype=torch.float64, device=losses.device)
        for squares, grad in zip(self.squares, grads, strict=True):
            for s, g in pieces(squares, grad, lead=losses.dim() - 1):
                square = g * g
                s += square
                part = square / (s + 1e-7).sqrt_()
                excess += rows(part, losses.dim()).sum(-1, dtype=torch.float64)
        initial = on(self.initial, losses)
        self.initial = torch.where(initial == 0, excess, initial)
        ratio = torch.where(excess == 0, 0.0, excess / self.initial)
        self.log_w = torch.log_softmax(on(self.log_w, losses) + self.eta * ratio, -1)
        w = self.log_w.exp()
        return [mixed(w, g) for g in grads]

    def head_weights(self, losses: Tensor, weights: Tensor) -> Tensor:
        return on(self.log_w, weights).exp().to(weights.dtype)

    def official_factor(self, direction: Tensor) -> float | Tensor:
        return self.n_tasks
