"""Models: who owns which parameter, what is computed, and that building one leaves the global stream alone."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mtl.gradients import backward
from mtl.methods import method
from mtl.models import PLE, MMoE, TabularInput, lenet, lenet_single_task, mlp, mlp_single_task, seeded
from mtl.models.recsys import dcn, shared_bottom, single_task

VOCABULARY, NUMBERS = [3, 5, 2], 2
SIZES = {"embedding": 4, "width": 6, "hidden": 5, "seed": 0}
TABLE = {
    "mmoe": lambda seed=0, tasks=3: MMoE(VOCABULARY, NUMBERS, tasks, **{**SIZES, "seed": seed}),
    "ple": lambda seed=0, tasks=3: PLE(VOCABULARY, NUMBERS, tasks, **{**SIZES, "seed": seed}),
    "ple-2": lambda seed=0, tasks=3: PLE(VOCABULARY, NUMBERS, tasks, levels=2, **{**SIZES, "seed": seed}),
    "ple-3": lambda seed=0, tasks=3: PLE(VOCABULARY, NUMBERS, tasks, levels=3, **{**SIZES, "seed": seed}),
    "shared-bottom": lambda seed=0, tasks=3: shared_bottom(VOCABULARY, NUMBERS, tasks, **{**SIZES, "seed": seed}),
    "single-task": lambda seed=0, tasks=3: single_task(VOCABULARY, NUMBERS, tasks, **{**SIZES, "seed": seed}),
    "dcn": lambda seed=0, tasks=3: dcn(VOCABULARY, NUMBERS, tasks, **{**SIZES, "seed": seed}),
    "mlp": lambda seed=0, tasks=3: mlp(7, tasks, width=6, hidden=5, seed=seed),
    "mlp-single": lambda seed=0, tasks=3: mlp_single_task(7, tasks, width=6, hidden=5, seed=seed),
    "lenet": lambda seed=0, tasks=2: lenet(tasks, width=6, channels=2, hidden=5, seed=seed),
    "lenet-single": lambda seed=0, tasks=2: lenet_single_task(tasks, width=6, channels=2, hidden=5, seed=seed),
}


def inputs(name: str, rows: int = 9) -> tuple[torch.Tensor, ...]:
    draw = torch.Generator().manual_seed(1)
    if name.startswith("mlp"):
        return (torch.randn(rows, 7, generator=draw),)
    if name.startswith("lenet"):
        return (torch.rand(rows, 1, 36, 36, generator=draw),)
    ids = torch.stack([torch.randint(v, (rows,), generator=draw) for v in VOCABULARY], 1).int()
    return ids, torch.randn(rows, NUMBERS, generator=draw)


@pytest.mark.parametrize("name", TABLE)
def test_every_parameter_has_one_owner_and_heads_serve_one_task(name):
    model = TABLE[name]()
    owners = [model.shared_parameters(), *model.head_parameters()]
    ids = [id(p) for owner in owners for p in owner]
    assert len(ids) == len(set(ids)) and set(ids) == {id(p) for p in model.parameters()}
    losses = [out.square().mean() for out in model(*inputs(name))]
    for (s, loss), (t, head) in itertools.product(enumerate(losses), enumerate(model.head_parameters())):
        grads = torch.autograd.grad(loss, head, retain_graph=True, allow_unused=True)
        reached = [g is not None and bool((g != 0).any()) for g in grads]
        assert any(reached) if s == t else not any(reached)


@pytest.mark.parametrize("name", [n for n in TABLE if "single" not in n])
def test_every_task_reaches_the_shared_parameters_through_the_features_alone(name):
    model = TABLE[name]()
    features = model.features(*inputs(name))
    cut = tuple(f.detach().requires_grad_() for f in features)
    for t, (whole, loss) in enumerate(zip(model.outputs(features), model.outputs(cut), strict=True)):
        shared = model.shared_parameters()
        direct = torch.autograd.grad(whole.square().sum(), shared, retain_graph=True, allow_unused=True)
        into = torch.autograd.grad(loss.square().sum(), cut, allow_unused=True)
        used = [(f, g) for f, g in zip(features, into, strict=True) if g is not None and f.requires_grad]
        through = torch.autograd.grad(
            [f for f, _ in used], shared, [g for _, g in used], retain_graph=True, allow_unused=True
        )
        for a, b in zip(direct, through, strict=True):
            assert (a is None and b is None) or torch.allclose(a, b, atol=1e-6), t
        assert sum(g is not None for g in direct) >= 2


@pytest.mark.parametrize("name", TABLE)
def test_seed_decides_the_weights_and_the_global_stream_is_left_alone(name):
    before = torch.get_rng_state()
    a, b, c = TABLE[name](seed=3), TABLE[name](seed=3), TABLE[name](seed=4)
    assert torch.equal(before, torch.get_rng_state())
    pairs = list(zip(a.parameters(), b.parameters(), strict=True))
    assert all(torch.equal(x, y) for x, y in pairs)
    assert not all(torch.equal(x, y) for x, y in zip(a.parameters(), c.parameters(), strict=True))


@pytest.mark.parametrize("name", TABLE)
def test_outputs_do_not_depend_on_the_other_rows(name):
    model, batch = TABLE[name](), inputs(name)
    for whole, part in zip(model(*batch), model(*(x[:4] for x in batch)), strict=True):
        assert torch.allclose(whole[:4], part, atol=1e-6)
    assert model(*batch)[0].shape == ((9, 10) if name.startswith("lenet") else (9,))


def test_tabular_input_is_one_table_lookup_per_field():
    layer = TabularInput(VOCABULARY, NUMBERS, embedding=4)
    ids, numbers = inputs("mmoe")
    tables = layer.table.weight.split(VOCABULARY)
    oracle = torch.cat([*(t[ids[:, f].long()] for f, t in enumerate(tables)), numbers], 1)
    assert torch.equal(layer(ids, numbers), oracle) and layer.width == 14


def refold(model: nn.Module, limit: int) -> nn.Module:
    """The same model, another share of its fields folded."""
    for net in model.modules():
        for name, layer in list(net.named_children()):
            if isinstance(layer, TabularInput):
                fresh = TabularInput(layer.vocabulary, NUMBERS, layer.table.embedding_dim, fold=limit)
                fresh.load_state_dict(layer.state_dict())
                setattr(net, name, fresh.to(layer.table.weight.dtype))
    return model


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("limit", [3, 5])
@pytest.mark.parametrize("name", ["mmoe", "ple", "ple-2", "shared-bottom", "single-task", "dcn"])
def test_folding_changes_neither_the_function_nor_any_gradient(name, limit, dtype, tolerance):
    """`limit` 3 folds two of three fields, 5 all; looking all up is the oracle, as is the plain layer (below)."""
    ids, numbers = inputs(name, rows=50)
    grads = {}
    for fold in (0, limit):
        model = refold(TABLE[name]().to(dtype), fold)
        losses = [(out - 0.3).square().mean() for out in model(ids, numbers.to(dtype))]
        parameters = [p for _, p in sorted(model.named_parameters())]
        grads[fold] = [
            torch.stack(losses),
            *(
                torch.zeros_like(p) if g is None else g
                for loss in losses
                for p, g in zip(
                    parameters, torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True), strict=True
                )
            ),
        ]
    assert all(torch.allclose(a, b, rtol=tolerance, atol=tolerance) for a, b in zip(*grads.values(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("limit", [0, 2, 3, 5])
def test_a_linear_map_of_the_code_is_the_layer_on_the_plain_rows(limit, dtype):
    layer = TabularInput(VOCABULARY, NUMBERS, embedding=4, fold=limit).to(dtype)
    ids, numbers = inputs("mmoe")
    head, numbers = nn.Linear(layer.width, 3, dtype=dtype), numbers.to(dtype)
    own = layer.linear(layer.encode(ids, numbers), head)
    assert torch.allclose(own, head(layer(ids, numbers)), atol=1e-6 if dtype == torch.float32 else 1e-14)
    assert sum(layer.folded) == sum(size <= limit for size in VOCABULARY)


@pytest.mark.parametrize("vjp", ["loop", "batched"])
@pytest.mark.parametrize("name", ["mmoe", "ple"])
def test_task_gradients_of_a_folded_model_are_those_of_the_plain_one(name, vjp):
    ids, numbers = inputs(name, rows=50)
    found = []
    for fold in (0, 5):
        model = refold(TABLE[name]().double(), fold)
        features = model.features(ids, numbers.double())
        losses = [(out - 0.3).square().mean() for out in model.outputs(features)]
        step = backward(
            losses, shared=model.shared_parameters(), heads=model.head_parameters(), features=features,
            method=method("mgda", 3), vjp=vjp,
        )  # fmt: skip
        found.append([step.gram, step.weights, *(p.grad for _, p in sorted(model.named_parameters()))])
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-12) for a, b in zip(*found, strict=True))


def test_folding_makes_the_first_layer_cheaper():
    """Work counted, not time: a row of 8 fields costs 8 x 64 columns looked up, 8 x 4 folded."""
    from torch.utils.flop_counter import FlopCounterMode

    counts = []
    for fold in (0, 4):
        layer = TabularInput([4] * 8, 2, embedding=64, fold=fold)
        head, ids = nn.Linear(layer.width, 128), torch.zeros(512, 8, dtype=torch.int32)
        with FlopCounterMode(display=False) as counter:
            layer.linear(layer.encode(ids, torch.zeros(512, 2)), head).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[1] < counts[0] / 5


def test_dcn_is_the_papers_formula():
    model, batch = TABLE["dcn"](), inputs("mmoe")
    x = start = model.trunk.input(*batch)
    for layer, bias in zip(model.trunk.cross, model.trunk.biases, strict=True):
        x = start * (x @ layer.weight.T) + bias + x
    deep = F.relu(model.trunk.second(F.relu(model.trunk.first(start))))
    for head, out in zip(model.heads, model(*batch), strict=True):
        assert torch.allclose(head(torch.cat([x, deep], 1))[:, 0], out, atol=1e-6)


def dense(x, layer, unit=None):
    rows = slice(None) if unit is None else slice(unit * 6, unit * 6 + 6)
    return F.relu(x @ layer.weight[rows].T + layer.bias[rows])


def test_mmoe_is_the_papers_formula():
    model, batch = TABLE["mmoe"](), inputs("mmoe")
    x = model.input(*batch)
    for t, out in enumerate(model(*batch)):
        gate = torch.softmax(model.gates[t](x), 1)
        mixed = sum(gate[:, e : e + 1] * dense(x, model.experts.layer, e) for e in range(8))
        assert torch.allclose(out, model.towers[t](mixed)[:, 0], atol=1e-6)


def test_ple_of_two_levels_is_the_papers_formula():
    model, batch = TABLE["ple-2"](), inputs("ple")
    x = model.input(*batch)
    streams, common = [x, x, x], x
    for level in range(2):
        own = [[dense(h, model.own[level][t].layer, e) for e in range(4)] for t, h in enumerate(streams)]
        both = [dense(common, model.shared[level].layer, e) for e in range(4)]
        weigh = lambda gate, parts: sum(w[:, None] * p for w, p in zip(gate.softmax(1).T, parts, strict=True))  # noqa: E731
        after = [weigh(model.gates[level][t](h), own[t] + both) for t, h in enumerate(streams)]
        if level == 0:
            common = weigh(model.up[0](common), [e for task in own for e in task] + both)
        streams = after
    for t, out in enumerate(model(*batch)):
        assert torch.allclose(out, model.towers[t](streams[t])[:, 0], atol=1e-6)


def test_ple_needs_a_level():
    with pytest.raises(ValueError, match="levels must be at least 1, found 0"):
        PLE(VOCABULARY, NUMBERS, 2, levels=0, **SIZES)


def test_seeded_restores_the_stream_after_an_error():
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="stop"), seeded(1):
        nn.Linear(3, 3)
        raise RuntimeError("stop")
    assert torch.equal(before, torch.get_rng_state())
