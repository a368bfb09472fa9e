"""Solvers: are they right on anything, and how fast? `python -m benchmarks.solvers [--problems N] [--quick]`.

(a) N random problems per solver (T 2 to 40, gradient norms over 6 decades, near-collinear, rank-deficient, duplicate,
    near-stationary, Pareto stationary, with a zero row). Each answer is checked in extended precision by code that
    knows nothing of the solver. "silent" counts answers said to be converged that fail this check at 1e-9: must be 0.
(b) Time of one problem on one thread against scipy (least_squares or SLSQP, as the published codes call them, and with
    the tightest tolerances it takes, for about our accuracy) and, if installed, TorchJD and cvxpy (`pip install cvxpy`,
    no extra of ours); medians of ratios in one run, with the error of each under the same check.
(c) Time per problem when many are solved at once, and how many times as long scipy takes for one.
"""

import argparse
import importlib
import json
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy import optimize
from torch import Tensor

from benchmarks.solver_problems import (
    SIZES,
    batches,
    check_alpha_fair,
    check_cagrad,
    check_dual_cone,
    check_kl,
    check_min_norm,
    gradients,
)
from mtl import solvers
from mtl.files import atomic, root
from mtl.ledger import provenance

ALPHAS, RADII, RHO = (0.1, 0.5, 1.0, 2.0, 10.0, 20.0), (0.1, 0.4, 0.9), 0.3
LIMIT = 1e-9
minimize: Any = optimize.minimize
least_squares: Any = optimize.least_squares
Row = dict[str, Any]


def mean(K: Tensor) -> Tensor:
    return torch.full(K.shape[:-1], 1 / K.shape[-1], dtype=K.dtype)


def player(K: Tensor) -> tuple[Tensor, Tensor]:
    """A player and payoffs over 8 decades, as varied as the diagonal of K."""
    n = K.diagonal(dim1=-2, dim2=-1).clamp_min(1e-300)
    return (n.log() / 4).log_softmax(-1), n / n.mean(-1, keepdim=True) * 10 ** (n.log().sum(-1, keepdim=True) % 8)


def solve(name: str, K: Tensor) -> tuple[Tensor, solvers.Certificate, Callable[[], np.ndarray]]:
    """Answer, certificate and independent check of one solver on a batch."""
    kind, _, value = name.partition(" ")
    if kind == "min_norm":
        w, proof = solvers.min_norm(K)
        return w, proof, lambda: check_min_norm(K, w)
    if kind == "alpha_fair":
        w, proof = solvers.alpha_fair(K, float(value))
        return w, proof, lambda: check_alpha_fair(K, w, float(value))
    if kind == "cagrad":
        w, proof = solvers.cagrad_step(K, float(value))
        return w, proof, lambda: check_cagrad(K, w, float(value))
    if kind == "dual_cone":
        w, proof = solvers.dual_cone(K, mean(K))
        return w, proof, lambda: check_dual_cone(K, w, mean(K))
    log_p, payoff = player(K)
    step = solvers.kl_ball_step(log_p, payoff, 0.5, RHO)
    return step.p, step.certificate, lambda: check_kl(log_p, payoff, 0.5, RHO, step.p)


NAMES = ("min_norm", *(f"alpha_fair {a:g}" for a in ALPHAS), *(f"cagrad {c:g}" for c in RADII), "dual_cone", "kl_ball")


def robustness(total: int) -> list[Row]:
    rows: dict[str, Row] = {
        name: {"solver": name, "problems": 0, "stationary": 0, "unsolved": 0, "silent": 0, "worst": 0.0, "checked": 0.0}
        for name in NAMES
    }
    for family, T, K in track(list(batches(total, seed=0)), "random problems"):
        for name, row in rows.items():
            w, proof, check = solve(name, K)
            error = check()
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


