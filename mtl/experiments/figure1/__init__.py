"""The two-loss landscape of Figure 1 (notebook 01): every method, start and loss scale, run at once, and twice."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mtl.experiments.figure1 import ends as told
from mtl.experiments.figure1.config import Config, absent, bounded, defaults, grid, shown
from mtl.experiments.figure1.figures import methods_figure, toy_figure
from mtl.experiments.figure1.plane import STARTS, star
from mtl.experiments.figure1.runs import ToyRuns, run_toy
from mtl.experiments.study import judged
from mtl.files import atomic, plain, root
from mtl.ledger import provenance
from mtl.problems.data import raw
from mtl.report import Table, captioned
from mtl.report.claims import Finding
from mtl.scales import known_scale

SENTENCES = ("emtl-fig1-bandit", "emtl-fig1-mgda", "emtl-fig1-nash-imtl", "emtl-fig1-emtl")
SCALES = [10.0, 1.0, 0.1, 0.01]  # of loss 1
SHOWN = ["ls", "bandit", "mgda", "imtl-g", "nash", "fairgrad", "emtl", "emtl (combine=frozen_norm)"]
READINGS: list[dict[str, Any]] = [
    *({"combine": "frozen_norm"}, {"combine": "product"}, {"rate": "raw"}, {"rate": "raw", "combine": "frozen_norm"}),
    *({"rho": 0.65}, {"b": -21.0}),
]
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *(("bandit", {"rho": 0.1}), ("fairgrad", {"alpha": 0.5}), ("fairgrad", {"alpha": 5.0}), ("stch", {"mu": 0.1})),
    *(("emtl", reading) for reading in READINGS),
]
COMBINES = ["literal", "frozen_norm", "product"]
RADII = [0.1, 0.3, 0.5, 0.65, 0.8, 1.2]
STEPS = {"smoke": (500, 0.02), "study": (50_000, 0.001), "paper": (50_000, 0.001)}
KEPT = "figure1.npz"  # in data/ledger: the study's runs
PARTS = {"runs": 5, "nudged": 500, "tried": 500}  # of the ToyStudy, and every how many records are kept
TRIED = {"paper": ([0.1, 0.5, 2.0], [0.0, 0.25, 0.5, 0.75])}  # eta, alpha
LENGTH = "{steps:,} steps of Adam, learning rate {lr:g}"
PATHS = (
    "Paths in loss space and in parameter space for loss 1 times s = 1 and s = 0.1, from five starts (hollow) "
    "to their ends (filled). Grey: Pareto front; star: its best average; cross: end predicted by theory. Bottom: the "
    "player's p_1 (running mean; faint: p_1 itself; grey lines: edges of its ball) or else the weight of loss 1, from "
    "the start (9, 9), for s = 1 (solid) and s = 0.1 (dotted). BanditMTL and EMTL with rho = 0.5, eta = 0.5, "
    "EMTL with alpha = 0.5, FairGrad with alpha = 2"
)


def predicted_ends() -> pd.DataFrame:
    """x1 at which EMTL and BanditMTL (rho = 0.5) must end on the front, and that of its best average, by scale."""
    forms = {
        "EMTL": ("weighted", "literal"),
        "frozen norm": ("weighted", "frozen_norm"),
        "BanditMTL": ("loss", "literal"),
    }
    table = pd.DataFrame({"best average": [star(s)[0] for s in SCALES]}, index=pd.Index(SCALES, name="s"))
    for name, form in forms.items():
        table[name] = [told.predicted_end(s, 0.5, *form) for s in SCALES]  # type: ignore[arg-type]
    return table + 0.0


@dataclass
class ToyStudy:
    """`runs` and the same `nudged`, from starts moved by 1e-10; `tried`: EMTL at many settings."""

    facts: dict[str, Any]
    runs: ToyRuns
    nudged: ToyRuns
    tried: ToyRuns

    def __post_init__(self) -> None:
        self.short, self.length = self.facts["scale"] == "smoke", f". {LENGTH.format(**self.facts['config'])}"
        self.table = captioned(
            told.summarise(self.runs, self.nudged),
            "The runs one by one: predicted and found x_1 at the end, starts (-8.5, 7.5), (0, 0), (9, 9), (-7.5, "
            f"-0.5), (9, -1){self.length}",
            wide=True,
            digits=2,
        )

    def figure(self, part: str) -> Figure:
        """ "toy" (shown): some methods at two loss scales; "methods": every one (smoke: every sixth) at all four."""
        if part == "methods":
            b = dict(reversed(bounded()))  # FAMO as the others, not as its authors run it
            named = [(name, b.get(name, {})) for name in shown()] + VARIANTS[4:5]
            labels = [c.label for c in grid(named, [1.0])][:: 6 if self.short else 1]
            fig = methods_figure(self.runs, labels, SCALES)
            said = (
                f"Every {'sixth ' * self.short}method, in parameter space for the four scales of loss 1: starts "
                "hollow, ends filled, star: best average, cross: predicted end. Last panel: weight of loss 1 or p_1 "
                "(running mean) from the start (9, 9), solid to dash-dotted for s = 10, 1, 0.1, 0.01; empty for "
                "methods without weights. "
                "Dagger: told that losses are above b = -21 (times s). Hyperparameters as in the side-car"
            )
        else:
            fig, said = toy_figure(self.runs, SHOWN, [1.0, 0.1]), PATHS
        return captioned(fig, said + self.length)

    def ends(self) -> pd.DataFrame:
        said = (
            "Of five runs, how many end on the Pareto front / at its best average (within 0.2), and the mean excess of "
            "the average loss. Undefined: see text; b: lower bound that the method is told; ~ k: k of the runs end "
            f"elsewhere (0.2 or more off) when the start moves by 1e-10{self.length}"
        )
        return captioned(told.ends(self.table), said, wide=True)

    def readings(self) -> pd.DataFrame:
        """Where all starts end, for each reading of EMTL's formulas."""
        said = (
            "EMTL's sentence on Figure 1 by reading of the formulas: where do all five starts end? star: at the best "
            f"average; one point: at one other point of the front; front: on it; no: not all on it{self.length}"
        )
        return captioned(told.reconstructions(self.table, short=self.short), said, wide=True)

    def settings(self) -> pd.DataFrame:
        """How many settings of EMTL bring all starts to the front / to its best average."""
        counted = told.settings(told.summarise(self.tried)).reset_index()
        text = [f"{on} / {at} of {n}" for n, on, at in counted[["settings", "all_front", "all_star"]].to_numpy()]
        counted = counted.assign(s=[f"s = {s:g}" for s in counted["scale"]], text=text)
        etas, alphas = TRIED.get(self.facts["scale"], ([0.5], [0.5]))
        return captioned(
            counted.pivot(index=["combine", "rho"], columns="s", values="text"),
            "EMTL: settings (eta times alpha) that bring all five starts to the front / to its best average, by final "
            f"objective and ball radius rho{self.length}",
            digits=2,
            wall_s=self.tried.wall_s,
            config={"rho": RADII, "eta": etas, "alpha": alphas, "combine": COMBINES} | self.facts["config"],
        )

    def findings(self) -> list[Finding]:
        return told.claims(self.table, short=self.short)

    def verdicts(self) -> Table:
        return judged(
            SENTENCES,
            caption="What the text says of Figure 1, and what the runs say; EMTL and BanditMTL with rho = 0.5, eta = "
            f"0.5{self.length}",
            wide=True,
            wall_s=None,
        )

    def time(self) -> str:
        return (
            f"{len(self.runs.configs) + len(self.tried.configs)} configurations from {len(STARTS)} starts and from "
            f"starts moved by 1e-10, {self.runs.steps[-1]:,} steps, all at once: {self.runs.wall_s:.0f} s"
        )

    def answer(self) -> str:
        emtl = self.table[self.table["method"].isin(["emtl", "emtl (combine=frozen_norm)"])]
        said = []
        for name, rows in emtl.groupby("method"):
            best, front = (_listed(rows["scale"][rows[k] == rows["n"]]) for k in ("n_star", "n_front"))
            said.append(f"{name}: every start reaches the best average at s = {best}, the front at s = {front}")
        by_rounding, n = self.table["by_rounding"].sum(), self.table["n"].sum()
        said.append(f"Ends that rounding decides: {by_rounding} of {n} runs; which, the table says (~).")
        last = told.claims(self.table, short=self.short)[-1].word
        said.append(f"Does EMTL reach the best average whatever the loss scale? As the text says it: {last}.")
        return "\n".join(said)


