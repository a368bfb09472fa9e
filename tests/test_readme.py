"""The README's own claims about itself: its snippet runs, what it links to exists."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_snippet_runs_as_printed(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    weights, residual = capsys.readouterr().out.rsplit(" tensor(", 1)
    assert weights.startswith("tensor([")
    assert float(re.match(r"[-+.e\d]+", residual).group()) < 1e-10


def test_what_it_names_exists():
    named = re.findall(r"!?\[[^\]]*\]\(([^)#:]+)\)", README) + re.findall(
        r"`((?:mtl|paper|data|notebooks)/[\w./]*)`", README
    )
    missing = [name for name in named if not (ROOT / name).exists() and name != "data/raw/"]
    assert not missing


def test_it_is_read_in_five_minutes() -> None:
    assert len(README.split()) <= 900


def test_what_a_step_costs_is_what_was_measured() -> None:
    """`benchmarks.step`: FairGrad over T backwards, the smallest and the largest of all workloads."""
    rows = json.loads((ROOT / "benchmarks/results/step_cpu.json").read_text())["rows"]
    found = [row["x_floor"] for row in rows if row["row"] == "mtl fairgrad"]
    (said,) = re.findall(r"alone:\s([\d.]+) to ([\d.]+) times, in eight workloads", README)
    assert len(found) == 8 and said == (f"{min(found):.2f}", f"{max(found):.2f}")


def test_what_a_gpu_gives_is_what_was_measured() -> None:
    """`benchmarks.gpu` on a card: steps of Gram methods, processes side by side, runs of Table 2."""
    step, seeds = (
        json.loads((ROOT / f"benchmarks/results/{name}_cuda.json").read_text()) for name in ("step", "seeds")
    )
    gram = [
        row["x_floor"]
        for row in step["rows"]
        if row["row"] in {f"mtl {m}" for m in ("mgda", "nash", "fairgrad", "emtl")}
    ]
    speed = {row["processes"]: row["steps_per_s"] for row in seeds["processes"]}
    rows = map(json.loads, (ROOT / "data/ledger/scenes.jsonl").read_text().splitlines())
    cuda = [row for row in rows if row["config"].get("device") == "cuda"]
    wall = [row["wall_s"] for row in cuda if row["config"]["budget"]["epochs"] == 40]  # not those of doubled epochs
    gpu = " ".join(README.partition("## On a GPU")[2].partition("## Map")[0].split())
    assert {one["provenance"]["hardware"]["gpu"] for one in (step, seeds)} == {"NVIDIA H200"} and "On an H200" in gpu
    assert f"takes {min(gram):.2f} to {max(gram):.2f} times its T backwards" in gpu
    (alone,) = [row["ms"] for row in step["rows"] if (row["workload"], row["row"]) == ("W5", "mtl fairgrad")]
    least, most = speed[8] * alone / 1e3, speed[8] / speed[1]  # the one of `seeds` was disturbed by those that waited
    assert f"eight processes on the card are {least:.1f} to {most:.1f} times as fast as one" in gpu
    assert f"takes {min(wall):.0f} to {max(wall):.0f} s a run" in gpu
