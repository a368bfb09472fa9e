"""Linear layers kept as factors: the same K and updates as with the gradients formed, and when they are not used."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mtl.gradients import backward, layers
from mtl.gradients.inputs import check
from mtl.gradients.step import Step
from mtl.gradients.tasks import TaskGradients
from mtl.methods import method

WIDE = 300  # 300 x 300 is worth the search


class Net(nn.Module):
    """Three wide layers and T heads; `variant` says what is unusual about it."""

    def __init__(self, tasks: int, variant: str, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = (nn.Linear(WIDE, WIDE, dtype=dtype) for _ in range(2))
        self.c = nn.Linear(WIDE, WIDE, bias=variant != "no bias", dtype=dtype)
        self.out = nn.ModuleList(nn.Linear(WIDE, 1, dtype=dtype) for _ in range(tasks))
        self.variant = variant
        if variant == "frozen bias":
            self.b.bias.requires_grad_(False)
        if variant == "frozen weight":
            self.b.weight.requires_grad_(False)
        if variant == "hook":
            self.b.weight.register_hook(lambda g: 2 * g)

    def forward(self, x: Tensor) -> list[Tensor]:
        h = self.a(x).tanh()
        g = self.b(h).tanh()
        if self.variant == "used twice":
            g = self.b(g).tanh()
        if self.variant == "weight used otherwise":
            g = g + self.b.weight.mean()
        if self.variant == "weight not transposed":
            g = g @ self.b.weight
        if self.variant == "weight changed first":
            g = g + torch.mm(g, self.b.weight.exp())
        if self.variant == "bias used otherwise":
            g = g * self.b.bias
        if self.variant == "scaled product":
            g = torch.addmm(self.b.bias, g, self.b.weight.t(), alpha=0.5)
        if self.variant == "hook on the output":  # of the first layer, which has nothing below it, and of another
            first, y = self.a(x), self.b(g)
            first.register_hook(lambda g: 2 * g)
            y.register_hook(lambda g: 3 * g)
            g = y.tanh() + first
        if self.variant == "sequence":
            g = self.b(g.unflatten(0, (-1, 2))).flatten(0, 1)
        z = self.c(g).tanh()
        ways = [z] * len(self.out)
        if self.variant == "one task goes around":
            ways[0] = h
        return [head(w).squeeze(1) for head, w in zip(self.out, ways, strict=True)]

    @property
    def shared(self) -> list[nn.Parameter]:
        return [p for layer in (self.a, self.b, self.c) for p in layer.parameters()]


VARIANTS = {  # variant -> how many of the three weights, and of their biases, are kept as factors
    "plain": (3, 3),
    "no bias": (3, 2),
    "frozen bias": (3, 2),
    "frozen weight": (2, 2),
    "used twice": (3, 3),
    "sequence": (3, 3),
    "hook on the output": (3, 3),
    "one task goes around": (3, 3),
    "hook": (2, 2),
    "weight used otherwise": (2, 2),
    "weight not transposed": (2, 2),
    "weight changed first": (2, 2),
    "bias used otherwise": (3, 2),
    "scaled product": (2, 2),
}


def normal(rows: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(rows, WIDE, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def step(net: Net, x: Tensor, name: str = "nash", **options: Any) -> tuple[Step, list[Tensor | None]]:
    for p in net.parameters():
        p.grad = None
    losses = [(y - t).square().mean() for t, y in enumerate(net(x))]
    chosen = method(name, n_tasks=len(losses))
    found = backward(losses, shared=net.shared, heads=[h.parameters() for h in net.out], method=chosen, **options)
    return found, [None if p.grad is None else p.grad.clone() for p in net.parameters()]


def found(net: Net, x: Tensor) -> list[layers.Layer]:
    chosen = method("mgda", n_tasks=len(net.out))
    losses = [(y - t).square().mean() for t, y in enumerate(net(x))]
    return layers.find(check(losses, net.shared, None, None, chosen), None)


def assert_same(net: Net, x: Tensor, tolerance: float, **options: Any) -> None:
    (one, grads), (other, formed) = (step(net, x, vjp=vjp, **options) for vjp in ("auto", "loop"))
    assert one.gram is not None and other.gram is not None
    assert torch.allclose(one.gram, other.gram, rtol=tolerance, atol=tolerance * float(other.gram.diagonal().max()))
    for g, h in zip(grads, formed, strict=True):
        assert (g is None) == (h is None)
        if g is not None and h is not None:
            assert g.shape == h.shape and float((g - h).norm()) <= 100 * tolerance * (float(h.norm()) + 1e-300)


@pytest.mark.parametrize("variant", VARIANTS)
def test_factors_give_what_gradients_give(variant: str) -> None:
    net, x = Net(5, variant), normal(20)
    kept = found(net, x)
    assert (len(kept), sum(layer.bias is not None for layer in kept)) == VARIANTS[variant]
    assert_same(net, x, 1e-11)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 6), st.integers(1, 60), st.sampled_from([torch.float32, torch.float64]), st.integers(0, 99))
def test_any_number_of_tasks_and_rows(tasks: int, rows: int, dtype: torch.dtype, seed: int) -> None:
    exact = 1e-4 if dtype == torch.float32 else 1e-11  # the formed gradients' K sums 180,000 products in float32
    assert_same(Net(tasks, "plain", dtype), normal(rows, seed, dtype), exact, name="mgda")


def test_options_mean_the_same() -> None:
    net, x = Net(3, "plain"), normal(10)
    assert_same(net, x, 1e-10, scale=1024.0)
    assert_same(net, x, 1e-10, retain_graph=True)
    assert_same(net, x, 1e-10, name="ls", diagnostics=True)
    assert_same(net, x, 1e-10, check="defer")


@pytest.mark.parametrize(("rows", "tasks", "kept"), [(75, 2, 3), (76, 2, 0), (150, 5, 3), (151, 5, 0)])
def test_only_where_the_batch_is_small_against_the_layer(rows: int, tasks: int, kept: int) -> None:
    assert len(found(Net(tasks, "plain"), normal(rows))) == kept


def test_narrow_types_and_methods_that_need_the_gradients_form_them(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = Net(3, "plain"), normal(10)
    half = Net(3, "plain", torch.bfloat16)
    assert not found(half, x.bfloat16()) and found(net, x)
    monkeypatch.setattr("mtl.gradients.update.find", lambda *_: pytest.fail("looked for layers"))
    step(net, x, "graddrop")
    step(net, x, "mgda", vjp="loop")
    step(net, x, "mgda", vjp="batched")


def gram_of_cancelling(size: float, dtype: torch.dtype, vjp: Any) -> Tensor:
    """K of examples that lie `size` apart and pull in opposite directions, so that little is left of each gradient."""
    net, x = Net(2, "plain", torch.float32).to(dtype), (normal(1) + size * normal(40, 2)).float().to(dtype)
    signs = torch.tensor([1.0, -1.0], dtype=dtype).repeat(20)
    losses = [(signs * y).mean() for y in net(x)]
    gram = backward(losses, shared=net.shared, method=method("mgda", n_tasks=2), vjp=vjp).gram
    assert gram is not None
    return gram.double()


def test_where_examples_cancel_the_gradients_are_formed(monkeypatch: pytest.MonkeyPatch) -> None:
    formed: list[int] = []
    form: Callable[[TaskGradients], None] = TaskGradients._form
    monkeypatch.setattr(TaskGradients, "_form", lambda self: (formed.append(1), form(self))[1])
    true = gram_of_cancelling(1e-3, torch.float64, "loop")
    own, explicit = (gram_of_cancelling(1e-3, torch.float32, vjp) for vjp in ("auto", "loop"))
    assert formed and torch.equal(own, explicit)
    monkeypatch.setattr("mtl.gradients.tasks.TRUST", float("inf"))
    lost = gram_of_cancelling(1e-3, torch.float32, "auto")
    assert float((lost - true).norm()) > 10 * float((own - true).norm())  # what the rule is for
    formed.clear()
    gram_of_cancelling(3.0, torch.float32, "auto")
    assert not formed


def test_a_task_that_reaches_no_layer_is_named() -> None:
    net, x = Net(2, "plain"), normal(8)
    free = torch.ones((), dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match="found that task 1 does not"):
        backward([net(x)[0].mean(), free * 1], shared=net.shared, method=method("mgda", n_tasks=2))
    assert all(p.grad is None for p in net.parameters())


def test_what_is_not_finite_is_said_and_leaves_no_gradient() -> None:
    net, x = Net(2, "plain"), normal(8)
    first, second = net(x)
    with pytest.raises(ValueError, match="must be finite"):
        backward([first.mean(), second.sum() * torch.nan], shared=net.shared, method=method("mgda", n_tasks=2))
    assert all(p.grad is None for p in net.parameters())


class Heads(nn.Module):
    """A trunk (5 -> 6) and three heads that begin with a map of it to a number, but for what `variant` says."""

    def __init__(self, variant: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        wide = {"two outputs": 2, "hidden layer": 4}.get(variant, 1)
        self.trunk = nn.Linear(5, 6, dtype=torch.float64)
        self.first = nn.ModuleList(nn.Linear(6, wide, bias=variant != "no bias", dtype=torch.float64) for _ in range(3))
        self.last = nn.Linear(4, 1, dtype=torch.float64)
        self.variant = variant
        if variant == "same frozen head":
            self.first.requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        z = self.trunk(x)
        if self.variant == "not the first output":
            z = torch.stack([2 * z, z]).unbind()[1]
        if self.variant == "hook":
            z.register_hook(lambda g: 2 * g)
        ys = [layer(z) for layer in self.first]
        if self.variant == "hook on an output":
            ys[1].register_hook(lambda g: 2 * g)
        if self.variant == "hidden layer":
            ys = [self.last(y.tanh()) for y in ys]
        if self.variant == "scaled product":
            ys[1] = torch.addmm(self.first[1].bias, z, self.first[1].weight.t(), alpha=0.5)
        if self.variant == "twice":
            ys[1] = ys[1] + self.first[0](z)
        if self.variant == "both outputs":
            first, z = torch.stack([2 * z, z]).unbind()
            ys = [layer(z) for layer in self.first]
            ys[1] = ys[1] * first.sum()
        if self.variant == "tied":
            ys[1] = ys[1] * self.first[0].weight.sum()
        if self.variant in ("same head", "same frozen head"):
            ys[1] = 3 * ys[0]
        if self.variant == "another output":
            first, z = torch.stack([2 * z, z]).unbind()
            ys = [self.first[0](z), self.first[1](first), self.first[2](z)]
        if self.variant == "around":
            ys[1] = ys[1] * self.trunk.weight.sum()
        if self.variant == "not linear":
            ys[1] = z.square().sum(1, keepdim=True)
        features = (z, z + 0) if self.variant == "two features" else (z,)
        return ys, features


RAYS = dict.fromkeys(
    ["two outputs", "hidden layer", "scaled product", "twice", "around", "not linear", "two features", "hook"], False
)
RAYS |= {
    "plain": True,
    "hook on an output": True,
    "not the first output": True,
    "both outputs": False,
    "another output": False,
    "tied": False,
    "same head": False,
    "same frozen head": False,
    "no bias": False,
}


@pytest.mark.parametrize("variant", RAYS)
def test_heads_that_begin_with_a_number(variant: str) -> None:
    net, x = Heads(variant), torch.randn(7, 5, dtype=torch.float64)
    own = [[*layer.parameters()] for layer in net.first]
    if variant in ("twice", "tied", "same head"):
        own[1] += own[0]
    shared = list(net.trunk.parameters())

    def losses() -> tuple[list[Tensor], tuple[Tensor, ...]]:
        ys, features = net(x)
        return [(y.sigmoid() - t).square().mean() for t, y in enumerate(ys)], features

    values, features = losses()
    chosen = method("mgda-ub", n_tasks=3)
    assert (layers.rays(check(values, shared, own, features, chosen)) is not None) == RAYS[variant]
    if variant in ("hook", "another output"):
        return  # what K is there has tests of its own
    free = [torch.autograd.grad(value, features[0], retain_graph=True)[0].flatten() for value in values]
    step = backward(values, shared=shared, heads=own, features=features, method=chosen)
    assert step.gram is not None and step.weights is not None
    G = torch.stack(free)
    assert torch.allclose(step.gram, G @ G.T, rtol=1e-10, atol=1e-16)
    weighted = [w * value for w, value in zip(step.weights.tolist(), losses()[0], strict=True)]
    every = [p for p in (*shared, *net.first.parameters()) if p.requires_grad]
    want = torch.autograd.grad(sum(weighted[1:], weighted[0]), every, allow_unused=True)
    for p, g in zip(every, want, strict=True):
        assert (p.grad is None) == (g is None)
        if p.grad is not None and g is not None:
            assert torch.allclose(p.grad, g, rtol=1e-9, atol=1e-15)
