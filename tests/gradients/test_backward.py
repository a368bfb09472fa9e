"""`mtl.backward` against full Jacobians, on every way through the graph."""

import copy
import gc
from collections.abc import Sequence
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import jacobian
from torch.func import functional_call

from mtl.gradients import Step, backward
from mtl.methods import method
from mtl.methods.base import Method
from tests.methods.cases import CASES, Case

F64 = torch.float64
W = torch.tensor([0.7, -0.4, 1.9], dtype=F64)


class Fixed(Method):
    """Weights chosen by the test; keeps what it was given."""

    def __init__(self, n_tasks: int = 3, needs: str = "gram", heads: str = "weighted", w: Tensor = W) -> None:
        super().__init__(n_tasks)
        self.needs, self.heads, self.w = needs, heads, w  # type: ignore[assignment, misc]
        self.seen: list[tuple[Tensor, Tensor | None]] = []

    def weights(self, losses: Tensor, gram: Tensor | None = None) -> Tensor:
        self.seen.append((losses, gram))
        return self.w.to(losses)[: self.n_tasks]


class Signs(Method):
    """A method that combines gradients itself: sum of the tasks' signs."""

    needs: ClassVar = "gradients"
    heads = "raw"

    def combine(self, grads: Sequence[Tensor], losses: Tensor) -> list[Tensor]:
        return [g.sign().sum(0) for g in grads]


class Net(nn.Module):
    """Embedding, a layer used twice, a frozen parameter, one that task 2 does not use; three heads."""

    def __init__(self, sparse: bool = False, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.table = nn.Embedding(11, 5, sparse=sparse)
        self.twice = nn.Linear(5, 5)
        self.frozen = nn.Linear(5, 5).requires_grad_(False)
        self.wide = nn.Conv2d(1, 2, 2)
        self.scalar = nn.Parameter(torch.tensor(0.3))
        self.partly = nn.Parameter(torch.randn(2, 2, 4))
        self.unused = nn.Parameter(torch.randn(3))
        self.heads = nn.ModuleList(nn.Sequential(nn.Linear(8, 3), nn.Tanh(), nn.Linear(3, 1)) for _ in range(3))
        self.to(F64)

    def features(self, ids: Tensor) -> Tensor:
        h = torch.tanh(self.twice(torch.tanh(self.frozen(self.twice(self.table(ids).sum(1))))))
        grid = self.wide(torch.stack([h, h * self.scalar], 1)[:, None])
        return grid.flatten(1)

    def outputs(self, z: Tensor) -> list[Tensor]:
        first = z * self.partly.flatten()[:8] + self.scalar  # `partly` lies around the features, `scalar` on both ways
        return [self.heads[0](first), self.heads[1](first), self.heads[2](z)]

    def losses(self, ids: Tensor, y: Tensor) -> tuple[list[Tensor], Tensor]:
        z = self.features(ids)
        return [(out.squeeze(1) - y[:, t]).square().mean() for t, out in enumerate(self.outputs(z))], z

    def shared(self) -> list[nn.Parameter]:
        return [p for name, p in self.named_parameters() if not name.startswith("heads")]

    def own(self) -> list[list[nn.Parameter]]:
        return [list(head.parameters()) for head in self.heads]


def data(n: int = 6, seed: int = 1) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 11, (n, 2), generator=draw), torch.randn(n, 3, generator=draw, dtype=F64)


