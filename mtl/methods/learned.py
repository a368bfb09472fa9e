"""Loss balancing with weights that are learned along with the model, or played against it."""

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from mtl.errors import NonFiniteError, NonPositiveError
from mtl.methods.base import Kind, Method, chosen, counted, flag, norms, number, on, positive
from mtl.solvers import kl_ball_step


class Learned(Method):
    """A method with learned log-weights s (T,), updated by the model's optimiser at `learning_rate`.

    With dimensions before T, s takes the losses' shape at the first call, so each problem learns its own.
    In a batch without task t, dLoss/ds_t = 0: `mtl.fit` then leaves s_t where it is, an optimiser of one's own may move
    it by its momentum.
    """

    state: ClassVar[tuple[str, ...]] = ("s",)
    tasks: ClassVar[Mapping[str, Kind]] = {"s": "each"}

    def __init__(self, n_tasks: int, init: float = 0.0) -> None:
        super().__init__(n_tasks)
        if abs(number("init", init)) > 80:
            raise ValueError(f"init: must be of a size whose exponential is a number, at most 80, found {init!r}")
        self.s = torch.full((n_tasks,), float(init), dtype=torch.float64, requires_grad=True)

    def parameters(self) -> list[Tensor]:
        return [self.s]

    def current(self, losses: Tensor) -> Tensor:
        """s in the shape of the losses, on their device."""
        return on(self.shaped(losses), losses)

    def shaped(self, losses: Tensor) -> Tensor:
        """s in the shape of the losses, where it lies."""
        if self.s.shape != losses.shape:
            self.s.data = self.s.data.expand(losses.shape).clone()
        return self.s

    def descend(self, slope: Tensor) -> None:
        """Put dLoss/ds where the optimiser finds it."""
        self.s.grad = slope.to(self.s)


class UW(Learned):
    """Uncertainty weighting (Kendall, Gal, Cipolla, CVPR 2018): min sum_t (e^-s_t L_t + s_t)/2, s_t = log sigma_t^2.

    w_t = e^-s_t / 2, dLoss/ds_t = (1 - e^-s_t L_t)/2; s = `init` = 0 (LibMTL: -0.5). At its optimum, w_t = 1/(2L_t).
    A negative loss is an error: s_t would fall without end, and w_t grow.

    >>> UW(2).weights(torch.tensor([3.0, 1.0])).tolist()
    [0.5, 0.5]
    """

    label, family, marker = "UW", "levels", "o"
    nonnegative_losses = True

    def weights(self, losses: Tensor, gram: Tensor | None = None) -> Tensor:
        self.check(losses, gram)
        factor = torch.exp(-self.current(losses))
        self.descend(0.5 * (1 - factor * losses.double()))
        return (factor / 2).to(losses.dtype)


class IMTLL(Learned):
    """IMTL-L (Liu et al., ICLR 2021, eq. 7): min sum_t (e^s_t L_t - s_t), so that all scaled losses tend to 1.

    w_t = e^s_t, dLoss/ds_t = e^s_t L_t - 1, s = 0 at the start. A negative loss is an error: s_t and w_t would grow
    without end.

    >>> m = IMTLL(2)
    >>> m.weights(torch.tensor([3.0, 1.0])).tolist(), m.s.grad.tolist()
    ([1.0, 1.0], [2.0, 0.0])
    """

    label, family, marker = "IMTL-L", "impartial", "s"
    nonnegative_losses = True

    def weights(self, losses: Tensor, gram: Tensor | None = None) -> Tensor:
        self.check(losses, gram)
        factor = torch.exp(self.current(losses))
        self.descend(factor * losses.double() - 1)
        return factor.to(losses.dtype)


