"""delta-m and mean rank of published tables recomputed from their own cells, with the errors known to be there."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mtl.problems.metrics import delta_m
from mtl.report.stats import mean_rank

FOLDER = Path(__file__).parent.parent / "paper" / "reported"
NYU = ["miou", "pixacc", "abs", "rel", "mean", "median", "w11", "w22", "w30"]
UP = [True, True, False, False, False, False, True, True, True]
HIGHER = dict(zip(NYU, UP, strict=True))
TASKS = ["segmentation"] * 2 + ["depth"] * 2 + ["normals"] * 5


def table(name):
    return pd.read_csv(FOLDER / f"{name}.csv").drop_duplicates("method").set_index("method")


def recomputed(rows, columns, up, tasks=None):
    cells = rows[columns].astype(float)
    return pd.Series(delta_m(cells, cells.loc["STL"], up, tasks), rows.index)


def test_nyuv2_delta_m_follows_from_the_rounded_cells_but_for_imtl_g():
    rows = table("nyuv2")
    found = recomputed(rows, NYU, UP).drop("STL")
    printed = rows.delta_m.drop("STL")
    off = (found - printed).abs()
    assert found["IMTL-G"] == pytest.approx(-0.60, abs=0.005)
    assert printed["IMTL-G"] == -0.76
    assert off.drop("IMTL-G").max() < 0.02
    assert off.idxmax() == "IMTL-G"


def test_nyuv2_task_average_turns_signs():
    found = recomputed(table("nyuv2"), NYU, UP, TASKS)
    assert found["LS"] == pytest.approx(-0.88, abs=0.005)
    assert found["FairGrad"] == pytest.approx(-7.52, abs=0.005)


def test_nyuv2_mean_ranks_of_famo_are_reproduced():
    rows = table("nyuv2")
    shown = rows[rows.source == "FAMO Table 1"].drop("STL")
    found = mean_rank(shown[NYU], HIGHER)
    assert np.abs(found - shown.mr.to_numpy()).max() < 0.006
    assert shown.mr.mean() == pytest.approx((len(shown) + 1) / 2, abs=0.01)


def test_a_rank_column_depends_on_the_methods_shown():
    rows = table("nyuv2").drop("STL")
    among_all = dict(zip(rows.index, mean_rank(rows[NYU], HIGHER), strict=True))
    assert among_all["LS"] > rows.mr["LS"] + 1


def test_cityscapes_delta_m_follows_within_a_tenth():
    rows = table("cityscapes")
    found = recomputed(rows, ["miou", "pixacc", "abs", "rel"], [True, True, False, False])
    assert (found - rows.delta_m).drop("STL").abs().max() < 0.11


def test_cityscapes_ls_is_not_the_copy_of_si():
    rows = table("cityscapes")
    assert rows.loc["LS", ["miou", "pixacc", "abs", "rel"]].tolist() == [75.18, 93.49, 0.0155, 46.77]
    assert rows.delta_m["LS"] == 22.60
    assert not rows.loc["LS", "miou":"rel"].equals(rows.loc["SI", "miou":"rel"])


def test_mean_ranks_are_recomputed_from_cells_and_so_are_their_errors():
    """Ties take the smaller rank. NTKMTL's follow, FAMO's begin at 0; on Cityscapes three are others."""
    again, first, streets = table("qm9_ntkmtl_rerun"), table("qm9"), table("cityscapes")
    targets = list(first.columns[: list(first).index("mr")])

    def ranks(rows, columns, up=False):
        return rows.drop("STL")[columns].astype(float).rank(method="min", ascending=not up)

    whole = ranks(again, targets).mean(axis=1)
    assert len(whole) == 14 and (whole - again.mr.drop("STL")).abs().max() < 0.006
    zero = ranks(first, targets).mean(axis=1) - first.mr.drop("STL")
    assert len(zero) == 11 and zero.min() > 0.7 and zero.max() < 1.01
    streets = streets[streets.source == "Nash-MTL Table 3"]
    parts = ranks(streets, ["miou", "pixacc"], up=True), ranks(streets, ["abs", "rel"])
    off = pd.concat(parts, axis=1).mean(axis=1) - streets.mr.drop("STL")
    assert off[off.abs() > 0.13].to_dict() == {"SI": 0.25, "RLW": -0.5, "UW": 0.25}
    faces = table("celeba").mr.dropna()
    assert faces.mean() == pytest.approx((len(faces) + 1) / 2, abs=0.01), "a whole column, whichever header it has"


def test_qm9_delta_m_follows_from_two_digit_cells_within_two_points():
    rows = table("qm9")
    tasks = list(rows.columns[: list(rows).index("mr")])
    off = (recomputed(rows, tasks, [False] * len(tasks)) - rows.delta_m).drop("STL").abs().dropna()
    assert len(tasks) == 11 and 1.0 < off.max() < 2.0


def test_the_common_schedule_of_qm9_costs_stl_up_to_a_third():
    """NTKMTL's section 4.2: a schedule that decays later makes STL better, and halves what SI loses."""
    first, again = table("qm9"), table("qm9_ntkmtl_rerun")
    tasks = list(first.columns[: list(first).index("mr")])
    better = 1 - again.loc["STL", tasks].astype(float) / first.loc["STL", tasks].astype(float)
    assert 0.3 < better.max() < 0.36 and better.min() > -0.01
    assert (first.delta_m["SI"], again.delta_m["SI"]) == (77.8, 39.7)


def test_celeba_s_columns_are_not_swapped_and_fairgrad_s_average_is_the_recomputed_one():
    rows = table("celeba")
    assert rows.mr["LS"] > rows.delta_m["LS"] and rows.delta_m["MGDA"] == rows.delta_m.max() == 14.85
    assert rows.mr["MGDA"] == rows.mr.max() and rows.delta_m["FairGrad"] == rows.delta_m.min() == 0.37
    assert "2.40" in rows.source["DWA"] and rows.delta_m["DWA"] == 3.20


def test_mt10_s_nash_is_a_tenth_lower_in_famos_run():
    rows = table("mt10")
    pairs = [(name, f"{name} (FAMO re-run)") for name in ("Nash-MTL", "Nash-MTL every 50", "Nash-MTL every 100")]
    assert [round(rows.success[a] - rows.success[b], 2) for a, b in pairs] == [0.11, 0.09, 0.07]
    assert (rows.success[rows.index != "STL SAC"] <= 0.91).all() and rows["sem"]["FairGrad"] == 0.07
    assert rows.seconds_per_episode["Nash-MTL"] / rows.seconds_per_episode["MTL SAC"] == pytest.approx(5.6, abs=0.05)


def test_the_listing_names_ten_rows_each_with_what_runs_here_and_why():
    rows = pd.read_csv(FOLDER / "fairgrad_listing.csv")
    assert len(rows) == 10 and rows[["here", "reason", "source"]].notna().all().all()
    scenes = table("cityscapes")
    assert rows.value.tolist()[5] == scenes.miou["FairGrad"] and rows.value[6] == table("nyuv2").miou["FairGrad"]
