"""What alpha does: FairGrad from equal weights to the worst task, and alpha-fair losses before other methods."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import product
from typing import Any, ClassVar, cast

import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from mtl.experiments.base import Entry, Experiment, Trials
from mtl.experiments.beside import against_stl, differences
from mtl.experiments.many_tasks import ALONE
from mtl.experiments.study import BLIND, Study
from mtl.ledger import Row
from mtl.methods import METHODS
from mtl.report import captioned, frame, style
from mtl.report.claims import Check, Finding, Part, blind_check, compare, converged_check, decide, passed, same_check
from mtl.report.stats import mean_ci
from mtl.runs.tuning import NoRowsError
from mtl.scales import known_scale
from mtl.training.fit import Budget

ALPHAS = (0.5, 1.0, 2.0, 5.0, 10.0)
ERRORS = ("mse", "log-loss", "cross-entropy", "mae")  # of a task the first that it has
COPIES = ("U", "H", "G")  # of QM9's U0, which is one target four times
AVERAGE, HARDEST, WORST = "average", "hardest task", "worst task"
D = 1.0  # smallest effect of interest, ours: a point of delta-m


class AlphaStudy(Study):
    """Runs on several data sets; every error against STL of the same data set and seed, in per cent."""

    @cached_property
    def groups(self) -> dict[str, list[Row]]:
        """The rows of each data set, KuaiRand's two scales apart."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            config = row["config"]
            name = str(config.get("stands_in_for", config["problem"])).removesuffix("_few")
            targets = config["options"].get("targets", "") if name == "kuairand" else ""
            found.setdefault(f"{name} {targets}".strip(), []).append(row)
        return found

    @property
    def kinds(self) -> str:
        """Which error that is, by data set."""
        found = {name: {one.rpartition("/")[2] for one in errors(own).values()} for name, own in self.groups.items()}
        return "; ".join(f"{name}: {', '.join(sorted(kinds))}" for name, kinds in found.items())

    def parts(self, on: str = "metrics") -> dict[str, pd.DataFrame]:
        """Per data set the runs with label, seed, a column per task and their average, of test or "validation" rows."""
        taken = {
            name: [cast(Row, {**row, "metrics": dict(row)[on]}) for row in own] for name, own in self.groups.items()
        }
        return {name: lines(frame(rows), errors(rows)) for name, rows in taken.items()}

    @cached_property
    def test(self) -> dict[str, pd.DataFrame]:
        return self.parts()

    def deciding(self, name: str, on: str = "test") -> pd.DataFrame:
        """The runs of a data set that decide: those of fresh seeds where more than the pilot's were declared."""
        table = (self.test if on == "test" else self.parts(on))[name]
        fresh = table[table["seed"].isin(FRESH)]
        return fresh if len(fresh) else table

    @property
    def facts(self) -> dict[str, Any]:
        """Data sets differ in the seeds that decide, and so in n."""
        counts: dict[int, list[str]] = {}
        for name in self.test:
            counts.setdefault(self.deciding(name)["seed"].nunique(), []).append(name)
        said = [f"{n} seeds" + f" ({', '.join(names)})" * (len(counts) > 1) for n, names in counts.items()]
        return super().facts | {"n": ", ".join(said)}

    def gate(self, name: str, metrics: Sequence[str], labels: Sequence[str], doubled: Sequence[str]) -> list[Check]:
        """Rule 1 on the sentence's metrics of a data set: `labels` above the blind level, `doubled` converged, A/A."""
        table, level = self.deciding(name), self.blind_level(name)
        runs = {str(label): {m: own[m].dropna().to_numpy(float) for m in metrics}
                for label, own in table.groupby("label") if label in labels}  # fmt: skip
        blind = None if level is None else {m: float(level[m]) for m in metrics}
        check, _ = blind_check(runs, blind, dict.fromkeys(metrics, False), labels)
        there = [m for m in metrics if "LS A/A" in set(table["label"])]
        same = same_check({f"LS A/A {m}": differences(table, m, "LS A/A", "LS") for m in there}, D)
        found = [check, converged_check(self.moves(name, metrics, doubled), D), same]
        return [replace(one, name=f"{one.name}, {name}") for one in found]

    def blind_level(self, name: str) -> "pd.Series[float] | None":
        """The changes of the input-blind predictor on a data set; None without its row."""
        own = self.groups[name]
        return Study(self.experiment, self.scale, own, "", ()).blind_means(lambda table: lines(table, errors(own)))

    @cached_property
    def checked(self) -> tuple[dict[str, pd.DataFrame], ...]:
        """`parts` of the convergence check, at the epochs of the study and at twice as many."""
        return tuple(replace(self, rows=rows, doubled=()).parts() for rows in self.doubled)

    def moves(self, name: str, metrics: Sequence[str], labels: Sequence[str]) -> dict[str, float] | None:
        """How far doubled epochs move each difference to LS on a data set; None without these rows."""
        if not self.checked or any(name not in parts for parts in self.checked):
            return None
        found = {}
        for label, metric in product(labels, metrics):
            pairs = [differences(parts[name], metric, label, "LS").mean() for parts in self.checked]
            found[f"{label}, {metric}"] = float(pairs[1] - pairs[0])
        return found


