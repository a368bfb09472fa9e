"""Table 1 (two-task recommendation): its rows, equal tuning grids, the paper's own numbers, what they say."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from mtl.experiments import Tuning, choose, combine_stl, published, tune
from mtl.files import root
from mtl.ledger import Ledger, Row
from mtl.pool import run_grid
from mtl.report import Verdict, frame
from mtl.runs import Cell, Point, grid
from mtl.stats import holm, mean_ci
from mtl.training import Budget

HOW = ("jobs", "progress", "device", "accept", "deadline", "rerun_stale", "together")  # what is for `run_grid`
BACKBONES = {"mmoe": "MMoE", "ple": "PLE"}
LR: tuple[Point, ...] = tuple({"lr": factor} for factor in (1.0, 0.5, 2.0, 0.25, 4.0, 0.125))


def _each(name: str, *values: Any) -> tuple[Point, ...]:
    """Three values of a hyperparameter, each with two learning rates."""
    return tuple({name: value, "lr": factor} for value in values for factor in (1.0, 0.5))


# Six points each, the paper's own setting first; learning rates are factors of the scale's own (see `points`).
# A smaller budget takes the first points, so that with two of them all methods choose between the same two learning
# rates: with short training a method that alone may change its learning rate would win by that.
GRIDS: dict[str, tuple[Point, ...]] = {
    "ls": LR,
    "scalarization": _each("c", 0.4, 1.6, 0.8),  # of the first task; the others share what is left of T, see `points`
    "rlw": LR,
    "dwa": _each("tau", 2.0, 1.0, 4.0),
    "uw": LR,
    "gradnorm": _each("alpha", 1.5, 0.5, 0.12),
    "bandit": _each("rho", 0.5, 0.1, 0.3),
    "mgda": LR,
    "pcgrad": LR,
    "cagrad": _each("c", 0.4, 0.2, 0.6),
    "imtl-g": LR,
    "nash": LR,
    "fairgrad": _each("alpha", 2.0, 1.0, 0.5),
    # of the paper's alpha in [0, .5] x rho in {.1, .3, .5, .8, 1, 1.2}; for two tasks .8 and above are one point
    "emtl": tuple(
        {"alpha": alpha, "rho": rho, "lr": factor}
        for alpha, rho in ((0.5, 0.3), (0.25, 0.5), (0.0, 0.1))
        for factor in (1.0, 0.5)
    ),
}
RADII = (0.1, 0.3, 0.5, 0.8, 1.0, 1.2)  # the paper's rho
POINTS = {"smoke": 1, "quick": 1, "study": 6, "paper": 6}  # one point: the published setting, nothing is tuned
SEEDS = {"smoke": (0, 1), "quick": (0, 1, 2), "study": (0, 1, 2, 3, 4), "paper": (0, 1, 2, 3, 4)}
BUDGET = {
    "smoke": Budget(epochs=1, batch_size=256, lr=5e-3, weight_decay=1e-6),
    "quick": Budget(epochs=3, batch_size=2048, lr=4e-3, weight_decay=1e-6),
    # the learning rate that LS with MMoE likes best on validation in so few epochs, seed 100 (.001 .002 .004 .008)
    "study": Budget(epochs=4, batch_size=2048, lr=8e-3, weight_decay=1e-6),
    "paper": Budget(epochs=30, batch_size=2048, lr=1e-3, weight_decay=1e-6, patience=3),
}


def points(method: str, scale: str, count: int | None = None, tasks: int = 2) -> tuple[Point, ...]:
    """The first points of a method's grid; one without a hyperparameter tries more learning rates.

    >>> points("cagrad", "paper", 2), points("mgda", "paper", 2)
    (({'c': 0.4}, {'c': 0.4, 'lr': 0.0005}), ({}, {'lr': 0.0005}))
    >>> points("scalarization", "quick", tasks=3)
    ({'c': [0.4, 1.3, 1.3]},)
    """
    kept = _at(BUDGET[scale].lr, GRIDS[method][: POINTS[scale] if count is None else count])
    if method == "scalarization":
        return tuple({**p, "c": [p["c"], *[round((tasks - p["c"]) / (tasks - 1), 6)] * (tasks - 1)]} for p in kept)
    return kept


def _at(lr: float, grid: Sequence[Point]) -> tuple[Point, ...]:
    """Points whose learning rates are factors of `lr`, with the rates themselves; without one where it is `lr`."""
    return tuple({k: v * lr if k == "lr" else v for k, v in p.items() if (k, v) != ("lr", 1.0)} for p in grid)


def whole_grid(scale: str, tasks: int) -> tuple[Point, ...]:
    """EMTL's points over all that its paper searches, each with two learning rates; from ln T on rho is one point.

    >>> len(whole_grid("study", 2)), len(whole_grid("study", 3)), whole_grid("study", 2)[6]
    (24, 36, {'alpha': 0.5, 'rho': 0.8, 'strict': True})
    """
    inside = [{"rho": rho} for rho in RADII if rho < math.log(tasks)]
    balls = [*inside, {"rho": RADII[len(inside)], "strict": True}]
    grid = [{"alpha": alpha, **ball, "lr": f} for alpha in (0.5, 0.25, 0.0) for ball in balls for f in (1.0, 0.5)]
    return _at(BUDGET[scale].lr, grid)


def table1(
    wanted: str,
    scale: str,
    *,
    ledger: Ledger,
    models: Sequence[str] = tuple(BACKBONES),
    methods: Sequence[str] = tuple(GRIDS),
    seeds: Sequence[int] | None = None,
    fallback: str | None = None,
    whole: bool = False,
    **options: Any,
) -> tuple[list[Row], Tuning | None]:
    """Rows of one data set, STL first, and how the points were chosen (None where the grid has one point).

    Each method's point is chosen on the first model and seed by the validation score, with as many points as every
    other method; then all seeds are run on all models. `whole`: EMTL alone, on its `whole_grid`. `jobs`, `progress`,
    ... go to `run_grid`.
    """
    how = {name: options.pop(name) for name in HOW if name in options}
    chosen = SEEDS[scale] if seeds is None else tuple(seeds)
    tasks, methods = options.get("tasks", 2), ["emtl"] if whole else methods
    grids = {name: whole_grid(scale, tasks) if whole else points(name, scale, tasks=tasks) for name in methods}
    tuning, best = None, {name: own[0] for name, own in grids.items()}
    if POINTS[scale] > 1:
        tuning = tune(
            wanted, grids, model=models[0], seeds=chosen[:1], scale=scale, budget=BUDGET[scale],
            options=options, fallback=fallback, ledger=ledger, **how,
        )  # fmt: skip
        best = {name: tuning.best[name] for name in methods}
    entries = [("stl", "stl", {}), *((name, name, best[name]) for name in methods)]
    cells = cells_of(wanted, entries, models, chosen, scale, fallback=fallback, **options)
    return combine_stl(run_grid(cells, ledger=ledger, **how)), tuning


def _choice(tasks: int, grids: Mapping[str, Sequence[Point]]) -> Tuning:
    """The point of each method that the published trials of scale study give by validation."""
    entries = [(f"{name} #{i}", name, point) for name, own in grids.items() for i, point in enumerate(own)]
    trials = [
        row
        for row in published("table1", "study", entries, BUDGET["study"], tasks=tasks)
        if row["config"]["seed"] == SEEDS["study"][0] and row["config"]["model"] == next(iter(BACKBONES))
    ]
    if not trials:
        raise LookupError(f"data/ledger/table1.jsonl: no rows of scale study with {tasks} tasks")
    return choose(entries, trials, 1)


def study(tasks: int) -> tuple[list[Row], Tuning]:
    """The published rows of scale study on Census with so many tasks: STL first, each method at the point that the
    published trials give by validation. Seeds that lack a run are left out. LookupError where no seed is whole."""
    tuning = _choice(tasks, {name: points(name, "study", tasks=tasks) for name in GRIDS})
    final = [("stl", "stl", {}), *((name, name, tuning.best[name]) for name in GRIDS)]
    rows = published("table1", "study", final, BUDGET["study"], tasks=tasks)
    runs = tasks + len(BACKBONES) * len(GRIDS)
    whole = [seed for seed in SEEDS["study"] if sum(row["config"]["seed"] == seed for row in rows) == runs]
    if not whole:
        raise LookupError(f"data/ledger/table1.jsonl: no seed of scale study with {tasks} tasks has all {runs} runs")
    return combine_stl([row for row in rows if row["config"]["seed"] in whole]), tuning


def searched(tasks: int) -> tuple[list[Row], Tuning]:
    """`study`, but with EMTL at the point that validation picks from its `whole_grid`."""
    rows, _ = study(tasks)
    tuning = _choice(tasks, {"emtl": whole_grid("study", tasks)})
    seeds = {row["config"]["seed"] for row in rows}
    final = [("emtl", "emtl", tuning.best["emtl"])]
    own = published("table1", "study", final, BUDGET["study"], tasks=tasks)
    own = [row for row in own if row["config"]["seed"] in seeds]
    if len(own) < len(BACKBONES) * len(seeds):
        raise LookupError(f"data/ledger/table1.jsonl: {len(own)} runs of EMTL at {tuning.best['emtl']}, {tasks} tasks")
    return [*(row for row in rows if row["label"] != "emtl"), *own], tuning


def chosen_points(names: Iterable[str], tuning: Tuning) -> list[str]:
    """For each line of a table ("emtl (MMoE)") the point that tuning chose for its method."""
    chosen = tuning.trials[tuning.trials["chosen"]]
    points = dict(zip(chosen["method"], chosen["point"], strict=True))
    return [points.get(name.partition(" (")[0], "–") for name in names]


def cells_of(
    wanted: str,
    entries: Sequence[tuple[str, str, Point]],
    models: Sequence[str],
    seeds: Sequence[int],
    scale: str,
    fallback: str | None = None,
    **options: Any,
) -> list[Cell]:
    """Runs at the table's budget; STL once, not once per model."""
    found = grid(wanted, entries, models, seeds, scale, BUDGET[scale], fallback=fallback, **options)
    return list({cell.key(): cell for cell in found}.values())