def jacobians(net: Net, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """dL/dp (T, *shape) of every parameter from a full Jacobian of the functional net: the oracle."""
    dense = Net().to(F64)
    dense.load_state_dict(net.state_dict())
    names = [name for name, p in net.named_parameters() if p.requires_grad]

    def losses(*values: Tensor) -> Tensor:
        class Call(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = dense

            def forward(self) -> Tensor:
                return torch.stack(self.net.losses(*batch)[0])

        return functional_call(Call(), {f"net.{k}": v for k, v in zip(names, values, strict=True)}, ())

    found = jacobian(losses, tuple(dict(net.named_parameters())[k].detach() for k in names))
    return dict(zip(names, found, strict=True))


def gram_of(jac: dict[str, Tensor]) -> Tensor:
    rows = torch.cat([j.reshape(3, -1) for name, j in jac.items() if not name.startswith("heads")], 1)
    return rows @ rows.T


def assert_update(net: Net, jac: dict[str, Tensor], w: Tensor, h: Tensor) -> None:
    for name, p in net.named_parameters():
        if name not in jac or name == "unused":
            assert p.grad is None, name
            continue
        factor = h if name.startswith("heads") else w
        want = torch.tensordot(factor, jac[name], 1)
        assert p.grad is not None, name
        got = p.grad.to_dense() if p.grad.is_sparse else p.grad
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14, msg=lambda m, name=name: f"{name}: {m}")


WAYS = [{"vjp": "loop"}, {"vjp": "loop", "features": True}, {"vjp": "batched"}, {"vjp": "batched", "features": True}]


def run(net: Net, batch: tuple[Tensor, Tensor], method: Method, features: bool = False, form: str = "list", **options):
    losses, z = net.losses(*batch)
    given = (
        torch.stack(losses) if form == "stack" else torch.cat([x[None] for x in losses]) if form == "cat" else losses
    )
    return backward(
        given, shared=net.shared(), heads=net.own(), method=method, features=z if features else None, **options
    )


@pytest.mark.parametrize("form", ["list", "stack", "cat"])
@pytest.mark.parametrize("heads", ["weighted", "raw"])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(map(str, way.values())))
def test_gram_methods_equal_the_jacobian(way: dict, heads: str, form: str) -> None:
    net, batch = Net(), data()
    jac = jacobians(net, batch)
    method = Fixed(heads=heads)
    step = run(net, batch, method, form=form, **way)
    torch.testing.assert_close(step.gram, gram_of(jac), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(step.gram, method.seen[0][1])
    torch.testing.assert_close(step.losses, torch.stack(net.losses(*batch)[0]).detach())
    assert_update(net, jac, W, W if heads == "weighted" else torch.ones_like(W))


@pytest.mark.parametrize("form", ["list", "stack", "cat"])
@pytest.mark.parametrize("heads", ["weighted", "raw"])
def test_loss_methods_equal_the_jacobian(heads: str, form: str) -> None:
    net, batch = Net(), data()
    w = torch.tensor([0.0, 2.0, -1.0], dtype=F64)  # a zero weight must not stop a raw head
    step = run(net, batch, Fixed(needs="losses", heads=heads, w=w), form=form)
    assert step.gram is None and step.norms is None and step.rates is None and step.cosines is None
    assert_update(net, jacobians(net, batch), w, w if heads == "weighted" else torch.ones_like(w))


@pytest.mark.parametrize("vjp", ["loop", "batched"])
def test_combining_methods_get_all_task_gradients(vjp: str) -> None:
    net, batch = Net(), data()
    jac = jacobians(net, batch)
    step = run(net, batch, Signs(3), vjp=vjp)
    assert step.weights is None
    torch.testing.assert_close(step.gram, gram_of(jac), rtol=1e-12, atol=1e-14)
    for name in ("table.weight", "twice.bias", "partly", "scalar"):
        torch.testing.assert_close(dict(net.named_parameters())[name].grad, jac[name].sign().sum(0))
    assert net.unused.grad is None
    torch.testing.assert_close(net.heads[1][0].weight.grad, jac["heads.1.0.weight"][1])


@pytest.mark.parametrize("heads", ["weighted", "raw"])
def test_feature_methods_take_gram_over_the_features_and_the_exact_update(heads: str) -> None:
    net, batch = Net(), data()
    losses, z = net.losses(*batch)
    dz = torch.stack([torch.autograd.grad(x, z, retain_graph=True)[0].flatten() for x in losses])
    step = run(net, batch, Fixed(needs="features", heads=heads), features=True)
    torch.testing.assert_close(step.gram, dz @ dz.T)
    assert_update(net, jacobians(net, batch), W, W if heads == "weighted" else torch.ones_like(W))


@pytest.mark.parametrize("needs", ["gram", "features"])
def test_features_that_feed_each_other(needs: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, dtype=F64)
    trunk, upper = nn.Linear(3, 3).to(F64), nn.Linear(3, 3).to(F64)
    heads = [nn.Linear(6, 1).to(F64) for _ in range(2)]

    def losses(free: bool = False) -> tuple[list[Tensor], list[Tensor]]:
        low = trunk(x).tanh()
        high = upper(low).tanh()
        if free:
            low, high = low.detach().requires_grad_(), high.detach().requires_grad_()
        return [(h(torch.cat([low, high], 1)) ** 2).mean() for h in heads], [low, high]

    shared = [*trunk.parameters(), *upper.parameters()]
    plain, _ = losses()
    rows = [torch.cat([g.flatten() for g in torch.autograd.grad(v, shared, retain_graph=True)]) for v in plain]
    direct, leaves = losses(free=True)
    free = [torch.cat([g.flatten() for g in torch.autograd.grad(v, leaves)]) for v in direct]
    want = torch.stack(free if needs == "features" else rows)
    values, features = losses()
    own = [list(h.parameters()) for h in heads]
    step = backward(
        values, shared=shared, heads=own, method=Fixed(2, needs), features=features, vjp="batched", diagnostics=True
    )
    torch.testing.assert_close(step.gram, want @ want.T)
    got = torch.cat([p.grad.flatten() for p in shared])
    torch.testing.assert_close(got, W[:2] @ torch.stack(rows))


@pytest.mark.parametrize("needs", ["gram", "losses", "features"])
def test_sparse_embeddings_touch_only_their_rows(needs: str) -> None:
    net, batch = Net(sparse=True), data()
    jac = jacobians(net, batch)
    step = run(net, batch, Fixed(needs=needs), features=needs == "features")
    if needs == "gram":
        torch.testing.assert_close(step.gram, gram_of(jac), rtol=1e-12, atol=1e-14)
    assert net.table.weight.grad.is_sparse
    assert set(net.table.weight.grad.coalesce().indices()[0].tolist()) == set(batch[0].flatten().tolist())
    assert_update(net, jac, W, W)


def test_a_table_sparse_for_one_task_and_dense_for_another() -> None:
    table = nn.Embedding(6, 2, sparse=True).to(F64)
    ids = torch.tensor([1, 4, 1])

    def losses() -> list[Tensor]:
        return [table(ids).square().sum(), table.weight.cos().sum(), (3 * table(ids[:1])).sum()]

    rows = torch.stack([g.flatten() for x in losses() for g in [torch.autograd.grad(x, table.weight)[0].to_dense()]])
    step = backward(losses(), shared=[table.weight], method=Fixed())
    torch.testing.assert_close(step.gram, rows @ rows.T)
    torch.testing.assert_close(table.weight.grad.flatten(), W @ rows)


def test_sparse_gradients_of_different_rows_per_task() -> None:
    table = nn.Embedding(1000, 2, sparse=True).to(F64)
    ids = [torch.tensor([1, 4, 1]), torch.tensor([4, 999]), torch.tensor([7])]
    losses = [table(i).square().sum() for i in ids]
    rows = torch.stack(
        [torch.autograd.grad(x, table.weight, retain_graph=True)[0].to_dense().flatten() for x in losses]
    )
    step = backward(losses, shared=[table.weight], method=Fixed())
    torch.testing.assert_close(step.gram, rows @ rows.T)
    assert table.weight.grad._nnz() == 4
    torch.testing.assert_close(table.weight.grad.to_dense().flatten(), W @ rows)


@pytest.mark.parametrize("vjp", ["loop", "batched"])
def test_tied_heads_add_up(vjp: str) -> None:
    shared = torch.tensor([1.0, -2.0], dtype=F64, requires_grad=True)
    tied = torch.tensor([0.5, 3.0], dtype=F64, requires_grad=True)
    losses = [(shared * tied).sum() ** 2, (shared * tied**2).sum(), shared.square().sum()]
    rows = [torch.autograd.grad(x, tied, retain_graph=True)[0] for x in losses[:2]]
    backward(losses, shared=[shared, shared], heads=[[tied], [tied], []], method=Fixed(), vjp=vjp)
    torch.testing.assert_close(tied.grad, W[0] * rows[0] + W[1] * rows[1])


def test_gradients_accumulate_like_torch() -> None:
    for sparse in (False, True):
        net, batch, other = Net(sparse), data(), data(seed=2)
        run(net, batch, Fixed())
        first = net.twice.weight.grad
        run(net, other, Fixed(needs="losses"))
        assert net.twice.weight.grad is first
        a, b = jacobians(net, batch), jacobians(net, other)
        assert_update(net, {k: a[k] + b[k] for k in a}, W, W)


def test_one_task() -> None:
    theta = torch.tensor([2.0, 1.0], requires_grad=True)
    step = backward([theta.square().sum()], shared=[theta], method=Fixed(1, w=torch.ones(1)))
    assert theta.grad.tolist() == [4, 2]
    assert step.gram.tolist() == [[20.0]]


def test_gradients_do_not_alias() -> None:
    a, b = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    for needs in ("losses", "gram", "features"):
        a.grad = b.grad = None
        z = a + b
        backward([z.sum(), z[0] * 1.0], shared=[a, b], method=Fixed(2, needs, w=torch.ones(2)), features=z)
        a.grad.zero_()
        assert b.grad.tolist() == [2, 1], needs


def test_workspace_of_one_step_does_not_reach_into_the_next() -> None:
    theta = torch.tensor([2.0, 1.0], requires_grad=True)
    method = Fixed(2, w=torch.ones(2))
    first = backward([theta[0] ** 2, theta[1] ** 3], shared=[theta], method=method)
    before = theta.grad.clone(), first.gram.clone()
    kept, theta.grad = theta.grad, None
    backward([theta[0] ** 5, theta[1] ** 7], shared=[theta], method=method)
    assert torch.equal(kept, before[0]) and torch.equal(first.gram, before[1])


def test_one_method_may_serve_two_models() -> None:
    method = Fixed(2, w=torch.ones(2))
    for size, dtype in ((2, torch.float32), (5, torch.float32), (5, F64), (2, F64)):
        theta = torch.arange(1.0, 1 + size, dtype=dtype, requires_grad=True)
        backward([theta.sum(), theta @ theta], shared=[theta], method=method)
        assert theta.grad.tolist() == [1 + 2 * (1 + i) for i in range(size)]


def test_step_tells_norms_cosines_and_relative_rates() -> None:
    theta = torch.tensor([3.0, 4.0], requires_grad=True)
    step: Step = backward([theta @ theta / 2, 2 * theta[0]], shared=[theta], method=Fixed(2), diagnostics=True)
    torch.testing.assert_close(step.norms, torch.tensor([5.0, 2.0]))
    torch.testing.assert_close(step.cosines, torch.tensor([[1.0, 0.6], [0.6, 1.0]]))
    torch.testing.assert_close(step.rates, torch.tensor([2.5, 3.0]))
    assert not step.losses.requires_grad


def test_diagnostics_give_loss_methods_a_gram_matrix_for_the_reader_only() -> None:
    net, batch = Net(), data()
    method = Fixed(needs="losses")
    step = run(net, batch, method, diagnostics=True)
    assert method.seen[0][1] is None
    jac = jacobians(net, batch)
    torch.testing.assert_close(step.gram, gram_of(jac))
    assert_update(net, jac, W, W)


class Learned(Method):
    """One learned weight with gradient 2."""

    def __init__(self) -> None:
        super().__init__(1)
        self.s = torch.zeros(1, requires_grad=True)

    def weights(self, losses: Tensor, gram: Tensor | None = None) -> Tensor:
        self.s.grad = torch.full((1,), 2.0)
        return torch.ones(1)

    def parameters(self) -> list[Tensor]:
        return [self.s]


def test_learned_weights_accumulate_scale_and_come_back_on_errors() -> None:
    theta, method = torch.ones(1, requires_grad=True), Learned()
    backward([theta.sum()], shared=[theta], method=method)
    backward([theta.sum()], shared=[theta], method=method, scale=8.0)
    assert method.s.grad.item() == 2 + 16 and theta.grad.item() == 1 + 8
    with pytest.raises(ValueError, match="losses: must depend on the shared parameters"):
        backward([theta.sum()], shared=[torch.ones(1, requires_grad=True)], method=method)
    assert method.s.grad.item() == 18


@pytest.mark.parametrize("needs", ["losses", "gram", "features"])
def test_scale_multiplies_the_update_and_not_the_gram_matrix(needs: str) -> None:
    net, batch = Net(), data()
    plain = run(net, batch, Fixed(needs=needs), features=True)
    other = copy.deepcopy(net)
    other.zero_grad()
    scaled = run(other, batch, Fixed(needs=needs), features=True, scale=1024.0)
    if needs != "losses":
        torch.testing.assert_close(plain.gram, scaled.gram)
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        if p.grad is not None:
            torch.testing.assert_close(p.grad * 1024, q.grad)


def test_grad_scaler_skips_a_step_whose_scaled_gradients_overflow() -> None:
    theta = torch.tensor([1.0, 2.0], requires_grad=True)
    method = Fixed(2, w=torch.ones(2))
    optimizer = torch.optim.SGD([theta], lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    losses = [8 * theta[0] ** 2, theta.sum()]
    step = backward(losses, shared=[theta], method=method, scale=scaler.scale(torch.ones(())))
    assert step.overflow and not method.seen
    scaler.step(optimizer)
    scaler.update()
    assert theta.tolist() == [1, 2] and scaler.get_scale() == 2.0**126
    optimizer.zero_grad()
    scaler.update(1024.0)
    step = backward([theta[0] ** 2, theta.sum()], shared=[theta], method=method, scale=scaler.scale(torch.ones(())))
    scaler.step(optimizer)
    assert not step.overflow and theta.tolist() == [-2, 1]


@pytest.mark.parametrize("name", ["mgda", "mgda-ub", "adatask", "graddrop"])
def test_an_overflow_leaves_no_finite_gradient(name: str) -> None:
    """K overflows long before the gradients do: a scaler would step with what is left."""
    theta, head = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    optimizer, scaler = torch.optim.SGD([theta, head], lr=1.0), torch.amp.GradScaler("cpu", init_scale=2.0**100)
    z, m = 1 * theta, method(name, 2)
    options = {"features": z, "heads": [[head], []], "scale": scaler.scale(torch.ones(()))}
    step = backward([(z * head).sum(), z[0]], shared=[theta], method=m, **options)
    assert step.overflow and theta.grad.isinf().all() and head.grad.isinf().all()
    scaler.step(optimizer)
    assert theta.tolist() == [1, 1] and head.tolist() == [1, 1]


def test_half_precision_keeps_what_a_scale_saves() -> None:
    """Gradients of 1e-6 have hardly a digit in float16, and their squares none."""
    grads = []
    for dtype, scale in ((torch.float32, None), (torch.float16, 2.0**14)):
        theta, m = torch.ones(3, dtype=dtype, requires_grad=True), method("adatask", 2)
        for _ in range(2):
            theta.grad = None
            losses = [1e-6 * theta.float().sum(), 3e-6 * theta.float().square().sum()]
            if dtype == torch.float16:
                losses = [x.half() for x in losses]
            backward(losses, shared=[theta], method=m, scale=scale)
        grads.append(theta.grad.float() / (scale or 1))
    torch.testing.assert_close(*grads, rtol=0.02, atol=0.02)


def test_autocast_does_not_reach_the_gram_matrix() -> None:
    torch.manual_seed(0)
    net, x = nn.Linear(64, 64), torch.randn(32, 64)
    with torch.autocast("cpu", torch.bfloat16):
        out = net(x)
        losses = [out.square().mean(), out.cos().mean()]
        rows = [torch.autograd.grad(v, [net.weight, net.bias], retain_graph=True) for v in losses]
        step = backward(losses, shared=net.parameters(), method=Fixed(2))
    wide = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows]).double()
    assert step.gram.dtype == torch.float32
    torch.testing.assert_close(step.gram.double(), wide @ wide.T, rtol=1e-5, atol=0)


