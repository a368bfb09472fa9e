"""NYUv2: three layouts, one cache, official split, augmentation, losses; and all that can be wrong on disk."""

import shutil
import struct
import sys
import zipfile
import zlib

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mtl.errors import DataError
from mtl.problems import MissingDataError, problem
from mtl.problems.data import raw
from mtl.problems.scenes.base import SCALES, crop
from mtl.problems.scenes.files import split_rows
from mtl.problems.scenes.nyuv2 import NYUv2
from mtl.problems.scenes.nyuv2_files import CLASSES, MAT, Packed
from tests.miniature import folders, packed, rendered
from tests.problems.damage import kept, spoil


@pytest.fixture
def data(tmp_path, monkeypatch):
    """An empty nyuv2 folder, a cache folder, and no other place to look at."""
    monkeypatch.setenv("MTL_ROOT", str(tmp_path / "project"))
    monkeypatch.setenv("MTL_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("MTL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "data" / "nyuv2"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A packed miniature of 10 + 6 images."""
    return packed(tmp_path_factory.mktemp("packed"))


def small(**options):
    return NYUv2("smoke", **{"images": "6+2+4", "partial": True, **options})


def cached():
    return [path.name for path in kept(raw.cache_folder())]


def test_official_split_holds_out_blocks_of_training_images():
    rows = split_rows(795, 654, None)
    assert {name: len(index) for name, index in rows.items()} == {"train": 715, "validation": 80, "test": 654}
    assert sorted(np.concatenate(list(rows.values()))) == list(range(1449))
    assert rows["test"].min() == 795
    assert (np.diff(rows["validation"].reshape(10, 8)) == 1).all()
    few, again = split_rows(795, 654, (120, 40, 120)), split_rows(795, 654, (120, 40, 120))
    assert all(set(few[name]) <= set(rows[name]) and (few[name] == again[name]).all() for name in rows)
    with pytest.raises(ValueError, match="images: at most 80 for validation, found 81"):
        split_rows(795, 654, (1, 81, 1))


def test_packed_archive_gives_what_was_rendered(data, whole):
    data.mkdir(parents=True)
    (data / whole.name).symlink_to(whole)
    problem = small()
    image, label, depth, _ = rendered(16)
    index = np.concatenate([Packed(whole).parts[s] for s in ("train", "test")])
    rows = split_rows(10, 6, (6, 2, 4))["train"]
    got = problem.data("train")
    i = index[rows]
    assert (got[0].movedim(1, -1).numpy().astype(int) - image[i]).std() < 12  # JPEG
    assert (got[1].numpy() == np.where(label[i] == 6, 255, label[i])).all()
    assert np.abs(got[2].numpy() - depth[i]).max() < 0.5 / 25.5 + 0.005
    assert "Normals: derived from depth; not comparable" in problem.describe()
    assert not problem.synthetic and not problem.embedded_default


def test_smaller_resolution_is_resampled_and_normals_fit_the_rendered_ones(data, whole):
    data.mkdir(parents=True)
    (data / whole.name).symlink_to(whole)
    problem = small(resolution="48x64")
    _, _, _, normal = rendered(16)
    index = np.concatenate([Packed(whole).parts[s] for s in ("train", "test")])
    truth = torch.tensor(normal[index[split_rows(10, 6, (6, 2, 4))["train"]]]).movedim(-1, 1)[:, :, ::2, ::2]
    found = F.normalize(problem.data("train")[3].float(), dim=1)
    assert found.shape == truth.shape
    assert torch.rad2deg((found * truth).sum(1).clamp(-1, 1).acos()).median() < 6


def test_fingerprint_tells_data_rows_and_resolution_apart(data, whole):
    data.mkdir(parents=True)
    (data / whole.name).symlink_to(whole)
    prints = {small().fingerprint, small(resolution="48x64").fingerprint, small(images="5+2+4").fingerprint}
    assert len(prints) == 3
    assert small().fingerprint in prints


def test_whole_set_is_cached_once_and_a_damaged_cache_is_made_again(data, whole, monkeypatch):
    data.mkdir(parents=True)
    (data / whole.name).symlink_to(whole)
    first = small()
    assert len(cached()) == 1
    path = raw.cache_folder() / cached()[0]
    monkeypatch.setattr(Packed, "sample", lambda *_: pytest.fail("decoded again"))
    assert all(torch.equal(a, b) for a, b in zip(small().data("test"), first.data("test"), strict=True))
    monkeypatch.undo()
    monkeypatch.setenv("MTL_DATA", str(data.parent))
    monkeypatch.setenv("MTL_CACHE", str(path.parent))
    content = path.read_bytes()
    for damage in ("cut", "flipped"):
        spoil(path, damage)
        assert all(torch.equal(a, b) for a, b in zip(small().data("test"), first.data("test"), strict=True))
        assert path.read_bytes() == content


def test_folders_keep_the_normals_that_are_given(data):
    folders(data)
    problem = NYUv2("smoke", images="3+1+2", partial=True)
    _, _, _, normal = rendered(10)
    rows = split_rows(6, 4, (3, 1, 2))["train"]
    found = F.normalize(problem.data("train")[3].float(), dim=1).movedim(1, -1).numpy()
    assert np.abs(found - normal[rows]).max() < 0.01
    assert "Normals: given." in problem.describe()


def test_folders_without_normals_derive_them(data):
    folders(data, kinds=("image", "label", "depth"))
    assert "derived" in NYUv2("smoke", images="3+1+2", partial=True).describe()


def official(folder, h5py, savemat):
    """The official layout: HDF5 in MATLAB's order, 1-based splits, two class maps."""
    folder.mkdir(parents=True)
    image, label, depth, _ = rendered(6, (120, 160))
    big = [np.kron(a, np.ones((4, 4, 1) if a.ndim == 3 else (4, 4), a.dtype)) for i in range(6) for a in (image[i],)]
    with h5py.File(folder / MAT[0], "w") as file:
        file["images"] = np.stack(big).transpose(0, 3, 2, 1)
        file["labels"] = np.kron(label + 1, np.ones((1, 4, 4), int)).transpose(0, 2, 1).astype(np.uint16)
        file["depths"] = np.kron(depth, np.ones((1, 4, 4), np.float32)).transpose(0, 2, 1)
    savemat(folder / MAT[1], {"trainNdxs": np.array([[1], [3], [4], [6]]), "testNdxs": np.array([[2], [5]])})
    savemat(folder / MAT[2], {"mapClass": np.arange(1, 14)[None]})
    inner = np.empty((1, 1), object)
    inner[0, 0] = (np.arange(1, 14)[None],)
    savemat(folder / MAT[3], {"classMapping13": {"labels13": np.arange(1, 14)[None]}})


def test_official_mat_is_read_upright(data):
    h5py = pytest.importorskip("h5py")
    savemat = pytest.importorskip("scipy.io").savemat
    official(data, h5py, savemat)
    problem = NYUv2("smoke", images="2+1+2", partial=True)
    image, label, depth, _ = rendered(6, (120, 160))
    got = problem.data("test")
    expected = F.interpolate(torch.tensor(depth[[1, 4]])[:, None], (480, 640))[:, :, 6:-6, 8:-8]
    assert (F.interpolate(expected, (96, 128), mode="area")[:, 0] - got[2].float()).abs().median() < 0.01
    assert (torch.tensor(label[[1, 4]])[:, 2:-2:5, 2:-2:5].shape[0], got[1].unique().max() < 13) == (2, True)
    assert image.shape[0] == 6


def test_official_mat_names_what_is_missing(data, monkeypatch):
    data.mkdir(parents=True)
    (data / MAT[0]).write_bytes(b"x")
    with pytest.raises(DataError, match=r"found no splits.mat, classMapping40.mat, class13Mapping.mat beside"):
        small()
    for name in MAT[1:]:
        (data / name).write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(DataError, match="reading it needs h5py, which is not installed"):
        small()


def spoiler(kind, index, change):
    return lambda k, i, array: change(array) if (k, i) == (kind, index) else array


def bomb(side):
    """A PNG whose head promises side x side pixels."""
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0), b"IDAT" + zlib.compress(bytes(99))]
    sizes = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(sizes)


