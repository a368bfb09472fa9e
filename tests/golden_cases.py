"""The recorded cases of 30 public implementations (tests/golden/golden.json.gz), and how ours answers each of them."""

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtl.gradients import backward
from mtl.methods import Method, aggregate, method
from mtl.methods.cones import project_conflicts, sdm_descent, vaccinate
from mtl.solvers import cagrad_dual

with gzip.open(Path(__file__).parent / "golden" / "golden.json.gz", "rt") as file:
    DATA: dict[str, Any] = json.load(file)

Case = dict[str, Any]
Answer = dict[str, Tensor]

SKIPPED = {
    "MoDo": "left out: its weights need gradients of two batches, and the direction a third",
    "RLW/facts": "facts about a distribution, tested in tests/methods/test_losses.py with a Kolmogorov-Smirnov test",
}


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def problem(case: Case) -> tuple[Tensor, Tensor]:
    p = DATA["problems"][case["problem"]]
    return tensor([[float(x) for x in row] for row in p["G"]]), tensor(p["losses"])


def steps(case: Case) -> list[tuple[Tensor, Tensor]]:
    return [(tensor(s["G"]), tensor(s["losses"])) for s in DATA["sequences"][case["problem"]]]


def clipped(d: Tensor, limit: float, exact: bool = False) -> Tensor:
    if not limit:
        return d
    norm = d.norm()
    return d * (limit / norm if exact else (limit / (norm + 1e-6)).clamp(max=1.0))


def once(
    name: str,
    factor: Callable[[int, Case], float] = lambda T, h: 1.0,
    heads: str | None = None,
    exact_clip: bool = False,
    **fixed: Callable[[Case], Any],
) -> Callable[[Case], Answer]:
    """One aggregation; hyperparameters from the case's own."""

    def run(case: Case) -> Answer:
        G, L = problem(case)
        h = case["hyperparameters"]
        a = aggregate(name, grads=G, losses=L, **{k: f(h) for k, f in fixed.items()})
        d = clipped(factor(len(L), h) * a.direction, h.get("max_norm", 0.0) or 0.0, exact_clip)
        answer = {"direction": d}
        if heads and a.weights is not None:
            answer["heads"] = torch.ones_like(L) if heads == "raw" else a.weights * (factor(len(L), h))
        return answer

    return run


def mgda_libmtl(case: Case) -> Answer:
    """LibMTL combines the normalised gradients."""
    G, L = problem(case)
    norm = case["hyperparameters"]["mgda_gn"]
    w = aggregate("mgda", grads=G, losses=L, norm=norm).weights
    assert w is not None
    c = (L if "loss" in norm else torch.ones_like(L)) * (G.norm(dim=1) if norm in ("l2", "loss+") else 1)
    return {"direction": (w / c) @ G}


def log_mgda(case: Case) -> Answer:
    """The reference never reaches a vertex of the simplex; where it differs, its point must be the worse one."""
    G, L = problem(case)
    w = aggregate("fair-loss", grads=G, losses=L, base="mgda", alpha=1.0).weights
    assert w is not None
    theirs = tensor(case["expected"]["weights"])
    theirs, g = theirs / theirs.sum(), G / L[:, None]
    better = float((w * L @ g).norm()) <= float((theirs @ g).norm()) * (1 + 1e-12)
    return {"direction": w / w.sum() @ G, "heads": w / w.sum(), "better": torch.tensor(better)}


def log_cagrad(case: Case) -> Answer:
    """The reference's SLSQP stops early on badly scaled gradients; where it differs, its dual point is worse."""
    G, L = problem(case)
    g, c = G / L[:, None], case["hyperparameters"]["c"]
    a = aggregate("fair-loss", grads=G, losses=L, base="cagrad", alpha=1.0, base_hyper={"c": c})
    w, g0 = cagrad_dual(g @ g.T, c)[0], g.mean(0)

    def dual(x: Tensor) -> float:
        return float(x @ g @ g0 + c * g0.norm() * (x @ g).norm())

    better = dual(w) <= dual(tensor(case["expected"]["weights"])) * (1 + 1e-12)
    d = clipped(len(L) / (1 + c**2) * a.direction, case["hyperparameters"]["max_norm"])
    return {"direction": d, "better": torch.tensor(better)}