def test_bfloat16_parameters_get_a_float32_gram_matrix() -> None:
    torch.manual_seed(0)
    net, x = nn.Linear(64, 64).bfloat16(), torch.randn(32, 64).bfloat16()
    out = net(x)
    losses = [out.square().mean(), out.cos().mean()]
    rows = [torch.autograd.grad(v, [net.weight, net.bias], retain_graph=True) for v in losses]
    step = backward(losses, shared=net.parameters(), method=Fixed(2))
    wide = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows]).double()
    torch.testing.assert_close(step.gram.double(), wide @ wide.T, rtol=1e-5, atol=0)


@pytest.mark.parametrize("needs", ["losses", "gram", "features", "gradients"])
@pytest.mark.parametrize("vjp", ["auto", "loop", "batched"])
@pytest.mark.parametrize("form", ["list", "stack"])
def test_dtypes_may_differ_as_autograd_allows(needs: str, vjp: str, form: str) -> None:
    """A bfloat16 trunk with one float32 bias, a float32 head, a bfloat16 one, losses in their heads' dtypes."""
    torch.manual_seed(0)
    trunk, scale = nn.Linear(600, 128).bfloat16(), nn.Parameter(torch.rand(128))
    heads = [nn.Linear(128, 1), nn.Linear(128, 1).bfloat16(), nn.Linear(128, 1).double()]
    shared = [*trunk.parameters(), scale]
    z = trunk(torch.randn(8, 600).bfloat16()).tanh() * scale
    losses = [head(z.to(head.weight.dtype)).square().mean() for head in heads]
    own = [list(head.parameters()) for head in heads]
    rows = [torch.autograd.grad(loss, shared, retain_graph=True) for loss in losses]
    raw = [torch.autograd.grad(loss, p, retain_graph=True) for loss, p in zip(losses, own, strict=True)]
    method = Signs(3) if needs == "gradients" else Fixed(3, needs)
    given = torch.stack(losses) if form == "stack" else losses
    step = backward(given, shared=shared, heads=own, method=method, features=z, vjp=vjp)
    w = torch.ones(3) if needs == "gradients" else W.float()
    for i, p in enumerate(shared):
        assert p.grad.dtype == p.dtype
        parts = torch.stack([row[i].float() for row in rows])
        want = parts.sign().sum(0) if needs == "gradients" else torch.tensordot(w, parts, 1)
        torch.testing.assert_close(p.grad.float(), want, rtol=0.03, atol=0.01 * float(want.abs().max()))
    for t, head in enumerate(own):
        for p, g in zip(head, raw[t], strict=True):
            torch.testing.assert_close(p.grad, (w[t].double() * g).to(g.dtype), rtol=0.02, atol=1e-3)
    if needs in ("gram", "gradients"):
        flat = torch.stack([torch.cat([g.flatten().float() for g in row]) for row in rows])
        torch.testing.assert_close(step.gram, flat @ flat.T, rtol=1e-4, atol=1e-5)
    assert step.losses.dtype == torch.float32


