"""All runs of one method take their weights together; methods with a memory keep it here, one column per run."""

from collections.abc import Sequence

import numpy as np
import torch

from mtl.experiments.figure1.config import CAP, DEFAULTS, POSITIVE, Config
from mtl.experiments.figure1.plane import Array
from mtl.experiments.figure1.weights import Point, Weights, closed_form, edge

LEARNED_LR = 0.025  # of learned weights, as `mtl.methods` sets it


class Group:
    """All runs of one method (and one set of its named options); without a memory, a closed form.

    `elementwise`: `weights` gives the two coordinates of the direction itself. `replaces_adam`: that is the step.
    """

    elementwise = False
    replaces_adam = False

    def __init__(self, configs: Sequence[Config], starts: int) -> None:
        self.method = configs[0].method
        given = [{"alpha": 1.0} | DEFAULTS[c.method] | dict(c.hyper) for c in configs]  # Nash-MTL is FairGrad's 1
        self.options = {k: v for k, v in given[0].items() if not isinstance(v, float)}
        numbers = [k for k, v in given[0].items() if isinstance(v, float)]
        self.hyper = {k: np.repeat([float(g[k]) for g in given], starts) for k in numbers}
        self.size = len(configs) * starts
        self.scale = np.repeat([float(c.scale) for c in configs], starts)

    def losses(self, at: Point) -> Weights:
        """What the method is told; NaN, which ends a run, where it takes a logarithm or ratio and a loss is <= b."""
        if "b" not in self.hyper:
            return at.f1, at.f2
        L1, L2 = at.f1 - self.hyper["b"] * self.scale, at.f2 - self.hyper["b"]
        if self.method in POSITIVE:
            wrong = np.where((L1 > 0) & (L2 > 0), 0.0, np.nan)
            L1, L2 = L1 + wrong, L2 + wrong
        return L1, L2

    def weights(self, at: Point) -> Weights:
        return closed_form(self.method, at, self.losses(at), self.hyper)


class Player(Group):
    """BanditMTL and EMTL: a player on the KL ball."""

    def __init__(self, configs: Sequence[Config], starts: int) -> None:
        super().__init__(configs, starts)
        self.logit, self.total = np.zeros((2, self.size))  # total: of p since the last record
        rho = self.hyper["rho"]
        self.edge = edge(rho if self.options.get("strict", True) else np.minimum(rho, CAP))

    def play(self, r1: Array, r2: Array) -> Weights:
        """The player's exact KL-ball step: for T = 2 the ball is an interval and the projection a clip."""
        self.logit = np.minimum(np.maximum(self.logit + self.hyper["eta"] * (r1 - r2), -self.edge), self.edge)
        p = 1 / (1 + np.exp(-self.logit))
        self.total += p
        return p, 1 - p

    def weights(self, at: Point) -> Weights:
        if self.method == "bandit":
            p = 1 / (1 + np.exp(-self.logit))  # the losses of one step decide the weights of the next
            self.play(at.f1, at.f2)
            return p, 1 - p
        (L1, L2), w1, w2 = self.losses(at), at.mgda, 1 - at.mgda
        r1, r2 = L1 / at.n1, L2 / at.n2
        p1, p2 = self.play(w1 * r1, w2 * r2) if self.options["rate"] == "weighted" else self.play(r1, r2)
        if self.options["combine"] == "frozen_norm":
            p1, p2 = p1 * at.n2 / (p1 * at.n2 + p2 * at.n1), p2 * at.n1 / (p1 * at.n2 + p2 * at.n1)
        elif self.options["combine"] == "product":
            p1, p2 = p1 * w1, p2 * w2
        alpha = self.hyper["alpha"]
        return alpha * w1 + (1 - alpha) * p1, alpha * w2 + (1 - alpha) * p2


class Adam:
    """Adam on an array, as torch has it by default, with step size `lr`."""

    def __init__(self, *shape: int, lr: float = LEARNED_LR) -> None:
        self.value, self.first, self.second = np.zeros((3, *shape))
        self.lr, self.steps = lr, 0

    def step(self, slope: Array) -> None:
        self.steps += 1
        self.first += 0.1 * (slope - self.first)
        self.second += 0.001 * (slope * slope - self.second)
        root = np.sqrt(self.second / (1 - 0.999**self.steps)) + 1e-8
        self.value -= (self.lr / (1 - 0.9**self.steps)) * self.first / root


