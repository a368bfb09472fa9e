"""mtl.gradients.guard: slips in an own loop are said, not trained on."""

import warnings

import pytest
import torch

import mtl


def net(tasks=3):
    torch.manual_seed(0)
    trunk, heads = torch.nn.Linear(4, 5), [torch.nn.Linear(5, 1) for _ in range(tasks)]
    x, y = torch.randn(8, 4), torch.randn(8, tasks)

    def losses():
        z = torch.tanh(trunk(x))
        return z, [(head(z).squeeze(1) - y[:, t]).square().mean() for t, head in enumerate(heads)]

    return trunk, heads, losses


def own(heads):
    return [list(head.parameters()) for head in heads]


@pytest.mark.parametrize("name", ["ls", "mgda", "fairgrad", "emtl", "adatask", "mgda-ub"])
@pytest.mark.parametrize("collect", [False, True])
def test_heads_in_another_order_than_losses_are_refused(name, collect):
    """They were taken for parameters that no task depends on, and never trained."""
    trunk, heads, losses = net()
    z, values = losses()
    how = {"shared": list(trunk.parameters()), "heads": own(heads[::-1]), "method": mtl.method(name, 3)}
    with pytest.raises(ValueError, match=r"heads\[0\]: must hold parameters that losses\[0\] depends on, found none"):
        if collect:
            mtl.Accumulator(**how).add(values, features=z)
        else:
            mtl.backward(values, features=z, **how)
    assert all(p.grad is None for p in trunk.parameters())


def test_a_right_order_frozen_heads_and_no_heads_are_taken():
    trunk, heads, losses = net()
    for p in heads[1].parameters():
        p.requires_grad_(False)
    for given in (own(heads), [[], [], own(heads)[2]], None):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mtl.backward(losses()[1], shared=trunk.parameters(), heads=given, method=mtl.method("mgda", 3))
    assert trunk.weight.grad is not None and heads[2].weight.grad is not None


def test_features_of_another_forward_pass_are_refused():
    """MGDA-UB saw gradients of zero for them, and answered with equal weights."""
    trunk, heads, losses = net()
    z, values = losses()
    method = mtl.method("mgda-ub", 3)
    how = {"shared": list(trunk.parameters()), "heads": own(heads), "method": method}
    with pytest.raises(ValueError, match="features: the losses must depend on them, found that none does"):
        mtl.backward(values, features=losses()[0], **how)
    assert mtl.backward(values, features=z, **how).gram.any(), "the same method goes on with the right ones"


def test_each_task_is_looked_at_when_it_comes_and_the_warning_is_of_the_users_line():
    trunk, heads, losses = net()
    method = mtl.method("mgda", 3)
    how = {"shared": list(trunk.parameters()), "heads": [*own(heads)[:2], []], "method": method}
    values = losses()[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mtl.backward([*values[:2], None], **how)
    with pytest.warns(UserWarning, match="heads: 2 parameters .* get no gradient, of shapes") as found:
        mtl.backward(losses()[1], **how)
    assert [one.filename for one in found] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mtl.backward(losses()[1], **how)


def test_a_refused_first_step_leaves_a_method_fresh():
    trunk, _, losses = net()
    method = mtl.method("dwa", 3)
    with pytest.raises(ValueError, match="vjp: must be"):
        mtl.backward(losses()[1], shared=trunk.parameters(), method=method, vjp="x")
    from mtl.gradients.layers import USED

    assert method not in USED


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"check": "defer", "scale": 8.0}, 'check: must be "raise" with a loss scale'),
        ({"check": "x"}, "check: must be one of raise, defer, found 'x'"),
        ({"vjp": "x"}, "vjp: must be one of auto, loop, batched, found 'x'"),
    ],
)
def test_an_accumulator_refuses_what_backward_refuses(how, said):
    with pytest.raises(ValueError, match=said):
        mtl.Accumulator(shared=[torch.ones(2, requires_grad=True)], method=mtl.method("mgda", 2), **how)