class GradNorm(Learned):
    """GradNorm (Chen et al., ICML 2018, eq. 2): weighted gradient norms tend to one that follows the training rates.

    L_grad = sum_t |w_t|g_t| - mean_s(w_s|g_s|) r_t^alpha|, r_t = (L_t/L_t(0))/mean, target held constant; alpha = 1.5.
    Deviations: w = T softmax(s) keeps w positive with sum T and leaves the optimiser's parameters alone (as LibMTL; the
    paper renormalises after each step); |g_t| over all shared parameters (the paper: last shared layer); L(0) are the
    losses of a task's first step. This step uses w from before its own update. Losses must be positive: r is a ratio.

    >>> GradNorm(2).weights(torch.ones(2), torch.eye(2)).tolist()
    [1.0, 1.0]
    """

    label, family, marker = "GradNorm", "levels", "s"
    needs = "gram"
    positive_losses = True
    state = ("s", "initial")
    tasks: ClassVar[dict[str, Kind]] = {"s": "each", "initial": "each"}

    def __init__(self, n_tasks: int, alpha: float = 1.5) -> None:
        super().__init__(n_tasks)
        self.alpha = positive("alpha", alpha, zero=True)
        self.initial = torch.zeros(n_tasks, dtype=torch.float64)  # until the task's first step: losses are positive

    def weights(self, losses: Tensor, gram: Tensor | None = None) -> Tensor:
        self.check(losses, gram)
        assert gram is not None
        L = losses.double()
        initial = on(self.initial, losses)
        self.initial = torch.where(initial == 0, L, initial)
        share = torch.softmax(self.current(losses), -1)
        w, sizes = self.n_tasks * share, norms(gram.double())
        rate = L / self.initial
        target = (w * sizes).mean(-1, keepdim=True) * (rate / rate.mean(-1, keepdim=True)) ** self.alpha
        slope = torch.sign(w * sizes - target) * sizes * w
        self.descend(slope - share * slope.sum(-1, keepdim=True))
        return w.to(losses.dtype)


class FAMO(Method):
    """FAMO (Liu, Feng, Stone, Liu, NeurIPS 2023): all log-losses shall fall equally fast, for one more forward pass.

    z = softmax(xi); w_t = z_t/D_t / sum_s z_s/D_s with D_t = L_t - b + 1e-8. After the optimiser step, on that batch:
    delta_t = log D_t(before) - log D_t(after), and xi takes an Adam step (0.025, L2 `gamma`) along J_softmax' delta.
    gamma = 1e-3 (the authors: 1e-5 in the class, 1e-2 or 1e-3 in the scripts). Clipping in famo.py is left to the loop.
    Among several processes `after_step` takes the mean of the losses over the ranks, as `weights` does.
    Losses must be positive; `b` moves the zero of their logarithms.

    >>> FAMO(2).weights(torch.tensor([1.0, 1.0])).tolist()
    [0.5, 0.5]
    """

    label, family, marker = "FAMO", "levels", "D"
    positive_losses = True
    wants_after_step = True
    state = ("xi", "first", "second", "steps", "before")
    tasks: ClassVar[dict[str, Kind]] = dict.fromkeys(state, "each")

    def __init__(self, n_tasks: int, gamma: float = 1e-3, lr: float = 0.025, b: float = 0.0) -> None:
        super().__init__(n_tasks)
        self.gamma, self.lr, self.b = positive("gamma", gamma, zero=True), positive("lr", lr), number("b", b)
        self.xi, self.first, self.second, self.before = torch.zeros(4, n_tasks, dtype=torch.float64).unbind()
        self.steps = [0] * n_tasks
        self.asked = False

    def weights(self, losses: Tensor, gram: Tensor | None = None) -> Tensor:
        self.check(losses, gram)
        D = losses.double() - self.b + 1e-8
        self.before, self.asked = D.log(), True
        w = torch.softmax(on(self.xi, losses), -1) / D
        return (w / w.sum(-1, keepdim=True)).to(losses.dtype)

    def after_step(self, losses: Tensor) -> None:
        """Raises ValueError where no step came before, as after one that overflowed, or a second time."""
        self.check(losses)
        if not self.asked:
            raise ValueError(
                "after_step: must come once after each step that did not overflow, found no such step before"
            )
        self.asked = False
        delta = on(self.before, losses) - (losses.detach().double() - self.b + 1e-8).log()
        xi = on(self.xi, losses)
        z = torch.softmax(xi, -1)
        slope = z * (delta - (z * delta).sum(-1, keepdim=True)) + self.gamma * xi
        self.steps = [k + 1 for k in self.steps]
        t = counted(self.steps, losses)
        self.first = 0.9 * on(self.first, losses) + 0.1 * slope
        self.second = 0.999 * on(self.second, losses) + 0.001 * slope.square()
        step = self.first / (1 - 0.9**t) / ((self.second / (1 - 0.999**t)).sqrt() + 1e-8)
        self.xi = xi - self.lr * step