@pytest.mark.parametrize("needs", ["losses", "gram", "features"])
def test_post_accumulate_hooks_see_the_whole_gradient_once(needs: str) -> None:
    net, batch = Net(), data()
    net.twice.weight.grad = torch.ones_like(net.twice.weight)
    seen: list[tuple[str, Tensor]] = []
    for name in ("twice.weight", "heads.1.0.bias", "unused"):
        p = dict(net.named_parameters())[name]
        p.register_post_accumulate_grad_hook(lambda p, name=name: seen.append((name, p.grad.clone())))
    run(net, batch, Fixed(needs=needs, heads="raw"), features=True)
    assert [name for name, _ in seen] == ["twice.weight", "heads.1.0.bias"]
    jac = jacobians(net, batch)
    torch.testing.assert_close(seen[0][1], 1 + torch.tensordot(W, jac["twice.weight"], 1))
    torch.testing.assert_close(seen[1][1], jac["heads.1.0.bias"][1])
    net.twice.weight.sum().backward()
    assert len(seen) == 3  # they are still there
    with pytest.raises(ValueError, match="must be finite"):
        run(net, batch, Fixed(needs=needs, w=W * torch.nan), features=True)
    assert len(seen) == 3


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(map(str, way.values())))
def test_batchnorm_in_training_mode(way: dict) -> None:
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()).to(F64)
    heads, x = [nn.Linear(16, 1).to(F64) for _ in range(3)], torch.randn(5, 2, 6, 6, dtype=F64)
    z = trunk(x)
    losses = [h(z).square().mean() for h in heads]
    shared = list(trunk.parameters())
    rows = torch.stack(
        [torch.cat([g.flatten() for g in torch.autograd.grad(v, shared, retain_graph=True)]) for v in losses]
    )
    options = way | {"features": z if way.get("features") else None}
    step = backward(losses, shared=shared, heads=[list(h.parameters()) for h in heads], method=Fixed(), **options)
    torch.testing.assert_close(step.gram, rows @ rows.T)
    torch.testing.assert_close(torch.cat([p.grad.flatten() for p in shared]), W @ rows)
    assert int(trunk[1].num_batches_tracked) == 1


