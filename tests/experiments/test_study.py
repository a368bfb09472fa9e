"""Studies: what each shows has a caption, and what a notebook prints follows from its table."""

import pandas as pd

from mtl.experiments import cost, gallery
from mtl.methods import METHODS


def test_the_gallery_shows_every_method_and_says_who_harms() -> None:
    study = gallery.study("smoke")
    assert set(study.rows["family"]) == set(gallery.FAMILIES)
    assert f"All {len(METHODS)} methods are shown" in study.answer()
    harmless = study.rows.set_index("method")[["change of L_1", "change of L_2"]].max(axis=1) <= 1e-9
    assert harmless["fairgrad"] and not harmless["ls"]
    assert list(study.table.columns) == ["family", *gallery.SHOWN, "residual"]


def test_a_new_method_is_shown_without_a_line_in_the_gallery() -> None:
    shown = [name for cases in gallery.FAMILIES.values() for name, _ in cases.values()]
    assert {name for name in METHODS if "@" not in name} <= set(shown)
    assert "config" in {name for name, _ in gallery.FAMILIES["gram"].values()}


def test_the_answer_on_cost_tells_steep_from_flat() -> None:
    times = {cost.PLAIN: (1, 1), cost.FLOOR: (2, 8), "ls": (1, 1), "mgda": (3, 12)}
    table = pd.DataFrame(
        [
            {"method": m, "T": T, "ms": ms, "x_plain": ms, "x_floor": ms / (2, 8)[i], "mib": ms, "rounds": 1}
            for m, both in times.items()
            for i, (T, ms) in enumerate(zip((2, 8), both, strict=True))
        ]
    )
    past = pd.DataFrame({"row": ["mtl ls"], "workload": ["W4"], "x_plain": [1.25], "x_floor": [0.5], "rounds": [5]})
    study = cost.CostStudy({"scale": "quick", "config": cost.SETTINGS["quick"] | {"device": "cpu"}}, table, past)
    flat, steep, memory = study.answer().splitlines()
    assert flat.startswith("Cost grows clearly slower than T backwards: ls; at T = 8 a step takes 1.0 to 1.0 times")
    assert steep.startswith("Cost grows about as T backwards: mgda; at T = 8 a step takes 12.0 to 12.0 times")
    assert memory.startswith("Most memory at T = 8: mgda, 12.0 MiB")
    assert study.table.loc["mgda"].tolist() == ["3.00 (1.50), 3.0", "12.00 (1.50), 12.0", "T^1.00"]
    shown = study.workloads()
    assert shown is not None and shown.loc["mtl ls", "W4"] == "1.25 (0.50)"