class Bandit(Method):
    """BanditMTL (Mao et al., ACL 2021): a player p on the ball KL(p || 1/T) <= rho maximises sum_t p_t L_t.

    w = p / T; then p <- argmax eta <L, q> - KL(q || p) over the ball (algorithm 2), so that the losses of one step
    decide the weights of the next. rho = 1.2, eta = 0.5. rho >= ln T makes the ball the whole simplex, and p drifts to
    a vertex. payoff="weighted" plays p_t L_t, as one public copy does. The authors' bisection on lambda can stall and
    overflow; the step here is exact (`mtl.solvers.kl_ball_step`).

    `balance=True` puts L_t / V_t in the place of L_t, V_t the task's validation loss before the epoch, so that
    w_t = p_t / (T V_t): EMTL's section 5.2 says that BanditMTL was run with its losses balanced by validation loss, and
    no more than that. V is measured anew before each epoch, which is our reading: in an untrained model the losses of
    two binary tasks are alike, and would balance nothing. V must be positive, NonPositiveError else.

    >>> m = Bandit(2, rho=0.1)
    >>> m.weights(torch.tensor([3.0, 1.0])).tolist(), m.weights(torch.ones(2)).argmax().item()
    ([0.25, 0.25], 0)
    """

    label, family, marker = "BanditMTL", "conflicts", "s"
    state = ("log_p", "scale")
    tasks: ClassVar[dict[str, Kind]] = {"log_p": "log share", "scale": "each"}
    solves = True

    def __init__(
        self,
        n_tasks: int,
        rho: float = 1.2,
        eta: float = 0.5,
        payoff: Literal["raw", "weighted"] = "raw",
        balance: bool = False,
    ) -> None:
        super().__init__(n_tasks)
        self.rho, self.eta = positive("rho", rho, zero=True), positive("eta", eta, zero=True)
        self.payoff = chosen("payoff", payoff, ("raw", "weighted"))
        self.log_p = torch.full((n_tasks,), -math.log(n_tasks), dtype=torch.float64)
        self.wants_validation = flag("balance", balance)
        self.scale = torch.full((n_tasks,), math.nan if balance else 1.0, dtype=torch.float64)  # V; on the host

    def begin_epoch(self, losses: Tensor) -> None:
        self.check(losses)
        for t, value in enumerate(losses.tolist()):
            if not 0 < value < math.inf:
                kind = NonPositiveError if value <= 0 else NonFiniteError
                raise kind(f"validation losses: must be finite and > 0 (Bandit), found {value:.6g} for task {t}")
        self.scale = losses.detach().to("cpu", torch.float64)

    def weights(self, losses: Tensor, gram: Tensor | None = None) -> Tensor:
        self.check(losses, gram)
        if self.scale.isnan().any():
            raise ValueError("balance: needs begin_epoch(validation losses), as fit calls it, found no call before")
        log_p, scale = on(self.log_p, losses), on(self.scale, losses)
        L, p = losses.double() / scale, log_p.exp()
        step = kl_ball_step(log_p, L * p if self.payoff == "weighted" else L, self.eta, self.rho)
        self.log_p, self.certificate = step.log_p, step.certificate
        return (p / self.n_tasks / scale).to(losses.dtype).expand_as(losses)