def test_gradients_keep_the_layout_of_their_parameters() -> None:
    conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 5, 5)
    losses = [conv(x).square().mean(), conv(x).sum()]
    rows = [torch.autograd.grad(v, conv.weight, retain_graph=True)[0] for v in losses]
    backward(losses, shared=conv.parameters(), method=Fixed(2))
    assert conv.weight.grad.stride() == conv.weight.stride()
    torch.testing.assert_close(conv.weight.grad, W[0].float() * rows[0] + W[1].float() * rows[1])


@pytest.mark.parametrize("case", [c for c in CASES if c.name != "stl"], ids=str)
def test_every_method_leaves_gradients_in_the_layout_of_their_parameters(case: Case) -> None:
    """Fused optimisers read a parameter and its gradient as they lie in memory: on a CPU without a look at strides."""
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1)).to(memory_format=torch.channels_last)
    heads = nn.ModuleList(nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 1, 1)) for _ in range(2))
    heads.to(memory_format=torch.channels_last)
    method = case.make(2, **({"seed": 0} if case.draws else {}))
    z = trunk(torch.randn(4, 3, 8, 8))
    backward(
        [head(z).square().mean() for head in heads], shared=trunk.parameters(),
        heads=[list(head.parameters()) for head in heads], method=method, features=z,
    )  # fmt: skip
    for p in [*trunk.parameters(), *heads.parameters()]:
        assert p.grad is not None and p.grad.stride() == p.stride()


