"""SegNet, MTAN and the single-task nets: shapes, initialisation, who owns which parameter."""

import pytest
import torch

from mtl.models.dense import CONVS, MODELS, MTAN, Head, channels, dense_model

OUT, UNIT = (13, 1, 3), (False, False, True)


def build(name, **sizes):
    return dense_model(name, OUT, UNIT, seed=0, **{"width": 4, "depth": 3, **sizes})


def touched(net, task):
    """Names of the parameters that the output of one task depends on, by its gradient."""
    net.zero_grad(set_to_none=True)
    net(torch.rand(4, 3, 20, 28, generator=torch.Generator().manual_seed(1)))[task].square().sum().backward()
    return {name for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("size", [(32, 48), (36, 44), (18, 27)])
def test_outputs_have_the_size_of_the_image_also_where_pooling_leaves_a_row_over(name, size):
    if "unet" in name and size == (18, 27):
        with pytest.raises(ValueError, match=r"image: height and width must be multiples of 4, found \(18, 27\)"):
            build(name)(torch.zeros(2, 3, *size))
        return
    out = build(name)(torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)))
    assert [tuple(y.shape) for y in out] == [(2, n, *size) for n in OUT]
    lengths = out[2].norm(dim=1)
    assert lengths.max() < 1 + 1e-5
    assert lengths.median() > 1 - 1e-5


def test_a_pixel_of_zeros_has_no_direction_and_a_bounded_gradient():
    head = Head(4, 3, unit=True)
    for layer in head.layers:
        torch.nn.init.zeros_(layer.bias)
    out = head(torch.zeros(1, 4, 5, 5))
    assert out.abs().max() == 0
    (1 - out.sum(1)).mean().backward()
    assert all(p.grad.abs().max() < 2e3 for p in head.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_a_parameter_is_shared_exactly_if_two_tasks_depend_on_it(name):
    net = build(name)
    by_task = [touched(net, t) for t in range(3)]
    names = {id(p): n for n, p in net.named_parameters()}
    shared = {names[id(p)] for p in net.shared_parameters()}
    heads = [{names[id(p)] for p in head} for head in net.head_parameters()]
    used = [n for n in names.values() if sum(n in t for t in by_task) > 1]
    assert shared == set(used)
    for t in range(3):
        assert heads[t] == by_task[t] - shared
    assert len(shared) + sum(map(len, heads)) == len(names)


def test_official_split_moves_the_masks_and_changes_nothing_else():
    net, official = build("mtan"), build("mtan", official_split=True)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), official.parameters(), strict=True))
    assert [len(h) for h in official.head_parameters()] == [4, 4, 4]  # two convolutions with biases
    moved = sum(p.numel() for p in official.shared_parameters()) - sum(p.numel() for p in net.shared_parameters())
    masks = [p for b in net.branches for part in (b.encode, b.decode) for p in part.parameters()]
    assert moved == sum(p.numel() for p in masks) > 0


@pytest.mark.parametrize("name", MODELS)
def test_the_same_seed_gives_the_same_net_and_leaves_the_global_generator_alone(name):
    before = torch.get_rng_state()
    a, b, c = (dense_model(name, OUT, UNIT, seed=s, width=4, depth=2) for s in (3, 3, 4))
    assert torch.equal(before, torch.get_rng_state())
    pairs = list(zip(a.parameters(), b.parameters(), strict=True))
    assert all(torch.equal(p, q) for p, q in pairs)
    assert not all(torch.equal(p, q) for p, q in zip(a.parameters(), c.parameters(), strict=True))


def test_full_size_is_the_published_one():
    assert channels(64, 5) == [64, 128, 256, 512, 512]
    with torch.device("meta"):
        net = MTAN(OUT, UNIT)
    convolutions = [m for m in net.trunk.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convolutions) == 2 * sum(CONVS) == 26
    assert round(sum(p.numel() for p in net.parameters()) / 1e6) == 44


def test_features_carry_every_gradient_of_segnet():
    net = build("segnet")
    x = torch.rand(2, 3, 16, 16)
    z = net.features(x)
    assert all(torch.equal(a, b) for a, b in zip(net.outputs(z), net(x), strict=True))
    assert [tuple(t.shape) for t in z] == [(2, 4, 16, 16)]


@pytest.mark.parametrize(
    ("sizes", "words"), [({"width": 0}, "found 0 and 3"), ({"depth": 6}, r"in 2\.\.5, found 4 and 6")]
)
def test_bad_sizes_are_refused(sizes, words):
    with pytest.raises(ValueError, match=words):
        build("segnet", **sizes)


def test_an_unknown_model_is_refused_with_the_valid_ones():
    with pytest.raises(ValueError, match=r"model must be one of mtan, segnet, .*, found 'resnet'"):
        build("resnet")


def test_the_unet_is_that_of_the_pilot():
    """LS 384,097 parameters, STL 365,009 (depth) + 365,075 (normals) + 365,405 (segmentation)."""
    count = lambda net: sum(p.numel() for p in net.parameters())  # noqa: E731
    sizes = {"width": 32, "depth": 3, "start": (0.0, 2.7, 0.0)}
    net, alone = build("unet", **sizes), build("single-task-unet", **sizes)
    assert count(net) == 384_097
    assert [count(one) for one in alone.nets] == [365_405, 365_009, 365_075]
    assert 3.9 < count(build("unet", width=64, depth=3)) / count(net) < 4
    assert [one.heads[0][-1].bias.mean().item() for one in alone.nets] == pytest.approx([0, 2.7, 0])
    assert [head[-1].bias.mean().item() for head in net.heads] == pytest.approx([0, 2.7, 0])


def test_the_unet_is_coarser_in_training_alone():
    net, image = build("unet", stride=2), torch.rand(2, 3, 32, 48)
    assert [y.shape[-2:] for y in net(image)] == [(16, 24)] * 3
    assert [y.shape[-2:] for y in net.eval()(image)] == [(32, 48)] * 3
