"""From checks to the rows of the claims tables of notebooks 07 to 09; nothing here is decided by hand."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from mtl.report.claims import Array, Check, Finding, bounded, checked, compare, decide
from mtl.solvers import alpha_fair
from mtl.theory import bounds, fairness
from mtl.theory.rates import kl_ball_sandwich, mirror_ascent_step, mirror_kkt_residual, player_regret

GRID = (0.1, 0.3, 0.5, 0.8, 1.0, 1.2)
RADII, ROUNDS = (0.1, 0.5, 5.0), (5, 20, 80, 320)  # of the player's games


def theorem_claims(table: pd.DataFrame, cases: pd.DataFrame, audit: pd.DataFrame, delta: float = 0.05) -> list[Finding]:
    """Claims on the theorem and the KL ball from `finite.violation_table`, `theorem.sandwich_cases`, `steps.table`."""
    proof = tuple(
        checked(f"{line['step']}: {line['statement']}", line["left / right"] <= 1,
                f"left over right at most {line['left / right']:.2f} in {line['classes']} classes")
        for line in audit.to_dict("records")
    )  # fmt: skip
    failing = audit.loc[audit["left / right"] > 1, "step"].unique()
    worst = table.groupby("bound").violation.max()
    holds = table[table.must_hold]
    first = table[table.bound == "thm1"]
    sizes, least = (sorted(set(part["T"])) for part in (first, first[~first.vacuous]))
    counter = bounds.population_ratio_failure(100, 0.01, delta)
    floors = [bounds.variance_free_floor(T, 1.0, delta) for T in (2, 3)]
    g = torch.Generator().manual_seed(0)
    r = torch.rand(2000, 5, generator=g, dtype=torch.float64)
    p = torch.softmax(torch.randn(2000, 5, generator=g, dtype=torch.float64), -1)
    static, plain = bounds.eq10_static(r, 0.1)
    rate, formula = bounds.eq10_dynamic(r, p)
    error = float((rate - formula).abs().max())
    inside = cases.low.min() >= -0.5 - 1e-6 and cases.high.max() <= 1 / 3 + 1e-6
    slope = _remainder_slope()
    loose = int((cases.low < -1 / 3 - 1e-6).sum())
    residual = _player_residual()
    ratio = max(worst_regret(rho, k, hostile) for rho in RADII for k in ROUNDS for hostile in (False, True))
    return [
        decide("emtl-thm1", "reading", [
            checked("(A) gradient of the sample", None, "a uniform law; not checked here by enumeration"),
            checked("(B) gradient of the population", max(counter, worst["population-ratio"]) <= delta,
                    f"fails with probability {counter:.2f} on Prop. 4's example and up to "
                    f"{worst['population-ratio']:.2f} on finite classes, delta = {delta:g}"),
            checked("(C) mean over samples", max(worst["thm1"], worst["thm2"]) <= delta,
                    f"Theorems 1 and 2: at most {worst['thm1']:.1e} and {worst['thm2']:.1e}"),
        ], beside=proof, said=f"of the proof as we reconstruct it fail: {', '.join(failing) or 'no step'}"),
        decide("emtl-thm1-repaired", "parts", [
            checked("holds", holds.violation.max() <= delta, f"largest violation {worst['thm1']:.1e} in {len(holds)} "
                    f"exact checks of 5 theorems (worst of all {holds.violation.max():.1e})"),
        ], said=f"of T = {', '.join(map(str, sizes))} it says something for {', '.join(map(str, least)) or 'none'} "
                "only (below 10 it cannot), and does not decay with n"),
        decide("emtl-variance-alone", "parts", [
            checked("without an additive term", worst["variance-only"] <= delta,
                    f"fails with probability {worst['variance-only']:.2f}; at zero variance a valid width is at least "
                    f"{floors[0]:.2f} B for 2 tasks, {floors[1]:.2f} B for 3"),
        ]),
        decide("emtl-eq10", "reading", [
            checked("static", static < 0, f"rank correlation with the variance: supremum less mean {static:+.3f}, "
                    f"supremum {plain:+.3f}"),
            checked("dynamic", error < 1e-7, f"dV/dt = -(2/T)(p.r - mean) along r' = -p to {error:.0e}"),
        ]),
        decide("emtl-surrogate", "parts", [
            checked("two-sided remainder", bool(inside and 0.9 < slope < 1.1 and loose > 0),
                    f"-R- rho/2 <= remainder <= R+ rho/3 in {len(cases):,} cases, both sharp ({cases.low.min():.3f}, "
                    f"{cases.high.max():.3f}; 1/3 for 1/2 fails {loose:,} times); slope {slope:.2f}; above the "
                    f"surrogate in {100 * (cases.high > 1e-9).mean():.0f} %"),
        ]),
        decide("emtl-player", "parts", [
            checked("optimality and regret", residual < 1e-8 and ratio <= 1, f"KKT residual at most {residual:.0e}; "
                    f"regret at most {ratio:.2f} of its bound in games of {ROUNDS[0]} to {ROUNDS[-1]} rounds; all "
                    "payoffs are seen, so no bandit"),
        ]),
    ]  # fmt: skip


def _remainder_slope() -> float:
    rho = torch.tensor([1e-3, 1e-5], dtype=torch.float64)
    s = kl_ball_sandwich(torch.tensor([0.0, 0.1, 1.0, 0.4], dtype=torch.float64).expand(2, 4), rho)
    rest = (s.exact - s.surrogate).abs().log()
    return float((rest[0] - rest[1]) / (rho[0] / rho[1]).log())


def _player_residual() -> float:
    g = torch.Generator().manual_seed(0)
    residual = 0.0
    for n_tasks in (2, 3, 8):
        p = torch.softmax(0.3 * torch.randn(300, n_tasks, generator=g, dtype=torch.float64), -1)
        r = 3 * torch.randn(300, n_tasks, generator=g, dtype=torch.float64)
        for rho in (0.05, 0.3, 0.6):
            q, multiplier = mirror_ascent_step(p, r, 0.5, rho)
            residual = max(residual, float(mirror_kkt_residual(q, p, r, 0.5, rho, multiplier).max()))
    return residual


def worst_regret(rho: float, rounds: int, adversarial: bool) -> float:
    """Largest regret over the bound of Proposition 7 in 40 games of 3 tasks: random, two-valued, constant payoffs."""
    payoffs = torch.rand(40, rounds, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    payoffs[:20] = (payoffs[:20] > 0.5).double()
    payoffs[0] = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    game = player_regret(payoffs, rho, adversarial=adversarial)
    return float(game.regret.max()) / game.bound


def gap_claims(
    table: pd.DataFrame, changes: Mapping[str, Array], pairs: Check, arms: pd.DataFrame, exploratory: str = ""
) -> list[Finding]:
    """Claims on variance and gap from `hypotheses.primary`, `figures.own_base` and `figures.doses` of `gap`.

    `pairs`: of how many runs `changes` are. The registered hypotheses with their own smallest effects; the larger
    dose, and what `hypotheses.averaged` says, are said beside them and decide nothing.
    """
    works = [name for name in table.index if name.startswith("control") and table.loc[name, "verdict"] == "works"]
    _, control = gate = gap_gate(float(table["lost"].max()), len(works))
    seen: Any = table.loc["H1 observational, RRV"]
    penalty: Any = table.loc["H2 causal, RRV"]
    strong: Any = arms.loc["rrv 1"]
    dose = f"descriptive, ten times the dose: variance {strong['RRV ratio']:.2f} of the base's, gap "
    dose += f"{strong['gap change']:+.3f} [{strong.low:+.3f}, {strong.high:+.3f}]"
    rank = bounded("rank correlation", float(seen.estimate), float(seen.low), float(seen.high), 0.2, int(seen.strata))
    parts = [compare(name, x, 0.05) for name, x in changes.items() if "rho .3," in name]
    beside = tuple(compare(name, x, 0.05) for name, x in changes.items() if "rho .3," not in name)
    return [
        decide("gap-observational", "best", [rank], gate=gate,
               said="; ".join(filter(None, [f"registered: {seen.verdict}", exploratory]))),
        causal_claim((float(penalty.estimate), float(penalty.low), float(penalty.high)), float(penalty.manipulation),
                     int(penalty.strata), gate, f"registered: {penalty.verdict}; {dose}"),
        decide("emtl-lowers-variance", "parts", parts, gate=[pairs, control], beside=beside,
               said="log ratio of the variance of its base (MGDA) to EMTL's, clusters (condition, seed); normalised"),
    ]  # fmt: skip


def causal_claim(
    change: tuple[float, float, float], ratio: float, strata: int, gate: Sequence[Check], said: str
) -> Finding:
    """From the change of the gap with its interval, and the penalised variance over the base's."""
    halved = Check("manipulation", ratio <= 0.5, f"penalised variance is {ratio:.2f} of the base's, needed: .5")
    value, low, high = change
    less = bounded("gap, less", -value, -high, -low, 0.05, strata)
    return decide("gap-causal", "best", [less], gate=[*gate, halved], said=said)


