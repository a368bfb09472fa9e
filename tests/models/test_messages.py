"""The net of messages: what must not matter does not, heads are their own, the trunk is everybody's."""

import numpy as np
import pytest
import torch

from mtl.models.messages import CENTRES, FAR, NEAR, edges, messages, messages_single_task
from mtl.problems.molecules import generate
from mtl.problems.qm9_graphs import padded

SIZES = {"width": 8, "hidden": 12, "seed": 0}


@pytest.fixture(scope="module")
def net():
    pytest.importorskip("torch_geometric", reason="needs the extra [molecules]: pip install '.[molecules]'")
    return messages(3, **SIZES).double()


@pytest.fixture
def batch():
    kind, pos = padded(generate(6), np.arange(6))
    return kind, pos.double()


def outputs(net, kind, pos):
    return torch.stack(net(kind, pos))


def test_an_edge_s_feature_is_one_at_its_centre_and_half_way_to_the_next_in_between():
    centres = np.geomspace(NEAR, FAR, CENTRES)
    for r, found in ((centres[4], {4: 1.0, 5: np.exp(-1)}), (np.sqrt(centres[4] * centres[5]), {4: 0.7788, 5: 0.7788})):
        pos = torch.tensor([[[0.0, 0, 0], [0, r, 0]]], dtype=torch.float64)
        _, features, _ = edges(torch.zeros(1, 2, dtype=torch.int8), pos)
        assert features.shape == (2, CENTRES) and torch.equal(features[0], features[1])
        assert [features[0, k].item() for k in found] == pytest.approx(list(found.values()), abs=1e-4)


def test_no_edge_leaves_its_molecule_and_every_pair_has_both(batch):
    ends, _, rows = edges(*batch)
    sizes = (batch[0] >= 0).sum(1)
    assert torch.equal(rows, torch.repeat_interleave(torch.arange(6), sizes))
    assert torch.equal(rows[ends[0]], rows[ends[1]]) and ends.shape[1] == (sizes * (sizes - 1)).sum()
    assert len(set(map(tuple, ends.T.tolist()))) == ends.shape[1] and not (ends[0] == ends[1]).any()


def test_order_of_atoms_and_padding_change_nothing(net, batch):
    kind, pos = batch
    first = outputs(net, kind, pos)
    order = torch.randperm(kind.shape[1], generator=torch.Generator().manual_seed(0))
    assert not torch.equal(kind, kind[:, order])
    assert torch.allclose(outputs(net, kind[:, order], pos[:, order]), first, atol=1e-12)
    wider = torch.cat([torch.full((6, 5), -1, dtype=torch.int8), kind], 1), torch.cat([pos.new_ones(6, 5, 3), pos], 1)
    assert torch.allclose(outputs(net, *wider), first, atol=1e-12)
    alone = [outputs(net, kind[i : i + 1], pos[i : i + 1]) for i in range(6)]
    assert torch.allclose(torch.cat(alone, 1), first, atol=1e-12), "no molecule sees another"


def test_neither_direction_nor_place_change_anything_but_a_bond_s_length_and_an_element_do(net, batch):
    kind, pos = batch
    first = outputs(net, kind, pos)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).double())[0]
    moved = pos @ turn + torch.tensor([3.0, -2.0, 5.0]).double()
    assert torch.allclose(outputs(net, kind, moved), first, atol=1e-10)
    for other in (outputs(net, kind, 1.1 * pos), outputs(net, torch.where(kind == 1, 2, kind), pos)):
        assert ((other - first).abs() > 1e-7).all()


def test_each_head_has_its_own_gradient_and_all_have_the_trunk_s(net, batch):
    own, shared = net.head_parameters(), net.shared_parameters()
    assert sum(len(head) for head in own) + len(shared) == len(list(net.parameters())) and len(own) == 3
    every = [*shared, *(p for head in own for p in head)]
    for task, output in enumerate(net(*batch)):
        grads = torch.autograd.grad(output.sum(), every, retain_graph=True, allow_unused=True)
        assert all(g is not None and g.abs().max() > 0 for g in grads[: len(shared)])
        rest = grads[len(shared) :]
        assert [g is not None for g in rest] == [t == task for t, head in enumerate(own) for _ in head]


def test_the_full_net_has_the_published_parts_and_stl_shares_none(net):
    full = messages(11, width=64, hidden=128, seed=0).trunk
    assert full.conv.nn[-1].out_features == 64 * 64 and not hasattr(full.conv, "lin") and full.conv.aggr == "mean"
    assert full.pool.processing_steps == 3 and full.gru.input_size == full.gru.hidden_size == 64
    single = messages_single_task(3, **SIZES)
    assert not single.shared_parameters() and len(single.head_parameters()) == 3
