"""Solvers: are they right on anything, and how fast? `python -m benchmarks.solvers [--problems N] [--quick]`.

(a) N random problems per solver (T 2 to 40, gradient norms over 6 decades, near-collinear, rank-deficient, duplicate,
    near-stationary, near-opposed, Pareto stationary also in part, with a zero row, of any scale, born in float32), in
    batches, and up to ten tasks also one by one. Each answer is checked in extended precision by code that knows
    nothing of the solver; where |d|^2 is all but hidden by rounding, also against rational arithmetic ("length": its
    relative miss). "silent" counts answers said to be converged that miss the first by 1e-9 or the second by 1e-6:
    must be 0.
(b) Time of one problem on one thread against scipy (least_squares or SLSQP, as the published codes call them; "tight":
    with the tightest tolerances it takes, for about our accuracy; "direct": nnls for the shortest vector and the dual
    cone, brentq for KL, unscaled and without proof) and, if installed, cvxpy (`pip install cvxpy`, no
    extra of ours; compiled once with parameters, and "anew": modelled in each call) and TorchJD; medians of ratios
    in one run, with the error of each under the same check.
(c) Time per problem when many are solved at once, as on the landscape or with seeds side by side, against theirs for
    one.
"""

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from benchmarks.solver_problems import (
    OPPOSED,
    SIZES,
    batches,
    check_alpha_fair,
    check_cagrad,
    check_dual_cone,
    check_kl,
    check_length,
    check_min_norm,
    gradients,
)
from benchmarks.solver_rivals import RHO, rivals
from mtl import solvers
from mtl.files import atomic, root
from mtl.ledger import provenance

ALPHAS, RADII = (0.1, 0.5, 1.0, 2.0, 10.0, 20.0), (0.1, 0.4, 0.9)
LIMIT = 1e-9
SHARE = 1e-6  # of |d|^2, where that is all but hidden by rounding
MOST = 10  # one by one up to so many tasks: two alone are solved in Python floats
COUNTS = ("stationary", "unsolved", "silent", "worst", "checked", "length")
RIVALS = ("scipy", "tight", "direct", "cvxpy", "anew", "torchjd")
Row = dict[str, Any]


def mean(K: Tensor) -> Tensor:
    return torch.full(K.shape[:-1], 1 / K.shape[-1], dtype=K.dtype)


def player(K: Tensor) -> tuple[Tensor, Tensor]:
    """A player and payoffs over 8 decades, as varied as the diagonal of K."""
    n = K.diagonal(dim1=-2, dim2=-1).clamp_min(1e-300)
    return (n.log() / 4).log_softmax(-1), n / n.mean(-1, keepdim=True) * 10 ** (n.log().sum(-1, keepdim=True) % 8)


def solve(name: str, K: Tensor, rounding: float | None = None) -> tuple[Tensor, solvers.Certificate]:
    """Answer and certificate of one solver on a batch."""
    kind, _, value = name.partition(" ")
    if kind == "min_norm":
        return solvers.min_norm(K, rounding)
    if kind == "alpha_fair":
        return solvers.alpha_fair(K, float(value), rounding=rounding)
    if kind == "cagrad":
        return solvers.cagrad_step(K, float(value), rounding)
    if kind == "dual_cone":
        return solvers.dual_cone(K, mean(K), rounding)
    step = solvers.kl_ball_step(*player(K), 0.5, RHO)
    return step.p, step.certificate


def judge(name: str, K: Tensor, w: Tensor, game: tuple[Tensor, Tensor] | None = None) -> np.ndarray:
    """Independent check of answers w (B, T): relative errors (B,)."""
    kind, _, value = name.partition(" ")
    if kind == "min_norm":
        return check_min_norm(K, w)
    if kind == "alpha_fair":
        return check_alpha_fair(K, w, float(value))
    if kind == "cagrad":
        return check_cagrad(K, w, float(value))
    if kind == "dual_cone":
        return check_dual_cone(K, w, mean(K))
    return check_kl(*(game or player(K)), 0.5, RHO, w)