def mgda_ub(case: Case) -> Answer:
    p = DATA["representation_problems"][case["problem"]]
    A, M = tensor(p["A"]), tensor(p["M"])
    rows = A.view(len(A), p["B"], p["F"]).sum(1) if "LibMTL" in case["reference"] else A
    w = method("mgda-ub", len(A)).weights(tensor(p["losses"]), rows @ rows.T)
    w = w * (len(A) if "nash" in case["reference"] else 1)
    return {"direction": w @ A @ M}


def upgrad(case: Case) -> Answer:
    G, L = problem(case)
    found = {f"direction_reg{r}": aggregate("upgrad", grads=G, losses=L, reg=float(r)).direction for r in ("1e-4", "0")}
    return {**found, "direction": found["direction_reg1e-4"]}


def pcgrad(case: Case) -> Answer:
    G, L = problem(case)
    if "torchjd" in case["reference"]:
        d = aggregate("pcgrad", grads=G, losses=L, seed=case["seed"]).direction
        order = torch.tensor(case["orders"])
        drawn = torch.Generator().manual_seed(case["seed"])
        assert torch.equal(order, torch.stack([torch.randperm(len(L), generator=drawn) for _ in L]))
        return {"direction": d}
    order = torch.tensor(case["orders"])
    if "CAGrad" in case["reference"]:  # round by round, task i itself left out
        n = G.norm(dim=1)
        return {"direction": project_conflicts(G @ G.T, order.T, eps=(n + 1e-8) ** 2 - n**2).sum(0) @ G}
    eps = case["hyperparameters"].get("eps", 0.0)
    return {"direction": project_conflicts(G @ G.T, order, itself=True, eps=eps).sum(0) @ G}


def graddrop(case: Case) -> Answer:
    G, L = problem(case)
    return {"direction": aggregate("graddrop", grads=G, losses=L, seed=case["seed"]).direction}


def graddrop_features(case: Case) -> Answer:
    """rep = M theta (B, F), L_t + <A_t, rep>: a whole step, as the mask needs the representation."""
    p = DATA["representation_problems"][case["problem"]]
    theta, A = tensor(p["theta0"]).requires_grad_(), tensor(p["A"])
    rep = (tensor(p["M"]) @ theta).view(p["B"], p["F"])
    losses = tensor(p["losses"]) + (A.view(len(A), p["B"], p["F"]) * rep).sum((1, 2))
    made = method("graddrop", len(A), leak=case["hyperparameters"]["leak"], on="features", seed=case["seed"])
    backward(losses, shared=[theta], method=made, features=rep)
    assert theta.grad is not None
    return {"direction": theta.grad}


def fair_ls(case: Case) -> Answer:
    G, L = problem(case)
    a = aggregate("fair-loss", grads=G, losses=L, base="ls", alpha=case["hyperparameters"]["alpha"])
    assert a.weights is not None
    return {"direction": a.direction, "heads": a.weights}


def sequence(
    name: str, hyper: Callable[[Case], Case] = lambda h: {}, factor: Callable[[int], float] = lambda T: 1.0
) -> Callable[[Case], list[Answer]]:
    """A method with state over a sequence; learned weights by the optimiser that the case names."""

    def run(case: Case) -> list[Answer]:
        data, h = steps(case), case["hyperparameters"]
        m = method(name, len(data[0][1]), **hyper(h))
        optimizer = optimiser(m, h.get("optimizer", ""))
        out = []
        for k, (G, L) in enumerate(data):
            if m.needs == "gradients":
                d, w = m.combine([G], L)[0], torch.ones_like(L)
            else:
                w = m.weights(L, G @ G.T) * factor(len(L))
                d = w @ G
            answer = {"direction": d, "heads": m.head_weights(L, w), "w": w}
            if optimizer is not None:
                answer["param_grad"] = m.parameters()[0].grad.clone()
                optimizer.step()
                answer["param_after"] = m.parameters()[0].detach().clone() + h.get("shift", 0.0)
            if m.wants_after_step:
                m.after_step(data[min(k + 1, len(data) - 1)][1])
            m.end_epoch()
            if m.wants_after_step:
                answer["logits_after"] = m.xi.clone()
            if hasattr(m, "log_p"):
                answer["p_next"] = m.log_p.exp()
            out.append(answer)
        return out

    return run


def optimiser(m: Method, text: str) -> torch.optim.Optimizer | None:
    if not m.parameters():
        return None
    rate = float(text.split("lr=")[1].split(")")[0])
    kind = torch.optim.Adam if text.startswith("Adam") else torch.optim.SGD
    return kind(m.parameters(), lr=rate)