def lines(rows: Sequence[Row]) -> pd.DataFrame:
    """One line per run with its metrics; `line` names the row of the table: "emtl (MMoE)", "stl"."""
    table = frame(rows)
    table["line"] = [
        method if method == "stl" else f"{method} ({BACKBONES.get(model, model)})"
        for method, model in zip(table["method"], table["model"], strict=True)
    ]
    return table


def point_of(row: Row) -> str:
    """A row's hyperparameters in words; the learning rate where it is not the table's."""
    config = row["config"]
    settings = {k: v for k, v in config["hyper"].items() if k != "task"}
    if config["budget"]["lr"] != BUDGET[config["scale"]].lr:
        settings["lr"] = config["budget"]["lr"]
    return ", ".join(f"{name}={value}" for name, value in settings.items()) or "–"


def reported() -> pd.DataFrame:
    """EMTL's Table 1 as printed: country, model, method, CTR AUC, CTCVR AUC, their average."""
    table = pd.read_csv(root() / "paper" / "reported" / "emtl_table1.csv")
    table["line"] = [
        "stl" if method == "stl" else f"{method} ({BACKBONES[model]})"
        for method, model in zip(table["method"], table["model"], strict=True)
    ]
    return table


def paper_columns(index: Sequence[str], present: bool = True) -> pd.DataFrame:
    """The paper's average AUC per country beside our lines, as text; empty where it has no such row."""
    wide = reported().pivot(index="line", columns="country", values="average").reindex(list(index))
    wide = wide[["NL", "ES", "FR", "US"]].add_prefix("paper ")
    if not present:
        wide = pd.DataFrame({"paper": math.nan}, index=wide.index)
    return wide.map(lambda value: "" if math.isnan(value) else f"{value:.4f}")