def test_retain_graph_allows_a_second_look() -> None:
    for needs in ("losses", "gram", "features"):
        net, batch = Net(), data()
        losses, z = net.losses(*batch)
        options = {"shared": net.shared(), "heads": net.own(), "features": z}
        backward(losses, method=Fixed(needs=needs, heads="raw"), retain_graph=True, **options)
        backward(losses, method=Fixed(needs=needs, heads="raw"), **options)
        jac = jacobians(net, batch)
        assert_update(net, jac, 2 * W, 2 * torch.ones_like(W))


def test_combining_methods_choose_their_heads_factor() -> None:
    """DB-MTL takes gradients of log L: its heads move by 1/(L + 1e-8), not by 1."""
    trunk, heads = torch.nn.Linear(3, 4), [torch.nn.Linear(4, 1), torch.nn.Linear(4, 1)]
    x = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    losses = [head(trunk(x)).square().mean() * 5 for head in heads]
    raw = [
        torch.autograd.grad(loss, head.weight, retain_graph=True)[0] for loss, head in zip(losses, heads, strict=True)
    ]
    own = [list(head.parameters()) for head in heads]
    backward(losses, shared=list(trunk.parameters()), heads=own, method=method("db-mtl", n_tasks=2))
    for head, loss, gradient in zip(heads, losses, raw, strict=True):
        assert torch.allclose(head.weight.grad, gradient / (loss.detach() + 1e-8), rtol=1e-5)


