"""MT10's table: what is reported and what stands beside it, STL made whole, the stand-in said so, words of the rule."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import mt10 as checking
from mtl.errors import RunError
from mtl.experiments import mt10, mt10_checks
from mtl.experiments.beside import reported
from mtl.experiments.mt10 import BUDGET, FIRST, MT10, OWN, PLACES, SHIFT, THEN, THREE, MT10Study, combined
from mtl.ledger import Ledger, Row
from mtl.methods import method
from mtl.problems import mt10 as problem
from mtl.problems.mt10 import NAMES
from mtl.runs.tuning import NoRowsError, combine_stl
from mtl.training.sac import Settings, summary


def curve(final: float, best: float, n: int = 6) -> list[dict[str, Any]]:
    """Success of three tasks over time: the first shines once and ends at `final`."""
    lines = [[final, 0.5, 0.1]] * n
    lines[0] = [best, 0.5, 0.1]
    return [{"steps": 5000 * (i + 1), "ever": line, "last": [0.0] * 3} for i, line in enumerate(lines)]


def study(levels: dict[str, float], seeds: tuple[int, ...] = (10, 11, 12)) -> MT10Study:
    names = {label: name for label, name, _ in FIRST + THEN}
    rows: list[Any] = []
    for seed in seeds:
        for label, level in levels.items():
            history = curve(level + 0.01 * (seed - 11), 1.0)
            rows.append({
                "key": f"{label}{seed}", "fingerprint": "", "label": label, "status": "ok", "history": history,
                "metrics": summary(THREE, history), "config": {"method": names[label], "seed": seed, "options": {}},
            })  # fmt: skip
    return MT10Study(MT10, "study", rows, "constructed", THREE)


def test_first_rows_are_those_declared_and_methods_take_their_points() -> None:
    assert [label for label, *_ in FIRST] == ["STL", "LS", "MGDA", "Nash-MTL", OWN, "EMTL (shift)"]
    assert [label for label, *_ in THEN] == ["PCGrad", "CAGrad", "FAMO (shift)"]
    for _, name, point in FIRST + THEN:
        method(name, 3, **{k: v for k, v in point.items() if k != "shift"})
        assert ("shift" in point) == (name in ("emtl", "famo"))
    assert pytest.approx(1.2 * 10 * 0.1 / (1 - 0.99)) == SHIFT
    assert BUDGET["study"].steps == 60_000 and BUDGET["paper"].steps == 2_000_000
    assert PLACES["study"] == ("mt10", THREE, 200) and len(PLACES["paper"][1]) == 10
    assert MT10.seeds["study"] == (10, 11, 12)
    assert all(BUDGET[scale].every % PLACES[scale][2] == 0 for scale in BUDGET)


def test_the_mean_of_the_last_five_is_reported_and_the_best_stands_beside_it() -> None:
    made = study({"STL": 0.9, "LS": 0.0, OWN: 0.6})
    assert made.frame.loc[made.frame["label"] == OWN, "score"].mean() == pytest.approx((0.6 + 0.5 + 0.1) / 3)
    table = made.table
    assert table.loc["LS", "success ↑"].startswith("0.20") and "0.53" in table.loc["LS", "best over time ↑"]
    assert "luckiest" in table.attrs["note"] and "mean rank" not in table
    assert made.above.loc[OWN, "above"] == "yes" and made.above.loc[OWN, "reach"] == "0.50 to 0.50"
    axes = made.figure().axes
    assert [ax.get_title() for ax in axes] == [f"{name}, n = 3" for name in ("STL", "LS", OWN)]
    assert [line.get_label() for line in axes[0].lines][:3] == [*THREE] and len(axes[0].collections) == 1
    assert "Not tested: that FairGrad leads" in made.answer()


def test_the_level_to_beat_is_what_random_actions_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Per task, as declared: the easiest one does not carry the others."""
    assert mt10.chance(THREE) == dict(zip(THREE, (0.2, 0.0, 0.0), strict=True)), "4 of 20 goals of drawer-close"
    levels = {"STL": 0.9, "LS": 0.0, "MGDA": 0.3, OWN: 0.6}
    assert study(levels).above["above"].tolist() == ["yes", "not drawer-close", "yes", "yes"]
    monkeypatch.setattr(mt10, "chance", lambda tasks: dict.fromkeys(tasks, 0.2))
    assert study(levels).above.loc[OWN, "above"] == "not window-close"
    assert study(levels).findings()[0].gate[0].passed is False
    monkeypatch.setattr(mt10, "chance", lambda tasks: None)
    assert study(levels).above.loc["LS", "above"] == "–" and study(levels).findings()[0].gate[0].passed is None