def set_to(value):
    def change(array):
        array = array.copy()
        array[3, 4] = value
        return array

    return change


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("rgb_jpeg", lambda _: b"\xff\xd8 no picture", "image 7: rgb_jpeg cannot be decoded"),
        ("label_png", set_to(13), "image 7: labels must be 0..12 or 255 .void., found 13"),
        ("label_png", lambda a: a[:-1], r"image 7: label_png .*must be L of \(128, 96\), found L of \(128, 95\)"),
        ("depth_png", lambda a: a[:, :5], r"image 7: depth_png .*must be L of \(128, 96\), found L of \(5, 96\)"),
        ("depth_png", lambda a: np.stack([a] * 3, -1), r"image 7: depth_png .*must be L .*, found RGB of"),
        ("label_png", lambda a: np.stack([a] * 4, -1), r"image 7: label_png .*must be L .*, found RGBA of"),
        ("label_png", lambda _: bomb(60_000), r"image 7: label_png .*decompression bomb"),
        ("label_png", lambda _: bomb(9_000), r"image 7: label_png .*must be L .*, found L of \(9000, 9000\)"),
    ],
)
def test_a_bad_image_is_named_and_nothing_is_cached(data, kind, change, words):
    packed(data, spoil=spoiler(kind, 7, change))
    with pytest.raises(DataError, match=words):
        small()
    assert cached() == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda parts: parts | {"depth_png_offsets": parts["depth_png_offsets"][:-1]}, "depth_png_offsets must rise"),
        (lambda parts: parts | {"train": parts["train"].astype(float)}, "train must be of kind iu and 1 dim.*float64"),
        (lambda parts: parts | {"label_png_offsets": parts["label_png_offsets"][:0]}, "label_png_offsets must rise"),
        (lambda parts: parts | {"rgb_jpeg": np.array([{}])}, "must be a whole .npz archive, found a damaged one"),
        (lambda parts: parts | {"bomb": np.zeros(2**28, np.uint8)}, r"found one of \d+ bytes that unpacks to \d+"),
    ],
)
def test_odd_parts_of_an_archive_are_named(data, whole, change, words):
    data.mkdir(parents=True)
    with np.load(whole) as archive:
        np.savez_compressed(data / whole.name, **change(dict(archive)))
    with pytest.raises(DataError, match=f"nyuv2_96x128.npz: .*{words}"):
        small()


