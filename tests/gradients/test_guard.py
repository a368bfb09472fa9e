"""mtl.gradients.guard: slips in an own loop are said, not trained on."""

import warnings

import pytest
import torch

import mtl
from mtl.gradients.guard import PATIENCE
from mtl.gradients.step import Pending, Report
from mtl.methods import METHODS


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


LEARNS = {
    "uw": {},
    "imtl-l": {},
    "gradnorm": {},
    "famo": {},
    "emtl": {"base": "gradnorm"},
    "fair-loss": {"base": "famo", "alpha": 0.5},
}


@pytest.mark.parametrize("name", LEARNS)
@pytest.mark.parametrize("collect", [False, True])
@pytest.mark.parametrize("told", [False, True])
def test_a_method_that_is_never_told_what_its_steps_did_is_said_once(name, collect, told):
    """FAMO without after_step, and learned weights that no optimiser holds, trained on as equal weights."""
    trunk, heads, losses = net()
    method = mtl.method(name, 3, **LEARNS[name])
    how = {"shared": list(trunk.parameters()), "heads": own(heads), "method": method}
    optimizer = torch.optim.SGD([*trunk.parameters(), *(method.parameters() if told else ())], lr=0.01)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for _ in range(2 * PATIENCE):
            optimizer.zero_grad()
            if collect:
                (one := mtl.Accumulator(**how)).add(losses()[1])
                one.step()
            else:
                mtl.backward(losses()[1], **how)
            optimizer.step()
            if told:
                method.after_step(torch.stack(losses()[1]).detach())
    said = [str(one.message) for one in found if "learned nothing" in str(one.message)]
    assert len(said) == (not told)
    if not told:
        assert ("after_step(" in said[0]) == method.wants_after_step
        assert ("method.parameters()" in said[0]) == bool(method.parameters())
        assert found[-1].filename == __file__


@pytest.mark.parametrize("name", sorted(METHODS))
def test_no_other_method_is_said_to_learn_nothing(name):
    trunk, heads, losses = net()
    method = mtl.method(name, 3)
    if method.parameters() or method.wants_after_step or method.wants_validation:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(PATIENCE + 2):
            z, values = losses()
            mtl.backward(values, shared=trunk.parameters(), heads=own(heads), method=method, features=z)


def test_an_overflow_is_no_step_that_taught_nothing():
    trunk, heads, losses = net()
    method = mtl.method("gradnorm", 3)
    how = {"shared": list(trunk.parameters()), "heads": own(heads), "method": method}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2 * PATIENCE):
            step = mtl.backward([1e3 * value for value in losses()[1]], **how, scale=1e38)
            assert step.overflow


@pytest.mark.parametrize("collect", [False, True])
def test_stacked_losses_in_another_order_than_heads_are_refused(collect):
    """Only a list was looked at."""
    trunk, heads, losses = net()
    values = torch.stack(losses()[1][::-1])
    how = {"shared": list(trunk.parameters()), "heads": own(heads), "method": mtl.method("mgda", 3)}
    with pytest.raises(ValueError, match=r"heads\[0\]: must hold parameters that losses\[0\] depends on, found none"):
        mtl.Accumulator(**how).add(values) if collect else mtl.backward(values, **how)


def test_a_shared_parameter_that_no_loss_depends_on_is_said_once():
    trunk, heads, losses = net()
    other = torch.nn.Linear(2, 7)
    method = mtl.method("mgda", 3)
    shared = [*trunk.parameters(), *other.parameters()]
    with pytest.warns(UserWarning, match=r"shared: no loss depends on 2 of its parameters, of shapes \(7, 2\), \(7,\)"):
        mtl.backward(losses()[1], shared=shared, heads=own(heads), method=method)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mtl.backward(losses()[1], shared=shared, heads=own(heads), method=method)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_that_hides_parameters_is_refused(reentrant):
    """Those inside had no gradient, where plain torch trains them."""
    first, second = torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)
    x = torch.randn(8, 4, requires_grad=True)
    z = second(torch.utils.checkpoint.checkpoint(first, x, use_reentrant=reentrant))
    values = [z[:, 0].square().mean(), z[:, 1].square().mean()]
    how = {"shared": [*first.parameters(), *second.parameters()], "method": mtl.method("mgda", 2)}
    if reentrant:
        with pytest.raises(ValueError, match="losses: must show what they depend on, found a checkpoint with use_reen"):
            mtl.backward(values, **how)
    else:
        mtl.backward(values, **how)
        assert first.weight.grad is not None