def test_heads_of_excessmtl_move_by_the_weights_of_this_step() -> None:
    """They moved by those of the step before, the shared parameters by its own."""
    shared = torch.ones(2, requires_grad=True)
    heads = [torch.ones(2, requires_grad=True) for _ in range(2)]
    m = method("excessmtl", 2, eta=1.0)
    for step in range(3):
        for p in (shared, *heads):
            p.grad = None
        losses = [((k + step**k) * shared * head).square().sum() for k, head in enumerate(heads, 1)]
        alone = [
            torch.autograd.grad(loss, head, retain_graph=True)[0] for loss, head in zip(losses, heads, strict=True)
        ]
        before = m.log_w.exp()
        backward(losses, shared=[shared], heads=[[head] for head in heads], method=m)
        for head, own, w in zip(heads, alone, m.log_w.exp().tolist(), strict=True):
            assert head.grad is not None and torch.allclose(head.grad, w * own)
    assert (m.log_w.exp() - before).abs().min() > 1e-3


@pytest.mark.parametrize("name", ["adatask", "moco", "excessmtl", "db-mtl"])
def test_methods_that_combine_take_parameters_in_float16(name: str) -> None:
    """Squares and sums of float16 overflow, or vanish, where their quotient is an ordinary number."""
    theta = torch.full((4,), 0.5, dtype=torch.float16, requires_grad=True)
    exact = theta.detach().float().requires_grad_()
    for x in (theta, exact):
        m = method(name, 2)
        for _ in range(2):
            x.grad = None
            backward([(300 * x).sum(), (1e-3 * x).sum()], shared=[x], method=m)
    assert theta.grad is not None and exact.grad is not None and theta.grad.dtype == torch.float16
    assert torch.allclose(theta.grad.float(), exact.grad, rtol=2e-3)


