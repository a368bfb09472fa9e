"""Bad input of `mtl.backward`: one sentence each, and every `.grad` as it was."""

import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mtl.errors import NonFiniteError
from mtl.gradients import Accumulator, backward
from mtl.methods.base import Method


class Ones(Method):
    """Equal weights; counts how often it was asked."""

    def __init__(self, n_tasks: int = 2, needs: str = "gram", positive: bool = False, w: Tensor | None = None) -> None:
        super().__init__(n_tasks)
        self.needs, self.positive_losses, self.asked = needs, positive, 0  # type: ignore[misc]
        self.w = torch.ones(n_tasks) if w is None else w

    def weights(self, losses: Tensor, gram: Tensor | None = None) -> Tensor:
        self.asked += 1
        return self.w


class Scene:
    """A net with gradients from an earlier backward, and arguments that are right until a case spoils one."""

    def __init__(self, needs: str = "gram") -> None:
        torch.manual_seed(0)
        self.trunk, self.heads = nn.Linear(3, 4), [nn.Linear(4, 1), nn.Linear(4, 1)]
        self.x = torch.randn(5, 3)
        self.z = self.trunk(self.x).tanh()
        self.shared = list(self.trunk.parameters())
        self.own = [list(h.parameters()) for h in self.heads]
        self.losses: Any = [h(self.z).square().mean() for h in self.heads]
        self.method = Ones(needs=needs)
        self.args: dict[str, Any] = {"shared": self.shared, "heads": self.own, "method": self.method}
        self.parameters = [*self.shared, *self.own[0], *self.own[1][:1]]  # one of them has no .grad
        for p in self.parameters:
            p.grad = torch.randn_like(p)

    def raises(self, kind: type[Exception], text: str) -> None:
        every = [*self.shared, *self.own[0], *self.own[1]]
        before = [(p.grad, None if p.grad is None else p.grad.clone()) for p in every]
        with pytest.raises(kind, match=re.escape(text)):
            backward(self.losses, **self.args)
        for p, (grad, values) in zip(every, before, strict=True):
            assert p.grad is grad
            assert values is None or torch.equal(values, grad)
        assert "weights" in text or self.method.asked == 0


def _set(**args: Any) -> Callable[[Scene], None]:
    return lambda scene: scene.args.update(args)


def _losses(make: Callable[[Scene], Any]) -> Callable[[Scene], None]:
    return lambda scene: setattr(scene, "losses", make(scene))