class Learned(Group):
    """UW, IMTL-L, IMTL and GradNorm: logarithmic weights s that the optimiser learns along with the point."""

    def __init__(self, configs: Sequence[Config], starts: int) -> None:
        super().__init__(configs, starts)
        self.s = Adam(2, self.size)
        self.initial: Array | None = None

    def weights(self, at: Point) -> Weights:
        L = np.stack(self.losses(at))
        if self.method == "gradnorm":
            return self.gradnorm(L, at)
        factor = np.exp(-self.s.value if self.method == "uw" else self.s.value)
        self.s.step(0.5 * (1 - factor * L) if self.method == "uw" else factor * L - 1)
        if self.method == "uw":
            factor = 0.5 * factor
        elif self.method == "imtl":
            n1, n2 = factor[0] * at.n1, factor[1] * at.n2
            factor = factor * np.stack([n2, n1]) / (n1 + n2)
        return factor[0], factor[1]

    def gradnorm(self, L: Array, at: Point) -> Weights:
        self.initial = L.copy() if self.initial is None else self.initial
        first = 1 / (1 + np.exp(self.s.value[1] - self.s.value[0]))
        share, norms = np.stack([first, 1 - first]), np.stack([at.n1, at.n2])
        w, rate = 2 * share, L / self.initial
        target = (w * norms).mean(0) * (rate / rate.mean(0)) ** self.hyper["alpha"]
        slope = np.sign(w * norms - target) * norms * w
        self.s.step(slope - share * slope.sum(0))
        return w[0], w[1]


class FAMO(Group):
    """FAMO: the losses that a step leads to are those of the next one, so its own update comes one call later."""

    def __init__(self, configs: Sequence[Config], starts: int) -> None:
        super().__init__(configs, starts)
        self.xi = Adam(2, self.size)
        self.before: Array | None = None

    def weights(self, at: Point) -> Weights:
        D = np.stack(self.losses(at)) + 1e-8
        now, z = np.log(D), self.share()
        if self.before is not None:
            delta = self.before - now
            self.xi.step(z * (delta - (z * delta).sum(0)) + self.hyper["gamma"] * self.xi.value)
            z = self.share()
        self.before = now
        w = z / D
        return w[0] / w.sum(0), w[1] / w.sum(0)

    def share(self) -> Array:
        first = 1 / (1 + np.exp(self.xi.value[1] - self.xi.value[0]))
        return np.stack([first, 1 - first])


class DWA(Group):
    """DWA: mean losses of the last two windows of 25 steps."""

    WINDOW = 25

    def __init__(self, configs: Sequence[Config], starts: int) -> None:
        super().__init__(configs, starts)
        self.older, self.newer, self.total = np.ones((3, 2, self.size))
        self.total[:] = 0
        self.count = self.epoch = 0

    def weights(self, at: Point) -> Weights:
        if self.count == self.WINDOW:
            self.older, self.newer = self.newer, self.total / self.count
            self.total, self.count, self.epoch = np.zeros_like(self.total), 0, self.epoch + 1
        self.total += np.stack(self.losses(at))
        self.count += 1
        if self.epoch < 2:
            return np.ones(self.size) + 0 * self.total[0], np.ones(self.size)
        rate = self.newer / self.older / self.hyper["tau"]
        first = 2 / (1 + np.exp(rate[1] - rate[0]))
        return first, 2 - first


class GradVac(Group):
    """GradVac: one running cosine per run, since the two of a pair are equal."""

    def __init__(self, configs: Sequence[Config], starts: int) -> None:
        super().__init__(configs, starts)
        self.rho = np.zeros(self.size)

    def weights(self, at: Point) -> Weights:
        cosine = np.clip(at.b / (at.n1 * at.n2 + 1e-8), -1, 1)
        free = np.sqrt(1 - self.rho**2)
        lift = np.where(cosine < self.rho, self.rho * np.sqrt(1 - cosine**2) - cosine * free, 0.0)
        w = 1 + lift * at.n2 / (at.n1 * free + 1e-8), 1 + lift * at.n1 / (at.n2 * free + 1e-8)
        self.rho = (1 - self.hyper["beta"]) * self.rho + self.hyper["beta"] * cosine
        return w


