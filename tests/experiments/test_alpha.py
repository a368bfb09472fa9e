"""Alpha in training: FairGrad at 1 and at infinity, the sweep and the fair losses as tables, verdicts and runs."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from mtl import backward
from mtl.experiments import alpha as module
from mtl.experiments.alpha import ALPHAS, BASES, LOSSES, SWEEPS, WORST, FairLosses, Sweep, fair, study, transformed
from mtl.experiments.study import Study
from mtl.ledger import Ledger
from mtl.methods import method
from mtl.problems import problem
from mtl.training.fit import Budget, fit

TASKS = ("a", "b", "c")


def test_fairgrad_at_alpha_1_is_nash_with_equal_heads_in_training():
    digits = problem("digits", tasks=3)
    made = {
        name: fit(digits, method(name, 3, heads=heads, **how), model="mlp", seed=0, budget=Budget(2, 200, lr=3e-3))
        for name, heads, how in (("nash", "weighted", {}), ("fairgrad", "weighted", {"alpha": 1.0}))
    }
    pairs = zip(made["nash"].model.parameters(), made["fairgrad"].model.parameters(), strict=True)
    assert max((one - other).abs().max().item() for one, other in pairs) < 1e-5
    assert np.abs(made["nash"].weights / made["fairgrad"].weights - 1).max() < 1e-4
    raw = fit(digits, method("fairgrad", 3, alpha=1.0), model="mlp", seed=0, budget=Budget(2, 200, lr=3e-3))
    pairs = zip(made["nash"].model.parameters(), raw.model.parameters(), strict=True)
    assert max((one - other).abs().max().item() for one, other in pairs) > 1e-3, "with other heads it is another method"


def test_fair_losses_at_alpha_1_with_equal_weights_are_scale_invariance_in_training():
    digits, budget = problem("digits", tasks=3), Budget(2, 200, lr=3e-3)
    runs = [("si", {}), ("fair-loss", {"base": "ls", "alpha": 1.0}), ("fair-loss", {"base": "ls", "alpha": 0.5})]
    si, one, half = (fit(digits, method(name, 3, **how), model="mlp", seed=0, budget=budget) for name, how in runs)
    for other, same in ((one, True), (half, False)):
        pairs = zip(si.model.parameters(), other.model.parameters(), strict=True)
        assert all(torch.equal(mine, theirs) for mine, theirs in pairs) == same


def curve(name, **how):
    """Losses of three tasks over 25 steps of one length on the shared parameters; heads follow their own gradient."""
    digits = problem("digits", tasks=3)
    net, own = digits.model("mlp", 0).double(), method(name, 3, heads="raw", **how)
    images, targets = (part[:100].double() for part in digits.data("train"))
    found, shared, heads = [], net.shared_parameters(), net.head_parameters()
    for _ in range(25):
        losses = digits.task_losses(net(images), targets)
        backward(losses, shared=shared, heads=heads, method=own)
        found.append([loss.item() for loss in losses])
        with torch.no_grad():
            size = torch.stack([p.grad.norm() for p in shared]).norm()
            for p in shared:
                p -= 0.1 * p.grad / size
            for p in (p for head in heads for p in head):
                p -= 0.1 * p.grad
            net.zero_grad()
    return np.array(found)


def test_large_alpha_trains_as_mgda_does():
    """Directions of length one: FairGrad's own length at infinity is 1 / |d| of MGDA's d."""
    mgda = curve("mgda")
    off = [np.abs(curve("fairgrad", alpha=a) - mgda).max(1) for a in (1.0, 10.0, 100.0, 1000.0)]
    first = [gaps[:3].max() for gaps in off]
    assert all(4 * more < one for one, more in pairwise(first)) and first[3] < 5e-6
    assert 4 * off[3].max() < off[0].max(), "to the end, where ReLUs that switch let curves part"


def rows(levels, name="kuairand_few", targets="natural", seeds=(10, 11, 12, 13, 14)):
    """Per label the log-losses of three tasks; STL's level differs by seed."""
    made = []
    for seed in seeds:
        for label, values in levels.items():
            noise = 1 + 1e-4 * ((seed * 7 + len(label)) % 5)
            metrics = {f"{t}/log-loss": (1 + 0.1 * seed) * v * noise for t, v in zip(TASKS, values, strict=True)}
            metrics |= {f"{t}/score": -v for t, v in zip(TASKS, values, strict=True)} | {"score": -sum(values)}
            config = {"method": "ls", "seed": seed, "options": {"targets": targets}, "problem": name}
            made.append({
                "key": f"{name}{targets}{label}{seed}", "label": label, "status": "ok", "metrics": metrics,
                "validation": metrics, "history": [], "config": config, "fingerprint": name,
            })  # fmt: skip
    return made