def paper_steady() -> list[str]:
    """Lines other than EMTL's whose printed average is above the plain backbone's in all four countries."""
    wide = reported().pivot(index="line", columns="country", values="average").drop(index="stl")
    return [
        line
        for line in map(str, wide.index)
        if not line.startswith("emtl") and (wide.loc[line] > wide.loc["ls (" + line.partition(" (")[2]]).all()
    ]


def paper_says() -> pd.DataFrame:
    """What section 5.2 says of Table 1, counted in the printed table itself."""
    table = reported()
    emtl, others = table[table["method"] == "emtl"], table[table["method"] != "emtl"]
    metrics = ("ctr_auc", "ctcvr_auc", "average")
    best, rival = (part.groupby("country")[list(metrics)].max() for part in (emtl, others))
    stl = table[table["method"] == "stl"].set_index("country")[list(metrics)]
    gain = emtl.set_index("country")[list(metrics)] - stl.loc[emtl["country"]].to_numpy()
    wide = table[table["method"] != "stl"].pivot(index=["model", "method"], columns="country", values="average")
    first = wide.groupby("model").idxmax().map(lambda found: found[1] == "emtl").to_numpy()
    steady = paper_steady()
    loss = pd.read_csv(root() / "paper" / "reported" / "aliexpress.csv")
    ratio = float((loss["ctr_logloss"] / loss["ctcvr_logloss"]).mean())
    us = emtl[(emtl["country"] == "US") & (emtl["model"] == "mmoe")].iloc[0]
    base = table[(table["country"] == "US") & (table["line"] == "ls (MMoE)")].iloc[0]
    said = [
        ("EMTL above STL on all metrics", f"{int((gain > 0).to_numpy().sum())} of {gain.size} differences"),
        ("EMTL best on 11 of 12 metrics", f"{int((best > rival).to_numpy().sum())} alone, "
         f"{int((best == rival).to_numpy().sum())} tied"),
        ("EMTL lifts MMoE by over .01 in CTCVR and average, US", f"{us['ctcvr_auc'] - base['ctcvr_auc']:.4f} and "
         f"{us['average'] - base['average']:.4f}"),
        ("EMTL best average per backbone and country", f"{int(first.sum())} of {first.size}"),
        ("no other method lifts its backbone in every country", f"{len(steady)} do: {', '.join(steady)}"),
        ("CTR loss about 23 times CTCVR loss", f"{ratio:.1f} (log-losses of MTReclib's README, mean)"),
    ]  # fmt: skip
    return pd.DataFrame(said, columns=["the text says", "the printed table says"])


