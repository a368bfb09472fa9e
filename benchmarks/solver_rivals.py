"""The solvers' problems as others solve them: scipy, cvxpy, TorchJD."""

import importlib
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
from scipy import optimize, special
from torch import Tensor

RHO = 0.3
minimize: Any = optimize.minimize
least_squares: Any = optimize.least_squares
Rival = Callable[[Tensor, Tensor, Tensor], Callable[[], Any]]
"""From K, log p and payoff to a call that solves, what is not its own work done before."""


def rivals(name: str, T: int) -> dict[str, Rival]:
    """Who else solves the problem `name`; those that are not installed are left out."""
    found: dict[str, Rival] = {
        "scipy": lambda *given: partial(scipy_answer, name, *arrays(given)),
        "tight": lambda *given: partial(scipy_answer, name, *arrays(given), tight=True),
    }
    if name in ("min_norm", "dual_cone", "kl_ball"):
        found["direct"] = lambda *given: partial(direct, name, *arrays(given))
    if find_spec("cvxpy") is not None:
        compiled = cvxpy_solver(name, T)
        found["cvxpy"] = lambda *given: partial(compiled, *arrays(given), square_root(arrays(given)[0]))
        found["anew"] = lambda *given: lambda: cvxpy_solver(name, T)(*arrays(given), square_root(arrays(given)[0]))
    if (weighting := torchjd_weightings().get(name)) is not None:
        found["torchjd"] = lambda K, log_p, payoff: partial(weighting, K)
    return found


def arrays(given: tuple[Tensor, ...]) -> list[np.ndarray]:
    return [x.numpy() for x in given]


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


def direct(name: str, K: np.ndarray, log_p: np.ndarray, payoff: np.ndarray) -> np.ndarray:
    """scipy's routine for just this problem, unscaled and without a certificate: nnls, or brentq on the multiplier."""
    T = len(K)
    if name == "kl_ball":
        a = log_p + 0.5 * payoff

        def excess(k: float) -> float:
            log = k * a - special.logsumexp(k * a)
            return float(np.exp(log) @ log) + np.log(T) - RHO

        return special.softmax((optimize.brentq(excess, 1e-12, 1.0, xtol=1e-15) if excess(1.0) > 0 else 1.0) * a)
    F = square_root(K)
    if name == "dual_cone":
        return 1 / T + optimize.nnls(F, -F.sum(1) / T)[0]
    z = optimize.nnls(np.vstack([F, np.ones(T)]), np.eye(T + 1)[T])[0]
    return z / z.sum()


def cvxpy_solver(name: str, T: int) -> Callable[..., np.ndarray]:
    """The same problem by cvxpy and Clarabel, compiled once with parameters as Nash-MTL's authors do.

    A call sets the parameters and solves; K enters as a square root, whose computation is not timed.
    """
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
