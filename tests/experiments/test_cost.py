"""Costs are counted as told: floors, memory against known sizes, growth; and the pictures of first updates."""

import gc
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from mtl.experiments import cost, gallery
from mtl.methods import METHODS
from mtl.report import style

GRADS, LOSSES = [[3.0, 0.0], [-1.0, 1.0]], [2.0, 0.5]


@pytest.mark.slow
def test_measure_has_a_row_per_method_and_t_with_both_floors() -> None:
    before = torch.get_num_threads(), gc.isenabled()
    table = cost.measure((2, 3), ("ls", "famo", "mgda", "mgda-ub", "graddrop"), rounds=2, width=8, rows=4)
    assert (torch.get_num_threads(), gc.isenabled()) == before
    names = [cost.PLAIN, cost.FLOOR, "ls", "famo", "mgda", "mgda-ub", "graddrop"]
    assert table["method"].tolist() == names * 2 and table["T"].tolist() == [2] * 7 + [3] * 7
    assert (table[["ms", "x_plain", "x_floor", "mib"]] > 0).all(axis=None) and (table["rounds"] == 2).all()
    assert (table.loc[table["method"] == cost.PLAIN, "x_plain"] == 1).all()
    assert (table.loc[table["method"] == cost.FLOOR, "x_floor"] == 1).all()


def test_a_method_with_t_gradients_holds_t_gradients() -> None:
    table = cost.measure((2, 10), ("ls", "mgda"), rounds=1, width=64, rows=2).set_index(["method", "T"])["mib"]
    trunk = 4 * 2 * (64 * 64 + 64) / 2**20
    assert table["mgda", 10] - table["mgda", 2] > 7 * trunk
    assert abs(table["ls", 10] - table["ls", 2]) < trunk


def test_peak_counts_what_is_alive_at_once() -> None:
    mib = 2**20 // 4

    def one_by_one() -> None:
        for _ in range(3):
            torch.zeros(mib)

    def together() -> None:
        _ = [torch.zeros(mib) for _ in range(3)]

    assert cost.peak(one_by_one) == pytest.approx(2**20, rel=0.01)
    assert cost.peak(together) == pytest.approx(3 * 2**20, rel=0.01)


def test_famo_looks_at_the_losses_twice() -> None:
    work, calls = cost.net(2, 8, 4), list[int]()
    work.model.trunk.register_forward_hook(lambda *_: calls.append(1))
    cost.steps(work, ["ls"])["ls"]()
    assert len(calls) == 1
    cost.steps(work, ["famo"])["famo"]()
    assert len(calls) == 3


def test_growth_is_the_exponent() -> None:
    T = np.array([2, 4, 8, 16])
    table = pd.DataFrame({"method": ["a"] * 4 + ["b"] * 4, "T": [*T, *T], "ms": [*(3.0 * T**1.5), *([7.0] * 4)]})
    assert cost.growth(table).to_dict() == pytest.approx({"a": 1.5, "b": 0.0})


def test_errors_name_the_rule() -> None:
    with pytest.raises(ValueError, match="rounds: must be at least 1, found 0"):
        cost.measure((2,), ("ls",), rounds=0)
    with pytest.raises(ValueError, match="found 'mgdaa'; did you mean 'mgda'"):
        cost.measure((2,), ("mgdaa",), rounds=1, width=4, rows=2)


def test_settings_name_methods_and_keep_smoke_small() -> None:
    assert all(set(setting["methods"]) <= set(METHODS) for setting in cost.SETTINGS.values())
    assert cost.SETTINGS["smoke"]["tasks"] == (2, 4) and len(cost.SETTINGS["smoke"]["methods"]) == 4
    assert set(cost.SETTINGS["paper"]["methods"]) == set(METHODS) - {"stl"}


def test_recorded_is_none_where_nothing_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTL_ROOT", str(tmp_path))
    assert cost.recorded() is None
    (tmp_path / "benchmarks/results").mkdir(parents=True)
    (tmp_path / "benchmarks/results/step_cpu.json").write_text(
        json.dumps({"rows": [{"row": "mtl ls", "x_plain": 1.0}]})
    )
    found = cost.recorded()
    assert found is not None and found["row"].tolist() == ["mtl ls"]


def test_first_updates_by_hand() -> None:
    table = gallery.first_updates({"ls": ("ls", {}), "mgda": ("mgda", {}), "graddrop": ("graddrop", {})}, GRADS, LOSSES)
    ls = table.loc["ls"]
    assert [ls["d_1"], ls["d_2"], ls["length"]] == pytest.approx([2.0, 1.0, 5**0.5])
    assert [ls["change of L_1"], ls["change of L_2"]] == pytest.approx([-6 / 5**0.5, 1 / 5**0.5])
    assert np.isnan(ls["residual"]) and table["residual"]["mgda"] < 1e-10
    assert table["change of L_1"]["mgda"] == pytest.approx(table["change of L_2"]["mgda"])
    assert np.isnan(table["w_1"]["graddrop"])
    assert table["state"].tolist() == [False, False, True]


def test_panels_show_every_row_and_mark_harm() -> None:
    cases: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in METHODS}
    fig = gallery.update_panels(gallery.first_updates(cases, GRADS, LOSSES), GRADS)
    shown = [ax for ax in fig.axes if ax.axison]
    assert len(shown) == len(METHODS)
    red = [text.get_text() for text in shown[0].texts if text.get_color() == style.RED]
    assert red == ["$L_2$ +0.45"]
    plt.close(fig)


def test_cost_lines_draw_a_line_per_method() -> None:
    table = pd.DataFrame({"method": [cost.PLAIN, cost.PLAIN, "emtl", "emtl"], "T": [2, 4, 2, 4]})
    facts = {"config": cost.SETTINGS["quick"] | {"device": "cpu"}}
    fig = cost.CostStudy(facts, table.assign(x_plain=[1, 1, 2, 4], mib=[1, 1, 3, 5]), None).figure()
    time, memory = fig.axes
    assert [line.get_label() for line in memory.get_lines()] == [cost.PLAIN, "EMTL"]
    assert list(time.get_lines()[1].get_ydata()) == [2, 4]
    plt.close(fig)


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
