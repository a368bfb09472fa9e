"""Loss balancing: weights that follow from the losses alone, one backward pass."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from mtl.methods.base import Kind, Method, chosen, counted, number, numbers, on, positive, whole


class LS(Method):
    """Linear scalarisation, equal weights: min sum_t L_t, w_t = 1. (The mean of the losses has the same direction.)

    >>> LS(2).weights(torch.tensor([3.0, 1.0])).tolist()
    [1.0, 1.0]
    """

    label, family, marker = "LS", "simple", "o"

    def weights(self, losses: Tensor, gram: Tensor | None = None) -> Tensor:
        self.check(losses, gram)
        return torch.ones_like(losses)


class Scalarization(Method):
    """Fixed scalarisation: min sum_t c_t L_t, w_t = c_t, any c >= 0 (Xin et al., NeurIPS 2022, as a tuned baseline).

    >>> Scalarization(2, c=[0.3, 0.7]).weights(torch.ones(2, dtype=torch.float64)).tolist()
    [0.3, 0.7]
    """

    label, family, marker = "Scalarization", "simple", "s"
    tasks: ClassVar[dict[str, Kind]] = {"c": "each"}

    def __init__(self, n_tasks: int, c: Sequence[float] | None = None) -> None:
        super().__init__(n_tasks)
        c = [1.0] * n_tasks if c is None else numbers("c", c, n_tasks, of="weight")
        self.c = torch.tensor([positive(f"c[{t}]", x, zero=True) for t, x in enumerate(c)], dtype=torch.float64)

    def weights(self, losses: Tensor, gram: Tensor | None = None) -> Tensor:
        self.check(losses, gram)
        self.c = on(self.c, losses)  # copied to the device once
        return self.c.to(losses.dtype).expand_as(losses)


class STL(Method):
    """Single-task learning: the loss of task `task` alone, w = e_task, and 0 in a batch without it.

    >>> STL(3, task=1).weights(torch.ones(3)).tolist()
    [0.0, 1.0, 0.0]
    """

    label, family, marker = "STL", "levels", "*"
    alone = True

    def __init__(self, n_tasks: int, task: int = 0) -> None:
        super().__init__(n_tasks)
        self.task = whole("task", task, 0)
        if self.task >= n_tasks:
            raise ValueError(f"task: must be in 0..{n_tasks - 1}, found {task}")

    def reduce(self, places: Sequence[int]) -> None:
        self.task = places.index(self.task) if self.task in places else -1

    def weights(self, losses: Tensor, gram: Tensor | None = None) -> Tensor:
        self.check(losses, gram)
        return (torch.arange(self.n_tasks, device=losses.device) == self.task).to(losses.dtype).expand_as(losses)


class SI(Method):
    """Scale invariance: min sum_t log L_t, w_t = 1/L_t (no epsilon: losses must be positive).

    >>> SI(2).weights(torch.tensor([4.0, 0.5])).tolist()
    [0.25, 2.0]
    """

    label, family, marker = "SI", "simple", "^"
    positive_losses = True

    def weights(self, losses: Tensor, gram: Tensor | None = None) -> Tensor:
        self.check(losses, gram)
        return 1 / losses


class GLS(Method):
    """Geometric loss strategy (Chennupati et al., CVPRW 2019): min (prod_t L_t)^(1/T), w_t = (prod L)^(1/T)/(T L_t).

    Losses must be positive.

    >>> GLS(2).weights(torch.tensor([4.0, 1.0])).tolist()
    [0.25, 1.0]
    """

    label, family, marker = "GLS", "levels", "^"
    positive_losses = True

    def weights(self, losses: Tensor, gram: Tensor | None = None) -> Tensor:
        self.check(losses, gram)
        return losses.log().mean(-1, keepdim=True).exp() / (self.n_tasks * losses)


class STCH(Method):
    """Smooth Tchebycheff (Lin et al., ICML 2024, eq. 6): min mu log sum_t exp(lam_t (L_t - z_t)/mu).

    w = lam * softmax(lam (L - z)/mu), lam_t = 1/T, z = 0, mu = 1. form="log" is the authors' MTL code: L is replaced
    by log(L_t/b_t), b the mean losses of each task's first `warmup` steps (w_t = 1/L_t until all have made them), and
    the objective is multiplied by T, so that w_t = T softmax(log(L/b)/mu)_t / L_t; losses must then be positive.

    >>> STCH(2, mu=0.1).weights(torch.tensor([1.0, 1.0])).tolist()
    [0.25, 0.25]
    """

    label, family, marker = "STCH", "levels", "v"
    state = ("seen", "total")
    tasks: ClassVar[dict[str, Kind]] = {"lam": "each", "z": "each", "seen": "each", "total": "each"}
    official_hyper: ClassVar[dict[str, Any]] = {"form": "log"}

    def __init__(
        self,
        n_tasks: int,
        mu: float = 1.0,
        lam: Sequence[float] | None = None,
        z: Sequence[float] | None = None,
        form: Literal["paper", "log"] = "paper",
        warmup: int = 1,
    ) -> None:
        super().__init__(n_tasks)
        self.mu, self.form = positive("mu", mu), chosen("form", form, ("paper", "log"))
        self.lam = self._given("lam", lam, 1 / n_tasks)
        self.equal = lam is None
        self.z = self._given("z", z, 0.0)
        self.warmup, self.seen = whole("warmup", warmup, 1), [0] * n_tasks
        self.total = torch.zeros(n_tasks, dtype=torch.float64)
        self.positive_losses = form == "log"

    def reduce(self, places: Sequence[int]) -> None:
        if self.equal:
            self.lam = torch.full_like(self.lam, 1 / self.n_tasks)

    def _given(self, name: str, values: Sequence[float] | None, default: float) -> Tensor:
        found = [default] * self.n_tasks if values is None else numbers(name, values, self.n_tasks)
        return torch.tensor([number(f"{name}[{t}]", x) for t, x in enumerate(found)], dtype=torch.float64)

    def weights(self, losses: Tensor, gram: Tensor | None = None) -> Tensor:
        self.check(losses, gram)
        L = losses.double()
        self.lam, self.z = on(self.lam, losses), on(self.z, losses)
        if self.form == "paper":
            return (self.lam * torch.softmax(self.lam * (L - self.z) / self.mu, -1)).to(losses.dtype)
        self.total = on(self.total, losses)
        if min(self.seen) < self.warmup:
            new = [int(k < self.warmup) for k in self.seen]
            self.total = self.total + counted(new, losses) * L
            self.seen = [k + one for k, one in zip(self.seen, new, strict=True)]
            return 1 / losses
        nadir = self.total / self.warmup
        return (self.n_tasks * torch.softmax((L / nadir).log() / self.mu, -1) / L).to(losses.dtype)


class RLW(Method):
    """Random loss weighting (Lin et al., TMLR 2022): w = softmax(z), z ~ N(0, I), or w ~ Dirichlet(1); fresh each step.

    The generator is the method's own, seeded by `seed` and part of the state. (LibMTL's first version applied softmax
    to the Dirichlet sample as well, which makes it nearly uniform.)

    >>> RLW(3, seed=0).weights(torch.ones(3)).sum().item()
    1.0
    """

    label, family, marker = "RLW", "simple", "v"
    state = ("generator",)

    def __init__(self, n_tasks: int, distribution: Literal["normal", "dirichlet"] = "normal", seed: int = 0) -> None:
        super().__init__(n_tasks)
        self.distribution = chosen("distribution", distribution, ("normal", "dirichlet"))
        self.generator = torch.Generator().manual_seed(whole("seed", seed))

    def weights(self, losses: Tensor, gram: Tensor | None = None) -> Tensor:
        self.check(losses, gram)
        z = torch.empty(self.n_tasks, dtype=losses.dtype)
        if self.distribution == "normal":
            w = z.normal_(generator=self.generator).softmax(-1)
        else:
            w = z.exponential_(generator=self.generator)
            w = w / w.sum()
        return w.to(losses.device, non_blocking=True).expand_as(losses)


class DWA(Method):
    """Dynamic weight average (Liu, Johns, Davison, CVPR 2019, eq. 7): w = T softmax(r/tau).

    r_t = Lbar_t(e-1)/Lbar_t(e-2); Lbar(e) are the mean losses of epoch e and w = 1 in the first two; tau = 2. With a
    `window` of k steps an "epoch" is k steps, a task's epochs those in which it was there; window=None takes epochs as
    `end_epoch` tells them. Losses must be positive: r is a ratio.

    >>> m = DWA(2, window=1)
    >>> [m.weights(torch.tensor(x)).tolist() for x in ([1.0, 1.0], [1.0, 1.0], [9.0, 9.0])]
    [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]
    """

    label, family, marker = "DWA", "simple", "D"
    positive_losses = True
    state = ("means", "total", "count", "epoch")
    tasks: ClassVar[dict[str, Kind]] = dict.fromkeys(state, "each")

    def __init__(self, n_tasks: int, tau: float = 2.0, window: int | None = 25) -> None:
        super().__init__(n_tasks)
        self.tau, self.window = positive("tau", tau), None if window is None else whole("window", window, 1)
        self.means = torch.ones(2, n_tasks, dtype=torch.float64)  # of the last two epochs, the older first
        self.total = torch.zeros(n_tasks, dtype=torch.float64)
        self.count, self.epoch = [0] * n_tasks, [0] * n_tasks

    def weights(self, losses: Tensor, gram: Tensor | None = None) -> Tensor:
        self.check(losses, gram)
        if self.window is not None and max(self.count) == self.window:
            self.end_epoch()
        self.means = on(self.means, losses)
        older, newer = self.means
        self.total, self.count = on(self.total, losses) + losses.double(), [k + 1 for k in self.count]
        if min(self.epoch) < 2:
            return torch.ones_like(losses)
        return (self.n_tasks * torch.softmax(newer / older / self.tau, -1)).to(losses.dtype)

    def end_epoch(self) -> None:
        there = counted([int(k > 0) for k in self.count], self.total)
        if isinstance(there, int) and not there:
            return
        means = on(self.means, self.total)
        new = torch.stack(
            [means[1].expand_as(self.total), self.total / counted([max(k, 1) for k in self.count], self.total)]
        )
        self.means = new if isinstance(there, int) else torch.where(there > 0, new, means)
        self.epoch = [e + (k > 0) for e, k in zip(self.epoch, self.count, strict=True)]
        self.total, self.count = torch.zeros_like(self.total), [0] * self.n_tasks


class PBI(Method):
    """Penalty-based boundary intersection (Zhang & Li, IEEE TEVC 2007, MOEA/D): min d_1 + theta d_2.

    d_1 = <L - z, u> along u = lam/|lam|, d_2 = |L - z - d_1 u| across it: w = u + theta (L - z - d_1 u)/d_2. lam_t = 1,
    z = 0, and theta = 5 as in the paper's experiments. Where d_2 is no more than the losses' rounding it has no slope:
    w = u (TorchJD puts 1e-12 under the root). w_t is negative, and the head of task t ascends, where a loss is far
    below its share. Heads: w.

    >>> PBI(2, theta=2.0, lam=[1.0, 0.0]).weights(torch.tensor([3.0, 4.0])).tolist()
    [1.0, 2.0]
    """

    label, family, marker = "PBI", "simple", "P"
    tasks: ClassVar[dict[str, Kind]] = {"u": "each", "z": "each"}

    def __init__(
        self, n_tasks: int, theta: float = 5.0, lam: Sequence[float] | None = None, z: Sequence[float] | None = None
    ) -> None:
        super().__init__(n_tasks)
        self.theta = positive("theta", theta, zero=True)
        lam = [1.0] * n_tasks if lam is None else numbers("lam", lam, n_tasks)
        z = [0.0] * n_tasks if z is None else [number(f"z[{t}]", x) for t, x in enumerate(numbers("z", z, n_tasks))]
        u = torch.tensor([positive(f"lam[{t}]", x, zero=True) for t, x in enumerate(lam)], dtype=torch.float64)
        if not any(lam):
            raise ValueError("lam: must have a number > 0, found zeros")
        self.u, self.z = u / torch.linalg.vector_norm(u), torch.tensor(z, dtype=torch.float64)

    def reduce(self, places: Sequence[int]) -> None:
        self.u = self.u / torch.linalg.vector_norm(self.u).clamp_min(torch.finfo(self.u.dtype).tiny)

    def weights(self, losses: Tensor, gram: Tensor | None = None) -> Tensor:
        self.check(losses, gram)
        L, self.u, self.z = losses.double(), on(self.u, losses), on(self.z, losses)
        across = L - self.z - ((L - self.z) * self.u).sum(-1, keepdim=True) * self.u
        far = torch.linalg.vector_norm(across, dim=-1, keepdim=True)
        rounding = 4 * self.n_tasks * torch.finfo(losses.dtype).eps * (L.abs() + self.z.abs()).amax(-1, keepdim=True)
        slope = torch.where(far > rounding, across / far, 0.0)
        return (self.u + self.theta * slope).to(losses.dtype)