def gradnorm(case: Case) -> list[Answer]:
    """LibMTL starts its log-weights at one and leaves the heads raw."""
    shifted = {**case, "hyperparameters": {**case["hyperparameters"], "shift": 1.0}}
    answers = sequence("gradnorm", lambda h: {"alpha": h["alpha"]})(shifted)
    return [{k: v for k, v in a.items() if k != "heads"} for a in answers]


def dwa_nash(case: Case) -> list[Answer]:
    """nash-mtl's window of 2K losses slides over a history of ones, the present loss included, and takes the mean."""
    data, K = steps(case), case["hyperparameters"]["iteration_window"]
    T, out = len(data[0][1]), []
    history = torch.ones(2 * K, T, dtype=torch.float64)
    for k, (G, L) in enumerate(data):
        history = torch.cat([history[1:], L[None]])
        w = torch.ones_like(L)
        if k > K:  # our two-epoch rule on the two halves
            m = method("dwa", T, window=None)
            m.means, m.epoch = torch.stack([history[:K].mean(0), history[K:].mean(0)]), [2] * T
            w = m.weights(L)
        out.append({"direction": w @ G / T, "heads": w / T})
    return out


def gradvac(case: Case) -> list[Answer]:
    data, beta = steps(case), case["hyperparameters"]["beta"]
    T = len(data[0][1])
    if "torchjd" in case["reference"]:
        m = method("gradvac", T, beta=beta, seed=case["seed"])
        return [{"direction": m.weights(L, G @ G.T) @ G} for G, L in data]
    rho, out = torch.zeros(T, T, dtype=torch.float64), []
    visits = torch.tensor(case["orders"]).view(len(data), T, T - 1)
    for (G, _), order in zip(data, visits, strict=True):
        V, rho = vaccinate(G @ G.T, order, rho, beta)
        out.append({"direction": V.sum(0) @ G})
    return out


def sdmgrad(case: Case) -> list[Answer]:
    """Three batches per step; our method sees one, its inner loop is that of the references."""
    data, h = steps(case), case["hyperparameters"]
    T, lam = len(data[0][1]), h.get("lamda", h.get("lambda_"))
    w, out, buggy = torch.full((T,), 1 / T, dtype=torch.float64), [], "sdmgrad" in case["reference"]
    for k in range(3):
        first, second, third = (data[k + i][0] for i in ((2, 2, 2) if buggy else (1, 2, 0)))
        A, eps = first @ second.T, 1e-4 if buggy else 1e-8
        w = sdm_descent(A, (A.diagonal().clamp_min(0) + eps).sqrt().mean(), w, lam, h["lr"])
        out.append({"direction": (T if buggy else 1) * ((w + lam / T) / (1 + lam)) @ third})
    return out


def adatask(case: Case) -> list[Answer]:
    data, h = steps(case), case["hyperparameters"]
    m = method("adatask", len(data[0][1]))
    theta, out = torch.zeros_like(data[0][0][0]), []
    for G, L in data:
        theta = theta - h["lr"] * m.combine([G], L)[0]
        out.append({"theta": theta.clone()})
    return out


def excess(case: Case) -> list[Answer]:
    """TorchJD moves the weights at the first step too, by what ours are divided by, and adds 1e-7 to it afterwards."""
    data, eta = steps(case), case["hyperparameters"]["robust_step_size"]
    m, out = method("excessmtl", len(data[0][1]), eta=eta), []
    for k, (G, L) in enumerate(data):
        d = m.combine([G], L)[0]
        if k == 0:
            m.log_w, m.initial = (eta * m.initial).log_softmax(-1), m.initial + 1e-7
            d = m.log_w.exp() @ G
        out.append({"direction": d, "weights": m.log_w.exp()})
    return out


def emtl(case: Case) -> list[Answer]:
    data, h = steps(case), case["hyperparameters"]
    rate = "weighted" if h["payoff"].startswith("w") else "raw"
    m = method("emtl", len(data[0][1]), rho=h["rho"], eta=h["eta"], alpha=h["gbm_weight_alpha"], rate=rate, strict=True)
    out = []
    for G, L in data:
        w = m.weights(L, G @ G.T)
        out.append({"direction": w @ G, "heads": w, "final_weights": w, "p": m.log_p.exp()})
    return out


def rlw(case: Case) -> Answer:
    h = case["hyperparameters"]
    losses = torch.ones(h["T"], dtype=getattr(torch, h["dtype"]))
    return {"weights": method("rlw", h["T"], seed=case["seed"]).weights(losses).double()}


