"""The style and the plots: legible at their printed size, one look per method, axes named."""

from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from mtl import report
from mtl.experiments import gallery
from mtl.report import plots, style


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    plt.close("all")


def contrast(colour: str) -> float:
    """Contrast with white after WCAG 2.1: (1.05) / (luminance + 0.05)."""
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(rgb <= 0.03928, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(1.05 / (linear @ [0.2126, 0.7152, 0.0722] + 0.05))


def small_text(fig: Figure) -> list[str]:
    fig.canvas.draw()
    texts = [t for t in fig.findobj(Text) if isinstance(t, Text) and t.get_visible() and t.get_text().strip()]
    return [t.get_text() for t in texts if t.get_fontsize() < 7]


def outside(fig: Figure) -> list[str]:
    """Texts of axis labels and titles that leave the page."""
    fig.canvas.draw()
    page = fig.bbox
    found = []
    for ax in fig.axes:
        for text in (ax.title, ax.xaxis.label, ax.yaxis.label):
            box = text.get_window_extent()
            inside = box.x0 >= page.x0 - 1 and box.x1 <= page.x1 + 1 and box.y0 >= page.y0 - 1 and box.y1 <= page.y1 + 1
            if text.get_text() and not inside:
                found.append(text.get_text())
    return found


def test_every_method_has_a_look_of_its_own() -> None:
    import mtl.methods as methods

    found = [style.look(name) for name in methods.METHODS if "@" not in name]  # without rules of users
    looks = [(colour, marker) for _, colour, marker in found]
    assert len(set(looks)) == len(looks) == len({label for label, _, _ in found})
    assert min(contrast(colour) for colour, _ in looks) > 2, "yellow on white is no colour"


def test_unknown_method_is_named() -> None:
    with pytest.raises(ValueError, match="method: no look is fixed for 'mine'; known are ls, "):
        style.look("mine")
    assert style.look("emtl (rho=0.5)")[0] == "EMTL (rho=0.5)"


@pytest.mark.parametrize(("width", "inches"), [("column", 3.3), ("text", 6.9)])
def test_figures_have_their_printed_size(width: str, inches: float) -> None:
    fig, axes = style.subplots(1, 2, width=width)  # type: ignore[arg-type]
    assert fig.get_size_inches()[0] == inches and axes.shape == (1, 2)


def test_unknown_width_is_named() -> None:
    with pytest.raises(ValueError, match="width: one of column, text, found 'page'"):
        style.subplots(width="page")  # type: ignore[arg-type]


def test_intervals_show_mean_and_half_width() -> None:
    frame = pd.DataFrame({"method": ["ls"] * 3 + ["emtl"] * 3, "seed": [0, 1, 2] * 2, "auc": [1, 2, 3, 2, 3, 4.0]})
    table = report.results_table(frame, {"auc": True}, raw=True)
    fig, axes = style.subplots(width="column", height=1.5)
    plots.intervals(axes[0], table, {"auc": "AUC"}, str)
    segments = [c.get_segments()[0] for c in axes[0, 0].collections]
    halves = [(s[1][0] - s[0][0]) / 2 for s in segments]
    np.testing.assert_allclose(halves, table["auc", "ci"])
    assert [t.get_text() for t in axes[0, 0].get_yticklabels()] == ["ls", "emtl"]
    assert small_text(fig) == [] and outside(fig) == []


def test_intervals_need_one_axis_per_metric() -> None:
    _, axes = style.subplots(1, 2)
    with pytest.raises(ValueError, match="metrics: one axis per metric, found 1 metrics and 2 axes"):
        plots.intervals(axes[0], pd.DataFrame(), {"auc": "AUC"}, str)


def test_weights_over_time_takes_one_run_or_many() -> None:
    fig, axes = style.subplots(1, 2, width="column")
    weights = np.random.default_rng(0).dirichlet([1, 1, 1], size=(4, 10))
    plots.weights_over_time(axes[0, 0], range(10), weights, ["a", "b", "c"])
    plots.weights_over_time(axes[0, 1], range(10), weights[0], ["a", "b", "c"], legend=False)
    np.testing.assert_allclose(axes[0, 0].lines[1].get_ydata(), weights[..., 1].mean(0))
    assert len(axes[0, 0].collections) == 3 and len(axes[0, 1].collections) == 0
    assert small_text(fig) == []


@pytest.mark.parametrize("angle", [0.3, 1.5, 3.0])
def test_safe_cone_is_where_no_task_loses(angle: float) -> None:
    grads = np.array([[1.0, 0.0], [2 * np.cos(angle), 2 * np.sin(angle)]])
    _, axes = style.subplots(width="column", height=3.3)
    gallery.gradient_arrows(axes[0, 0], grads, {"mgda": [0.6, 0.8], "nash": [0.0, 1.0]})
    cone = axes[0, 0].patches[0].get_xy()[1:-1]
    assert (cone @ grads.T >= -1e-6).all()
    assert np.degrees(np.arccos(np.clip(cone[0] @ cone[-1], -1, 1))) == pytest.approx(180 - np.degrees(angle), abs=1.5)
    tips = [line.get_xydata()[0] for line in axes[0, 0].lines if line.get_label() in {"MGDA", "Nash-MTL"}]
    np.testing.assert_allclose(np.linalg.norm(tips, axis=1), 1)


def test_gradient_arrows_need_two_gradients_in_the_plane() -> None:
    _, axes = style.subplots()
    with pytest.raises(ValueError, match=r"grads: two gradients in the plane, shape \(2, 2\), found \(3, 2\)"):
        gallery.gradient_arrows(axes[0, 0], np.zeros((3, 2)), {})


def test_a_mean_far_from_the_crowd_is_written_at_the_edge() -> None:
    means = [0.940, 0.9405, 0.941, 0.9402, 0.80]
    table = pd.DataFrame(
        {("auc", "mean"): means, ("auc", "ci"): [0.001] * 5}, index=["ls", "uw", "mgda", "emtl", "bandit"]
    )
    _, axes = style.subplots()
    plots.intervals(axes[0], table, {"auc": "AUC"}, str)
    low, high = axes[0, 0].get_xlim()
    assert 0.93 < low < 0.939 and 0.942 < high < 0.95, "the crowd sets the limits"
    assert [text.get_text() for text in axes[0, 0].texts] == ["← 0.8"]