LEVELS = {"STL": (1, 1, 1), "LS": (0.9, 0.9, 1.5), "LS A/A": (0.9, 0.9, 1.5), "MGDA": (1.2, 1.2, 1.0)}
LEVELS |= {fair(a): (0.9 + 0.01 * a, 0.9, 1.5 - 0.03 * a) for a in ALPHAS}


def sweep(*more):
    return Sweep(SWEEPS["kuairand"], "study", [*rows(LEVELS), *more], "constructed", TASKS)


def test_the_hardest_task_is_what_equal_weights_set_back_most_on_validation():
    made = sweep()
    assert made.hard == {"kuairand natural": "c"}
    assert made.table.loc[("kuairand natural", "LS"), WORST].endswith("(c)")
    for row in made.rows:
        row["validation"] = row["metrics"] | {"a/log-loss": 9.0 if row["label"] == "LS" else 1.0}
    assert Sweep(made.experiment, "study", made.rows, "", TASKS).hard == {"kuairand natural": "a"}


def test_the_sweep_shows_what_no_input_gives(monkeypatch):
    monkeypatch.setattr(Study, "blind", {f"{t}/log-loss": 4.4 + 0.44 * (t == "b") for t in TASKS})
    made = Sweep(SWEEPS["kuairand"], "study", rows(LEVELS, seeds=(12,)), "constructed", TASKS)
    base = 2.2 * (1 + 1e-4 * ((12 * 7 + 3) % 5))  # STL's level at seed 12
    low, high = (100 * (x / base - 1) for x in (4.4, 4.84))
    assert made.table.loc[("kuairand natural", "input-blind")].tolist() == [
        f"{(2 * low + high) / 3:+.1f}", f"{low:+.1f}", f"{high:+.1f} (b)",
    ]  # fmt: skip


def test_emphasis_is_judged_per_data_set():
    other = rows(LEVELS | {fair(10.0): (1, 1, 1.6)}, "census40", "")
    (found,) = sweep(*other).findings()
    assert [(part.name, part.word) for part in found.parts] == [
        ("kuairand natural, c", "reproduced"), ("census40, c", "contradicted"),
    ]  # fmt: skip
    assert found.would == "1 reproduced, 1 contradicted" and found.word == "inconclusive (assay)"
    assert len(sweep(*other).figure().axes) == 2


def test_a_data_set_that_misses_the_gate_of_the_hardest_task_drops_out_of_the_emphasis(monkeypatch):
    """The average has no say: its A/A rows agree here, those of the hardest task do not."""
    monkeypatch.setattr(Study, "blind", {f"{t}/log-loss": 9.0 for t in TASKS})
    apart = rows(LEVELS | {"LS A/A": (0.9, 0.8, 1.6)}, "census40", "")
    pair = [[row for name, targets in (("kuairand_few", "natural"), ("census40", ""))
             for row in rows({label: LEVELS[label] for label in SWEEPS["census"].doubled}, name, targets, (100, 101))]
            for _ in range(2)]  # fmt: skip
    (found,) = Sweep(SWEEPS["kuairand"], "study", [*rows(LEVELS), *apart], "", TASKS, doubled=tuple(pair)).findings()
    assert (found.word, found.n) == ("reproduced", 5) and [part.name for part in found.parts] == ["kuairand natural, c"]
    assert [part.name for part in found.beside] == ["census40, c"]
    assert found.said.startswith("left out, A/A rows, census40: LS A/A c +10")


def test_fresh_seeds_alone_decide_and_wait_until_all_are_there():
    """The five that had been seen say the contrary here."""
    seen = [row for name in ("kuairand_few", "census_few") for row in rows(LEVELS, name, "", (10, 11, 12, 13, 14))]
    against = LEVELS | {fair(10.0): (1, 1, 1.6)}
    for count in (19, 20):
        more = rows(against, "census_few", "", module.FRESH[:count])
        (found,) = Sweep(SWEEPS["qm9"], "study", [*seen, *more], "", TASKS).findings()
        assert [(part.name, part.n, part.word) for part in found.parts] == [
            ("kuairand, c", 5, "reproduced"), ("census, c", count, "contradicted"),
        ]  # fmt: skip
    assert module.declared(sweep(), ["census"]) == 20 and module.declared(sweep(), ["qm9"]) == 5
    assert set(SWEEPS["census"].seeds["study"]) == {*range(10, 35)} and SWEEPS["qm9"].seeds["study"] == (
        *range(10, 15),
    )