class Random(Group):
    """RLW and GradDrop: every run draws what it would draw alone with seed 0, so all draw the same."""

    def __init__(self, configs: Sequence[Config], starts: int) -> None:
        super().__init__(configs, starts)
        self.generator = torch.Generator().manual_seed(0)
        self.elementwise = self.method == "graddrop"

    def weights(self, at: Point) -> Weights:
        if not self.elementwise:
            w = torch.empty(2, dtype=torch.float64).normal_(generator=self.generator).softmax(-1).tolist()
            return np.full(self.size, w[0]), np.full(self.size, w[1])
        u = torch.rand(2, generator=self.generator, dtype=torch.float64).tolist()
        return self.survivors(at.a1, at.b1, u[0]), self.survivors(at.a2, at.b2, u[1])

    @staticmethod
    def survivors(g: Array, h: Array, u: float) -> Array:
        up = 0.5 * (1 + (g + h) / (np.abs(g) + np.abs(h))) > u
        return np.where(up, np.maximum(g, 0) + np.maximum(h, 0), np.minimum(g, 0) + np.minimum(h, 0))


class AdaTask(Group):
    """AdaTask: the sum of one Adam direction per task, which is the step itself."""

    elementwise = replaces_adam = True

    def __init__(self, configs: Sequence[Config], starts: int) -> None:
        super().__init__(configs, starts)
        self.moments = Adam(4, self.size, lr=1.0)

    def weights(self, at: Point) -> Weights:
        self.moments.value[:] = 0
        self.moments.step(np.stack([at.a1, at.a2, at.b1, at.b2]))
        d = -self.moments.value
        return d[0] + d[2], d[1] + d[3]


class DBMTL(Group):
    """DB-MTL: running means of the gradients of log losses, scaled to the larger of the two."""

    elementwise = True

    def __init__(self, configs: Sequence[Config], starts: int) -> None:
        super().__init__(configs, starts)
        self.mean = np.zeros((2, 2, self.size))  # task, coordinate, run

    def weights(self, at: Point) -> Weights:
        L1, L2 = self.losses(at)
        g = np.stack([at.a1 / (L1 + 1e-8), at.a2 / (L1 + 1e-8), at.b1 / (L2 + 1e-8), at.b2 / (L2 + 1e-8)])
        self.mean += (1 - self.hyper["beta"]) * (g.reshape(2, 2, -1) - self.mean)
        norms = np.sqrt((self.mean**2).sum(1))
        d = (norms.max(0) / (norms + 1e-8))[:, None] * self.mean
        return d[0, 0] + d[1, 0], d[0, 1] + d[1, 1]


class MoCo(Group):
    """MoCo: running means of the gradients, and small steps of the weights towards the min-norm point of these."""

    elementwise = True

    def __init__(self, configs: Sequence[Config], starts: int) -> None:
        super().__init__(configs, starts)
        self.mean, self.w, self.steps = np.zeros((2, 2, self.size)), np.full(self.size, 0.5), 0  # task, coordinate, run

    def weights(self, at: Point) -> Weights:
        self.steps += 1
        ease = self.steps ** -self.hyper["sigma"]
        g = np.stack([at.a1, at.a2, at.b1, at.b2]).reshape(2, 2, -1)
        self.mean += self.hyper["beta"] * ease * (g - self.mean)
        y, z = self.mean
        slope = ((self.w * y + (1 - self.w) * z) * (y - z)).sum(0)
        # projected on the simplex, both weights lose half of what they move together
        self.w = np.clip(self.w - 0.5 * self.hyper["gamma"] * ease * slope, 0.0, 1.0)
        d = self.w * y + (1 - self.w) * z
        return d[0], d[1]


KINDS: dict[str, type[Group]] = {
    "bandit": Player,
    "emtl": Player,
    "uw": Learned,
    "imtl-l": Learned,
    "imtl": Learned,
    "gradnorm": Learned,
    "famo": FAMO,
    "dwa": DWA,
    "gradvac": GradVac,
    "rlw": Random,
    "graddrop": Random,
    "adatask": AdaTask,
    "db-mtl": DBMTL,
    "moco": MoCo,
}


def make_group(configs: Sequence[Config], starts: int = 1) -> Group:
    """The group of configurations that share a method and its named options (Nash-MTL may sit among FairGrad's)."""
    return KINDS.get(configs[0].method, Group)(configs, starts)