def one_by_one(name: str, K: Tensor, rounding: float | None = None) -> tuple[Tensor, solvers.Certificate]:
    """The same for each problem alone, as a training step asks: a few tasks are then solved in Python floats."""
    answers = [solve(name, k, rounding) for k in K]
    w = torch.stack([x for x, _ in answers])
    told = ("residual", "iterations", "converged", "stationary")
    return w, solvers.Certificate(name, *(torch.stack([getattr(proof, key) for _, proof in answers]) for key in told))


NAMES = ("min_norm", *(f"alpha_fair {a:g}" for a in ALPHAS), *(f"cagrad {c:g}" for c in RADII), "dual_cone", "kl_ball")


def robustness(total: int) -> list[Row]:
    """All problems in batches, and those of at most ten tasks also one by one."""
    rows: dict[str, Row] = {}
    for family, T, K in track(list(batches(total, seed=0)), "random problems"):
        for name in NAMES:
            for way, ask in {"": solve, ", alone": one_by_one}.items():
                if ask is one_by_one and T > MOST:
                    continue
                row = rows.setdefault(name + way, {"solver": name + way, "problems": 0} | dict.fromkeys(COUNTS, 0))
                w, proof = ask(name, K, solvers.rounding(K.dtype, torch.float32) if "float32" in family else None)
                error = judge(name, K, w)
                if family == "near-opposed" and T in OPPOSED and name in ("min_norm", "dual_cone"):
                    seen = (proof.converged & ~proof.stationary).numpy()
                    length = check_length(K[seen], w[seen], mean(K)[seen] if name == "dual_cone" else None)
                    row["length"] = max(row["length"], float(length.max(initial=0)))
                    error[seen] = np.where(length < SHARE, error[seen], np.inf)
                judged = ~proof.stationary if name.startswith("alpha_fair") else torch.ones_like(proof.stationary)
                fine = (judged & proof.converged).numpy()
                row["problems"] += len(K)
                row["stationary"] += int(proof.stationary.sum())
                row["unsolved"] += int((~proof.converged).sum())
                silent = fine & ~(error < LIMIT) | ~w.isfinite().all(-1).numpy() & proof.converged.numpy()
                row["silent"] += int(silent.sum())
                if silent.any():
                    row.setdefault("where", []).append(f"{family}, T={T}")
                if fine.any():
                    row["worst"] = max(row["worst"], float(proof.residual.numpy()[fine].max()))
                    row["checked"] = max(row["checked"], float(error[fine].max()))
    return list(rows.values())


def cpu_time(call: Callable[[], object], budget: float) -> float:
    """Seconds of processor time of one call: the least over repeats within the budget."""
    call()
    best, end = float("inf"), time.process_time() + budget
    while True:
        start = time.process_time()
        call()
        best = min(best, time.process_time() - start)
        if time.process_time() > end:
            return best


def speed(sizes: tuple[int, ...], budget: float) -> list[Row]:
    """One problem at a time: medians over three problems of the ratio to us, and the largest error of each."""
    rows = []
    names = ["min_norm", *(f"alpha_fair {a}" for a in ("0.5", "1", "2", "10")), "cagrad 0.4", "dual_cone", "kl_ball"]
    for T in track(sizes, "against others"):
        G = gradients("plain", T, 3, torch.Generator().manual_seed(T), decades=1.0)
        for name in names:
            times: dict[str, list[float]] = {}
            errors: dict[str, list[float]] = {}
            for K in G @ G.mT:
                log_p, payoff = game(K)

                def ours(K: Tensor = K, log_p: Tensor = log_p, payoff: Tensor = payoff, name: str = name) -> Tensor:
                    if name == "kl_ball":
                        return solvers.kl_ball_step(log_p, payoff, 0.5, RHO).p
                    return solve(name, K)[0]

                calls = {"ours": ours} | {who: make(K, log_p, payoff) for who, make in rivals(name, T).items()}
                for who, call in calls.items():
                    answer = torch.as_tensor(call())[None]
                    wrong = judge(name, K[None], answer, (log_p[None], payoff[None]))
                    errors.setdefault(who, []).append(float(wrong[0]))
                    times.setdefault(who, []).append(cpu_time(call, budget))
            row: Row = {
                "solver": name,
                "T": T,
                "ms": 1e3 * statistics.median(times["ours"]),
                "error": max(errors["ours"]),
            }
            for who in RIVALS:
                ratios = [a / b for a, b in zip(times.get(who, ()), times["ours"], strict=False)]
                row[f"x_{who}"] = statistics.median(ratios) if ratios else None
                row[f"{who}_error"] = max(errors.get(who, ()), default=None)
            rows.append(row)
    return rows