def fair_levels(gain):
    found = {"STL": (1, 1, 1)}
    for base, name in BASES:
        found[base] = (1.2, 1.2, 1.2)
        for a in (0.5, 1.0, 2.0):
            if a < 1 or not module.positive(name):
                found[transformed(base, a)] = (1.2 - gain * a,) * 3
    return found


def fair_losses(gain):
    made = [*rows(fair_levels(gain)), *rows(fair_levels(-gain), targets="standardised")]
    return FairLosses(LOSSES["kuairand"], "study", made, "constructed", TASKS)


def test_fair_losses_are_counted_over_bases_with_simultaneous_intervals():
    made = fair_losses(0.1)
    table = made.table
    assert table.loc["LS", "kuairand natural, 1"].startswith("+10.0") and "(" in table.loc["LS", "kuairand natural, 1"]
    assert table.loc["UW", "kuairand natural, 1"] == table.loc["DWA", "kuairand natural, 2"] == "needs positive losses"
    assert table.loc["sign test", "kuairand natural, 0.5"] == "9 of 9, p = 0.004"
    assert table.loc["sign test", "kuairand standardised, 2"] == "0 of 7, p = 0.016"
    part = made.compared["kuairand natural", "LS", 1.0]
    assert part.wide[1] - part.wide[0] > part.high - part.low
    (found,) = made.findings()
    assert found.would == "reproduced" and len(found.parts) == 9 and len(found.beside) == 9
    assert fair_losses(-0.1).findings()[0].would == "contradicted"
    assert len(made.figure().axes) == 2


@pytest.mark.parametrize("shift", [0.0, 0.05])
def test_both_families_see_their_own_doubled_rows(shift):
    """The check of convergence reads the rows that the experiment doubles, whichever labels these are."""
    for family, made_by, levels in ((Sweep, SWEEPS, LEVELS), (FairLosses, LOSSES, fair_levels(0.1))):
        one = made_by["kuairand"]
        once = {label: levels[label] for label in one.doubled}
        twice = once | {one.doubled[-1]: tuple(value + shift for value in once[one.doubled[-1]])}
        pair = tuple(rows(own, seeds=(100, 101)) for own in (once, twice))
        made = family(one, "study", rows(levels), "constructed", TASKS, doubled=pair)
        (gate,) = [check for check in made.findings()[0].gate if check.name.startswith("converged")]
        assert gate.passed == (shift == 0) and gate.name == "converged, kuairand natural"


def test_bases_that_need_positive_losses_have_no_cell_from_alpha_1_on():
    every = {label: (name, point) for label, name, point in LOSSES["kuairand"].methods["study"]}
    refused = [base for base, name in BASES if transformed(base, 1.0) not in every]
    assert refused == ["DWA", "UW"] and len(every) == 1 + 9 * 4 - 4
    assert not [label for label in {n for n, *_ in LOSSES["qm9"].methods["study"]} if label.endswith("losses 2")]
    for label, (name, point) in every.items():
        if label != "STL":
            method(name, n_tasks=3, **point)
    for base in refused:
        with pytest.raises(ValueError, match="alpha: must be < 1"):
            method("fair-loss", 3, base=dict(BASES)[base], alpha=1.0)


@pytest.mark.parametrize("family", [SWEEPS, LOSSES], ids=["sweep", "losses"])
def test_a_family_runs_on_stand_ins(family, tmp_path, nowhere):
    made = study(family, "smoke", seeds=[10], progress=None, ledger=Ledger(tmp_path / "a"))
    assert made.synthetic and "EMBEDDED DEFAULT" in made.data and "kuairand natural" in made.test
    assert ("kuairand standardised" in made.test) == (family is LOSSES)
    assert len(made.table) and all(table["average"].notna().all() for table in made.test.values())


def test_fewer_rows_are_a_fixed_part_of_all(monkeypatch):
    from mtl.problems.digits import Digits
    from mtl.problems.few import Few

    class FewDigits(Few, Digits):
        name = "digits_few"

        def __init__(self, rows):
            super().__init__("smoke")
            self._keep(rows)

    whole, part, again = problem("digits"), FewDigits(100), FewDigits(100)
    assert part.sizes == whole.sizes | {"train": 100} and torch.equal(part.data("train")[0], again.data("train")[0])
    pictures = set(map(tuple, whole.data("train")[0].tolist()))
    assert set(map(tuple, part.data("train")[0].tolist())) <= pictures
    assert part.fingerprint == again.fingerprint != FewDigits(101).fingerprint and part.options["rows"] == 100
    assert FewDigits(10_000).sizes == whole.sizes
    with pytest.raises(ValueError, match="rows: must be a whole number of at least 1, found 0"):
        FewDigits(0)
