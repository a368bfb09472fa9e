"""Rooms to photographs on a miniature of NYUv2: what is trained on, what is measured, what the target never decides."""

import numpy as np
import pytest
import torch

from mtl.experiments.sim_to_real import LOST, SIM_TO_REAL, SOURCE, TARGET, SimToReal, listing
from mtl.ledger import Ledger
from mtl.methods import method
from mtl.problems import MissingDataError, problem
from mtl.problems.scenes.room_plans import Plan
from mtl.problems.sim_to_real import Painted, weathered
from mtl.training.fit import Budget, fit
from tests.miniature import packed

SMALL = {"resolution": "48x64", "images": "6+2+2", "width": 4, "depth": 2, "partial": True}


@pytest.fixture
def photographs(tmp_path, monkeypatch):
    for name in ("DATA", "CACHE", "ROOT"):
        monkeypatch.setenv(f"MTL_{name}", str(tmp_path / name.lower()))
    packed(tmp_path / "data" / "nyuv2", train=10, test=6)
    return tmp_path


def test_a_net_is_measured_on_both_and_validated_on_rooms_alone(photographs):
    data = problem("sim_to_real", **SMALL)
    run = fit(data, method("ls", 3), model="unet", seed=0, budget=Budget(1, 3))
    assert {"segmentation/miou", "segmentation/target-miou", "depth/target-abs"} <= set(run.metrics)
    assert not [name for name in run.validation if "target" in name]
    real = problem("nyuv2", resolution="48x64", images="6+2+2", partial=True).evaluate(run.model, "test")
    assert real["segmentation/miou"] == run.metrics["segmentation/target-miou"]
    rooms = data.data("train")[0]
    assert data.blind()["segmentation/target-miou"] >= 0 and len(rooms) == 6
    assert not torch.equal(rooms, data.target.data("train")[0])


def test_sources_differ_and_real_is_its_own_target(photographs):
    made = {source: problem("sim_to_real", source=source, **SMALL) for source in ("randomised", "palette", "real")}
    assert len({one.fingerprint for one in made.values()}) == 3
    assert torch.equal(made["real"].data("train")[0], made["real"].target.data("train")[0])
    assert not torch.equal(made["palette"].data("train")[0], made["randomised"].data("train")[0])
    with pytest.raises(ValueError, match="source must be one of randomised, palette, real, found 'gta5'"):
        problem("sim_to_real", source="gta5", **SMALL)


def test_half_of_the_surfaces_lose_the_colour_of_their_class_and_pictures_their_light():
    plain, painted = (kind(400, 1).paint["ceiling"] for kind in (Plan, Painted))
    near = (painted - torch.tensor((0.9, 0.9, 0.88))).abs().amax(1) < 0.13
    assert (plain > 0.75).all() and 0.4 < near.float().mean() < 0.6
    grey = torch.full((50, 3, 8, 8), 128, dtype=torch.uint8)
    seen = weathered(grey, torch.Generator().manual_seed(0)).float()
    assert seen.mean((1, 2, 3)).std() > 15 and seen.std((2, 3)).mean() > 3
    assert torch.equal(weathered(grey, torch.Generator().manual_seed(0)).float(), seen)


def test_without_photographs_rooms_stand_in_and_say_so(tmp_path, nowhere):
    with pytest.raises(MissingDataError, match="nyuv2: found"):
        problem("sim_to_real")
    made = SIM_TO_REAL.study("smoke", seeds=[10], methods=["STL", "LS"], progress=None, ledger=Ledger(tmp_path / "s"))
    assert made.synthetic and "sim_to_real was not found, rooms of another look" in made.data
    assert list(made.frame["line"]) == ["STL", "LS", "LS A/A"]
    assert np.allclose(made.frame[LOST], made.frame[SOURCE] - made.frame[TARGET]) and len(made.table) == 3
    assert len(made.figure().axes[0].lines) == 3 and "mean rank" not in made.table, "one column is of two others"


def test_the_listing_says_what_cannot_run():
    table = listing().set_index("dataset")
    assert table.loc["GTA5 to Cityscapes", "here"] == "none" and "at hand" in table.loc["GTA5 to Cityscapes", "reason"]
    assert table["value"].tolist()[:4] == ["–", "69.86", "0.0121", "23.0717"], "every digit that the listing prints"


def runs(levels, source="randomised", seeds=(100, 101)):
    """Rows of a label with mIoU in its own domain and on photographs."""
    names = ("segmentation/miou", "segmentation/target-miou", "depth/target-abs", "normals/target-mean")
    return [
        {"key": f"{label}{source}{seed}", "label": label, "status": "ok", "fingerprint": "",
         "metrics": dict(zip(names, (own, target, 1.0, 30.0), strict=True)),
         "config": {"method": "ls", "seed": seed, "options": {"source": source}}}
        for seed in seeds for label, (own, target) in levels.items()
    ]  # fmt: skip


def test_nets_trained_on_photographs_have_no_level_in_rooms_and_epochs_are_doubled():
    levels = {"STL": (50.0, 20.0), "LS": (52.0, 22.0), "MGDA": (51.0, 21.0)}
    rows = [*runs(levels), *runs({"LS": (30.0, 31.0)}, "real")]
    longer = runs(levels | {"MGDA": (51.0, 23.5)})
    made = SimToReal(SIM_TO_REAL, "study", rows, "constructed", (), doubled=(runs(levels), longer))
    real = made.frame[made.frame["line"] == "LS (real)"]
    assert real[["source mIoU", "difference"]].isna().all(axis=None) and (real["target mIoU"] == 31.0).all()
    said = made.table.attrs["caption"]
    assert "(real): as many training images" in said and "(palette)" not in said
    check = made.converged()
    assert not check.passed and "+2.5 (MGDA)" in check.said
    assert SimToReal(SIM_TO_REAL, "study", rows, "", ()).converged().passed is None