def test_words_come_from_the_rule_and_no_run_can_pass_the_gate() -> None:
    levels = {"STL": 0.9, "LS": 0.3, "MGDA": 0.2, "Nash-MTL": 0.3, OWN: 0.9}
    (some,) = study(levels).findings()
    assert some.word == "inconclusive (assay)" and "waits for PCGrad, CAGrad" in some.said
    (every,) = study(levels | {"PCGrad": 0.3, "CAGrad": 0.2}).findings()
    assert (every.word, every.would) == ("inconclusive (assay)", "reproduced")
    assert [check.passed for check in every.gate] == [True, None, None]
    (few,) = study(levels, seeds=(10, 11)).findings()
    assert "2 of 3, no verdict" in few.said


def test_a_run_without_a_result_keeps_its_line() -> None:
    made = study({"STL": 0.9, "LS": 0.3, OWN: 0.9})
    broken = made.rows[-1] | {"status": "non-finite", "metrics": summary(THREE, []), "history": []}
    shown = MT10Study(MT10, "study", [*made.rows[:-1], broken], "constructed", THREE)
    assert shown.table.loc[OWN, "n"] == "2" and shown.above.loc[OWN, "reach"] == "no interval for n < 3"


def test_a_rival_without_a_result_is_waited_for_and_costs_no_other_claim() -> None:
    made = study({"STL": 0.9, "LS": 0.3, "MGDA": 0.2, "Nash-MTL": 0.3, "PCGrad": 0.3, "CAGrad": 0.2, OWN: 0.9})
    lost = {"status": "non-finite", "metrics": summary(THREE, []), "history": []}
    rows = [row | lost if row["label"] == "MGDA" else row for row in made.rows]
    (found,) = replace(made, rows=rows).findings()
    assert "waits for MGDA" in found.said and len(found.parts) == 3
    assert replace(made, rows=[row | lost if row["label"] == OWN else row for row in made.rows]).findings() == []


def test_a_value_beyond_the_largest_reward_is_named() -> None:
    made = study({"STL": 0.9, "EMTL (shift)": 0.5, OWN: 0.9})
    for row, low in zip(made.rows, (-99.0, 0.5, -126.0), strict=False):
        row["history"] = [{"actor losses": [low, 1.0], **row["history"][0]}]
        row["config"]["hyper"] = {"shift": 120.0} if "EMTL" in row["label"] else {}
    found = f"{OWN}, seed 10 (126)."
    assert made.diverged == f"A value beyond 100, the largest there is: EMTL (shift), seed 10 (120); {found}"
    assert made.table.attrs["note"].endswith(found)


def test_stl_of_a_seed_is_made_of_its_tasks_with_their_curves() -> None:
    parts: list[Any] = []
    for k, task in enumerate(THREE):
        lines = [{"steps": 5000 * (i + 1), "ever": [k / 2], "last": [0.0], "return": [0.0]} for i in range(6)]
        metrics = summary(THREE, []) | summary((task,), lines)
        config = {"method": "stl", "hyper": {"task": k}, "seed": 10, "select": f"{task}/score", "problem": "mt10"}
        config |= {"options": {"tasks": list(THREE)}, "budget": {"lr": 3e-4}}
        parts.append({
            "key": task, "fingerprint": "", "config": config, "metrics": metrics, "validation": metrics, "label": "STL",
            "history": lines, "status": "ok", "wall_s": 1.0, "best_epoch": None,
        })  # fmt: skip
    (row,) = combined(combine_stl(parts), {part["key"]: part for part in parts})
    assert row["keys"] == list(THREE) and row["history"][3]["ever"] == [0.0, 0.5, 1.0]
    assert row["metrics"]["score"] == row["metrics"]["best"] == 0.5 and row["metrics"]["window-close/score"] == 1.0