def scipy_answer(name: str, K: np.ndarray, log_p: np.ndarray, payoff: np.ndarray, *, tight: bool = False) -> np.ndarray:
    """The same problem by scipy, set up as the published implementations do."""
    kind, _, value = name.partition(" ")
    T = len(K)
    u = np.full(T, 1 / T)
    if kind == "alpha_fair":
        power, exact = -1 / float(value), dict.fromkeys(("ftol", "xtol", "gtol"), 3e-16) if tight else {}
        return least_squares(lambda x: K @ x - x**power, u, bounds=(0, np.inf), **exact).x
    simplex = {"type": "eq", "fun": lambda x: x.sum() - 1, "jac": np.ones_like}
    call: dict[str, Any] = {"method": "SLSQP", "bounds": [(0, 1)] * T, "constraints": [simplex]}
    call |= {"options": {"ftol": 1e-16, "maxiter": 1000}} if tight else {}
    if kind == "min_norm":
        return minimize(lambda x: x @ K @ x, u, jac=lambda x: 2 * K @ x, **call).x
    if kind == "cagrad":
        b, c = K @ u, float(value)
        r = c * np.sqrt(u @ b)
        x = minimize(lambda x: x @ b + r * np.sqrt(x @ K @ x + 1e-8), u, **call).x
        return u + r / (np.sqrt(x @ K @ x) + 1e-8) * x
    if kind == "dual_cone":
        call |= {"bounds": [(1 / T, None)] * T, "constraints": []}
        return minimize(lambda x: x @ K @ x, u, jac=lambda x: 2 * K @ x, **call).x
    tiny = 1e-12
    ball = {"type": "ineq", "fun": lambda x: RHO - np.log(T) - (x * np.log(np.maximum(x, tiny))).sum()}
    gain = log_p + 0.5 * payoff
    call["constraints"].append(ball)
    return minimize(lambda x: (x * np.log(np.maximum(x, tiny))).sum() - x @ gain, u, **call).x


def cvxpy_solver(name: str, T: int) -> Callable[..., np.ndarray] | None:
    """The same problem by cvxpy and Clarabel, compiled once with parameters as Nash-MTL's authors do; None without it.

    A call sets the parameters and solves; K enters as a square root, whose computation is not timed.
    """
    if find_spec("cvxpy") is None:
        return None
    cp = importlib.import_module("cvxpy")
    kind, _, value = name.partition(" ")
    x, F, b = cp.Variable(T), cp.Parameter((T, T)), cp.Parameter(T)
    simplex, u = [x >= 0, cp.sum(x) == 1], np.full(T, 1 / T)
    if kind == "alpha_fair":
        a = float(value)
        gain = cp.sum(cp.log(x)) if a == 1 else a / (a - 1) * cp.sum(cp.power(x, (a - 1) / a))
        goal, rules = cp.sum_squares(F @ x) / 2 - gain, []
    elif kind == "cagrad":
        goal, rules = b @ x + cp.norm(F @ x), simplex
    elif kind == "kl_ball":
        goal = -cp.sum(cp.entr(x)) - b @ x
        rules = [*simplex, np.log(T) - cp.sum(cp.entr(x)) <= RHO]
    else:
        goal, rules = cp.sum_squares(F @ x), [x >= 1 / T] if kind == "dual_cone" else simplex
    problem = cp.Problem(cp.Minimize(goal), rules)

    def answer(K: np.ndarray, log_p: np.ndarray, payoff: np.ndarray, half: np.ndarray) -> np.ndarray:
        r = float(value) * np.sqrt(u @ K @ u) if kind == "cagrad" else 1.0
        F.value, b.value = r * half, K @ u if kind == "cagrad" else log_p + 0.5 * payoff
        problem.solve(solver="CLARABEL")
        found = np.asarray(x.value, dtype=float)
        return u + r / np.sqrt(found @ K @ found) * found if kind == "cagrad" else found

    return answer


def square_root(K: np.ndarray) -> np.ndarray:
    """F with F'F = K."""
    values, vectors = np.linalg.eigh(K)
    return np.sqrt(np.maximum(values, 0))[:, None] * vectors.T