def fair_alpha(h: Case) -> float:
    return h.get("alpha", h.get("FairGrad_alpha"))


def stch(h: Case) -> Case:
    return {"mu": h["mu"], "form": "log" if "nadir" in h else "paper"}


ANSWERS: dict[tuple[str, str], Callable[[Case], Answer | list[Answer]]] = {
    ("LS", "nash-mtl"): once("ls", heads="weighted"),
    ("LS", "LibMTL"): once("ls", heads="weighted"),
    ("scalarisation", "nash-mtl"): once("scalarization", heads="weighted", c=lambda h: h["task_weights"]),
    ("SI", "nash-mtl"): once("si", heads="weighted"),
    ("GLS", "LibMTL"): once("gls", heads="weighted"),
    ("alpha_fair_loss(LS)", "formula"): fair_ls,
    ("MGDA", "nash-mtl"): once("mgda", lambda T, h: T, "weighted", norm=lambda h: h["normalization"]),
    ("MGDA", "LibMTL"): mgda_libmtl,
    ("MGDA", "SamsungLabs-MTL"): once("mgda"),
    ("MGDA", "torchjd"): once("mgda"),
    ("MGDA-UB", "nash-mtl"): mgda_ub,
    ("MGDA-UB", "LibMTL"): mgda_ub,
    ("MGDA_log", "FAMO"): log_mgda,
    ("CAGrad", "nash-mtl"): once("cagrad", lambda T, h: T / (1 + h["c"] ** 2), "raw", c=lambda h: h["c"]),
    ("CAGrad", "FAMO"): once("cagrad", lambda T, h: T / (1 + h["c"] ** 2), "raw", c=lambda h: h["c"]),
    ("CAGrad", "CAGrad"): once("cagrad", lambda T, h: 3 / (1 + h["c"] ** 2), c=lambda h: h["c"]),
    ("CAGrad", "LibMTL"): once(
        "cagrad",
        lambda T, h: 1 / (1, 1 + h["calpha"] ** 2, 1 + h["calpha"])[h["rescale"]],
        "raw",
        c=lambda h: h["calpha"],
    ),
    ("CAGrad", "torchjd"): once("cagrad", c=lambda h: h["c"]),
    ("CAGrad_log", "FAMO"): log_cagrad,
    ("IMTL-G", "nash-mtl"): once("imtl-g", heads="weighted"),
    ("IMTL-G", "SamsungLabs-MTL"): once("imtl-g", heads="raw"),
    ("IMTL-G", "torchjd"): once("imtl-g"),
    ("IMTL-G_log", "FAMO"): once("fair-loss", heads="weighted", base=lambda h: "imtl-g", alpha=lambda h: 1.0),
    ("IMTL", "LibMTL"): lambda case: (
        sequence("imtl")(case) if case["problem"].startswith("seq") else once("imtl", heads="raw")(case)
    ),
    ("Nash-MTL", "nash-mtl"): lambda case: (
        sequence("nash", lambda h: {"every": h["update_weights_every"]})(case)
        if case["problem"].startswith("seq")
        else once("nash", heads="weighted")(case)
    ),
    ("Nash-MTL", "LibMTL"): once("nash", heads="weighted"),
    ("Nash-MTL", "FAMO"): lambda case: once("nash", heads="weighted")(
        {**case, "hyperparameters": {**case["hyperparameters"], "max_norm": 0.0}}
    ),
    ("Nash-MTL", "torchjd"): once("nash", exact_clip=True),
    ("FairGrad", "fairgrad"): once("fairgrad", lambda T, h: T, "raw", alpha=fair_alpha),
    ("FairGrad", "LibMTL"): once("fairgrad", heads="weighted", alpha=fair_alpha),
    ("FairGrad", "torchjd"): once("fairgrad", alpha=fair_alpha),
    ("Aligned-MTL", "LibMTL"): once("aligned", heads="raw"),
    ("Aligned-MTL", "SamsungLabs-MTL"): once("aligned", heads="raw"),
    ("Aligned-MTL", "torchjd"): once("aligned", lambda T, h: 1 / T, scale=lambda h: h["scale_mode"]),
    ("ConFIG", "torchjd"): once("config"),
    ("UPGrad", "torchjd"): upgrad,
    ("UPGrad", "LibMTL"): upgrad,
    ("DualProj", "torchjd"): once("dualproj", reg=lambda h: h["reg_eps"]),
    ("PCGrad", "nash-mtl"): pcgrad,
    ("PCGrad", "LibMTL"): pcgrad,
    ("PCGrad", "torchjd"): pcgrad,
    ("PCGrad", "CAGrad"): pcgrad,
    ("GradVac", "LibMTL"): gradvac,
    ("GradVac", "torchjd"): gradvac,
    ("GradDrop", "FAMO"): graddrop,
    ("GradDrop", "torchjd"): graddrop,
    ("GradDrop", "LibMTL"): graddrop_features,
    ("RLW", "nash-mtl"): rlw,
    ("DWA", "nash-mtl"): dwa_nash,
    ("DWA", "LibMTL"): sequence("dwa", lambda h: {"tau": h["T"], "window": None}),
    ("DWA", "torchjd"): sequence("dwa", lambda h: {"tau": h["temperature"], "window": None}),
    ("UW", "nash-mtl"): sequence("uw"),
    ("UW", "LibMTL"): sequence("uw", lambda h: {"init": h["init"]}),
    ("IMTL-L", "torchjd"): sequence("imtl-l"),
    ("GradNorm", "LibMTL"): gradnorm,
    ("FAMO", "FAMO"): sequence("famo", lambda h: {"gamma": h["gamma"], "lr": h["w_lr"]}),
    ("STCH", "LibMTL"): sequence("stch", stch),
    ("STCH", "torchjd"): sequence("stch", stch),
    ("DB-MTL", "LibMTL"): sequence("db-mtl", lambda h: {"beta": h["DB_beta"], "sigma": h["DB_beta_sigma"]}),
    ("BanditMTL", "MTL-COP"): sequence("bandit", lambda h: {"rho": h["rho"], "eta": h["eta_p"], "payoff": h["payoff"]}),
    ("SDMGrad", "LibMTL"): sdmgrad,
    ("SDMGrad", "torchjd"): sdmgrad,
    ("SDMGrad", "sdmgrad"): sdmgrad,
    ("AdaTask", "AdaTask"): adatask,
    ("MoCo", "LibMTL"): sequence(
        "moco",
        lambda h: {
            "beta": h["MoCo_beta"],
            "gamma": h["MoCo_gamma"],
            "sigma": h["MoCo_beta_sigma"],
            "rho": h["MoCo_rho"],
            "form": "libmtl",
        },
    ),
    ("ExcessMTL", "torchjd"): excess,
    ("EMTL", "reconstruction (emtl.md, ours)"): emtl,
}


