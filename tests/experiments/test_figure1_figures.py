"""The figures of the landscape: legible at their printed size, every method on one page."""

from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mtl.experiments import figure1 as toy
from mtl.experiments.figure1 import figures
from tests.report.test_plots import outside, small_text


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    plt.close("all")


def drawn(fig: Figure) -> Figure:
    """A closed figure has lost its canvas; without one no text has a place."""
    FigureCanvasAgg(fig)
    return fig


def test_toy_figure_is_legible_and_named() -> None:
    labels = ["ls", "emtl", "mgda"]
    runs = toy.run_toy(toy.grid(labels, [1.0, 0.1]), steps=40, record_every=4)
    fig = drawn(figures.toy_figure(runs, labels, [1.0, 0.1]))
    assert small_text(fig) == []
    assert outside(fig) == []
    assert {ax.get_xlabel() for ax in fig.axes} == {"loss 1", "$x_1$", "steps / 1000"}
    assert [ax.get_title() for ax in fig.axes[:3]] == ["LS", "EMTL", "MGDA"]
    ends = [line.get_xydata()[-1] for line in fig.axes[0].lines if len(line.get_xdata()) == len(runs.steps)]
    np.testing.assert_allclose(np.array(ends), runs.f[-1, runs.index("ls", 1.0)])


def test_one_page_shows_every_method_at_every_scale() -> None:
    told, scales = dict(reversed(toy.bounded())), [1.0, 0.1]
    labels = [c.label for c in toy.grid([(name, told.get(name, {})) for name in toy.shown()], [1.0])]
    runs = toy.run_toy(toy.grid([(name, told.get(name, {})) for name in toy.shown()], scales), steps=40, record_every=4)
    fig = drawn(figures.methods_figure(runs, labels, scales))
    assert small_text(fig) == [] and outside(fig) == []
    assert fig.get_size_inches()[1] < 9, "one page with its caption"
    names = [text.get_text() for ax in fig.axes for text in ax.texts]
    assert len(names) == len(toy.shown()) and names[:3] == ["LS", "Scalarization", "SI\u2020"]
    # the second panel is LS at s = 1: its paths end where the runs end
    ends = [line.get_xydata()[-1] for line in fig.axes[1].lines if len(line.get_xdata()) == len(runs.steps)]
    np.testing.assert_allclose(np.array(ends), runs.x[-1, runs.index("ls", 1.0)])
    odd = figures.methods_figure(runs, labels[:3], scales)
    assert not odd.axes[-1].axison, "an odd number of methods leaves no empty frames"