def test_it_runs_on_the_stand_in_says_so_and_finds_its_rows_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MTL_ROOT", str(tmp_path))

    def absent() -> None:
        raise ModuleNotFoundError("needs metaworld", name="metaworld")

    monkeypatch.setattr(problem, "installed", absent)
    mt10.build.cache_clear()
    book, heard = Ledger(tmp_path / "mt10.jsonl"), list[str]()
    with pytest.raises(ModuleNotFoundError, match="needs metaworld"):
        MT10.run("smoke", ledger=book)
    made = MT10.study("smoke", ledger=book)
    assert made.data.startswith("EMBEDDED DEFAULT: mt10 was not found, point masses stand in") and made.synthetic
    assert list(made.frame["label"]) == ["STL", "LS", OWN] and "fallback=point_mass" in made.command
    assert np.isfinite(made.frame[["score", "last", "best"]].to_numpy(float)).all()

    def tell(event: Any) -> None:
        heard.append(event["event"])

    again = MT10.run("smoke", fallback="point_mass", ledger=book, progress=tell)
    assert heard == ["found"] * 4 and {row["config"]["stands_in_for"] for row in again} == {"mt10"}
    heard.clear()
    assert MT10.run("smoke", [11], ["LS"], "point_mass", ledger=book, deadline=0, progress=tell) == []
    assert heard == ["left"] and not list(tmp_path.glob("**/*.pt"))
    with pytest.raises(ValueError, match="jobs: must be 1 for mt10"):
        MT10.run("smoke", jobs=2, ledger=book)
    mt10.build.cache_clear()


def test_published_rows_are_found_without_the_simulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTL_ROOT", str(tmp_path))
    assert mt10.latest("smoke") is None
    rows: list[Row] = []
    for cell in MT10.cells("quick", methods=["STL", "LS"]):
        metrics = summary(THREE, curve(0.5, 1.0))
        row: Any = {"key": cell.key(), "config": cell.config, "fingerprint": cell.fingerprint, "status": "ok"}
        row |= {"metrics": metrics, "validation": metrics, "best_epoch": None, "wall_s": 1.0, "source": "constructed"}
        lines = curve(0.5, 1.0)
        if cell.method == "stl":
            lines = [line | {name: line[name][:1] for name in ("ever", "last")} for line in lines]
        rows.append(row | {"history": lines, "synthetic": True, "embedded_default": False})
    book = Ledger(tmp_path / "data" / "ledger" / "mt10")
    for row in rows:
        book.append(row)
    lines_of = b"".join(path.read_bytes() for path in sorted(book.path.glob("*.json")))
    (tmp_path / "data" / "ledger" / "mt10.jsonl").write_bytes(lines_of)
    found = MT10.published("quick", ["STL", "LS"])
    assert list(found.frame["label"]) == ["STL", "LS"] and found.tasks == THREE
    assert found.frame["best"].tolist() == pytest.approx([1.0, 1.6 / 3])
    with pytest.raises(LookupError, match=r"data/ledger/mt10.jsonl: no seed of scale quick has all"):
        MT10.published("quick")


def test_methods_of_the_study_are_shown_with_the_seeds_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = study({"STL": 0.9, "MGDA": 0.3, OWN: 0.5})

    def published(self: Any, scale: str, methods: Any, at: str) -> MT10Study:
        rows = [row for row in whole.rows if row["label"] == methods[0]]
        if not rows:
            raise NoRowsError
        return replace(whole, rows=rows[:1] if methods[0] == OWN else rows)

    monkeypatch.setattr(type(MT10), "published", published)
    found = mt10.latest("study")
    assert found is not None and found.facts["n"] == f"1 to {len(whole.seeds)} seeds, as the rows say"
    frame = found.frame
    assert list(frame["label"].unique()) == ["STL", "MGDA", OWN] and (frame["label"] == OWN).sum() == 1
    assert found.above["above"].tolist()[2] == "–" and len(found.findings()) == 1
    assert replace(found, rows=found.rows[:-1]).findings() == []