def torchjd_weightings() -> dict[str, Callable[[Tensor], Tensor]]:
    """TorchJD's answers from the Gram matrix, where it is installed; those that need cvxpy only with it."""
    try:
        aggregation = importlib.import_module("torchjd.aggregation")
    except ImportError:
        return {}
    found: dict[str, Callable[[Tensor], Tensor]] = {}
    for name, cls, options in (
        ("min_norm", "MGDAWeighting", {}),
        ("alpha_fair 1", "FairGradWeighting", {"alpha": 1.0}),
        ("alpha_fair 2", "FairGradWeighting", {"alpha": 2.0}),
        ("cagrad 0.4", "CAGradWeighting", {"c": 0.4}),
        ("dual_cone", "DualProjWeighting", {}),
    ):
        try:
            found[name] = getattr(aggregation, cls)(**options)
        except (AttributeError, ImportError, TypeError):
            continue
    return found


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
    rows, peers = [], torchjd_weightings()
    names = ["min_norm", *(f"alpha_fair {a}" for a in ("0.5", "1", "2", "10")), "cagrad 0.4", "dual_cone", "kl_ball"]
    for T in track(sizes, "against scipy"):
        generator = torch.Generator().manual_seed(T)
        G = gradients("plain", T, 3, generator, decades=1.0)
        for name in names:
            ratios, ours_s, errors, theirs, jd = [], [], [], [], []
            tight, tight_errors = [], []
            cvx, cvx_errors, modelled = [], [], cvxpy_solver(name, T)
            for K in G @ G.mT:
                log_p, payoff = (x[0] for x in player(K[None]))
                payoff = payoff / payoff.max() * 10  # a scale that scipy can work with
                arrays = K.numpy(), log_p.numpy(), payoff.numpy()

                def call(K: Tensor = K, log_p: Tensor = log_p, payoff: Tensor = payoff, name: str = name) -> Tensor:
                    if name == "kl_ball":
                        return solvers.kl_ball_step(log_p, payoff, 0.5, RHO).p
                    return solve(name, K)[0]

                def other(arrays: tuple[np.ndarray, ...] = arrays, name: str = name) -> np.ndarray:
                    return scipy_answer(name, *arrays)

                ours, reference = cpu_time(call, budget), cpu_time(other, budget)
                ratios.append(reference / ours)
                ours_s.append(ours)
                errors.append(judge(name, K, log_p, payoff, call()))
                theirs.append(judge(name, K, log_p, payoff, torch.from_numpy(other())))
                exact = partial(scipy_answer, name, *arrays, tight=True)
                tight.append(cpu_time(exact, budget) / ours)
                tight_errors.append(judge(name, K, log_p, payoff, torch.from_numpy(exact())))
                if modelled is not None:
                    modelling = partial(modelled, *arrays, square_root(arrays[0]))
                    cvx.append(cpu_time(modelling, budget) / ours)
                    cvx_errors.append(judge(name, K, log_p, payoff, torch.from_numpy(modelling())))
                if name in peers:
                    jd.append(cpu_time(partial(peers[name], K), budget) / ours)
            rows.append(
                {
                    "solver": name,
                    "T": T,
                    "ms": 1e3 * statistics.median(ours_s),
                    "times_scipy": statistics.median(ratios),
                    "error": max(errors),
                    "scipy_error": max(theirs),
                    "times_tight": statistics.median(tight),
                    "tight_error": max(tight_errors),
                    "times_cvxpy": statistics.median(cvx) if cvx else None,
                    "cvxpy_error": max(cvx_errors, default=None),
                    "times_torchjd": statistics.median(jd) if jd else None,
                }
            )
    return rows


def judge(name: str, K: Tensor, log_p: Tensor, payoff: Tensor, w: Tensor) -> float:
    kind, _, value = name.partition(" ")
    A, x = K[None], w[None]
    checks: dict[str, Callable[[], np.ndarray]] = {
        "min_norm": lambda: check_min_norm(A, x),
        "alpha_fair": lambda: check_alpha_fair(A, x, float(value)),
        "cagrad": lambda: check_cagrad(A, x, float(value)),
        "dual_cone": lambda: check_dual_cone(A, x, mean(A)),
        "kl_ball": lambda: check_kl(log_p[None], payoff[None], 0.5, RHO, x),
    }
    return float(checks[kind]()[0])


def batched(count: int = 256, sizes: tuple[int, ...] = (3, 40)) -> list[Row]:
    """Microseconds per problem when many are solved at once, and how many times as long scipy takes for one."""
    rows = []
    for T in sizes:
        G = gradients("plain", T, count, torch.Generator().manual_seed(0), decades=1.0)
        K = G @ G.mT
        log_p, payoff = (x[0] for x in player(K[:1]))
        arrays = K[0].numpy(), log_p.numpy(), (payoff / payoff.max() * 10).numpy()
        for name in NAMES:
            each = cpu_time(partial(solve, name, K), 0.3) / count
            other = cpu_time(partial(scipy_answer, name, *arrays), 0.1)
            rows.append({"solver": name, "T": T, "batch": count, "us_each": 1e6 * each, "times_scipy": other / each})
    return rows


def table(title: str, rows: list[Row], console: Console) -> None:
    keys = [k for k in rows[0] if k != "where"]
    out = Table(*keys, title=title)
    for row in rows:
        out.add_row(*(f"{v:.2g}" if isinstance(v, float) else "-" if v is None else str(v) for v in map(row.get, keys)))
    console.print(out)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=10_000, help="random problems per solver (default 10000)")
    parser.add_argument("--quick", action="store_true", help="a few problems and sizes, no file: seconds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", RuntimeWarning)  # scipy steps outside the domain of w^(-1/alpha)
    console = Console(width=130)
    right = robustness(200 if options.quick else options.problems)
    fast = speed((2, 3) if options.quick else SIZES, 0.01 if options.quick else 0.1)
    many = batched(64, (3,)) if options.quick else batched()
    table("(a) random problems", right, console)
    table(
        "(b) one problem, one CPU thread; times_x: x takes so many times as long; tight: scipy's tightest",
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