def test_running_means_move_in_bfloat16() -> None:
    """A mean that takes in a hundredth of what is new has no digits for it in bfloat16, and stood still."""
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        theta, m = torch.ones(3, dtype=dtype, requires_grad=True), method("adatask", 2)
        for k in range(300):
            theta.grad = None
            x = torch.full((3,), 1.0 + 0.5 * (k % 2), dtype=dtype)
            backward([(theta * x).sum(), 2 * (theta * x).sum()], shared=[theta], method=m)
        assert theta.grad.dtype == dtype and m.second[0].dtype == torch.float32
        found.append(m.second[0])
    torch.testing.assert_close(*found, rtol=0.02, atol=0)


@pytest.mark.parametrize(("name", "own"), [("scalarization", "c"), ("nash", "kept"), ("cr-mogm", "w")])
def test_the_weights_of_a_step_are_nobody_elses(name: str, own: str) -> None:
    theta = torch.ones(2, dtype=F64, requires_grad=True)
    m = method(name, 2, **({"c": [1.0, 2.0]} if name == "scalarization" else {}))
    step = backward([theta[0].exp(), theta.sum()], shared=[theta], method=m)
    before = getattr(m, own).clone()
    assert step.weights is not None
    step.weights.mul_(10)
    assert torch.equal(getattr(m, own), before)


@pytest.mark.parametrize("name", ["adatask", "db-mtl", "moco", "excessmtl", "fair-loss"])
def test_what_is_kept_for_a_parameter_goes_to_no_other(name: str) -> None:
    """Buffers lie in the order of the shared parameters: swapped ones of one shape took each other's."""
    a, b = (torch.ones(3, requires_grad=True) for _ in range(2))
    m = method(name, 2, **({"base": "adatask"} if name == "fair-loss" else {}))

    def step(*shared: Tensor) -> None:
        backward([(a * a).sum() + b.sum(), (b * b).sum() + a.sum()], shared=shared, method=m)

    step(a, b)
    rule = "shared: must hold the parameters that .* began with, in their order, found others"
    for others in ((b, a), (b,)):
        with pytest.raises(ValueError, match=rule):
            step(*others)
    a.requires_grad_(False)
    with pytest.raises(ValueError, match=rule):
        step(a, b)
    a.requires_grad_(True)
    step(a, b)


def test_a_model_that_was_loaded_anew_may_take_the_place_of_one_that_is_gone() -> None:
    m = method("adatask", 2)
    for _ in range(2):
        theta = torch.ones(3, requires_grad=True)
        backward([theta.sum(), theta.square().sum()], shared=[theta], method=m)
        del theta
        gc.collect()
    assert m.seen == [2, 2]


def test_a_step_that_is_refused_counts_for_nothing() -> None:
    m = method("moco", 2)
    m.combine([torch.ones(2, 3)], torch.ones(2))
    with pytest.raises(ValueError, match=r"grads: MoCo began with shapes \[\(2, 3\)\], found \[\(2, 4\)\]"):
        m.combine([torch.ones(2, 4)], torch.ones(2))
    assert m.steps == 1


def test_weights_that_are_no_tensor_are_named() -> None:
    class Listed(Fixed):
        def weights(self, losses: Tensor, gram: Tensor | None = None) -> Tensor:
            return [1.0, 1.0]  # type: ignore[return-value]

    theta = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match=r"weights: Listed must return shape \(2,\), found a list"):
        backward([theta.sum(), theta[0]], shared=[theta], method=Listed(2))
