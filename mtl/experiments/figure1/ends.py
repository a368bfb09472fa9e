"""Where runs end, where they must end, and what becomes of the sentences written about Figure 1."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from mtl.experiments.figure1.config import Config
from mtl.experiments.figure1.plane import evaluate, losses, pareto_front, star
from mtl.experiments.figure1.runs import ToyRuns
from mtl.methods.emtl import EMTL
from mtl.methods.learned import Bandit
from mtl.report.claims import CONTRADICTED, REPRODUCED, UNTESTED, Finding, Kind, by_reading, checked, decide
from mtl.solvers import ball_edge

TOLERANCE, CORNER = 0.2, 3.5  # in the plane; in x1


def player_edge(config: Config) -> float:
    """Largest p_1 that the player of a configuration can reach; NaN for methods without a player."""
    player = config.make()
    if not isinstance(player, EMTL | Bandit):
        return float("nan")
    return float(1 / (1 + np.exp(-ball_edge(player.rho))))


def predicted_end(
    scale: float, rho: float, rate: Literal["weighted", "raw", "loss"] = "weighted", combine: str = "literal"
) -> float:
    """x1 at which EMTL (rate "loss": BanditMTL) must end on the front, where MGDA's direction is 0 and p alone pulls.

    It chatters where both rates are equal (weighted: L_1 / |g_1|^2 = L_2 / |g_2|^2; raw: x1 = 0 for every scale), or
    sits at the edge of the ball, x1 = 7 (p_1 s - p_2) / (p_1 s + p_2), if equality lies beyond.

    >>> print(f"{predicted_end(0.1, 0.1):.3f} {predicted_end(0.1, 0.5, combine='frozen_norm'):.3f}")
    -4.139 -2.850
    """
    x, _ = pareto_front(n=2801)
    x = x[1:-1]
    f1, f2, a1, a2, b1, b2 = losses(x[:, 0], x[:, 1], scale)
    n1, n2 = np.hypot(a1, a2), np.hypot(b1, b2)
    power = {"weighted": 2, "raw": 1, "loss": 0}[rate]
    gap = f1 / n1**power - f2 / n2**power  # falls through 0 where the player chatters
    equal = float(np.interp(0.0, -gap, x[:, 0]))
    if combine != "literal":
        return equal
    odds = scale * np.exp(ball_edge(rho) * np.array([-1.0, 1.0]))
    low, high = 7 * (odds - 1) / (odds + 1)
    return float(np.clip(equal, low, high))


def predicted_balance(config: Config) -> float:
    """x1 at which weights that follow from the losses alone pull both ways alike: x1 = 7 (w_1 s - w_2) / (w_1 s + w_2).

    >>> round(predicted_balance(Config("scalarization", {"c": (0.5, 0.5)}, 0.1)), 3)     # the best average
    -5.727
    """
    x, f = pareto_front(config.scale, n=2801)
    told = torch.tensor(f - config.b * np.array([config.scale, 1.0]))
    w1, w2 = config.make().weights(told).numpy().T  # STCH's share falls along the front: there is one such point
    pull = 7 * (w1 * config.scale - w2) / (w1 * config.scale + w2)
    return float(np.interp(0.0, x[:, 0] - pull, x[:, 0]))


def predicted_x1(config: Config) -> float:
    """Where a configuration must end; NaN where that depends on the start or, for an unbounded player, on the path."""
    if config.method in ("ls", "scalarization", "stch"):
        return predicted_balance(config)
    player = config.make()
    if not player_edge(config) < 1 or config.b:
        return float("nan")
    if isinstance(player, EMTL):
        return predicted_end(config.scale, player.rho, player.rate, player.form)  # type: ignore[arg-type]
    return predicted_end(config.scale, player.rho, "loss")  # type: ignore[attr-defined]


def summarise(runs: ToyRuns, nudged: ToyRuns | None = None) -> pd.DataFrame:
    """One line per configuration: runs that end on the front, and at its best average, both within `TOLERANCE`.

    `excess`: mean over all starts of (L_1 + L_2) / 2 minus its smallest value; `x1_end`: the ends in the order of the
    starts; `undefined`: runs that ended early because the method's formula has no value there (see `Config`) or
    overflowed. With the same runs `nudged`, from starts moved by next to nothing, `by_rounding` counts those that end
    further off than `TOLERANCE`, or where only one of the two is undefined: their end says nothing about the method.
    """
    if nudged is not None and nudged.configs != runs.configs:
        raise ValueError("nudged: the same configurations in the same order as `runs`, found others")
    curve, _ = pareto_front(n=2801)
    lines = []
    for i, config in enumerate(runs.configs):
        end, best = runs.x[-1, i], star(config.scale)
        away = np.sqrt(((end[:, None] - curve[None]) ** 2).sum(-1)).min(1)
        least = evaluate(best[None], config.scale)[0].mean()
        other = end if nudged is None else nudged.x[-1, i]
        moved = np.linalg.norm(end - other, axis=1)
        moved[np.isnan(end).any(1) & np.isnan(other).any(1)] = 0  # undefined either way
        line: dict[str, Any] = {"scale": config.scale, "method": config.label, "n": len(end)}
        line["n_front"] = int((away <= TOLERANCE).sum())
        line["n_star"] = int((np.linalg.norm(end - best, axis=1) <= TOLERANCE).sum())
        line["undefined"] = int((~np.isfinite(end).all(1)).sum())
        line["by_rounding"] = int((~(moved <= TOLERANCE)).sum())
        line["excess"] = float(runs.f[-1, i].mean() - least)
        line["predicted_x1"] = predicted_x1(config)
        line["x1_end"] = ", ".join(f"{x1:.2f}" for x1 in end[:, 0])
        lines.append(line)
    return pd.DataFrame(lines)


def ends(table: pd.DataFrame) -> pd.DataFrame:
    """`summarise` as read: a line per method, a column per scale, "on the front / at the best average, mean excess".

    "~ 2": two of the runs end where rounding sends them.
    """

    def said(row: "pd.Series[Any]") -> str:
        if row["undefined"] == row["n"]:
            return "undefined"
        rest = f"{row['undefined']} undefined" if row["undefined"] else f"{row['excess']:.2f}"
        doubtful = f" ~ {row['by_rounding']}" if row["by_rounding"] else ""
        return f"{row['n_front']} / {row['n_star']}, {rest}{doubtful}"

    lines = table.assign(s=[f"s = {s:g}" for s in table["scale"]], text=table.apply(said, axis=1))
    wide = lines.pivot(index="method", columns="s", values="text")
    return wide.loc[table["method"].unique(), lines["s"].unique()]


def reconstructions(table: pd.DataFrame, *, short: bool = False) -> pd.DataFrame:
    """Per reading of EMTL and scale, what all starts have in common, and whether that is what Figure 1's text says.

    "star": all end at the best average, as the text says; "one point": all at one other point of the front; "front":
    all somewhere on it; "no": not all reach it. Runs too `short` to have ended judge nothing.
    """
    rows = table[table["method"].str.match(r"emtl( \(|$)")].copy()

    def common(row: "pd.Series[Any]") -> str:
        if row["n_star"] == row["n"]:
            return "star"
        if row["n_front"] < row["n"]:
            return "no"
        return "one point" if np.ptp([float(x1) for x1 in row["x1_end"].split(", ")]) <= 2 * TOLERANCE else "front"

    rows["s"], rows["said"] = [f"s = {s:g}" for s in rows["scale"]], rows.apply(common, axis=1)
    wide = rows.pivot(index="method", columns="s", values="said").loc[rows["method"].unique(), rows["s"].unique()]
    hits = (wide == "star").mean(axis=1)
    judged = np.where(hits == 1, REPRODUCED, CONTRADICTED)  # "whatever the scale": one that fails is enough
    return wide.assign(verdict=UNTESTED if short else judged)


def settings(table: pd.DataFrame) -> pd.DataFrame:
    """Settings (alpha x eta) of EMTL that bring every start to the front, and to the star, per combine, scale, rho."""
    named = table["method"].str.extract(r"rho=(?P<rho>[\d.]+).*combine=(?P<combine>\w+)")
    families = table.assign(rho=named["rho"].astype(float), combine=named["combine"])
    families["all_front"], families["all_star"] = (families[k] == families["n"] for k in ("n_front", "n_star"))
    grouped = families.groupby(["combine", "scale", "rho"], sort=True)
    return grouped.agg(settings=("n", "size"), all_front=("all_front", "sum"), all_star=("all_star", "sum"))


READINGS = {"EMTL": "emtl", "EMTL (raw)": "emtl (rate=raw)"}  # those that rule 7 names
READINGS |= {f"EMTL ({form.replace('_', ' ')})": f"emtl (combine={form})" for form in ("frozen_norm", "product")}


def claims(table: pd.DataFrame, *, short: bool = False) -> list[Finding]:
    """What EMTL's text says of Figure 1, each sentence judged on `summarise`'s table at the default settings.

    A part for each scale; EMTL's sentence says "whatever the scale", so that one part decides it, by reading. Runs too
    `short` to have ended judge nothing. Needs the rows bandit, mgda, nash, imtl-g and emtl. Corners: |x1| > `CORNER`.
    """
    names = ("bandit", "mgda", "nash", "imtl-g", "emtl")
    rows = {name: table[table["method"] == name] for name in names}
    if empty := [name for name in names if rows[name].empty]:
        raise ValueError(f"table: needs the rows {', '.join(names)} at default settings, found none for {empty[0]}")

    def per_scale(claim: str, kind: Kind, holds: Mapping[float, bool], said: Mapping[float, str]) -> Finding:
        parts = [checked(f"s = {s:g}", None if short else bool(ok), said[s]) for s, ok in holds.items()]
        return decide(f"emtl-fig1-{claim}", kind, parts, said="runs too short to judge" * short)

    rows |= {name: own for name in READINGS.values() if len(own := table[table["method"] == name])}
    by: dict[str, Any] = {name: own.set_index("scale") for name, own in rows.items()}
    at = {name: {s: f"{k} of {n}" for s, k, n in own[["n_star", "n"]].itertuples()} for name, own in by.items()}
    on = {name: {s: f"{k} of {n}" for s, k, n in own[["n_front", "n"]].itertuples()} for name, own in by.items()}
    bandit, mgda, nash, imtl = (by[name] for name in names[:-1])
    far = {s: [abs(float(x1)) > CORNER for x1 in ends.split(", ")] for s, ends in mgda["x1_end"].items()}
    front_said = ", ".join(f"{said} at s = {s:g}" for s, said in on["mgda"].items())
    corners = ", ".join(f"{sum(row)} of {len(row)} at s = {s:g}" for s, row in far.items()) + f" (|x1| > {CORNER:g})"
    missed = (nash["n_star"] < nash["n"]) & (imtl["n_star"] < imtl["n"])
    both = {s: f"Nash-MTL {at['nash'][s]} at it, IMTL-G {at['imtl-g'][s]}; EMTL {at['emtl'][s]}" for s in at["nash"]}
    front = {s: f"{said} on the front" for s, said in on["bandit"].items()}

    def reading(name: str) -> Finding:
        said = {s: f"{at[name][s]} at it, {on[name][s]} on the front" for s in at[name]}
        return per_scale("emtl", "best", dict(by[name]["n_star"] == by[name]["n"]), said)

    return [
        per_scale("bandit", "parts", dict(bandit["n_front"] < bandit["n"]), front),
        decide(
            "emtl-fig1-mgda",
            "parts",
            [
                checked("reaches the front", None if short else bool((mgda["n_front"] == mgda["n"]).all()), front_said),
                checked("at its ends from every start", None if short else all(map(all, far.values())), corners),
            ],
            said="runs too short to judge" * short,
        ),
        per_scale("nash-imtl", "parts", dict(missed), both),
        by_reading([(label, reading(name)) for label, name in READINGS.items() if name in by]),
    ]
