"""QM9 as atoms in space: rows and targets of the histograms' problem, padding, training, and no extra."""

import sys

import numpy as np
import pytest
import torch

from mtl.experiments.qm9_messages import QM9_MESSAGES
from mtl.ledger import Ledger
from mtl.methods import method
from mtl.problems import MissingDataError, problem
from mtl.problems.base import cuts
from mtl.problems.molecules import generate
from mtl.problems.qm9_graphs import AT_ONCE, padded
from mtl.training.fit import Budget, fit


@pytest.fixture
def extra():
    pytest.importorskip("torch_geometric", reason="needs the extra [molecules]: pip install '.[molecules]'")


def test_without_the_extra_it_says_what_to_install_and_leaves_nothing_behind(nowhere, monkeypatch):
    for name in ("torch_geometric", "torch_geometric.nn"):
        monkeypatch.setitem(sys.modules, name, None)
    said = r"needs torch_geometric, which is not installed: pip install '.\[molecules\]' in the checkout of mtl$"
    for name in ("qm9_graphs", "molecules_graphs"):
        with pytest.raises(ModuleNotFoundError, match=said):
            problem(name)
    with pytest.raises(ModuleNotFoundError, match=said):
        QM9_MESSAGES.run("smoke", fallback="molecules_graphs", ledger=Ledger(nowhere / "rows.jsonl"))
    assert not list(nowhere.iterdir()) and problem("molecules").sizes["train"] == 600


def test_padding_keeps_every_atom_where_it_is():
    made = generate(20)
    kind, pos = padded(made, np.arange(20)[::-1])
    there = kind.flip(0) >= 0
    assert there.sum(1).tolist() == made.n_atoms.tolist() and kind.shape[1] == made.n_atoms.max()
    assert np.array_equal(np.array([1, 6, 7, 8, 9])[kind.flip(0)[there].numpy()], made.z)
    assert np.array_equal(pos.flip(0)[there].numpy(), made.pos) and not pos.flip(0)[~there].any()


def test_rows_targets_and_levels_are_those_of_the_histograms(nowhere, extra):
    with pytest.raises(MissingDataError, match=r"run `mtl data get qm9`, or .* fallback='molecules_graphs'$"):
        problem("qm9_graphs")
    made, plain = problem("qm9_graphs", fallback="molecules_graphs"), problem("molecules")
    assert made.describe().startswith("EMBEDDED DEFAULT: qm9_graphs was not found, generated molecules stand in")
    assert made.sizes == plain.sizes and torch.equal(made.data("test")[-1], plain.data("test")[-1])
    assert made.blind() == plain.blind() and made.fingerprint == plain.fingerprint
    parts = [len(batch[0]) for batch in made._in_order("test", "cpu")]
    assert parts == [rows.stop - rows.start for rows in cuts(400, AT_ONCE)]
    with pytest.raises(ValueError, match="scale must be one of smoke, quick, gpu, paper, found 'study'"):
        problem("molecules_graphs", "study")


def test_two_methods_train_it_from_end_to_end(nowhere, extra):
    made = problem("molecules_graphs")
    before = made.evaluate(made.model("messages", 10), "test")["score"]
    for name in ("ls", "fairgrad"):
        run = fit(made, method(name, n_tasks=11), model="messages", seed=10, budget=Budget(1, 30, lr=1e-2))
        assert run.status == "ok" and run.metrics["score"] > before + 0.01, name
        assert run.modules[1:] == ["mtl.problems.qm9_graphs", "mtl.training.fit"]
