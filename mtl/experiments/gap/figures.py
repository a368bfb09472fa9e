"""Figures and descriptive tables of the gap study (notebook 08); everything here is computed from ledger rows."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mtl.experiments.gap.hypotheses import Array, Result, causal, observational, spearman, tables
from mtl.experiments.gap.runs import ARMS, LEVELS
from mtl.ledger import Row
from mtl.report import style
from mtl.report.stats import mean_ci

COLOURS = {"digits": style.BLUE, "digits-noisy": style.ORANGE, "census": style.GREEN, "qm9": style.RED}


def scatter(rows: Sequence[Row], quantity: str = "rrv") -> Figure:
    """Left: all levels thrown together, where the stage of training drives both; right: ranks at one level."""
    fig, axes = style.subplots(1, 2, height=2.6)
    left, right = axes[0]
    found = tables(rows, "observational")
    shades = dict(zip(LEVELS, plt.get_cmap("viridis")(np.linspace(0, 0.9, len(LEVELS))), strict=True))
    pooled: list[tuple[Array, Array]] = []
    for level, shade in shades.items():
        x = np.concatenate([t.values(quantity, level).ravel() for t in found])
        y = np.concatenate([t.values("gap", level).ravel() for t in found])
        pooled.append((x, y))
        left.scatter(x, y, s=2, color=shade, alpha=0.35, lw=0, rasterized=True, label=f"{level:g}")
    both = [np.concatenate(part) for part in zip(*pooled, strict=True)]
    naive = float(spearman(both[0], both[1]))
    left.set(xscale="log", xlabel=f"{quantity.upper()} (normalised)", ylabel="gap (test − training loss)")
    left.set_title(f"Everything pooled: Spearman {naive:+.2f}")
    left.legend(title="level q", markerscale=4, fontsize=6, title_fontsize=6, handletextpad=0.1)
    for name, colour in COLOURS.items():
        xs, ys = [], []
        for t in found:
            if t.level is None or t.condition != name:
                continue
            xs.append(_share(np.nanmean(t.values(quantity), 0)))
            ys.append(_share(np.nanmean(t.values("gap"), 0)))
        if xs:
            x, y = np.mean(xs, 0), np.mean(ys, 0)
            right.scatter(x, y, s=14, color=colour, lw=0, label=f"{name} ({float(spearman(x, y)):+.2f})")
    right.set(
        xlabel=f"rank of {quantity.upper()} among methods", ylabel="rank of the gap", title="At equal training loss"
    )
    right.legend(fontsize=6, loc="lower left", bbox_to_anchor=(0, 0.98), ncol=2, handletextpad=0.1, columnspacing=0.6)
    right.set_title("")
    plt.close(fig)
    return fig


def _share(values: Array) -> Array:
    order = values.argsort().argsort()
    return np.asarray(order / max(len(values) - 1, 1))


def forest(table: pd.DataFrame, parts: dict[str, Result]) -> Figure:
    """The four primary estimates: overall with 95 %, by condition with 98.75 % intervals, verdicts beside them."""
    fig, axes = style.subplots(1, 2, height=2.6)
    for ax, kind in zip(axes[0], ("observational", "causal"), strict=True):
        y, ticks, labels = 0.0, [], []
        for name in [h for h in table.index if kind in h]:
            r, line = parts[name], table.loc[name]
            ax.plot([r.low, r.high], [y, y], color="k", lw=2)
            ax.plot(r.value, y, "ks")
            ticks.append(y)
            labels.append(f"{name.split()[0]} {name.split(', ')[1]}: {line.verdict}")
            for condition, (value, low, high) in r.by_condition.items():
                y -= 0.6
                ax.plot([low, high], [y, y], color=COLOURS[condition], lw=1.2)
                ax.plot(value, y, "o", color=COLOURS[condition])
                ticks.append(y)
                labels.append(condition)
            y -= 1.0
        ax.axvline(0, color="0.5", lw=0.8)
        ax.set_yticks(ticks, labels)
        ax.grid(axis="y", visible=False)
    axes[0, 0].set(
        xlim=(-1, 1), xlabel="Spearman correlation with the gap", title="Across methods, equal training loss"
    )
    axes[0, 1].set(xlabel="change of the gap, share of the base gap", title="Penalty on the variance")
    plt.close(fig)
    return fig


def doses(rows: Sequence[Row], draws: int = 500) -> pd.DataFrame:
    """Each causal arm: geometric mean of its RRV and CV over the base run's, change of the gap with 95 % interval."""
    lines = []
    for arm in list(ARMS)[1:]:
        rrv, cv = (causal(rows, arm, q, draws=draws, flips=2000) for q in ("rrv", "cv"))
        line = {"arm": arm, "RRV ratio": rrv.manipulation, "CV ratio": cv.manipulation}
        lines.append(line | {"gap change": rrv.value, "low": rrv.low, "high": rrv.high, "p": rrv.p})
    return pd.DataFrame(lines).set_index("arm")