def _backbones(numbers: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(str(line).partition(" (")[2] for line in numbers.index if " (" in str(line)))


def backbone_gains(numbers: pd.DataFrame, metric: str = "score") -> pd.Series:
    """Mean of each line minus the mean of the same backbone with equal weights (LS); STL and LS themselves left out."""
    mean = numbers[metric, "mean"]
    return pd.Series(
        {
            str(line): float(mean[line] - mean[f"ls ({rest}"])
            for line in mean.index
            for name, _, rest in [str(line).partition(" (")]
            if rest and name != "ls"
        }
    )


def places(numbers: Mapping[str, pd.DataFrame], metric: str = "score") -> pd.DataFrame:
    """Per data set and backbone the best line, EMTL's place among its backbone's lines, its distance to the best."""
    out = []
    for data, table in numbers.items():
        for rest in _backbones(table):
            mean = table[metric, "mean"]
            mean = mean[[str(line).endswith(f" ({rest}") for line in mean.index]].sort_values(ascending=False)
            own = f"emtl ({rest}"
            others = mean.drop(own)
            out.append(
                {
                    "data": data,
                    "backbone": rest.rstrip(")"),
                    "best": str(mean.index[0]).partition(" (")[0],
                    "EMTL's place": list(mean.index).index(own) + 1,
                    "of": len(mean),
                    "EMTL - best other": float(mean[own] - others.max()),
                    "p": float(table[metric, "p"][own]),
                }
            )
    return pd.DataFrame(out)


def best_verdict(numbers: Mapping[str, pd.DataFrame]) -> tuple[Verdict, str]:
    """EMTL first on every data set and backbone, and its paired test below .05 after Holm's correction?"""
    found = places(numbers)
    first = int((found["EMTL's place"] == 1).sum())
    said = f"first in {first} of {len(found)} (data set, backbone); places " + ", ".join(
        f"{row['data']} {row['backbone']}: {row[place]} of {row['of']}"
        for place in ["EMTL's place"]
        for _, row in found.iterrows()
    )
    if first < len(found):
        return "not reproduced", said
    sure = bool((holm(found["p"]) < 0.05).all())
    return ("reproduced" if sure else "conditional"), said + f"; largest p {found['p'].max():.3f}"


def stl_verdict(frames: Mapping[str, pd.DataFrame]) -> tuple[Verdict, str]:
    """EMTL minus STL, paired over seeds, for each data set, backbone and task: how many intervals lie above 0?"""
    low, high, total = 0, 0, 0
    for table in frames.values():
        for metric in [c for c in table.columns if str(c).endswith("/auc")]:
            wide = table.pivot(index="seed", columns="line", values=metric)
            for line in [c for c in wide.columns if str(c).startswith("emtl (")]:
                gain = mean_ci((wide[line] - wide["stl"]).dropna())
                low, high, total = low + (gain.low > 0), high + (gain.high < 0), total + 1
    said = f"EMTL above STL with the whole interval in {low} of {total} (data set, backbone, task), below in {high}"
    return ("reproduced" if low == total else "not reproduced" if high else "conditional"), said


def steady_verdict(numbers: Mapping[str, pd.DataFrame]) -> tuple[Verdict, str]:
    """Does any method but EMTL lift its backbone (equal weights) in the mean on every data set?"""
    gains = pd.DataFrame({data: backbone_gains(table) for data, table in numbers.items()}).dropna()
    steady = [line for line in gains.index[(gains > 0).all(axis=1)] if not line.startswith("emtl")]
    own = ", ".join(f"{line}: {int((gains.loc[line] > 0).sum())}" for line in gains.index if line.startswith("emtl"))
    said = f"{len(steady)} lines other than EMTL's do on all {len(numbers)} data sets ({', '.join(steady) or 'none'}); "
    said += f"EMTL lifts on {own}. In the paper's own table some do in all countries: {', '.join(paper_steady())}"
    return ("not reproduced" if steady else "reproduced"), said