def test_a_member_that_is_there_twice_and_an_odd_name_are_refused(data, whole):
    data.mkdir(parents=True)
    shutil.copy(whole, data)
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(data / whole.name, "a") as archive:
        archive.writestr("train.npy", archive.read("test.npy"))
    with pytest.raises(DataError, match=r"nyuv2_96x128.npz: must be a whole .npz archive, found train twice"):
        small()
    (data / whole.name).rename(data / "nyuv2_axb.npz")
    with pytest.raises(DataError, match=r"nyuv2_axb.npz: must be named nyuv2_HEIGHTxWIDTH.npz"):
        small()


def test_a_truncated_archive_is_named(data, whole):
    data.mkdir(parents=True)
    (data / whole.name).write_bytes(whole.read_bytes()[:20000])
    with pytest.raises(DataError, match=r"nyuv2_96x128.npz: must be a whole .npz archive"):
        small()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("depth", np.nan, "train/depth/0.npy and its companions: depth must be finite and not negative .*, found nan"),
        ("depth", -1.0, "depth must be finite and not negative .*, found -1.0"),
        ("label", 13, "train/label/0.npy: labels must be 0..12, or -1 or 255 .void., found 13"),
        ("image", 2.0, r"train/image/0.npy: values must be in \[0, 1\]"),
        ("normal", np.inf, "normals must be finite, found"),
    ],
)
def test_bad_values_in_folders_are_named(data, name, value, words):
    folders(data)
    path = data / "train" / name / "0.npy"
    array = np.load(path)
    array[2, 3] = value
    np.save(path, array)
    with pytest.raises(DataError, match=words):
        NYUv2("smoke", images="5+1+4", partial=True)
    assert cached() == []


def test_half_copied_folders_are_refused(data):
    folders(data)
    (data / "val" / "depth" / "2.npy").unlink()
    with pytest.raises(DataError, match=r"val/depth/2.npy: missing, found 3 of 4 files; copy the folder again"):
        small()


@pytest.mark.parametrize("left", ["val/image/0.npy", "splits.mat"])
def test_half_a_copy_is_not_passed_over(data, left):
    """A stand-in was taken where `train/image` or the large file had not been copied yet."""
    (data / left).parent.mkdir(parents=True)
    (data / left).write_bytes(b"x")
    with pytest.raises(DataError, match=r"found no|missing") as caught:
        problem("nyuv2", "smoke", fallback="rooms")
    assert not isinstance(caught.value, MissingDataError)


def test_fewer_images_than_the_official_split_are_refused_unless_allowed(data):
    folders(data)
    with pytest.raises(DataError, match=r"must hold 795 training and 654 test images, found 6 and 4.*partial=True"):
        NYUv2("smoke", images="3+1+2")


def test_missing_data_say_where_to_put_them(data):
    data.parent.mkdir()
    with pytest.raises(MissingDataError, match=r"nyuv2: found .* in none of \$MTL_DATA/nyuv2, data/raw/nyuv2"):
        small()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"resolution": "96"}, "resolution must be like '144x192', each at least 32, found '96'"),
        ({"resolution": (16, 16)}, "each at least 32"),
        ({"images": "1+2"}, r"images must be like '120\+40\+120'"),
    ],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        small(**options)


