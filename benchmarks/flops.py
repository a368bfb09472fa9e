"""What Table 2 costs at scale `gpu` and `paper`: floating-point operations counted by torch, hours estimated from them.

`python -m benchmarks.flops [--rate 100]` writes docs/flops.md; --rate: TFLOP/s that a card sustains, to be measured
with `python -m benchmarks.gpu`. Counted on the meta device, without data: convolutions and matrix products of a step
of two images; a run has epochs x images of these. Data, other layers, evaluation and solver are not in it.
"""

import argparse
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from mtl.experiments.table2 import TABLE2, UNET
from mtl.files import atomic
from mtl.models.dense import dense_model

OUT = Path(__file__).parents[1] / "docs" / "flops.md"
IMAGES = 795  # training and validation images of NYUv2's official split, as the papers train on
HEADS, UNIT = (13, 1, 3), (False, False, True)
RUNS = (  # scale, model, width, depth, pixels, images, epochs, experiment
    ("gpu", "unet", 64, 3, (96, 128), 715, UNET.budget["gpu"].epochs, UNET),
    ("gpu", "segnet", 32, 5, (96, 128), 715, TABLE2.budget["gpu"].epochs, TABLE2),
    ("gpu", "mtan", 32, 5, (96, 128), 715, TABLE2.budget["gpu"].epochs, TABLE2),
    ("paper", "unet", 64, 3, (288, 384), IMAGES, UNET.budget["paper"].epochs, UNET),
    ("paper", "mtan", 64, 5, (288, 384), IMAGES, TABLE2.budget["paper"].epochs, TABLE2),
)


def step_flops(model: str, width: int, depth: int, pixels: tuple[int, int]) -> tuple[float, float]:
    """FLOPs per image of a step: one backward of the sum (LS), and T backwards (a method on task gradients).

    >>> one, many = step_flops("unet", 8, 3, (32, 32))
    >>> 1.3 < many / one < 2.4
    True
    """
    net = dense_model(model, HEADS, UNIT, seed=0, width=width, depth=depth).to("meta")
    found = []
    for tasks in (False, True):
        counter = FlopCounterMode(display=False)
        with counter:
            losses = [y.float().mean() for y in net(torch.zeros(2, 3, *pixels, device="meta"))]
            for loss in losses if tasks else [torch.stack(losses).sum()]:
                loss.backward(retain_graph=tasks)
        found.append(counter.get_total_flops() / 2)
    return found[0], found[1]


def table(rate: float) -> str:
    """The Markdown table, for a card that sustains `rate` TFLOP/s."""
    head = ["scale", "net", "GFLOP an image and step, LS", "Gram method", "PFLOP a run, LS", "Gram method"]
    head += [f"minutes a Gram run at {rate:g} TFLOP/s", "runs of the table", "hours of the table, at most"]
    lines = [head, ["---"] * len(head)]
    for scale, model, width, depth, pixels, images, epochs, made in RUNS:
        one, many = step_flops(model, width, depth, pixels)
        run = [x * images * epochs for x in (one, many)]
        rows = made.entries(scale)
        twins = made.twins if isinstance(made.twins, tuple) else made.twins[scale]
        each = [3 if name == "stl" else 1 + (label in twins) for label, name, _ in rows]
        runs = sum(each) * len(made.seeds[scale])
        hours = run[1] / (rate * 1e12) / 3600
        name = f"{model}, width {width}, {pixels[0]} x {pixels[1]}, {epochs} epochs"
        lines.append([scale, name, *(f"{x / 1e9:.1f}" for x in (one, many)), *(f"{x / 1e15:.2f}" for x in run),
                      f"{60 * hours:.2g}", str(runs), f"{hours * runs:.2g}"])  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=100.0)
    rate = parser.parse_args().rate
    if not rate > 0:
        parser.error(f"--rate: must be > 0, found {rate}")
    said = "An estimate: operations counted by torch's FlopCounterMode for convolutions and products of the networks "
    said += (
        f"alone; the hours assume a card that sustains {rate:g} TFLOP/s. Nets as small as those of scale `gpu` do not "
    )
    said += "come near it: one H200 had 2.1 (docs/costs.md), and a run took 58 to 168 s."
    with atomic(OUT) as part:
        said = f"# Table 2's nets in operations\n\n{said} `python -m benchmarks.flops --rate {rate:g}`."
        part.write_text(f"{said}\n\n{table(rate)}\n", encoding="utf-8")
    print(table(rate))


if __name__ == "__main__":
    main()
