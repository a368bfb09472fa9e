"""EMTL (Yuan & Zhang, arXiv 2306.09373), the alpha-fair loss transform and the averaged weights of any method."""

import math
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from mtl.methods.base import Kind, Method, Needs, chosen, counted, flag, norms, on, per_task, positive, share
from mtl.solvers import Certificate, kl_ball_step


def _inner(base: str | Method, n_tasks: int, hyper: dict[str, Any] | None) -> Method:
    from mtl.methods import method  # the registry holds these classes too

    if hyper is not None and not isinstance(hyper, dict):
        raise TypeError(f"base_hyper: must be a dict of hyperparameters or None, found {hyper!r}")
    return base if isinstance(base, Method) else method(base, n_tasks=n_tasks, **(hyper or {}))


class EMTL(Method):
    """EMTL: a player p on the relative rates of loss to gradient norm, merged with the weights w of a Gram method.

    Eq. 1:  r_t = w_t L_t/|g_t| (rate="weighted"), or L_t/|g_t| (rate="raw", free of the losses' scale)
    Eq. 12: p <- argmax eta <r, q> - KL(q || p) over KL(q || 1/T) <= rho; p persists, exact in logarithms
    Eq. 13: min sum_t (alpha w_t + (1 - alpha) p_t) L_t over shared and head parameters

    w are the weights of `base` (any method that needs the Gram matrix; MGDA) with hyperparameters `base_hyper`. p is
    used in the step that updates it. rho = 0.3, eta = 0.5, alpha = 0.5: a reconstruction, the published text lacks its
    formulas. combine="frozen_norm" takes p_t/|g_t|, normalised, for p in Eq. 13 (the gradient of sum_t p_t r_t at fixed
    norms), "product" takes p_t w_t. rho >= ln T makes the ball the whole simplex: warn, and use 0.95 ln T, unless
    `strict`. A zero gradient counts as one of 1e-8 times the largest norm. The formulas are meant for losses >= 0: a
    negative loss is no error, but its rate is negative, so that p leaves the task the faster the lower its loss and the
    smaller its gradient. `player` holds the certificate of Eq. 12.

    >>> m = EMTL(2, alpha=0.0, rho=0.1)
    >>> m.weights(torch.tensor([4.0, 1.0]), torch.eye(2)).argmax().item()
    0
    """

    label, family, marker = "EMTL", "rates", "o"
    needs: Needs = "gram"
    state = ("log_p", "base")
    tasks: ClassVar[dict[str, Kind]] = {"log_p": "log share"}
    solves = True
    player: Certificate | None = None

    def __init__(
        self,
        n_tasks: int,
        rho: float = 0.3,
        eta: float = 0.5,
        alpha: float = 0.5,
        rate: Literal["weighted", "raw"] = "weighted",
        combine: Literal["literal", "frozen_norm", "product"] = "literal",
        base: str | Method = "mgda",
        base_hyper: dict[str, Any] | None = None,
        strict: bool = False,
    ) -> None:
        super().__init__(n_tasks)
        self.base = _inner(base, n_tasks, base_hyper)
        if self.base.needs not in ("gram", "features") or self.base.masks:
            raise ValueError(f"base: must be a method that needs the Gram matrix, found {base!r}")
        self.needs, self.positive_losses = self.base.needs, self.base.positive_losses
        self.nonnegative_losses = self.base.nonnegative_losses
        self.given, self.eta = positive("rho", rho, zero=True), positive("eta", eta, zero=True)
        self.strict = flag("strict", strict)
        self.reduce(range(n_tasks))
        self.alpha = share("alpha", alpha)
        self.rate = chosen("rate", rate, ("weighted", "raw"))
        self.form = chosen("combine", combine, ("literal", "frozen_norm", "product"))
        limit = math.log(n_tasks)
        if self.rho < self.given:
            warnings.warn(
                f"rho: {rho:g} >= ln {n_tasks} = {limit:.4f} makes the ball the whole simplex; using {self.rho:.4f} "
                "(strict=True keeps it)",
                stacklevel=3,
            )
        self.log_p = torch.full((n_tasks,), -limit, dtype=torch.float64)

    def reduce(self, places: Sequence[int]) -> None:
        limit, whole = math.log(self.n_tasks), self.n_tasks > 1 and not self.strict
        self.rho = 0.95 * limit if whole and self.given >= limit else self.given

    def weights(self, losses: Tensor, gram: Tensor | None = None) -> Tensor:
        self.check(losses, gram)
        assert gram is not None
        self.base.dtype = self.dtype
        w = self.base.weights(losses, gram).double()
        sizes = norms(gram.detach().double())
        largest = sizes.amax(-1, keepdim=True)
        sizes = torch.maximum(sizes, torch.where(largest > 0, 1e-8 * largest, 1.0))
        payoff = losses.detach().double() / sizes * (w if self.rate == "weighted" else 1)
        step = kl_ball_step(on(self.log_p, losses), payoff, self.eta, self.rho)
        self.log_p, self.player, self.certificate = step.log_p, step.certificate, self.base.certificate
        p = step.p
        if self.form == "frozen_norm":
            p = p / sizes
            p = p / p.sum(-1, keepdim=True)
        elif self.form == "product":
            p = p * w
        return (self.alpha * w + (1 - self.alpha) * p).to(losses.dtype)

    def parameters(self) -> list[Tensor]:
        return self.base.parameters()


