"""Gradient balancing: weights from the Gram matrix K = G G^T of the task gradients."""

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from mtl.methods.base import Heads, Kind, Method, Needs, chosen, norms, on, positive, whole
from mtl.methods.learned import Learned
from mtl.solvers import alpha_fair, cagrad_step, equal_angles, inverse_root, min_norm


class GramMethod(Method):
    """A method whose weights follow from K; a subclass gives `solve`."""

    needs: Needs = "gram"
    solves = True

    def __init__(self, n_tasks: int, heads: Heads | None = None) -> None:
        super().__init__(n_tasks)
        if heads is not None:
            chosen("heads", heads, ("raw", "weighted"))
            self.heads = heads

    def weights(self, losses: Tensor, gram: Tensor | None = None) -> Tensor:
        self.check(losses, gram)
        assert gram is not None
        return self.solve(gram.detach(), losses.detach()).to(losses.dtype)

    def solve(self, K: Tensor, losses: Tensor) -> Tensor:
        """Weights (..., T) from K (..., T, T) and losses (..., T)."""
        raise NotImplementedError


def clip(direction: Tensor) -> Tensor:
    """torch's clip_grad_norm_ to norm 1, as a factor."""
    return (1 / (torch.linalg.vector_norm(direction) + 1e-6)).clamp(max=1.0)


class MGDA(GramMethod):
    """MGDA (Désidéri 2012; Sener & Koltun, NeurIPS 2018, eq. 3): w = argmin over the simplex of |sum_t w_t g_t/c_t|^2.

    c_t is 1 ("none"), |g_t| ("l2"), L_t ("loss") or L_t|g_t| ("loss+"), where losses must be positive; the weights act
    on the raw losses. Exact, where
    the common Frank-Wolfe codes stop 1e-3 away and never reach a vertex. Heads: weighted (authors). A zero gradient
    takes all the weight: the point is Pareto stationary, and d = 0.

    >>> MGDA(2).weights(torch.ones(2), torch.diag(torch.tensor([1.0, 3.0]))).tolist()
    [0.75, 0.25]
    """

    label, family, marker = "MGDA", "min-norm", "^"

    def __init__(
        self, n_tasks: int, norm: Literal["none", "l2", "loss", "loss+"] = "none", heads: Heads | None = None
    ) -> None:
        super().__init__(n_tasks, heads)
        self.norm = chosen("norm", norm, ("none", "l2", "loss", "loss+"))
        self.positive_losses = "loss" in norm

    def solve(self, K: Tensor, losses: Tensor) -> Tensor:
        small = self.rounding(K)
        K = K.double() if self.norm != "none" else K
        c = losses.to(K.dtype) if "loss" in self.norm else torch.ones_like(losses, dtype=K.dtype)
        if self.norm in ("l2", "loss+"):
            sizes = norms(K)
            c = c * sizes.masked_fill(sizes == 0, 1.0)
        w, self.certificate = min_norm(K / (c.unsqueeze(-1) * c.unsqueeze(-2)), small)
        return w


class MGDAUB(MGDA):
    """MGDA-UB (Sener & Koltun, NeurIPS 2018, eq. 5): MGDA on the gradients over the shared representation Z (B x F).

    The K given is that of dL_t/dZ, flattened; one backward through the trunk. (LibMTL sums over the batch first, which
    is another problem.)
    """

    label, family, marker = "MGDA-UB", "min-norm", "v"
    needs = "features"


class CAGrad(GramMethod):
    """CAGrad (Liu et al., NeurIPS 2021, eq. 3): max_d min_t <g_t, d> over |d - g0| <= c|g0|, g0 the mean gradient.

    d = G'(1/T + x), exact (`mtl.solvers.cagrad_step`); c = 0.4. The authors' code multiplies by T/(1 + c^2)
    (official=True) and solves by SLSQP with an absolute tolerance. Heads: raw.

    >>> CAGrad(2, c=0.5).weights(torch.ones(2), torch.eye(2)).tolist()
    [0.75, 0.75]
    """

    label, family, marker = "CAGrad", "conflicts", "D"
    heads: Heads = "raw"

    def __init__(self, n_tasks: int, c: float = 0.4, heads: Heads | None = None) -> None:
        super().__init__(n_tasks, heads)
        self.c = positive("c", c, zero=True)

    def solve(self, K: Tensor, losses: Tensor) -> Tensor:
        w, self.certificate = cagrad_step(K, self.c, self.rounding(K))
        return w

    def official_factor(self, direction: Tensor) -> float | Tensor:
        return self.n_tasks / (1 + self.c**2)