def key(case: Case) -> tuple[str, str]:
    return case["method"], case["reference"].split(":")[0]


def skipped(case: Case) -> bool:
    return case["method"] in SKIPPED or "/".join(key(case)) in SKIPPED


def pairs(case: Case) -> Iterator[tuple[str, Tensor, Tensor, float]]:
    """What to compare: name, ours, theirs, relative tolerance; the exact solution where there is one."""
    ours = ANSWERS[key(case)](case)
    exact, expected, rtol = case.get("exact"), case["expected"], case["tolerance"].get("rtol") or 0.0
    if isinstance(ours, list):
        found = (exact or {}).get("steps", [])
        for k, answer in enumerate(ours[: len(expected["steps"])]):
            if k < len(found):
                yield from _each(f"step {k} ", answer, found[k], 1e-8)
            wanted = {a: b for a, b in expected["steps"][k].items() if not (k < len(found) and a in found[k])}
            if not found or case["method"] != "Nash-MTL":
                yield from _each(f"step {k} ", answer, wanted, rtol)
        return
    if exact:
        # eigenvectors of nearly parallel gradients: the Gram matrix in float64 does not hold more
        loose = case["method"] == "Aligned-MTL" and "collinear" in case["problem"]
        yield from _each("exact ", ours, exact, 1e-7 if loose else 1e-8)
    else:
        yield from _each("", ours, expected, rtol)


def better(case: Case) -> bool:
    """Ours solves the same problem at least as well as the reference, whose solver is known to be inexact."""
    if case["method"] not in ("MGDA_log", "CAGrad_log"):
        return False
    answer = ANSWERS[key(case)](case)
    assert isinstance(answer, dict)
    return bool(answer["better"])


NAMES = {"head_multipliers": "heads"}


def _each(label: str, answer: Answer, wanted: Case, rtol: float) -> Iterator[tuple[str, Tensor, Tensor, float]]:
    for name, value in wanted.items():
        ours = answer.get(NAMES.get(name, name))
        if ours is not None and isinstance(value, list):
            yield label + name, ours, tensor(value), rtol