def test_what_papers_print_is_a_table_of_its_own() -> None:
    table = study({"STL": 0.9, "LS": 0.3}).paper
    assert list(table) == ["success", "seconds an episode", "source"] and len(table) == len(reported("mt10"))
    assert table.loc["FairGrad", "success"] == "0.84 ± 0.07"


def test_training_needs_no_gl_library_and_one_that_is_asked_for_in_vain_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard: list[str | None] = []

    def imported(name: str) -> None:
        heard.append(os.environ.get("MUJOCO_GL"))
        if heard[-1] in ("egl", "osmesa"):
            raise AttributeError("'NoneType' object has no attribute 'eglQueryString'")

    monkeypatch.setattr(mt10, "import_module", imported)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    with pytest.raises(RunError, match=r"MUJOCO_GL: must name a GL library that is installed.*found 'osmesa'"):
        mt10.simulator()
    monkeypatch.delenv("MUJOCO_GL")
    mt10.simulator()
    assert heard == ["osmesa", "egl"] and os.environ["MUJOCO_GL"] == "disabled"
    mt10.simulator()
    monkeypatch.delenv("MUJOCO_GL")
    monkeypatch.setattr("sys.platform", "darwin")
    mt10.simulator()
    assert heard[2:] == ["disabled", "glfw"], "a Mac's MuJoCo refuses egl"


