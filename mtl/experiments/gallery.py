"""The first update of every method on the same two gradients (notebook 10)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from mtl import methods
from mtl.report import captioned
from mtl.report.style import RED, look, subplots
from mtl.scales import known_scale

Cases = Mapping[str, tuple[str, Mapping[str, Any]]]  # label: method, hyperparameters


def gradient_arrows(ax: Axes, grads: ArrayLike, directions: Mapping[str, ArrayLike]) -> None:
    """Two task gradients (2, 2) in dark grey, the cone that harms neither in light grey, one arrow per method."""
    tasks = np.asarray(grads, dtype=float)
    if tasks.shape != (2, 2):
        raise ValueError(f"grads: two gradients in the plane, shape (2, 2), found {tasks.shape}")
    middle = sum(vector / max(float(np.linalg.norm(vector)), 1e-12) for vector in tasks)
    angles = np.arctan2(middle[1], middle[0]) + np.linspace(-np.pi, np.pi, 721)
    circle = np.stack([np.cos(angles), np.sin(angles)], 1)
    safe = circle[(circle @ tasks.T >= -1e-12).all(1)]
    ax.fill(*np.vstack([np.zeros((1, 2)), safe]).T, color="0.88", lw=0, zorder=0)
    for index, vector in enumerate(tasks, start=1):
        _arrow(ax, vector, "0.4", 1.8)
        ax.annotate(rf"$g_{index}$", (vector[0] * 1.14, vector[1] * 1.14), ha="center", va="center")
    for name, direction in directions.items():
        label, colour, marker = look(name)
        vector = np.asarray(direction, dtype=float)
        _arrow(ax, vector, colour, 1.2)
        ax.plot(*vector, marker, color=colour, ms=4, label=label, zorder=5)
    ax.set(aspect="equal", xlabel=r"$\theta_1$", ylabel=r"$\theta_2$")
    ax.margins(0.18)


def _arrow(ax: Axes, vector: np.ndarray, colour: str, lw: float) -> None:
    look = {"arrowstyle": "-|>", "color": colour, "lw": lw, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", (vector[0], vector[1]), (0, 0), arrowprops=look)
    ax.plot(*vector, alpha=0)  # annotations do not widen the axes


def first_updates(cases: Cases, grads: ArrayLike, losses: ArrayLike) -> pd.DataFrame:
    """The first update d of each case (label: method, hyperparameters) from gradients (T, 2) and losses (T,).

    Columns: task weights w_t (none for methods that work by coordinate), change of L_t along the unit step -d/|d|,
    |d|, residual of the solver (none where nothing is solved), whether the method keeps a state, and d itself.

    >>> first_updates({"ls": ("ls", {})}, [[3, 0], [0, 4]], [1, 1])["change of L_2"].item()
    -3.2
    """
    G, L = torch.as_tensor(grads, dtype=torch.float64), torch.as_tensor(losses, dtype=torch.float64)
    rows = {}
    for label, (name, hyper) in cases.items():
        found, tasks = methods.aggregate(name, G, L, **hyper), range(1, len(L) + 1)
        weights = [float("nan")] * len(L) if found.weights is None else found.weights.tolist()
        length = float(torch.linalg.vector_norm(found.direction))
        changes = (-(G @ found.direction) / max(length, 1e-300)).tolist()
        row: dict[str, Any] = {f"w_{t}": w for t, w in zip(tasks, weights, strict=True)}
        row |= {f"change of L_{t}": change for t, change in zip(tasks, changes, strict=True)} | {"length": length}
        row["residual"] = float(found.certificate.residual) if found.certificate else float("nan")
        row["state"] = bool(methods.method(name, n_tasks=len(L), **hyper).state_dict())
        rows[label] = row | {f"d_{i}": x for i, x in enumerate(found.direction.tolist(), start=1)}
    return pd.DataFrame.from_dict(rows, orient="index")


def update_panels(table: pd.DataFrame, grads: ArrayLike) -> Figure:
    """One small panel per row of `first_updates`: both gradients to scale, the update at length 1, changes below."""
    tasks = np.asarray(grads, dtype=float)
    tasks = tasks / np.linalg.norm(tasks, axis=1).max()
    lengths = np.linalg.norm(tasks, axis=1, keepdims=True)
    outward = tasks / lengths - (tasks / lengths).sum(0) / np.linalg.norm((tasks / lengths).sum(0))
    places = tasks + 0.24 * outward / np.linalg.norm(outward, axis=1, keepdims=True)  # labels, off the cone
    columns = 7
    count = -(-len(table) // columns)
    fig, axes = subplots(count, columns, height=0.05 + 1.1 * count)
    for ax in axes.flat[len(table) :]:
        ax.set_axis_off()
    titles = [look(str(name))[0].replace(" (", "\n(") for name in table.index]
    for index, (name, row) in enumerate(table.iterrows()):
        ax, begin = axes.flat[index], index // columns * columns
        vector = row[["d_1", "d_2"]].to_numpy(float) / max(float(row["length"]), 1e-300)
        gradient_arrows(ax, tasks, {str(name): vector})
        for text, place in zip([text for text in ax.texts if text.get_text()], places, strict=True):
            text.set_position(place)
        lines = max(title.count("\n") for title in titles[begin : begin + columns]) - titles[index].count("\n")
        ax.set_title("\n" * lines + titles[index] + ("*" if row["state"] else ""), fontsize=7, pad=2)
        for t, x in ((1, 0.27), (2, 0.76)):
            change = float(row[f"change of L_{t}"])
            said = f"$L_{t}$ {change:+.2f}".replace("-0.00", "±0.00").replace("-", "−")
            style = {"color": RED, "weight": "bold"} if change > 1e-9 else {"color": "0.25"}
            ax.text(x, -0.03, said, transform=ax.transAxes, ha="center", va="top", fontsize=6, **style)
        ax.set(xlabel="", ylabel="", xticks=[], yticks=[], xlim=(-0.75, 1.3), ylim=(-0.1, 1.2))
        for side in ax.spines.values():
            side.set_visible(False)
    return fig


def _plain(*names: str) -> dict[str, tuple[str, dict[str, Any]]]:
    return {name: (name, {}) for name in names}


FAMILIES: dict[str, Cases] = {
    "loss": _plain("ls", "stl", "si", "gls", "rlw", "dwa", "uw", "imtl-l", "gradnorm", "stch", "famo", "bandit")
    | {"scalarization (.3, .7)": ("scalarization", {"c": [0.3, 0.7]})}
    | {"rlw (Dirichlet)": ("rlw", {"distribution": "dirichlet"})},
    "gram": _plain("mgda", "mgda-ub", "cagrad", "sdmgrad", "imtl-g", "imtl", "nash", "fairgrad", "aligned")
    | _plain("upgrad", "dualproj")
    | {"mgda (l2)": ("mgda", {"norm": "l2"})}
    | {f"fairgrad (α={a:g})": ("fairgrad", {"alpha": a}) for a in (0.5, 10.0)},
    "surgery": _plain("pcgrad", "gradvac", "graddrop", "adatask", "db-mtl", "moco")
    | {"graddrop (leak .5)": ("graddrop", {"leak": 0.5})},
    "EMTL and fair": _plain("emtl", "cr-mogm")
    | {"emtl (α=0)": ("emtl", {"alpha": 0.0}), "emtl (raw rate)": ("emtl", {"rate": "raw"})}
    | {f"emtl ({form.replace('_', ' ')})": ("emtl", {"combine": form}) for form in ("frozen_norm", "product")}
    | {f"emtl (on {name})": ("emtl", {"base": name}) for name in ("nash", "cagrad")}
    | {
        f"fair-loss ({name}, α={a:g})": ("fair-loss", {"base": name, "alpha": a})
        for name in ("ls", "mgda", "cagrad")
        for a in (0.5, 1.0)
    }
    | {"fair-loss (ls, α=2)": ("fair-loss", {"base": "ls", "alpha": 2.0})},
}
# A method that no page names stands on the page of what it needs, but for rules of one's own.
for _name, _kind in methods.METHODS.items():
    if "@" not in _name and all(_name != name for cases in FAMILIES.values() for name, _ in cases.values()):
        _page = {"losses": "loss", "gradients": "surgery"}.get(_kind.needs, "gram")
        FAMILIES[_page] = {**FAMILIES[_page], **_plain(_name)}
TITLES = {
    "loss": "Loss balancing",
    "gram": "Gradient balancing by the Gram matrix; MGDA-UB with the gradients taken as those over the representation",
    "surgery": "Surgery and elementwise methods",
    "EMTL and fair": "EMTL, and the alpha-fair loss transform of other methods",
}
SHOWN = ["method", "w_1", "w_2", "length", "change of L_1", "change of L_2"]


@dataclass
class GalleryStudy:
    """`rows`: `first_updates` of every family, on gradients `grads`."""

    facts: dict[str, Any]
    rows: pd.DataFrame
    grads: np.ndarray

    def figure(self, family: str) -> Figure:
        return captioned(
            update_panels(self.rows[self.rows["family"] == family].set_index("method"), self.grads),
            f"{TITLES[family]}. Dark: task gradients, to scale; grey: directions that harm no task; coloured: the "
            "update d at length 1. Below each panel the change of both losses for one unit step along -d, in red "
            "where a loss grows. * keeps a state (or draws at random): its first update, seed 0",
            config=self.facts["config"] | {"methods": FAMILIES[family]},
        )

    @property
    def numbers(self) -> pd.DataFrame:
        """Weights, length and changes, rounded: the same on every machine."""
        return self.rows[SHOWN].round(6).replace(-0.0, 0.0)

    @property
    def table(self) -> pd.DataFrame:
        residuals = ["–" if value != value else f"{value:.0e}" for value in self.rows["residual"]]
        said = (
            "One update of every method on the same two gradients: task weights (none where a method works by "
            "coordinate), length of the update, change of both losses for one unit step along it, residual of the "
            "solver (relative backward error; none where nothing is solved). First updates of methods with a state"
        )
        return captioned(self.rows[["family", *SHOWN]].assign(residual=residuals), said, wide=True)

    def answer(self) -> str:
        """Per family, which updates harm a task."""
        harms = self.rows[["change of L_1", "change of L_2"]].max(axis=1) > 1e-9
        said = []
        for family, group in self.rows.assign(harms=harms).groupby("family", sort=False):
            guilty = ", ".join(group["method"][group["harms"]]) or "none"
            harmless = f"{(~group['harms']).sum()} of {len(group)} harm no task"
            said.append(f"{family}: {harmless}; a loss grows under: {guilty}.")
        every, exact = f"All {len(methods.METHODS)} methods are shown", self.rows["residual"].max() < 1e-9
        return "\n".join([*said, f"{every}; every problem solved to a residual below 1e-9: {exact}."])


def study(scale: str) -> GalleryStudy:
    """Gradients of length 3 and 1 at 120 degrees, losses 2 and 0.5; nothing here grows with `scale`."""
    angles = np.deg2rad([20.0, 140.0])
    grads = np.array([[3.0], [1.0]]) * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    losses = np.array([2.0, 0.5])
    found = {family: first_updates(cases, grads, losses) for family, cases in FAMILIES.items()}
    rows = pd.concat(found, names=["family", "method"]).reset_index()
    facts = {
        "scale": known_scale(scale),
        "data": "two gradients in the plane",
        "synthetic": True,
        "notebook": "10_methods",
    }
    facts |= {"n": "1 update", "config": {"grads": grads.tolist(), "losses": losses.tolist(), "seed": 0}}
    return GalleryStudy(facts, rows, grads)