def _listed(scales: Iterable[float]) -> str:
    return ", ".join(f"{s:g}" for s in scales) or "none"


def study(scale: str) -> ToyStudy:
    """Paths of one length: smoke in 500 steps; quick: the kept study of 50,000; paper: all settings of EMTL too."""
    if known_scale(scale, ("quick", *STEPS)) == "quick":
        return kept()
    steps, rate = STEPS[scale]
    configs = grid([*shown(), *bounded(), *VARIANTS], SCALES)
    etas, alphas = TRIED.get(scale, ([0.5], [0.5]))
    values = [(r, e, a, c) for r in RADII for e in etas for a in alphas for c in COMBINES]
    hypers = [{"rho": r, "eta": e, "alpha": a, "combine": c, "strict": True} for r, e, a, c in values]
    more = grid([("emtl", h) for h in hypers], [1.0, 0.1])
    starts = np.concatenate([STARTS, STARTS + 1e-10])
    every = run_toy([*configs, *more], steps=steps, lr=rate, starts=starts, record_every=max(1, steps // 500))
    first, own = slice(len(configs)), slice(len(STARTS))
    runs, nudged = every.part(first, own), every.part(first, slice(len(STARTS), None))
    tried = every.part(slice(len(configs), None), own)
    config = {"steps": steps, "lr": rate, "scales": SCALES, "starts": STARTS.tolist(), "defaults": defaults()}
    config |= {"absent": absent()}
    facts = {"scale": scale, "data": "two-loss landscape of CAGrad and Nash-MTL", "synthetic": True}
    facts |= {"notebook": "01_figure1_toy", "n": f"{len(STARTS)} starts", "config": config, "wall_s": runs.wall_s}
    return ToyStudy(facts, runs, nudged, tried)


def keep(made: ToyStudy) -> Path:
    """Write a study to data/ledger/figure1.npz: its paths thinned, of what was nudged or tried the ends."""
    arrays: dict[str, Any] = {}
    for name, every in PARTS.items():
        told = asdict(getattr(made, name).thinned(every))
        arrays |= {f"{name}/{k}": np.float32(told[k]) for k in ("x", "f", "p", "share")}
        arrays[f"{name}/steps"] = told["steps"]
        made_of = {"configs": told["configs"], "wall_s": told["wall_s"]}
        arrays[f"{name}/told"] = np.frombuffer(json.dumps(made_of).encode(), np.uint8)
    facts = plain({**made.facts, "made": provenance("cpu", [__name__])})
    arrays["facts"] = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    path = root() / "data" / "ledger" / KEPT
    with atomic(path) as part, part.open("wb") as file:
        np.savez_compressed(file, **arrays)
    return path


def kept() -> ToyStudy:
    """The study of data/ledger/figure1.npz. Raises DataError where it is damaged or not there."""
    wanted = {f"{name}/{k}": ("f", d) for name in PARTS for k, d in (("x", 4), ("f", 4), ("p", 3), ("share", 3))}
    wanted |= {f"{name}/steps": ("i", 1) for name in PARTS} | {f"{name}/told": ("u", 1) for name in PARTS}
    found = raw.arrays(root() / "data" / "ledger" / KEPT, f"data/ledger/{KEPT}", wanted | {"facts": ("u", 1)})
    parts = []
    for name in PARTS:
        told = json.loads(found[f"{name}/told"].tobytes())
        own = {k: found[f"{name}/{k}"] for k in ("steps", "x", "f", "p", "share")}
        parts.append(ToyRuns(tuple(Config(*one) for one in told["configs"]), **own, wall_s=told["wall_s"]))
    facts = json.loads(found["facts"].tobytes())
    del facts["made"]  # where and when, which a side-car says of itself
    facts["command"] = "mtl claims --check figure1"  # what makes these runs anew
    return ToyStudy(facts, *parts)
