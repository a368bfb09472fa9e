"""What the tables cost at scale `paper`: `python -m benchmarks.costs [--price 3] [--link 25]` writes docs/costs.md.

Time of a step: measured on one H200 (benchmarks/results/step_cuda.json) for the workload that a table's net is nearest
to; Table 2's from FLOPs counted at its own size (`benchmarks.flops`), at the rate that the measured W5 sustained. A run
takes epochs x steps of these; epochs are never cut short. Assumed, not measured: --price of a GPU hour, --link between
GPUs in GB/s, that G GPUs take G runs at once, rows of AliExpress per country. What is predicted for two processes is
held against benchmarks/results/engines_cpu.json.
"""

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.flops import IMAGES, step_flops
from mtl.experiments.base import Experiment
from mtl.experiments.registry import EXPERIMENTS
from mtl.files import atomic, root
from mtl.methods import METHODS

GPUS = (1, 8, 64)
RESULTS = root() / "benchmarks" / "results"
TASKS = {"census": 3, "aliexpress": 2, "kuairand_click": 2, "nyuv2": 3, "kuairand": 3, "qm9": 11, "census_scaled": 2}
TASKS |= {"census40": 40, "qm9_few": 11, "kuairand_few": 3, "census_few": 3, "sim_to_real": 3}
ROWS = {"census": 179_571, "census_scaled": 179_571, "kuairand": 149_732, "kuairand_click": 149_732, "qm9": 110_000}
ROWS |= {"census40": 179_571, "qm9_few": 10_000, "kuairand_few": 40_000, "census_few": 40_000, "sim_to_real": 640}
ROWS |= {"nyuv2": IMAGES, "aliexpress": 10_000_000}  # the last: of a country, an assumption
NEAREST = {"mmoe": "W1", "ple": "W2", "mlp": "W4", "shared-bottom": "W4", "unet": "W5"}
DENSE = {"mtan": (64, 5), "unet": (64, 3)}  # width, depth; 288 x 384 pixels


class Measured(NamedTuple):
    """Milliseconds of a step by workload: LS, a method on losses; FairGrad, one on task gradients."""

    ls: dict[str, float]
    gram: dict[str, float]

    @classmethod
    def read(cls) -> "Measured":
        rows = json.loads((RESULTS / "step_cuda.json").read_text())["rows"]
        ms = {(row["row"], row["workload"]): row["ms"] for row in rows}
        names = {name for _, name in ms}
        return cls({n: ms["mtl ls", n] for n in names}, {n: ms["mtl fairgrad", n] for n in names})


def step_ms(problem: str, model: str, batch: int, measured: Measured) -> tuple[float, float]:
    """LS and Gram method, a step at the paper's size."""
    if problem != "nyuv2":
        return measured.ls[NEAREST[model]], measured.gram[NEAREST[model]]
    small, full = step_flops("unet", 64, 3, (96, 128)), step_flops(model, *DENSE[model], (288, 384))
    times = zip((measured.ls["W5"], measured.gram["W5"]), small, full, strict=True)
    found = [ms / (8 * a) * batch * b for ms, a, b in times]  # W5: 8 images
    return found[0], found[1]


def hours(made: Experiment, measured: Measured) -> tuple[int, float]:
    """Runs of a table at scale paper, trials not counted, and the GPU hours of all of them one after the other."""
    scale = "paper"
    budget, problem = made.budget[scale], made.problem
    models, twins = (one if isinstance(one, tuple) else one[scale] for one in (made.models, made.twins))
    runs, total = 0, 0.0
    for variant in made.chosen(scale):
        tasks = variant.get("tasks", TASKS[problem])
        for model in models:
            ls, gram = step_ms(problem, model, budget.batch_size, measured)
            for label, name, _ in made.entries(scale, **variant):
                many = tasks if name == "stl" else 1
                many = 0 if name == "stl" and model != models[0] else many + many * (label in twins)
                ms = gram if METHODS[name].needs in ("gram", "gradients") else ls
                count = many * len(made.seeds[scale])
                runs += count
                total += count * budget.epochs * budget.steps(ROWS[problem]) * ms / 3.6e6
    return runs, total


def lacking() -> list[str]:
    """Experiments with a scale `paper` whose net is like none that was measured."""
    return [name for name, made in EXPERIMENTS.items() if "paper" in made.seeds and made.problem not in TASKS]


def table(price: float, measured: Measured) -> Iterator[list[str]]:
    yield ["table", "runs", "GPU hours", *(f"hours on {g}" for g in GPUS), "money"]
    for name, made in EXPERIMENTS.items():
        if "paper" in made.seeds and made.problem in TASKS:
            runs, total = hours(made, measured)
            walls = [total / runs * math.ceil(runs / g) for g in GPUS]
            yield [name, str(runs), f"{total:.1f}", *(f"{wall:.2g}" for wall in walls), f"{price * total:,.0f}"]