CASES: list[tuple[Callable[[Scene], None], type[Exception], str]] = [
    (_losses(lambda s: torch.stack(s.losses)[None]), ValueError, "scalar per task, shape (T,), found shape (1, 2)"),
    (_losses(lambda s: s.losses[0]), ValueError, "losses: must hold one scalar per task, shape (T,), found shape ()"),
    (_losses(lambda s: [s.losses[0], s.z]), ValueError, "shape (T,), found shape (5, 4) for task 1"),
    (
        _losses(lambda s: [s.losses[0], 1.0]),
        TypeError,
        "losses: must hold one scalar per task, shape (T,), found float",
    ),
    (_losses(lambda s: s.losses[:1]), ValueError, "losses: Ones was made for 2 tasks, found 1 losses"),
    (_losses(lambda s: []), ValueError, "losses: Ones was made for 2 tasks, found 0 losses"),
    (_losses(lambda s: torch.stack([*s.losses] * 2)), ValueError, "losses: Ones was made for 2 tasks, found 4 losses"),
    (_losses(lambda s: [s.losses[0], s.losses[1] * float("nan")]), NonFiniteError, "found nan for task 1"),
    (_losses(lambda s: [s.losses[0] + float("inf"), s.losses[1]]), NonFiniteError, "losses: must be finite, found inf"),
    (
        _losses(lambda s: [s.losses[0], s.losses[1].detach()]),
        ValueError,
        "no graph behind task 1 (requires_grad=False)",
    ),
    (
        _losses(lambda s: torch.stack(s.losses).detach()),
        ValueError,
        "losses: must be differentiable, found a tensor wit",
    ),
    (
        _losses(lambda s: torch.stack([s.losses[0], s.losses[1].detach()])),
        ValueError,
        "losses: must be differentiable, found no graph behind task 1",
    ),
    (
        _losses(lambda s: [s.losses[0], s.heads[1](torch.ones(4)).sum()]),
        ValueError,
        "losses: must depend on the shared parameters, found that task 1 does not",
    ),
    (_set(shared=[]), ValueError, "shared: must hold at least one parameter that requires a gradient, found none"),
    (_set(shared=[nn.Parameter(torch.ones(1), requires_grad=False)]), ValueError, "shared: must hold at least one"),
    (_set(shared=nn.Linear(1, 1)), TypeError, "shared: must be a list of parameters, found Linear"),
    (_set(shared=[nn.Linear(1, 1)]), TypeError, "shared[0]: must be a parameter, found Linear"),
    (lambda s: s.args.update(shared=[s.z]), ValueError, "shared[0]: must be a leaf tensor, found one computed by"),
    (
        lambda s: s.args.update(heads=s.own[:1]),
        ValueError,
        "heads: must hold one list of parameters per task, 2 of them, f",
    ),
    (lambda s: s.args.update(heads=s.own[0][0]), ValueError, "heads: must hold one list of parameters per task"),
    (
        lambda s: s.args.update(heads=[s.own[0], [s.shared[1]]]),
        ValueError,
        "heads[1]: a parameter belongs to shared or to",
    ),
    (
        lambda s: s.args.update(heads=[s.own[0], [nn.Parameter(torch.ones(1, device="meta"))]]),
        ValueError,
        "losses, shared, heads: must have one device, found cpu and meta",
    ),
    (_set(vjp="fast"), ValueError, 'vjp: must be "auto", "loop" or "batched", found \'fast\''),
    (_set(check="never"), ValueError, 'check: must be "raise" or "defer", found \'never\''),
    (_set(check="defer", scale=2.0), ValueError, 'check: must be "raise" with a loss scale'),
    (_set(scale=float("nan")), ValueError, "scale: must be finite and > 0, found nan"),
    (_set(scale=float("inf")), ValueError, "scale: must be finite and > 0, found inf"),
    (_set(scale=0), ValueError, "scale: must be finite and > 0, found 0"),
    (_set(method="mgda"), TypeError, "method: must be one made by mtl.method(name, n_tasks=...), found 'mgda'"),
    (_set(method=Ones), TypeError, "method: must be one made by mtl.method(name, n_tasks=...), found the class Ones"),
    (_set(method=None), TypeError, "method: must be one made by mtl.method(name, n_tasks=...), found None"),
    (_losses(lambda s: None), TypeError, "losses: must be a list of T scalars or a vector (T,), found NoneType"),
    (
        _losses(lambda s: (x for x in s.losses)),
        TypeError,
        "losses: must be a list of T scalars or a vector (T,), found g",
    ),
    (
        lambda s: s.args.update(shared=[torch.eye(2).to_sparse().requires_grad_()]),
        ValueError,
        "shared[0]: must be dense, found layout torch.sparse_coo",
    ),
    (_set(scale=torch.tensor(-1.0)), ValueError, "scale: must be finite and > 0, found -1"),
    (_set(scale=torch.ones(2)), ValueError, "scale: must be one number, found shape (2,)"),
    (_set(scale="2"), ValueError, "scale: must be finite and > 0, found '2'"),
    (_set(scale=True), ValueError, "scale: must be finite and > 0, found True"),
    (_set(features=[1]), TypeError, "features[0]: must be a tensor, found int"),
    (_set(method=Ones(w=torch.ones(3))), ValueError, "weights: Ones must return shape (2,), found (3,)"),
    (
        _set(method=Ones(w=torch.tensor([1.0, float("nan")]))),
        NonFiniteError,
        "weights: must be finite, found nan for task 1",
    ),
]


@pytest.mark.parametrize("needs", ["gram", "losses", "features"])
@pytest.mark.parametrize(("spoil", "kind", "text"), CASES, ids=[text[:60] for _, _, text in CASES])
def test_bad_arguments_leave_every_grad_as_it_was(spoil: Callable, kind: type, text: str, needs: str) -> None:
    scene = Scene(needs)
    scene.args["features"] = scene.z
    if needs == "losses" and "that task 1 does not" in text:
        pytest.skip("one backward of the sum cannot tell tasks apart")
    spoil(scene)
    method = scene.args["method"]
    if not isinstance(method, Ones):
        method = scene.method
    method.needs = needs
    try:
        scene.raises(kind, text)
    finally:
        method.needs, method.asked = "gram", 0


def test_tensors_without_values() -> None:
    theta = torch.ones(2, requires_grad=True, device="meta")
    for needs in ("gram", "losses"):
        with pytest.raises(ValueError, match="losses: must hold values, found tensors on the meta device"):
            backward([theta.sum(), 2 * theta.sum()], shared=[theta], method=Ones(needs=needs))


def test_numbers_of_numpy_may_scale() -> None:
    theta = torch.ones(2, requires_grad=True)
    backward([theta.sum(), theta.sum()], shared=[theta], method=Ones(), scale=np.float32(4))  # type: ignore[arg-type]
    assert theta.grad.tolist() == [8, 8]