def batched(count: int = 256, sizes: tuple[int, ...] = (2, 3, 10, 40)) -> list[Row]:
    """Microseconds per problem when many are solved at once, and how many times as long others take for one."""
    rows = []
    for T in track(sizes, "many at once"):
        G = gradients("plain", T, count, torch.Generator().manual_seed(0), decades=1.0)
        K = G @ G.mT
        for name in NAMES:
            each = cpu_time(partial(solve, name, K), 0.3) / count
            row: Row = {"solver": name, "T": T, "batch": count, "us_each": 1e6 * each}
            found = rivals(name, T)
            for who in RIVALS:
                taken = [cpu_time(found[who](k, *game(k)), 0.03) for k in K[:5]] if who in found else []
                row[f"x_{who}"] = statistics.median(taken) / each if taken else None
            rows.append(row)
    return rows


def game(K: Tensor) -> tuple[Tensor, Tensor]:
    """A player and payoffs of a scale that scipy can work with."""
    log_p, payoff = (x[0] for x in player(K[None]))
    return log_p, payoff / payoff.max() * 10


def table(title: str, rows: list[Row], console: Console) -> None:
    """Numbers to two digits; the error of a rival in brackets after its time."""
    keys = [k for k in rows[0] if k != "where" and k not in (f"{who}_error" for who in RIVALS)]
    out = Table(*keys, title=title)

    def cell(row: Row, key: str) -> str:
        value, error = row[key], row.get(f"{key.removeprefix('x_')}_error")
        text = f"{value:.2g}" if isinstance(value, float) else "-" if value is None else str(value)
        return text if error is None else f"{text} ({error:.0e})"

    for row in rows:
        out.add_row(*(cell(row, key) for key in keys))
    console.print(out)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=10_000, help="random problems per solver (default 10000)")
    parser.add_argument("--only-right", action="store_true", help="(a) only, no file")
    parser.add_argument("--quick", action="store_true", help="a few problems and sizes, no file: seconds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", RuntimeWarning)  # scipy steps outside the domain of w^(-1/alpha)
    console = Console(width=130)
    right = robustness(200 if options.quick else options.problems)
    if options.only_right:
        table("(a) random problems", right, console)
        return int(any(row["silent"] for row in right))
    fast = speed((2, 3) if options.quick else SIZES, 0.01 if options.quick else 0.1)
    many = batched(64, (3,)) if options.quick else batched()
    table("(a) random problems", right, console)
    table(
        "(b) one problem, one CPU thread; x_NAME: NAME takes so many times as long; tight: scipy's tightest",
        fast,
        console,
    )
    table("(c) many problems at once", many, console)
    if not options.quick:
        path = root() / "benchmarks" / "results" / "solvers.json"
        report = {"robustness": right, "speed": fast, "batched": many, "provenance": provenance("cpu")}
        with atomic(path) as part:
            part.write_text(json.dumps(report, indent=1) + "\n")
        console.print(f"written: {path.relative_to(root())}")
    silent = sum(row["silent"] for row in right)
    console.print(f"silent failures: {silent}; worst certificate: {max(row['worst'] for row in right):.1e}")
    return 1 if silent else 0


if __name__ == "__main__":
    raise SystemExit(main())