class IMTLG(GramMethod):
    """IMTL-G (Liu et al., ICLR 2021, eq. 5): <d, g_t>/|g_t| equal for all t, d = sum w_t g_t, sum w = 1.

    w ~ K^-1 (|g_1|, ..., |g_T|), solved so that singular K is no exception; w may be negative. Zero gradients get
    weight 0. Heads: raw, as in the paper (nash-mtl's code lets a head ascend where w_t < 0).

    >>> IMTLG(2).weights(torch.ones(2), torch.diag(torch.tensor([1.0, 9.0]))).tolist()
    [0.75, 0.25]
    """

    label, family, marker = "IMTL-G", "impartial", "D"
    heads: Heads = "raw"

    def solve(self, K: Tensor, losses: Tensor) -> Tensor:
        w, self.certificate = equal_angles(K, self.rounding(K))
        return w


class IMTL(Learned):
    """IMTL (Liu et al., ICLR 2021): IMTL-L scales the losses by e^s_t, IMTL-G balances the scaled gradients.

    w_t = a_t e^s_t with a the IMTL-G weights of e^s_t g_t; heads move by e^s_t; dLoss/ds_t = e^s_t L_t - 1. A negative
    loss is an error, as for IMTL-L.

    >>> IMTL(2).weights(torch.ones(2), torch.diag(torch.tensor([1.0, 9.0]))).tolist()
    [0.75, 0.25]
    """

    label, family, marker = "IMTL", "impartial", "o"
    nonnegative_losses = True
    needs = "gram"
    solves = True

    def weights(self, losses: Tensor, gram: Tensor | None = None) -> Tensor:
        self.check(losses, gram)
        assert gram is not None
        factor = torch.exp(self.shaped(losses).detach().double())
        self.descend(factor * losses.to(factor, non_blocking=True) - 1)
        # equal projections do not see the scale of a gradient: a ~ w / e^s with the weights w of the g_t themselves
        w, self.certificate = equal_angles(gram.double(), self.rounding(gram))
        w = w.to(factor, non_blocking=True)
        return (w / (w / factor).sum(-1, keepdim=True)).to(losses.dtype)

    def head_weights(self, losses: Tensor, weights: Tensor) -> Tensor:
        return torch.exp(on(self.s, weights)).to(weights.dtype)


class FairGrad(GramMethod):
    """FairGrad (Ban & Ji, ICML 2024, eq. 6): max sum_t <g_t,d>^(1-alpha)/(1-alpha): d = G'w, K w = w^(-1/alpha), w > 0.

    Any alpha > 0; 2 by default (all the authors' scripts), 1 is Nash-MTL, infinity MGDA. Exact at any scale
    (`mtl.solvers.alpha_fair`); the authors' least_squares returns its start point for small gradients. Zero gradients
    get weight 0; Pareto stationary: MGDA's weights, d ~ 0. Their code multiplies d by T and clips it to norm 1
    (official=True). Heads: raw.

    >>> FairGrad(2, alpha=1.0).weights(torch.ones(2), torch.diag(torch.tensor([1.0, 16.0]))).tolist()
    [1.0, 0.25]
    """

    label, family, marker = "FairGrad", "fairness", "s"
    heads: Heads = "raw"

    def __init__(self, n_tasks: int, alpha: float = 2.0, heads: Heads | None = None) -> None:
        super().__init__(n_tasks, heads)
        self.alpha = positive("alpha", alpha)

    def solve(self, K: Tensor, losses: Tensor) -> Tensor:
        w, self.certificate = alpha_fair(K, self.alpha, rounding=self.rounding(K))
        return w

    def official_factor(self, direction: Tensor) -> float | Tensor:
        return self.n_tasks * clip(self.n_tasks * direction)