def test_a_run_without_its_device_and_a_blind_row_are_refused_at_once(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("has a CUDA device")
    with pytest.raises(RunError, match=r"device: .* runs need 'cuda', found no CUDA device"):
        MT10.run("quick", ledger=Ledger(tmp_path / "mt10"), device="cuda")
    with pytest.raises(ValueError, match="blind: mt10 has random actions in its place"):
        MT10.blind("quick")


@pytest.mark.parametrize(
    "given, said",
    [
        ("check --task juggle", "invalid choice: 'juggle'"),
        ("check --steps 1000", "--steps: must be a multiple of 2000"),
        ("check --steps 0", "found 0"),
        ("times --episodes 0", "--episodes: must be at least 1, found 0"),
        ("pendulum", "pendulum needs gymnasium, which is not installed"),
        ("peer", "peer needs stable_baselines3, which is not installed: pip install '.[peers]'"),
    ],
)
def test_a_check_says_what_it_cannot_do(
    given: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("gymnasium", "stable_baselines3"):
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(checking, "simulator", lambda: None)
    monkeypatch.setattr(checking, "MetaWorld", problem.PointMass)
    with pytest.raises(SystemExit):
        checking.main(given.split())
    assert said in capsys.readouterr().err


def test_the_peer_is_evaluated_as_we_are_and_told_our_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("stable_baselines3")
    rows: list[Any] = []
    monkeypatch.setattr(checking, "keep", lambda *given, **more: rows.append((given, more)))
    tasks, settings = problem.PointMass(("reach",)), Settings(4, every=50, batch_size=16, warmup=25, width=16, lr=0.01)
    checking.peer(tasks, problem.PointMass(("reach",)), settings, 0)
    [((_, _, config, metrics, _), more)] = rows
    assert [line["steps"] for line in more["history"]] == [50, 100, 150, 200] and tasks.passed == 0
    assert metrics["score"] == pytest.approx(np.mean([line["ever"][0] for line in more["history"]]))
    assert config["by"].startswith("Stable-Baselines3 2.")
    env = checking.environment(tasks, 0.1, 0)
    env.reset()
    found = [env.step(np.zeros(2, np.float32)) for _ in range(tasks.horizon)]
    assert [step[3] for step in found] == [False] * 24 + [True] and not any(step[2] for step in found)
    far = (tasks.state[0, :2] - tasks.state[0, 2:]).norm()
    assert found[-1][1] == pytest.approx(float(torch.exp(-4 * far)), rel=1e-5), "10 a step at most, x .1"


def lone(by: str, seed: int, values: list[float], task: str = "reach") -> Any:
    history = [{"steps": 2000 * (i + 1), "ever": [value], "last": [0.0]} for i, value in enumerate(values)]
    config = {"study": "check" if by == "mtl" else "peer", "tasks": [task], "seed": seed, "settings": len(values)}
    config |= {} if by == "mtl" else {"by": by}
    metrics = {"score": float(np.mean(values[-5:])), "best": max(values)}
    return {"config": config, "history": history, "metrics": metrics, "source": "constructed"}


def test_a_check_is_a_line_of_its_own_and_the_longest_of_a_seed_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = "Stable-Baselines3 2.9"
    runs = [lone("mtl", 100, [0.9] * 6), lone("mtl", 100, [0.5, 0.95, 0.7]), lone("mtl", 101, [0.8, 0.4, 0.3])]
    runs += [lone(peer, 101, [0.5, 0.4, 0.3]), lone(peer, 100, [0.6, 0.6, 0.75]), lone(peer, 102, [0.1, 0.1, 0.1])]
    monkeypatch.setattr(mt10_checks, "rows_of", lambda *studies: [r for r in runs if r["config"]["study"] in studies])
    table = mt10_checks.checks()
    assert table["thousand steps"].tolist() == [6, 6, 12, 6, 6, 6] and table["seed"].tolist()[:3] == [100, 101, 100]
    assert table["first at 0.9 (thousand steps)"].tolist() == ["4", "–", "2", "–", "–", "–"]
    assert [one[1] for one in table.index] == ["mtl"] * 3 + [peer] * 3
    lines = mt10_checks.curves().axes[0].lines
    assert sorted(len(np.asarray(line.get_xdata())) for line in lines[:3]) == [3, 3, 6], "two seeds and their mean"
    # the peers' length is compared, of seeds that both have; 12,000 steps of seed 100 are not
    assert "reach alone, 6,000 steps, 2 seeds" in mt10_checks.beside()
    assert "mtl 0.61, Stable-Baselines3 2.9 0.53, difference +0.08 [" in mt10_checks.beside()
    with pytest.raises(LookupError, match="no row of times is published"):
        mt10_checks.costs()


def test_what_was_published_of_checks_stands_beside_them() -> None:
    table = mt10_checks.checks()
    own = table[(table["thousand steps"] == 60) & (table.index.get_level_values("SAC") == "mtl")]
    assert own["best over time"].tolist() == [0.85, 1.0, 0.85], "the check that was missed stays"
    assert (
        "-134.4; RL Baselines3 Zoo" in table.attrs["note"] and "drawer-close 0.20, the others 0" in table.attrs["note"]
    )
    known = mt10_checks.rates()
    assert (
        known["push"] == "random 0.00" and known["drawer-close"] == "random 0.20, alone 0.99\n(2 x 30 thousand steps)"
    )


def test_shares_of_the_time_add_up_and_a_step_of_fairgrad_costs_more() -> None:
    table = mt10_checks.costs()
    small, large = "3 tasks, width 256", "10 tasks, width 400"
    names = [f"{name}, {size}" for size in (small, large) for name in ("LS", "FairGrad")]
    assert list(table.index) == names
    speed = table.pop("updates per CPU second")
    assert table.sum(axis=1).tolist() == pytest.approx([1.0] * 4, abs=0.005)
    assert all(1 < speed[f"LS, {size}"] / speed[f"FairGrad, {size}"] < 1.5 for size in (small, large))


def test_a_picture_of_each_task_has_its_success(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks: Any = problem.PointMass(NAMES)
    monkeypatch.setattr(tasks, "picture", lambda t: np.zeros((4, 4, 3), np.uint8), raising=False)
    axes = mt10_checks.gallery(tasks).axes
    assert [ax.get_title() for ax in axes] == list(NAMES)
    assert [ax.get_xlabel() for ax in axes] == list(mt10_checks.rates().values())