def tensors(n=4, h=36, w=48):
    draw = torch.Generator().manual_seed(0)
    normal = F.normalize(torch.randn(n, 3, h, w, generator=draw), dim=1)
    image = torch.randint(256, (n, 3, h, w), generator=draw).to(torch.uint8)
    label = torch.randint(13, (n, h, w), generator=draw).to(torch.uint8)
    return image, label, torch.rand(n, h, w, generator=draw).half() + 1, (normal * 127).round().to(torch.int8)


@pytest.mark.parametrize("up_down", SCALES)
@pytest.mark.parametrize("flip", [0, 1])
def test_crop_is_cut_resize_and_flip(up_down, flip):
    image, label, depth, normal = tensors()
    up, down = up_down
    h, w = 36 * up // down, 48 * up // down
    top, left = 36 - h, (48 - w) // 2
    box = torch.tensor([[h, w, top, left, flip, down, up]])
    got = crop((image, label, depth, normal), torch.tensor([2]), box)
    part = (slice(2, 3), ..., slice(top, top + h), slice(left, left + w))
    smooth = torch.cat([image[part].float() / 255, normal[part].float()], 1)
    smooth = F.interpolate(smooth, (36, 48), mode="bilinear", align_corners=True)
    rows, columns = (torch.arange(n) * m // n for n, m in ((36, h), (48, w)))
    near = [t[part][:, rows][:, :, columns] for t in (label, depth)]
    if flip:
        smooth, near = smooth.flip(3), [t.flip(2) for t in near]
        smooth[:, 3] *= -1
    assert (got[0] - smooth[:, :3]).abs().max() < 1e-4
    assert (got[3] - smooth[:, 3:]).abs().max() < 0.01
    assert torch.equal(got[1], near[0])
    assert torch.allclose(got[2], near[1].float() * up / down)


def test_training_batches_are_drawn_from_the_seed_alone(data, whole):
    data.mkdir(parents=True)
    (data / whole.name).symlink_to(whole)
    problem = small()
    before = torch.get_rng_state()
    a, b, c = (list(problem.batches("train", seed, 4)) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert [len(batch[0]) for batch in a] == [4, 2]
    assert all(torch.equal(s, t) for x, y in zip(a, b, strict=True) for s, t in zip(x, y, strict=True))
    assert not torch.equal(a[0][0], c[0][0])
    plain = next(iter(small(augment=False).batches("validation", 0, 2)))
    assert [t.dtype for t in plain] == [torch.float32, torch.int64, torch.float32, torch.float32]
    assert plain[0].max() <= 1
    lengths = plain[3].norm(dim=1)
    assert (((lengths - 1).abs() < 1e-4) | (lengths == 0)).all()


def test_losses_count_valid_pixels_only_and_are_zero_without_any(data, whole):
    data.mkdir(parents=True)
    (data / whole.name).symlink_to(whole)
    problem = small()
    draw = torch.Generator().manual_seed(0)
    outputs = [torch.randn(2, n, 6, 8, generator=draw) for n in (13, 1, 3)]
    outputs[2] = F.normalize(outputs[2], dim=1)
    label = torch.randint(13, (2, 6, 8), generator=draw)
    depth, normal = torch.rand(2, 6, 8, generator=draw) + 1, F.normalize(torch.randn(2, 3, 6, 8, generator=draw), dim=1)
    label[:, 0], depth[:, 1], normal[:, :, 2] = 255, 0, 0
    found = problem.task_losses(outputs, (label, depth, normal))
    assert found[0].item() == pytest.approx(F.cross_entropy(outputs[0], label, ignore_index=255).item())
    assert found[1].item() == pytest.approx((outputs[1][:, 0] - depth).abs()[depth > 0].mean().item())
    cosine = (outputs[2] * normal).sum(1)[normal.norm(dim=1) > 0]
    assert found[2].item() == pytest.approx((1 - cosine).mean().item(), abs=1e-6)
    nothing = problem.task_losses(outputs, (label * 0 + 255, depth * 0, normal * 0))
    assert [loss.item() for loss in nothing] == [0, 0, 0]


@pytest.mark.parametrize("amp", [False, True])
def test_every_model_trains_and_is_measured(data, whole, amp):
    data.mkdir(parents=True)
    (data / whole.name).symlink_to(whole)
    problem = small(amp=amp, width=4, depth=2)
    for name in problem.models:
        net = problem.model(name, 0)
        losses = problem.losses(net, next(iter(problem.batches("train", 0, 2))))
        assert all(loss.dtype == torch.float32 and loss.shape == () for loss in losses)
        sum(losses).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
        found = problem.evaluate(net, "test")
        assert net.training
        assert set(found) == {m.key for m in problem.metrics} | {"score"} | {f"{t}/score" for t in problem.tasks}
        assert found["score"] == pytest.approx(sum(found[f"{t}/score"] for t in problem.tasks) / 3)
    assert len(CLASSES) == 13
