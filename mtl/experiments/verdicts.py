"""Every claim through the decision rule, from published rows; own checks are rows of data/ledger/checks.jsonl."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any, cast

from mtl.errors import DataError
from mtl.experiments import alpha, loss_scale
from mtl.experiments.base import Experiment
from mtl.experiments.gap import dose
from mtl.experiments.hyperparameters import HYPERPARAMETERS
from mtl.experiments.loss_scale import LOSS_SCALE, LossScale
from mtl.experiments.many_tasks import LONGER, MANY_TASKS
from mtl.experiments.mt10 import latest
from mtl.experiments.study import Study
from mtl.experiments.table1 import TABLE1
from mtl.experiments.table1 import findings as table1_findings
from mtl.experiments.table1.equal import EQUAL, KUAIRAND, SIXTEEN
from mtl.experiments.table2 import GROUP_A, GROUP_B, TABLE2, UNET
from mtl.experiments.table3 import TABLE3
from mtl.ledger import Row, key, ledger, provenance
from mtl.report import plots, save_figure
from mtl.report.claims import UNTESTED, Finding
from mtl.report.verdicts import claims
from mtl.runs.tuning import NO_STUDY

# Studies whose sentences are judged by a check of their own, and at which scale it is made; it says itself of which
# rows are.
CHECKS = {"figure1": "study", "theorem": "quick", "gap": "quick", "fairness": "quick"}


def findings() -> list[Finding]:
    """One for each entry of paper/claims.yml, in its order, from the rows that the repository brings along."""
    grid = _committed(HYPERPARAMETERS).published("quick")
    found = [*table1_findings(*_table1()), *_over_stl(), *TABLE2.published().findings(), *_table2()]
    found += [*grid.findings(), *_scaled().findings()]
    for made in (  # a later study of a sentence decides in place of an earlier one
        lambda: TABLE3.published(at="study", targets="natural"), lambda: MANY_TASKS.published(at="study"),
        lambda: alpha.published(alpha.SWEEPS), lambda: alpha.published(alpha.LOSSES),
        lambda: HYPERPARAMETERS.published(at="study"), lambda: LONGER.published(at="study"),
    ):  # fmt: skip
        found += _whole(made)
    if mt10 := latest("study"):
        found += mt10.findings()
    for row in ledger("checks").rows():
        made = row["metrics"]["findings"]
        found += [replace(Finding.of(one), scale=row["config"]["scale"], rows=(row["key"],)) for one in made]
    if again := dose.published(at="study"):
        found.append(again.finding())
    known = {one.claim: one for one in found}
    names = [claim["id"] for claim in claims()]
    if unknown := set(known) - set(names):
        raise DataError(f"paper/claims.yml has no entry for {', '.join(sorted(unknown))}")
    return [known.get(name, Finding(name, UNTESTED, UNTESTED, (), said="no rows")) for name in names]


def _scaled() -> LossScale:
    """The study of five factors and seeds from its declared n on; until then the rows of two seeds."""
    for study in _declared(loss_scale.published):
        return cast(LossScale, study)
    return loss_scale.published(replace(_committed(LOSS_SCALE), twins=()), "quick", at="quick")


def _table1() -> tuple[list[Any], list[Any]]:
    """The data sets on equal terms that are there at their declared n, and what stands beside them; until Census is,
    the older study decides, whatever either says."""
    first, beside = (TABLE1.published(tasks=tasks, at="study") for tasks in (2, 3))
    if not (census := _declared(lambda: EQUAL.published(at="study"))):
        return [first], [beside]
    return [*census, *_declared(lambda: KUAIRAND.published(at="study"))], [beside]


def _over_stl() -> list[Finding]:
    """EMTL against STL with Census' rows of four times the epochs; it decides."""
    if not (census := _declared(lambda: SIXTEEN.published(at="study"))):
        return []
    found = table1_findings([*census, *_declared(lambda: KUAIRAND.published(at="study"))])
    return [one for one in found if one.claim == "emtl-table1-stl"]


def _table2() -> list[Finding]:
    """What the net that sees says, of as many groups of rows as are whole at the declared n (the rows of its
    convergence check come first); it decides."""
    for labels in (None, GROUP_B, GROUP_A, UNET.doubled):
        for study in _declared(partial(UNET.published, methods=labels, at="study")):
            return study.findings()
    return []


def _whole(made: Callable[[], Study]) -> list[Finding]:
    """What a study says once all of its declared seeds are published; nothing before."""
    return [finding for study in _declared(made) for finding in study.findings()]


def _declared(made: Callable[[], Study]) -> list[Any]:
    """The study if all of its declared seeds are published, else none."""
    try:
        study = made()
    except NO_STUDY:
        return []
    return [study] if set(study.experiment.seeds["study"]) <= set(study.seeds) else []


def _committed(made: Experiment) -> Experiment:
    """The same with the rows behind the committed figures."""
    return replace(made, book=f"figures/{made.book}")


def check(name: str, scale: str = "") -> Row:
    """Make the checks of one of `CHECKS` anew and append their row to data/ledger/local/checks: minutes."""
    if name not in CHECKS:
        raise ValueError(f"check: must be one of {', '.join(CHECKS)}, found {name!r}")
    start, scale = time.monotonic(), scale or CHECKS[name]
    module: Any = import_module(f"mtl.experiments.{name}")
    study = module.study(scale)
    if name == "figure1":  # its runs are no rows
        module.keep(study)
    config = {"study": name, "scale": study.facts["scale"], "settings": study.facts["config"]}
    made = {"findings": [one.plain() for one in study.findings()]}
    row: Any = {"key": key(config, "own check"), "config": config, "fingerprint": "own check", "status": "ok"}
    row |= {"metrics": made, "source": study.facts.get("data", "checks without data"), "embedded_default": False}
    row |= {"synthetic": bool(study.facts.get("synthetic")), "wall_s": round(time.monotonic() - start, 3)}
    row |= {"provenance": provenance("cpu", [study.__class__.__module__])}
    ledger("checks").append(row)
    return cast(Row, row)


def picture(found: Sequence[Finding]) -> None:
    """figures/verdicts.*: the verdicts at one glance."""
    said = (
        "Verdicts by the decision rule, a line per sentence. Dots: comparisons (of EMTL's formulas the literal "
        "reading) with 95 % intervals in units of d, the smallest effect of interest, right of 0 for the sentence; "
        "grey: open; grey band: smaller than d; arrows: further out. emtl-table1-consistent: minus a rival's gain, "
        "reproduced wherever a gain of d is excluded. Squares (left): checks of a sentence's own. Pale: the gate "
        "failed; in brackets the word of the numbers alone"
    )
    keys = sorted({row for one in found for row in one.rows})
    save_figure(
        plots.dashboard(found), "verdicts", caption=said, data="all committed rows", scale="study",
        n=f"{len(found)} sentences, {len(keys)} rows; seeds of each claim: `mtl claims --why ID`",
        command="mtl claims --record", config={"rule": "paper/decision_rule.md"},
    )  # fmt: skip