def intervention(rows: Sequence[Row], table: pd.DataFrame) -> Figure:
    """What each arm did to the variance, and what became of the gap, stratum by stratum."""
    fig, axes = style.subplots(1, 2, height=2.5)
    left, right = axes[0]
    arms = list(table.index)
    place = np.arange(len(arms))
    left.barh(place - 0.2, table["RRV ratio"], height=0.38, color=style.BLUE, label="RRV")
    left.barh(place + 0.2, table["CV ratio"], height=0.38, color=style.ORANGE, label="CV of losses")
    left.axvline(1, color="0.4", lw=0.8)
    left.set(xscale="log", xlabel="variance, penalised / base", title="Was the variance lowered?")
    left.set_yticks(place, arms)
    left.set_xlim(right=12)
    left.legend(fontsize=6, loc="lower right")
    rng = np.random.default_rng(0)
    for t in tables(rows, "causal"):
        if t.level is None:
            continue
        gap = t.values("gap")
        base = gap[:, t.units.index("base")]
        for i, arm in enumerate(arms):
            change = float(np.nanmean(gap[:, t.units.index(arm)] - base) / np.nanmean(base))
            right.plot(change, i + rng.uniform(-0.2, 0.2), "o", ms=3, color=COLOURS[t.condition], alpha=0.7)
    right.errorbar(
        table["gap change"],
        place,
        xerr=[table["gap change"] - table.low, table.high - table["gap change"]],
        fmt="ks",
        ms=4,
    )
    right.axvspan(-0.05, 0.05, color="0.93", zorder=0)
    right.axvline(0, color="0.4", lw=0.8)
    right.set(xlabel="change of the gap, share of the base gap", title="Did the gap follow? (grey: below ±5 %)")
    right.set_yticks(place, [])
    for name, colour in COLOURS.items():
        right.plot([], [], "o", ms=3, color=colour, label=name)
    right.legend(fontsize=6)
    for ax in (left, right):
        ax.invert_yaxis()
        ax.grid(axis="y", visible=False)
    plt.close(fig)
    return fig


def by_method(rows: Sequence[Row]) -> pd.DataFrame:
    """Per method, over strata and seeds at the primary level: RRV over that of equal weights (geometric mean), gap
    change against equal weights in % with the half width of a 95 % interval over (condition, seed) means.
    """
    found = [t for t in tables(rows, "observational") if t.level is not None]
    lines = []
    for unit in found[0].units:
        ratios: list[float] = []
        changes: dict[tuple[str, int], list[float]] = {}
        for t in found:
            i, base = t.units.index(unit), t.units.index("ls")
            ratios += np.log(t.values("rrv")[:, i] / t.values("rrv")[:, base]).tolist()
            gap = t.values("gap")
            change = 100 * (gap[:, i] - gap[:, base]) / np.nanmean(gap[:, base])
            for s, value in enumerate(change):
                if np.isfinite(value):
                    changes.setdefault((t.condition, s), []).append(float(value))
        estimate = mean_ci([float(np.mean(v)) for v in changes.values()])
        line = {"method": unit, "RRV / LS": float(np.exp(np.nanmean(ratios)))}
        lines.append(line | {"gap change, %": estimate.value, "± 95 %": estimate.half})
    return pd.DataFrame(lines).set_index("method")


def variances(methods: pd.DataFrame) -> Figure:
    """`by_method`: the variance of relative rates against that of equal weights, and what the gap did; EMTL by rho."""
    fig, axes = style.subplots(1, 1, width="column", height=2.5)
    ax = axes[0, 0]
    for family, colour in (("", style.GREY), ("bandit", style.ORANGE), ("emtl", style.RED)):
        own = methods.index.str.startswith(("bandit", "emtl"))
        part = methods[methods.index.str.startswith(family) if family else ~own]
        label = {"": "other methods", "bandit": "BanditMTL, by ρ", "emtl": "EMTL, by ρ"}[family]
        ax.errorbar(part.iloc[:, 0], part.iloc[:, 1], part.iloc[:, 2], fmt="o", color=colour, ms=3, lw=0.6, label=label)
        for name, x, y in zip(part.index, part.iloc[:, 0], part.iloc[:, 1], strict=True) if family else ():
            ax.annotate(name.split()[1], (x, y), (4, 2), textcoords="offset points", fontsize=7, color=colour)
    ax.axvline(1, color="0.6", lw=0.8, ls=":")
    ax.axhline(0, color="0.6", lw=0.8, ls=":")
    ax.set(xlabel="RRV over that of equal weights", ylabel="change of the gap, %")
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=3, handletextpad=0.2, columnspacing=0.8)
    plt.close(fig)
    return fig


def secondary(rows: Sequence[Row], draws: int = 300) -> pd.DataFrame:
    """Descriptive: all four estimates at q = .7 and .3 and by architecture, optimiser and n at the primary level."""
    lines = []
    for label, part, level in _slices(rows):
        line: dict[str, object] = {"slice": label}
        for name, quantity in (("H1 RRV", "rrv"), ("H3 CV", "cv")):
            if any(t.level is not None for t in tables(part, "observational", level)):
                r = observational(part, quantity, level=level, permutations=200, draws=draws, seed=1)
                line[name] = f"{r.value:+.2f} [{r.low:+.2f}, {r.high:+.2f}]"
        for name, arm in (("H2 RRV", "rrv .1"), ("H4 CV", "cv .1")):
            if any(t.level is not None for t in tables(part, "causal", level)):
                r = causal(part, arm, level=level, flips=200, draws=draws, seed=1)
                line[name] = f"{100 * r.value:+.1f} % [{100 * r.low:+.1f}, {100 * r.high:+.1f}]"
        lines.append(line)
    return pd.DataFrame(lines).set_index("slice")


def _slices(rows: Sequence[Row]) -> list[tuple[str, list[Row], float | None]]:
    slices: list[tuple[str, list[Row], float | None]] = [("q = .7", list(rows), 0.7), ("q = .3", list(rows), 0.3)]
    for name, values in (("arch", ("shared-bottom", "mmoe")), ("full", (True, False)), ("n", (100, 300))):
        for value in values:
            part = [row for row in rows if row["config"][name] == value]
            label = {True: "full batch", False: "mini-batch"}.get(value, f"n = {value}" if name == "n" else str(value))  # type: ignore[call-overload]
            if part:
                slices.append((label, part, None))
    return slices