def test_complex_parameters_and_modules_as_heads_are_named():
    trunk, heads, losses = net()
    with pytest.raises(TypeError, match=r"shared, heads: must hold real parameters, found torch\.complex64"):
        mtl.backward(
            losses()[1], shared=[torch.randn(2, dtype=torch.cfloat, requires_grad=True)], method=mtl.method("ls", 3)
        )
    with pytest.raises(TypeError, match=r"heads\[0\]: must"):
        mtl.backward(losses()[1], shared=trunk.parameters(), heads=heads, method=mtl.method("ls", 3))


def test_an_overflow_reaches_learned_weights_too():
    """A GradScaler asks each optimiser whether its gradients are finite."""
    trunk, heads, losses = net()
    method = mtl.method("gradnorm", 3)
    how = {"shared": list(trunk.parameters()), "heads": own(heads), "method": method}
    assert mtl.backward([1e3 * value for value in losses()[1]], **how, scale=1e38).overflow
    assert method.parameters()[0].grad.isinf().all()


@pytest.mark.parametrize("slip", ["weight", "order", "pending"])
def test_an_accumulator_forgets_its_micro_batches_after_any_error(slip):
    """A weight, or a graph, that was refused left the batches before it, and the next step was made of them."""
    trunk, heads, losses = net()
    acc = mtl.Accumulator(shared=trunk.parameters(), heads=own(heads), method=mtl.method("mgda", 3), check="defer")
    first, second = losses()[1], losses()[1]
    acc.add([first[0], None, None], weight=32)
    with pytest.raises(ValueError, match=r"weight: must be|heads\[1\]: must hold|losses: must be finite"):
        if slip == "weight":
            acc.add(second, weight=-1)
        elif slip == "order":
            acc.add([second[0], second[2], second[1]])
        else:
            Pending.add(acc.method, Report({"losses": torch.tensor([torch.nan])}))
            acc.step()
    with pytest.raises(ValueError, match="losses: must be added before a step, found none"):
        acc.step()


@pytest.mark.parametrize("collect", [False, True])
@pytest.mark.parametrize(
    "kind", [set, tuple, iter, torch.nn.ParameterList, lambda group: dict(enumerate(group)).values()]
)
def test_parameters_may_come_in_any_container(kind, collect):
    """Those that are no sequence were said to get no gradient, and heads in a wrong order among them were taken."""
    trunk, heads, losses = net()

    def how(own_heads):
        return {"shared": kind(list(trunk.parameters())), "heads": own_heads, "method": mtl.method("mgda", 3)}

    def step(own_heads):
        if not collect:
            return mtl.backward(losses()[1], **how(own_heads))
        acc = mtl.Accumulator(**how(own_heads))
        acc.add(losses()[1])
        return acc.step()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step([kind(head) for head in own(heads)])
    assert all(p.grad is not None for module in (trunk, *heads) for p in module.parameters())
    with pytest.raises(ValueError, match=r"heads\[0\]: must hold parameters that losses\[0\] depends on"):
        step([kind(head) for head in own(heads[::-1])])


@pytest.mark.parametrize("name", ["mgda", "fairgrad", "db-mtl"])
@pytest.mark.parametrize("right", [True, False])
def test_heads_in_another_order_than_losses_of_one_vector_are_said(name, right):
    """Its graph is one for all tasks, so that heads in a wrong order got zeros and never trained."""
    trunk, heads, _ = net()
    z, y = torch.tanh(trunk(torch.randn(8, 4))), torch.randn(8, 3)
    losses = (torch.cat([head(z) for head in heads], 1) - y).square().mean(0)
    given = own(heads) if right else own([heads[1], heads[0], heads[2]])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        mtl.backward(losses, shared=list(trunk.parameters()), heads=given, method=mtl.method(name, 3))
    said = [str(one.message) for one in told]
    assert said == ([] if right else [f"heads: those of tasks 0, 1 {IDLE}"])


IDLE = "have no gradient of their task's loss at the first step; heads come in the order of the losses"