def scaling(link: float, measured: Measured) -> Iterator[list[str]]:
    """One run on G GPUs, the joint batch as before: compute / G, and a ring all-reduce of 2 (G - 1) / G bytes."""
    sizes = json.loads((RESULTS / "step_cuda.json").read_text())["workloads"]
    yield [
        "step",
        "T, D",
        "goes round",
        "MB a step",
        *(f"x faster on {g}" for g in GPUS[1:]),
        "half the time is waiting at",
    ]
    for name in ("W1", "W2", "W4", "W5"):
        tasks, shared = sizes[name]["tasks"], sizes[name]["shared"]
        for what, ms, count in (
            ("T x D (gradients)", measured.gram[name], tasks * shared),
            ("D (losses)", measured.ls[name], shared),
        ):
            mb = 4 * (count + sizes[name]["own"]) / 1e6
            yield [name, f"{tasks}, {shared:,}", what, f"{mb:.1f}",
                   *(f"{ms / two(ms, mb, g, link):.1f}" for g in GPUS[1:]), f"{stop(ms, mb, link)} GPUs"]  # fmt: skip


def two(ms: float, mb: float, count: int, link: float) -> float:
    """Milliseconds of a step on `count` devices.

    >>> two(10.0, 50.0, 2, 25.0)
    7.0
    """
    return ms / count + mb / link * 2 * (count - 1) / count


def stop(ms: float, mb: float, link: float) -> int:
    """From how many devices on the all-reduce takes longer than the arithmetic: ms / G < 2 (G - 1) / G mb / link."""
    return math.floor(ms * link / (2 * mb) + 1) + 1


def check() -> Iterator[list[str]]:
    """What the model says of two processes, from one's step and the measured all-reduce, and what was measured."""
    path = RESULTS / "engines_cpu.json"
    lines = json.loads(path.read_text())["ranks"] if path.is_file() else []
    yield [
        "workload",
        "one process, ms",
        "all-reduce, MB",
        "GB/s",
        "two, predicted, ms",
        "two, measured, ms",
        "efficiency",
    ]
    for line in lines:
        found = (line["one_s"], line["bytes"], line["gb_per_s"], line["expected_two_s"], line["two_s"])
        one, size, rate, predicted, measured = (x * k for x, k in zip(found, (1e3, 1e-6, 1, 1e3, 1e3), strict=True))
        yield [line["workload"], f"{one:.0f}", f"{size:.1f}", f"{rate:.2f}", f"{predicted:.0f}", f"{measured:.0f}",
               f"{line['efficiency']:.2f}"]  # fmt: skip


def markdown(lines: Iterator[list[str]]) -> str:
    head, *rest = lines
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rest))


def text(price: float, link: float) -> str:
    measured = Measured.read()
    rate = 8 * step_flops("unet", 64, 3, (96, 128))[1] / measured.gram["W5"] / 1e9
    return f"""# What it costs

`python -m benchmarks.costs --price {price:g} --link {link:g}` writes this page: an estimate, of every table
at scale `paper`.

- Measured: step times on one H200 (`benchmarks/results/step_cuda.json`).
- Counted: FLOPs of Table 2's nets (`benchmarks.flops`), at the rate of the measured W5.
- Assumed: {price:g} for a GPU hour in whatever currency, {link:g} GB/s between GPUs, 10 million training rows of
  AliExpress (one country), for each net the step of the nearest workload (W1: MMoE, W2: PLE, each 2,048 rows; W4: a
  perceptron with forty heads, 256 rows; W5: a U-Net on eight images of 96 x 128).
- Too much for Table 2: W5 leaves a card idle at {rate:.1f} TFLOP/s; full images fill it better (docs/flops.md says what
  100 TFLOP/s would make of it).
- No line, for want of a workload that is near: {", ".join(lacking())}.
- Not in it: evaluation, reading data, the choice of points, doubled epochs; no run stops early.

Runs are independent: G GPUs take G at once, and more than one each where a net leaves a card idle: with eight processes
4.4 to 5.3 times the runs (5.3 over the single process of `benchmarks/results/seeds_cuda.json`, which waiting ones
disturbed; 4.4 over the step of `step_cuda.json`), which would divide hours and money alike.

{markdown(table(price, measured))}

## One run on several GPUs: where it stops

The Gram matrix is T x T and no matter; to have it of the joint batch, T gradients of D shared parameters go round,
for a method on losses one. Ring all-reduce, no overlap: t(G) = t(1) / G + 2 (G - 1) / G x bytes / bandwidth.

{markdown(scaling(link, measured))}

Methods on losses (LS, UW, DWA, FAMO) send D numbers, those on features (MGDA-UB) T x T and D. Methods on task gradients
send T x D: with T = 40 that is the end at once.

## Held against measurements

Two processes of one machine over gloo (`python -m benchmarks.engines --parts ranks`).

{markdown(check())}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--price", type=float, default=3.0, help="of a GPU hour, an assumption")
    parser.add_argument("--link", type=float, default=25.0, help="GB/s between GPUs, an assumption")
    options = parser.parse_args()
    for name, value in vars(options).items():
        if not value > 0:
            parser.error(f"--{name}: must be > 0, found {value}")
    said = text(options.price, options.link)
    with atomic(Path(root(), "docs", "costs.md")) as part:
        part.write_text(said, encoding="utf-8")
    print(said)


if __name__ == "__main__":
    main()
