"""The peers' net on QM9: terms as equal as in the table of histograms, captions that name the net."""

from mtl.experiments.qm9_messages import QM9_MESSAGES, MessagesStudy
from mtl.runs.cells import split
from tests.experiments.test_qm9 import runs


def test_terms_are_the_peers_and_the_same_for_every_row():
    paper, gpu = QM9_MESSAGES.budget["paper"], QM9_MESSAGES.budget["gpu"]
    assert (paper.epochs, paper.batch_size, paper.lr) == (300, 120, 1e-3) and (gpu.batch_size, gpu.lr) == (120, 1e-3)
    grids = QM9_MESSAGES.grids("paper")
    assert len(grids) == 17 and not QM9_MESSAGES.grids("gpu")
    assert {tuple(split(p, paper)[0].lr for p in points) for points in grids.values()} == {(1e-3, 5e-4, 2e-3)}


def test_captions_name_the_net():
    made = MessagesStudy(QM9_MESSAGES, "gpu", runs({"LS": {"r2/mae": 1.8}}), "constructed", ())
    assert made.table.attrs["caption"].startswith("A net of messages on complete graphs: mean absolute error")
    assert "ours (net of messages, no bond types) beside" in made.paper.attrs["caption"]
    assert made.table.loc["LS", "n"] == "3"