class Nash(GramMethod):
    """Nash-MTL (Navon et al., ICML 2022, eq. 4): max over |d| <= eps of sum_t log<g_t,d>: d = G'w, K w = 1/w.

    |d| = sqrt(T). d does not see the scale of any task. `every` k: weights are found anew every k-th step, and where a
    task is there whose last are k steps old. Exact, where the authors' convex-concave procedure is 70 % off once
    gradient norms differ by 1000. They clip d to norm 1 (official=True). Heads: weighted.

    >>> Nash(2).weights(torch.ones(2), torch.diag(torch.tensor([1.0, 16.0]))).tolist()
    [1.0, 0.25]
    """

    label, family, marker = "Nash-MTL", "geometry", "D"
    state = ("kept", "age")
    tasks: ClassVar[dict[str, Kind]] = dict.fromkeys(state, "each")

    def __init__(self, n_tasks: int, every: int = 1, heads: Heads | None = None) -> None:
        super().__init__(n_tasks, heads)
        self.every = whole("every", every, 1)
        self.age = [self.every] * n_tasks
        self.kept = torch.ones(n_tasks, dtype=torch.float64)

    def solve(self, K: Tensor, losses: Tensor) -> Tensor:
        if max(self.age) >= self.every:
            self.kept, self.certificate = alpha_fair(K.double(), 1.0, rounding=self.rounding(K))
            self.age = [0] * self.n_tasks
        self.age = [k + 1 for k in self.age]
        return on(self.kept, losses)

    def official_factor(self, direction: Tensor) -> float | Tensor:
        return clip(direction)


class ConFIG(GramMethod):
    """ConFIG (Liu, Chu, Thuerey, ICLR 2025, eq. 2): one angle to all gradients, as long as their projections together.

    d = (sum_t <g_t, v>) v with v = U^+ 1 / |U^+ 1|, rows of U the unit gradients: w_t = c z_t/|g_t| with z = R^+ 1,
    R = U U' their cosines, c so that |d| = sum_t <g_t, v>. IMTL-G's direction at another length where R is regular;
    where it is not, the least squares that the pseudoinverse stands for: rank as in `mtl.solvers.inverse_root`, and
    d = 0 where the unit gradients sum to zero. Zero gradients get weight 0; w may be negative. Heads: raw.

    >>> ConFIG(2).weights(torch.ones(2), torch.diag(torch.tensor([1.0, 9.0]))).tolist()
    [2.0, 0.6666666865348816]
    """

    label, family, marker = "ConFIG", "impartial", "^"
    heads: Heads = "raw"

    def solve(self, K: Tensor, losses: Tensor) -> Tensor:
        sizes = norms(K.double())
        per = 1 / sizes.masked_fill(sizes == 0, torch.inf)
        R = K.double() * per.unsqueeze(-1) * per.unsqueeze(-2)
        small = self.rounding(K)
        root, proof = inverse_root(R.to(K.dtype), rounding=small)  # its square is R^+ up to a factor, which c takes out
        B = root.double()
        half = B.sum(-1)
        z = (B @ half.unsqueeze(-1)).squeeze(-1)
        reached = (R @ z.unsqueeze(-1)).squeeze(-1)
        # squared length of 1 within the range of R, relative to the rank
        whole = ((B @ R) * B).sum((-1, -2)).clamp_min(torch.finfo(B.dtype).tiny)
        share = (half * (R @ half.unsqueeze(-1)).squeeze(-1)).sum(-1) / whole
        none = share <= 4 * self.n_tasks * small
        self.certificate = replace(proof, stationary=proof.stationary | none, converged=proof.converged | none)
        c = ((sizes * reached).sum(-1) / (z * reached).sum(-1)).unsqueeze(-1)
        return torch.where(none.unsqueeze(-1), 0.0, c * z * per)