class FairLoss(Method):
    """Alpha-fair loss transform of any method (Ban & Ji, ICML 2024, section 4): L -> L^(1-alpha)/(1-alpha), log L at 1.

    The method sees the transformed losses and the gradients f_t g_t, f_t = L_t^-alpha; w_t = f_t (its weight), heads
    move by f_t times its head factor. alpha = 0 is the method itself, base="ls" with alpha = 1 is SI. Losses must be
    positive.

    >>> FairLoss(2, base="ls", alpha=1.0).weights(torch.tensor([4.0, 0.5])).tolist()
    [0.25, 2.0]
    """

    label, family, marker = "Fair loss", "fairness", "o"
    positive_losses = True

    def __init__(
        self, n_tasks: int, base: str | Method = "ls", alpha: float = 1.0, base_hyper: dict[str, Any] | None = None
    ) -> None:
        super().__init__(n_tasks)
        self.base, self.alpha = _inner(base, n_tasks, base_hyper), positive("alpha", alpha, zero=True)
        self.needs, self.wants_after_step = self.base.needs, self.base.wants_after_step
        self.replaces_adam, self.masks, self.solves = self.base.replaces_adam, self.base.masks, self.base.solves
        self.learning_rate, self.wants_validation = self.base.learning_rate, self.base.wants_validation
        if (self.base.positive_losses or self.base.nonnegative_losses) and alpha >= 1:
            rule = "positive" if self.base.positive_losses else "at least 0"
            raise ValueError(f"alpha: must be < 1 for base={base!r}, whose losses must be {rule}, found {alpha}")
        inner: Method | None = self.base
        while inner is not None and alpha >= 1:  # log L and L^(1-alpha)/(1-alpha) may be negative, or are
            if isinstance(inner, EMTL) or inner.wants_validation:
                what = "relative rates L/|g|" if isinstance(inner, EMTL) else "losses over those of validation"
                raise ValueError(f"alpha: must be < 1 for base={base!r}, whose {what} would change sign, found {alpha}")
            inner = getattr(inner, "base", None)

    def _fair(self, losses: Tensor) -> tuple[Tensor, Tensor]:
        L = losses.detach()
        changed = L.log() if self.alpha == 1 else L ** (1 - self.alpha) / (1 - self.alpha)
        return changed, L**-self.alpha

    def weights(self, losses: Tensor, gram: Tensor | None = None) -> Tensor:
        self.check(losses, gram)
        changed, f = self._fair(losses)
        scaled = None if gram is None else gram * f.to(gram).unsqueeze(-2) * f.to(gram).unsqueeze(-1)
        self.base.dtype = self.dtype
        w = self.base.weights(changed, scaled)
        self.certificate = self.base.certificate
        return f * w

    def combine(self, grads: Sequence[Tensor], losses: Tensor) -> list[Tensor]:
        changed, f = self._fair(losses)
        return self.base.combine([per_task(f, g) * g for g in grads], changed)

    def mask(self, grads: Tensor, losses: Tensor) -> Tensor:
        changed, f = self._fair(losses)
        return per_task(f, grads) * self.base.mask(per_task(f, grads) * grads, changed)

    def head_weights(self, losses: Tensor, weights: Tensor) -> Tensor:
        changed, f = self._fair(losses)
        f = f.to(weights.dtype)
        return f * self.base.head_weights(changed, weights / f)

    def begin_epoch(self, losses: Tensor) -> None:
        self.base.begin_epoch(self._fair(losses)[0])

    def after_step(self, losses: Tensor) -> None:
        self.base.after_step(self._fair(losses)[0])

    def end_epoch(self) -> None:
        self.base.end_epoch()

    def parameters(self) -> list[Tensor]:
        return self.base.parameters()

    def official_factor(self, direction: Tensor) -> float | Tensor:
        return self.base.official_factor(direction)

    def state_dict(self) -> dict[str, Any]:
        return self.base.state_dict()

    def check_state(self, state: dict[str, Any]) -> None:
        self.base.check_state(state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.base.load_state_dict(state)


class CRMOGM(Method):
    """CR-MOGM (Zhou et al., NeurIPS 2022): the weights of any method, averaged exponentially over the steps.

    w_k = alpha w_(k-1) + (1 - alpha) v_k, v_k the weights of `base` (MGDA) with hyperparameters `base_hyper`. The
    average starts at v_1 of each task: its first step is the base's own, as in TorchJD, from which alpha = 0.9 is too.
    The paper lets alpha grow towards 1 while the learning rate falls: set `alpha` between steps. Heads: as the base
    moves them, with w in place of v. A base that combines or masks gradients itself has no weights, and is refused.

    >>> m = CRMOGM(2, alpha=0.75)
    >>> [m.weights(torch.ones(2), torch.diag(torch.tensor(k))).tolist() for k in ([1.0, 3.0], [3.0, 1.0])]
    [[0.75, 0.25], [0.625, 0.375]]
    """

    label, family, marker = "CR-MOGM", "min-norm", "X"
    state = ("w", "started", "alpha", "base")
    tasks: ClassVar[dict[str, Kind]] = {"w": "each", "started": "each"}

    def __init__(
        self, n_tasks: int, base: str | Method = "mgda", alpha: float = 0.9, base_hyper: dict[str, Any] | None = None
    ) -> None:
        super().__init__(n_tasks)
        self.base = _inner(base, n_tasks, base_hyper)
        if self.base.needs == "gradients" or self.base.masks:
            raise ValueError(f"base: must be a method with one weight per task, found {base!r}")
        self.alpha = share("alpha", alpha)
        self.needs, self.positive_losses, self.solves = self.base.needs, self.base.positive_losses, self.base.solves
        self.nonnegative_losses = self.base.nonnegative_losses
        self.wants_after_step, self.learning_rate = self.base.wants_after_step, self.base.learning_rate
        self.wants_validation = self.base.wants_validation
        self.w, self.started = torch.zeros(n_tasks, dtype=torch.float64), [False] * n_tasks

    def weights(self, losses: Tensor, gram: Tensor | None = None) -> Tensor:
        self.check(losses, gram)
        self.base.dtype = self.dtype
        new = self.base.weights(losses, gram).detach().double()
        started = counted(self.started, new)
        if isinstance(started, Tensor):
            self.w = torch.where(started > 0, self.alpha * on(self.w, new) + (1 - self.alpha) * new, new)
        else:
            self.w = self.alpha * on(self.w, new) + (1 - self.alpha) * new if started else new
        self.started, self.certificate = [True] * self.n_tasks, self.base.certificate
        return self.w.to(losses.dtype)

    def head_weights(self, losses: Tensor, weights: Tensor) -> Tensor:
        return self.base.head_weights(losses, weights)

    def begin_epoch(self, losses: Tensor) -> None:
        self.base.begin_epoch(losses)

    def after_step(self, losses: Tensor) -> None:
        self.base.after_step(losses)

    def end_epoch(self) -> None:
        self.base.end_epoch()

    def parameters(self) -> list[Tensor]:
        return self.base.parameters()

    def official_factor(self, direction: Tensor) -> float | Tensor:
        return self.base.official_factor(direction)