def gap_gate(lost: float, works: int) -> list[Check]:
    """Is the training loss matched (share of runs `lost`), and does the positive control (doses of L2) work?"""
    return [
        Check("matched training loss", lost <= 0.1, f"{100 * lost:.0f} % of runs did not cross the level"),
        Check("control", works > 0, f"L2 lowers the gap ({works} of 2 doses)"),
    ]


def gradient_families() -> dict[str, Tensor]:
    """Gram matrices (20, 3, 3) of kinds that solvers find hard; none of them Pareto stationary."""
    g = torch.Generator().manual_seed(0)
    G = torch.randn(20, 3, 40, generator=g, dtype=torch.float64)
    dependent = G.clone()
    dependent[:, 2] = 0.5 * G[:, 0] + G[:, 1]
    scales = torch.tensor([1e-3, 1.0, 1e3], dtype=torch.float64)[None, :, None]
    opposed = G.clone()
    opposed[:, 1] = -G[:, 0] + 0.05 * G[:, 1]
    families = {
        "generic": G,
        "tiny": 1e-5 * G,
        "badly scaled": scales * G,
        "dependent": dependent,
        "nearly opposed": opposed,
    }
    return {name: part @ part.mT for name, part in families.items()}


def fair_claims(
    rows: Sequence[dict[str, float]],
    runs: Mapping[str, tuple[fairness.Descent, float]],
    bound: Callable[[float, int], float],
) -> list[Finding]:
    """Claims on FairGrad from `fairness.solver_errors` and descents; `bound(drop, steps)` is the rate's right side."""
    worst = max(
        float(fairness.fair_residual(fairness.fair_weights(K, alpha=alpha), K, alpha).max())
        for K in gradient_families().values()
        for alpha in (0.5, 1.0, 2.0, 5.0)
    )
    stationary = torch.tensor([[1.0, -0.5, -0.5], [-0.5, 1.0, -0.5], [-0.5, -0.5, 1.0]], dtype=torch.float64)
    refused = bool(alpha_fair(stationary, 2.0)[1].stationary)
    conflict = torch.tensor([[1.0, 0.0], [-3.0, 1.0]], dtype=torch.float64)
    agree = torch.tensor([[1.0, 0.2], [0.3, 1.0]], dtype=torch.float64)

    def miss(G: Tensor, alpha: float, target: Tensor) -> float:
        d = fairness.fair_weights(G=G, alpha=alpha) @ G
        return 1 - float(torch.cosine_similarity(d, target, 0))

    small, K = 0.01, conflict @ conflict.T
    to_sum = miss(conflict, small, conflict.sum(0))
    to_cone = miss(conflict, small, fairness.fair_limit(K, "zero") @ conflict)
    friendly, large = miss(agree, small, agree.sum(0)), miss(conflict, 300.0, fairness.fair_limit(K, "inf") @ conflict)
    nash = miss(conflict, 1.0, (conflict / conflict.norm(dim=1, keepdim=True)).sum(0))
    shares = [
        float(run.stationarity[:k].min()) / bound(drop, k)
        for run, drop in runs.values()
        for k in range(1, len(run.stationarity) + 1)
    ]
    shortfall = max(run.shortfall for run, _ in runs.values())
    df = pd.DataFrame(rows)
    bands = {"norms of .1 to 10": df[df.scale >= 0.05], "norms of .01": df[(df.scale < 0.05) & (df.scale > 5e-3)]}
    bands["norms of 1e-3 and below"] = df[df.scale <= 5e-3]
    misses = {band: (own.published > 1e-3).groupby(own.alpha).mean() for band, own in bands.items() if len(own)}
    return [
        decide("fairgrad-unique", "parts", [
            checked("one positive solution", worst < 1e-8 and refused, "exactly one iff not Pareto stationary "
                    f"(independence is not needed); backward error at most {worst:.0e} on five hard families, a "
                    f"stationary point is {'recognised' if refused else 'missed'}"),
        ]),
        decide("fairgrad-limits", "parts", [
            checked("alpha = 1", nash < 1e-2, f"1 - cos to Nash's closed form {nash:.0e}"),
            checked("large alpha", large < 1e-2, f"alpha = 300: 1 - cos to MGDA {large:.0e}"),
            checked("small alpha", max(to_sum, friendly) < 1e-2, f"alpha = {small:g}: 1 - cos to the plain sum "
                    f"{friendly:.0e} without strong conflict but {to_sum:.2f} with it, where the limit is the "
                    f"dual-cone projection ({to_cone:.0e})"),
        ]),
        decide("fairgrad-convergence", "parts", [
            checked("rate", max(shares) <= 1 and shortfall <= 1e-9, f"{len(runs)} runs on quadratics: smallest m^2 so "
                    f"far at most {max(shares):.3f} of 2 L T^2 drop / K, no step short of the promised decrease; full "
                    "batch, own step; the argument holds for MGDA and Nash-MTL alike"),
        ]),
        decide("fairgrad-solver", "parts", [
            checked(band, share.max() == 0, f"backward error above 1e-3 in {100 * share.mean():.0f} % of problems"
                    + f" (alpha {', '.join(f'{a:g}: {100 * s:.0f} %' for a, s in share.items())})" * any(share)
                    + ", no warning")
            for band, share in misses.items()
        ], said=f"training met norms of .008 to 4.4 (NYUv2, Census); error of our solver at most {df.ours.max():.0e}"),
    ]  # fmt: skip