def test_no_task_depends_on_the_shared_parameters() -> None:
    for needs in ("losses", "gram"):
        scene = Scene(needs)
        scene.args["shared"] = [nn.Parameter(torch.ones(2))]
        scene.args["method"].asked = 0
        with pytest.raises(ValueError, match="losses: must depend on the shared parameters, found"):
            backward(scene.losses, **scene.args)
        assert scene.own[1][1].grad is None and scene.own[0][0].grad is scene.parameters[2].grad


def test_features_without_a_way_to_the_shared_parameters() -> None:
    scene = Scene("features")
    scene.raises(ValueError, "features: Ones needs the shared representation, found no tensor that requires a gradient")
    leaf = scene.z.detach().requires_grad_()
    scene.losses, scene.args["features"] = [h(leaf).mean() for h in scene.heads], leaf
    with pytest.raises(
        ValueError, match="features: must depend on the shared parameters, found tensors without a graph"
    ):
        backward(scene.losses, **scene.args)
    other = nn.Linear(4, 4)(leaf)
    scene.losses, scene.args["features"] = [h(other).mean() for h in scene.heads], other
    with pytest.raises(ValueError, match="features: must depend on the shared parameters, found none that does"):
        backward(scene.losses, **scene.args)


@pytest.mark.parametrize("vjp", ["loop", "batched"])
def test_a_gradient_that_is_not_finite_names_its_task(vjp: str) -> None:
    scene = Scene()
    scene.losses[1] = (scene.z.sum() * 0).sqrt()  # value 0, derivative inf * 0
    scene.args |= {"vjp": vjp, "features": scene.z}
    scene.raises(NonFiniteError, "squared gradient norms: must be finite, found nan for task 1")


def test_negative_losses_for_methods_of_logarithms() -> None:
    for needs in ("losses", "gram", "features"):
        scene = Scene()
        scene.args |= {"method": Ones(needs=needs, positive=True), "features": scene.z, "retain_graph": True}
        scene.losses[0] = scene.losses[0] - 100
        scene.raises(ValueError, "losses: must be positive, found -9")
        scene.losses[0] = scene.losses[0] * 0
        scene.raises(ValueError, "losses: must be positive, found -0 for task 0 (Ones)")


def test_deferred_checks_raise_at_the_next_call_or_when_asked() -> None:
    theta, method = torch.ones(2, requires_grad=True), Ones()
    bad = lambda: [theta.sum(), theta.sum() * float("nan")]  # noqa: E731
    step = backward(bad(), shared=[theta], method=method, check="defer")
    with pytest.raises(NonFiniteError, match="losses: must be finite, found nan for task 1"):
        step.check()
    step.check()  # said once
    backward(bad(), shared=[theta], method=method, check="defer")
    before = theta.grad
    with pytest.raises(NonFiniteError, match="losses: must be finite, found nan for task 1"):
        backward([theta.sum(), theta.sum()], shared=[theta], method=method)
    assert theta.grad is before
    for _ in range(3):
        step = backward([theta.sum(), theta.sum()], shared=[theta], method=method, check="defer")
    step.check()  # nothing to say
    other = Ones()
    backward(bad(), shared=[theta], method=method, check="defer")
    backward([theta.sum(), theta.sum()], shared=[theta], method=other).check()  # another method's checks are its own


def test_combining_methods_are_held_to_their_contract() -> None:
    class Odd(Ones):
        def combine(self, grads: Any, losses: Tensor) -> list[Tensor]:
            return [g[0, :1] for g in grads]

    scene = Scene()
    scene.args["method"] = Odd(needs="gradients")
    scene.raises(ValueError, "combine: Odd must return shape (4, 3) for shared[0], found (1, 3)")
    table = nn.Embedding(5, 2, sparse=True)
    losses = [table(torch.tensor([1])).sum(), table(torch.tensor([2])).sum()]
    with pytest.raises(ValueError, match=re.escape("shared[0]: Odd needs dense gradients, found sparse ones")):
        backward(losses, shared=table.parameters(), method=Odd(needs="gradients"))


@pytest.mark.parametrize("needs", ["gram", "losses", "features"])
def test_compiled_models(needs: str) -> None:
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.GELU(), nn.Linear(4, 4), nn.Tanh())
    heads = nn.ModuleList([nn.Linear(4, 1), nn.Linear(4, 1)])
    fast, x, grads = torch.compile(trunk, backend="aot_eager"), torch.randn(6, 3), []
    for net in (trunk, fast):
        z = net(x)
        losses = [h(z).square().mean() for h in heads]
        own = [list(h.parameters()) for h in heads]
        backward(losses, shared=trunk.parameters(), heads=own, method=Ones(needs=needs), features=z)
        grads.append([p.grad for p in [*trunk.parameters(), *heads.parameters()]])
        trunk.zero_grad()
        heads.zero_grad()
    torch.testing.assert_close(grads[0], grads[1])