class Sweep(AlphaStudy):
    """FairGrad at five alphas between equal weights and MGDA."""

    sentences: ClassVar[tuple[str, ...]] = ("fairgrad-emphasis",)

    @cached_property
    def hard(self) -> dict[str, str]:
        """Per data set the task that equal weights set back most, by validation rows: the test rows have no say."""
        found = {}
        for name in self.test:
            table = self.deciding(name, "validation")
            tasks = [task for task in table if task not in ("label", "seed", AVERAGE)]
            found[name] = str(table.loc[table["label"] == "LS", tasks].mean().idxmax())
        return found

    @cached_property
    def table(self) -> pd.DataFrame:
        """Average, hardest and worst task of each data set and method."""
        found: dict[tuple[str, str], dict[str, str]] = {}
        for name in self.test:
            table = self.deciding(name)
            tasks = [task for task in table if task not in ("label", "seed", AVERAGE)]
            for label, own in table.groupby("label", sort=False):
                if label in ("STL", "LS A/A"):
                    continue
                worst = own[tasks].mean()
                cells = {AVERAGE: shown(own[AVERAGE]), HARDEST: shown(own[self.hard[name]])}
                found[name, str(label)] = cells | {WORST: f"{worst.max():+.1f} ({worst.idxmax()})"}
            if (level := self.blind_level(name)) is not None:
                cells = {AVERAGE: f"{level[AVERAGE]:+.1f}", HARDEST: f"{level[self.hard[name]]:+.1f}"}
                worst = level.drop(["seed", AVERAGE])
                found[name, BLIND] = cells | {WORST: f"{worst.max():+.1f} ({worst.idxmax()})"}
        table = pd.DataFrame(found).T.rename_axis(["data", "method"])
        hard = ", ".join(f"{name}: {task}" for name, task in self.hard.items())
        said = (
            f"Change of the test error ({self.kinds}) against STL of the same seed in per cent (below 0 is better), "
            f"mean ± 95 % interval over seeds. Hardest: what LS sets back most on validation rows ({hard}). QM9 counts "
            "U0 for U0, U, H and G; nothing is tuned. Input-blind: the best predictor that never sees an input"
        )
        return captioned(table, said)

    def figure(self) -> Figure:
        """Each task's change against alpha, the hardest and the average in colour."""
        fig, axes = style.subplots(1, len(self.test), height=2.5)
        for ax, name in zip(axes[0], self.test, strict=True):
            means = self.deciding(name).groupby("label").mean()
            places = {"LS": 0.25, "MGDA": 20.0} | {fair(a): a for a in ALPHAS}
            kept = sorted((x, label) for label, x in places.items() if label in means.index)
            xs, own = [x for x, _ in kept], means.loc[[label for _, label in kept]]
            for task in own.columns.drop(["seed", AVERAGE]):
                ax.plot(xs, own[task], color="0.75", lw=0.6, zorder=1)
            ax.plot(xs, own[self.hard[name]], "o-", color=style.RED, label="hardest task")
            ax.plot(xs, own[AVERAGE], "s-", color=style.BLUE, label=AVERAGE)
            ax.axhline(0, color="0.3", lw=0.6)
            ax.set(xscale="log", title=f"{name}\nhardest: {self.hard[name]}", xlabel="alpha")
            if (most := own.drop(columns="seed", errors="ignore").abs().to_numpy(float).max()) > 10:
                ax.set_yscale("symlog", linthresh=10 if most > 100 else 1)
                ax.autoscale(axis="y")  # of the new scale
            ax.set_xticks(xs, ["LS" if x == 0.25 else "MGDA" if x == 20 else f"{x:g}" for x in xs], rotation=90)
            ax.set_xticks([], minor=True)
        axes[0, -1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
        axes[0, 0].set_ylabel("change of the test error\nagainst STL [%]")
        return captioned(
            fig,
            "FairGrad's alpha against each task's error (grey), mean over seeds; below 0 is better than single-task "
            "learning; where errors change by more than 10 per cent (100), linear up to 1 (10) and logarithmic beyond",
        )

    def room(self, name: str) -> Check:
        """Is there anything to emphasise: do equal weights set the hardest task back by d?"""
        table, task = self.deciding(name), self.hard[name]
        back = float(table.loc[table["label"] == "LS", task].mean())
        said = f"LS behind STL by {back:.3g} ({task}), d = {D:g}"
        return Check(f"a task is set back by d, {name}", back >= D, said)

    def findings(self) -> list[Finding]:
        """Does a larger alpha lift the hardest task? One part per data set, alpha .5 against 10."""
        ends = (fair(0.5), fair(10.0))
        gates = {
            name: [*self.gate(name, [self.hard[name]], ("STL", "LS", *ends), ("STL", *ends)), self.room(name)]
            for name in self.test
        }
        kept = [name for name in gates if passed(gates[name])] or list(gates)
        parts = {name: compare(f"{name}, {task}", differences(self.deciding(name), task, *ends), D)
                 for name, task in self.hard.items()}  # fmt: skip
        said = [f"left out, {check.name}: {check.said}" for name in gates if name not in kept
                for check in gates[name] if not check.passed]  # fmt: skip
        facts: dict[str, Any] = {
            **self.behind,
            "said": "; ".join(said),
            "beside": tuple(parts[name] for name in parts if name not in kept),
        }
        facts |= {"gate": [check for name in kept for check in gates[name]], "declared": declared(self, kept)}
        return [decide("fairgrad-emphasis", "parts", [parts[name] for name in kept], **facts)]


class FairLosses(AlphaStudy):
    """Nine methods with and without the alpha-fair transform of their losses."""

    sentences: ClassVar[tuple[str, ...]] = ("fairgrad-fair-losses",)

    def gains(self, on: str = "test") -> dict[tuple[str, str, float], "pd.Series[float]"]:
        """Per (data set, base, alpha) the gain over alpha = 0 in points of the average, per seed that decides."""
        found = {}
        for name in self.test:
            table = self.deciding(name, on)
            for (base, _), alpha in product(BASES, LOSS_ALPHAS):
                if alpha and {base, transformed(base, alpha)} <= set(table["label"]):
                    pairs = differences(table, AVERAGE, base, transformed(base, alpha))
                    found[name, base, alpha] = pairs.dropna()
        return found

    @cached_property
    def compared(self) -> dict[tuple[str, str, float], Part]:
        """Every gain as a comparison; its wide interval holds for all of its data set together."""
        gains, many = self.gains(), pd.Series([name for name, *_ in self.gains()]).value_counts()
        return {
            at: compare(f"{at[1]}, alpha {at[2]:g}, {at[0]}", own, D, rivals=int(many[at[0]]))
            for at, own in gains.items()
            if len(own)
        }

    @cached_property
    def table(self) -> pd.DataFrame:
        """Gain per base, and per column the sign test over bases."""
        columns = list(dict.fromkeys((name, alpha) for name, _, alpha in self.compared))
        cells: dict[str, dict[str, str]] = {}
        for base, method in BASES:
            if not any(found == base for _, found, _ in self.compared):
                continue
            own = cells.setdefault(base, {})
            for name, alpha in columns:
                part = self.compared.get((name, base, alpha))
                refused = "needs positive losses" if alpha >= 1 and positive(method) else "–"
                own[f"{name}, {alpha:g}"] = refused if part is None else _cell(part)
        cells["sign test"] = {f"{n}, {a:g}": self.signs(n, a) for n, a in columns}
        said = (
            "Gain of alpha-fair losses over the base itself (alpha = 0): points of the mean change of the test errors "
            f"({self.kinds}) against STL, above 0 the transform helps; mean and an interval that holds for all cells "
            "of a data set together (Bonferroni t, 95 %). Last line: bases that gain, and p of the sign test over "
            "them, as if they were independent (they share seeds and data). "
            "L^(1 - alpha) / (1 - alpha) is negative for alpha > 1 and log L may be for 1: no cell where a base needs "
            "positive losses. Nothing is tuned"
        )
        return captioned(pd.DataFrame(cells).T.rename_axis("base"), said)

    def signs(self, name: str, alpha: float) -> str:
        """How many bases gain on a data set at an alpha, and the two-sided p of that under even chances."""
        values = [part.value or 0.0 for (n, _, a), part in self.compared.items() if (n, a) == (name, alpha)]
        ups, n = sum(v > 0 for v in values), sum(v != 0 for v in values)
        return f"{ups} of {n}, p = {stats.binomtest(ups, n).pvalue:.3f}" if n else "–"

    def figure(self) -> Figure:
        """A row of dots per base, an axis per data set, a colour per alpha."""
        names = list(dict.fromkeys(name for name, *_ in self.compared))
        bases = [base for base, _ in BASES if any(found == base for _, found, _ in self.compared)]
        fig, axes = style.subplots(1, len(names), height=2.8, sharey=True)
        looks = {0.5: (style.SKY, "o", -0.2), 1.0: (style.BLUE, "s", 0.0), 2.0: (style.RED, "^", 0.2)}
        for ax, name in zip(axes[0], names, strict=True):
            for (found, base, alpha), part in self.compared.items():
                if found == name:
                    colour, marker, lane = looks[alpha]
                    half = None if part.wide is None else part.wide[1] - cast(float, part.value)
                    ax.errorbar(part.value, bases.index(base) + lane, xerr=half, fmt=marker, color=colour, ms=3.5)
            ax.axvline(0, color="0.3", lw=0.8)
            if max(abs(cast(float, part.value)) for (found, *_), part in self.compared.items() if found == name) > 10:
                ax.set_xscale("symlog", linthresh=1)
                ax.autoscale(axis="x")
                ax.set_xticks([-10, -1, 0, 1, 10], ["-10", "-1", "0", "1", "10"])
                ax.set_xticks([], minor=True)
            else:
                ax.locator_params(axis="x", nbins=4)
            ax.set(title=name, xlabel="gain [points]", yticks=range(len(bases)), ylim=(len(bases) - 0.5, -0.5))
            ax.set_yticklabels(bases)
        for alpha, (colour, marker, _) in looks.items():
            if any(found == alpha for *_, found in self.compared):
                axes[0, -1].plot([], [], marker, color=colour, label=f"alpha {alpha:g}")
        axes[0, -1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
        said = (
            "Gain of alpha-fair losses over alpha = 0 in points of delta-m, mean and simultaneous 95 % intervals over "
        )
        return captioned(
            fig,
            said
            + "seeds; right of 0 the transform helps; where gains pass 10 points, linear within 1, logarithmic beyond",
        )

    def findings(self) -> list[Finding]:
        """A part per base on KuaiRand's natural scale, at the alpha that validation rows choose; the rest beside."""
        seen = {at: own.mean() for at, own in self.gains("validation").items() if len(own)}
        chosen: dict[tuple[str, str], float] = {}
        for name, base, alpha in seen:
            best = chosen.get((name, base))
            if best is None or seen[name, base, alpha] > seen[name, base, best]:
                chosen[name, base] = alpha
        parts = {
            at: self.compared[at[0], at[1], alpha] for at, alpha in chosen.items() if (*at, alpha) in self.compared
        }
        own = [part for (name, _), part in parts.items() if name == MAIN]
        beside = tuple(part for (name, _), part in parts.items() if name != MAIN)
        facts: dict[str, Any] = {
            **self.behind,
            "beside": beside,
            "said": f"count on {MAIN}; further data sets beside it",
        }
        facts["gate"] = self.gate(MAIN, [AVERAGE], ("STL", "LS"), [one for one in DOUBLED if one != "LS"])
        return [decide("fairgrad-fair-losses", "count", own, needed=5, declared=declared(self, [MAIN]), **facts)]


def declared(study: AlphaStudy, names: Iterable[str]) -> int:
    """The number of seeds that was declared for the data sets that decide."""
    more = any((study.experiment.book, name) in MORE for name in names)
    return len(FRESH) if more else len(SEEDS["study"])


def fair(alpha: float) -> str:
    """FairGrad's label.

    >>> fair(0.5), transformed("LS", 1.0), transformed("LS", 0.0)
    ('FairGrad (alpha=0.5)', 'LS, losses 1', 'LS')
    """
    return f"FairGrad (alpha={alpha:g})"


def transformed(base: str, alpha: float) -> str:
    """The label of a base with alpha-fair losses."""
    return f"{base}, losses {alpha:g}" if alpha else base


def positive(method: str) -> bool:
    """Whether a method takes no negative losses, so that alpha must stay below 1."""
    return METHODS[method].positive_losses or METHODS[method].nonnegative_losses


def shown(values: "pd.Series[float]") -> str:
    """Mean, and the interval from three seeds on."""
    one = mean_ci(values.dropna())
    return f"{one.value:+.1f}" + (f" ± {one.half:.1f}" if one.n > 2 else "")


def _cell(part: Part) -> str:
    ends = "" if part.wide is None else f" ({part.wide[0]:+.2f}, {part.wide[1]:+.2f})"
    return f"{part.value:+.2f}{ends}"


def errors(rows: Iterable[Row]) -> dict[str, str]:
    """Per task the metric that its change is taken of."""
    names = list(next(iter(rows))["metrics"])
    tasks = [name.removesuffix("/score") for name in names if name.endswith("/score")]
    return {t: next(f"{t}/{kind}" for kind in ERRORS if f"{t}/{kind}" in names) for t in tasks if t not in COPIES}


def lines(table: pd.DataFrame, names: Mapping[str, str]) -> pd.DataFrame:
    """Runs with the change of each task's error against STL in per cent, and their average; NaN without a result."""
    change = against_stl(table, names.values()).set_axis(list(names), axis=1)
    return table[["label", "seed"]].assign(**change, **{AVERAGE: change.mean(axis=1, skipna=False)})


def study(family: Mapping[str, Experiment], scale: str, **how: Any) -> AlphaStudy:
    """All data sets of a family at a scale as one study."""
    made = [family[name].study(scale, **how) for name in WHERE[known_scale(scale, WHERE)] if name in family]
    first, *others = made
    return cast(AlphaStudy, first.also(*others))


def published(family: Mapping[str, Experiment]) -> AlphaStudy:
    """The published rows of all data sets. NoRowsError where one has none; those of fewer seeds than declared are."""
    made = [one.published(at="study", **v) for one in family.values() for v in one.chosen("study")]
    if short := [one.experiment.name for one in made if not set(SEEDS["study"]) <= set(one.seeds)]:
        raise NoRowsError(f"data/ledger: {short[0]} has not all declared seeds")
    first, *others = made
    doubled = (
        tuple([row for one in made if one.doubled for row in one.doubled[i]] for i in (0, 1)) if first.doubled else ()
    )
    return cast(AlphaStudy, first.also(*others, doubled=doubled))


STL: tuple[Entry, ...] = (("STL", "stl", {}),)
SWEPT: tuple[Entry, ...] = (
    ("LS", "ls", {}),
    *((fair(a), "fairgrad", {"alpha": a}) for a in ALPHAS),
    ("MGDA", "mgda", {}),
)
BASES = (
    ("LS", "ls"), ("RLW", "rlw"), ("DWA", "dwa"), ("UW", "uw"), ("MGDA", "mgda"), ("PCGrad", "pcgrad"),
    ("CAGrad", "cagrad"), ("IMTL-G", "imtl-g"), ("Nash-MTL", "nash"),
)  # fmt: skip
LOSS_ALPHAS, MAIN = (0.0, 0.5, 1.0, 2.0), "kuairand natural"
DOUBLED = ("STL", "LS", transformed("LS", 1.0), "MGDA", "Nash-MTL")  # of the convergence check on MAIN
FRESH = tuple(range(15, 35))  # seeds that alone decide where five, then the pilot, could not
MORE = {("alpha", "census"), ("fair_losses", MAIN)}  # there
SEEDS = {"smoke": (10,), "quick": (10, 11), **dict.fromkeys(("study", "paper"), tuple(range(10, 15)))}
WHERE = {
    "smoke": ("kuairand", "kuairand_std"), "quick": ("qm9", "kuairand", "kuairand_std", "multimnist"),
    **dict.fromkeys(("study", "paper"), ("qm9", "kuairand", "kuairand_std", "census40", "census", "multimnist")),
}  # fmt: skip
SETS: dict[str, dict[str, Any]] = {
    "qm9": {"problem": "qm9_few", "fallback": "molecules", "models": ("mlp",)},
    "kuairand": {"problem": "kuairand_few", "fallback": "shortvideo", "models": ("mmoe",)},
    "census40": {"problem": "census40", "fallback": "census40_like", "models": ("shared-bottom",)},
    "census": {"problem": "census_few", "fallback": "digits", "models": ("mmoe",)},
    "multimnist": {"problem": "multimnist_few", "fallback": "digits", "models": ("lenet",)},
}
BUDGETS = {
    "qm9": Budget(8, 256, lr=2e-3, one_cycle=0.2), "kuairand": Budget(4, 1024, lr=2e-3, weight_decay=1e-6),
    "census40": Budget(4, 512, lr=4e-3), "census": Budget(4, 1024, lr=4e-3, weight_decay=1e-6),
    "multimnist": Budget(4, 256, lr=1e-3),
}  # fmt: skip


def losses(alphas: Sequence[float], bases: Iterable[tuple[str, str]] = BASES) -> tuple[Entry, ...]:
    """Every base at every alpha that it can take."""
    pairs = [(b, m, a) for (b, m), a in product(bases, alphas) if a < 1 or not positive(m)]
    hyper = ({"base": m, "alpha": a} for _, m, a in pairs)
    return tuple(
        (transformed(b, a), "fair-loss" if a else m, h if a else {}) for (b, m, a), h in zip(pairs, hyper, strict=True)
    )


def _made(book: str, name: str, shows: type[Study], every: tuple[Entry, ...], few: tuple[Entry, ...]) -> Experiment:
    own, alone = SETS[name], (ALONE[:1] if name == "census40" else STL)
    short = {"smoke": Budget(1, 500, lr=2e-3), "quick": Budget(1, 2048, lr=4e-3)}
    targets: dict[str, tuple[dict[str, Any], ...]] = {
        "qm9": ({"targets": "standardised"},),
        "kuairand": ({"targets": "natural"},),
        "census": ({"tasks": 3},),
    }
    variants = targets.get(name, ({},))
    doubled: tuple[str, ...] = DOUBLED if name == "kuairand" else DOUBLED[:3]
    if book == "alpha":
        doubled = ("STL", "LS", fair(0.5), fair(10.0))
    fresh = (book, f"{name} natural" if name == "kuairand" else name) in MORE
    seeds = SEEDS | dict.fromkeys(("study", "paper"), (*SEEDS["study"], *FRESH)) if fresh else SEEDS
    return Experiment(
        name=f"{book}_{name}", book=book, notebook="17_alpha", shows=shows, seeds=seeds, twins=("LS",),
        methods={scale: (*alone, *(every if scale in ("study", "paper") else few)) for scale in SEEDS},
        budget=short | dict.fromkeys(("study", "paper"), BUDGETS[name]), doubled=doubled,
        variants=dict.fromkeys(SEEDS, variants),
        trials=dict.fromkeys(("study", "paper"), Trials((100, 101), BUDGETS[name])), **own,
    )  # fmt: skip


SWEEPS = {name: _made("alpha", name, Sweep, SWEPT, (SWEPT[0], *SWEPT[1:6:2], SWEPT[-1])) for name in SETS}
LOSSES = {
    name: _made(
        "fair_losses", name, FairLosses, losses(LOSS_ALPHAS if name == "kuairand" else LOSS_ALPHAS[:3]),
        losses((0.0, 1.0), BASES[:5:4]),
    )
    for name in ("qm9", "kuairand", "census40")
}  # fmt: skip
LOSSES["kuairand_std"] = replace(
    LOSSES["kuairand"], name="fair_losses_kuairand_std", seeds=SEEDS, doubled=DOUBLED[:3],
    variants=dict.fromkeys(SEEDS, ({"targets": "standardised"},)),
)  # fmt: skip