def test_graphs_that_cannot_be_vectorised_say_so() -> None:
    table = nn.Embedding(5, 2, sparse=True)
    losses = [table(torch.tensor([1])).sum(), table(torch.tensor([2])).sum()]
    with pytest.raises(RuntimeError, match='vjp: "batched" must have a graph that torch can vectorise'):
        backward(losses, shared=table.parameters(), method=Ones(), vjp="batched")


def test_heads_that_were_forgotten_are_named_once() -> None:
    scene = Scene()
    options = scene.args | {"heads": None, "retain_graph": True}
    with pytest.warns(UserWarning, match=r"heads: 4 parameters .*, of shapes \(1,\), \(1, 4\)") as heard:
        backward(scene.losses, **options)
    assert len(heard) == 1 and heard[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        backward(scene.losses, **options)
        scene = Scene()
        backward(scene.losses, **scene.args)
        theta = torch.ones(2, requires_grad=True)  # an input that wants a gradient is nobody's head
        x = torch.ones(2, requires_grad=True)
        backward([(theta * x).sum()] * 2, shared=[theta], method=Ones())
    with pytest.warns(UserWarning, match=r"heads: 1 parameters .* of shapes \(1, 4\)$"):
        scene = Scene()
        acc = Accumulator(shared=scene.shared, heads=[scene.own[0], scene.own[1][1:]], method=Ones())
        acc.add(scene.losses)


class Broken(Method):
    """One whose answer is not finite at one place."""

    def __init__(self, needs: str, masks: bool, where: str) -> None:
        super().__init__(2)
        self.needs, self.masks, self.where = needs, masks, where  # type: ignore[assignment]

    def _said(self, x: Tensor, name: str) -> Tensor:
        return x.index_fill(0, torch.tensor([1]), torch.nan) if name == self.where else x

    def weights(self, losses: Tensor, gram: Tensor | None = None) -> Tensor:
        return self._said(torch.ones_like(losses), "weights")

    def head_weights(self, losses: Tensor, weights: Tensor) -> Tensor:
        return self._said(torch.ones_like(weights), "head weights")

    def combine(self, grads: Sequence[Tensor], losses: Tensor) -> list[Tensor]:
        return [self._said(g.sum(0), "combine") for g in grads]

    def mask(self, grads: Tensor, losses: Tensor) -> Tensor:
        return self._said(torch.ones_like(grads), "mask")


@pytest.mark.parametrize("collect", [False, True])
@pytest.mark.parametrize(
    ("needs", "masks", "where"),
    [(needs, False, "head weights") for needs in ("losses", "gram", "features", "gradients")]
    + [("features", True, "head weights"), ("features", True, "mask"), ("gradients", False, "combine")],
)
def test_what_a_method_answers_must_be_finite(needs: str, masks: bool, where: str, collect: bool) -> None:
    """NaN in combined gradients, masks and head weights went to `.grad` without a word."""
    method, whose = Broken(needs, masks, where), "" if where == "combine" else " for task 1"
    for _ in range(2):  # a refused step is not kept for the next one
        scene = Scene()
        how = scene.args | {"method": method}
        before = [p.grad for p in scene.parameters]
        with pytest.raises(NonFiniteError, match=rf"^{where}: must be finite, found nan{whose} \(Broken\)$"):
            if collect:
                acc = Accumulator(**how)
                acc.add(scene.losses, features=scene.z)
                acc.step()
            else:
                backward(scene.losses, features=scene.z, **how)
        assert all(p.grad is g for p, g in zip(scene.parameters, before, strict=True))
    scene = Scene()
    step = backward(scene.losses, features=scene.z, check="defer", **scene.args | {"method": method})
    with pytest.raises(NonFiniteError, match=f"^{where}: must be finite"):
        step.check()


def test_a_combination_may_overflow_by_its_scale_alone() -> None:
    """What float16 does not hold of a scaled update is left to the scaler, which skips that step."""
    theta = torch.ones(2, dtype=torch.float16, requires_grad=True)
    step = backward([theta.sum(), theta[0] * 2], shared=[theta], method=Broken("gradients", False, ""), scale=3e4)
    assert not step.overflow and theta.grad.isinf().any()
    empty = torch.ones(0, requires_grad=True)
    backward([theta.sum() + empty.sum(), theta[0] * 2], shared=[theta, empty], method=Broken("gradients", False, ""))


def test_head_weights_are_one_for_each_task() -> None:
    scene, method = Scene(), Broken("losses", False, "")
    method.head_weights = lambda losses, weights: torch.ones(1)  # type: ignore[method-assign]
    scene.args["method"] = method
    scene.raises(ValueError, "head_weights: Broken must return shape (2,), found (1,)")
