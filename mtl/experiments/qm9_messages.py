"""QM9 with the peers' net of messages in place of histograms and an MLP: a command for a GPU (`mtl run qm9_messages`).

As the peers: width 64, three steps, batch 120, rate .001, 300 epochs at scale paper. Otherwise: one cycle of the rate
for every row, where they lower it on a plateau of validation, which `Budget` does not; features as
`mtl.models.messages` says; targets less the fit on the composition, as for the histograms.
"""

from dataclasses import replace
from functools import cached_property

import pandas as pd

from mtl.experiments.base import Trials
from mtl.experiments.qm9 import BALLS, FIXED, METHODS, QM9, QUICK, QM9Study
from mtl.report import captioned
from mtl.training.fit import Budget


class MessagesStudy(QM9Study):
    """QM9's tables under captions that name this net."""

    @cached_property
    def table(self) -> pd.DataFrame:
        return _said(super().table)

    @property
    def paper(self) -> pd.DataFrame:
        return _said(super().paper)


def _said(table: pd.DataFrame) -> pd.DataFrame:
    said = table.attrs["caption"].replace("Distance histograms and an MLP", "A net of messages on complete graphs")
    return captioned(table, said.replace("distance histograms, MLP", "net of messages, no bond types"))


SCALES = ("smoke", "quick", "gpu", "paper")
BUDGET = {
    "smoke": Budget(epochs=1, batch_size=120),
    "quick": Budget(epochs=4, batch_size=120, one_cycle=0.2),
    "gpu": Budget(epochs=20, batch_size=120, one_cycle=0.2),
    "paper": Budget(epochs=300, batch_size=120, one_cycle=0.2),
}
QM9_MESSAGES = replace(
    QM9,
    name="qm9_messages",
    problem="qm9_graphs",
    fallback="molecules_graphs",
    notebook=None,
    source="{} (real)",
    shows=MessagesStudy,
    methods={scale: tuple(one for one in METHODS if scale == "paper" or one[0] in QUICK) for scale in SCALES},
    models=("messages",),
    seeds={"smoke": (10,), **dict.fromkeys(SCALES[1:], (10, 11, 12))},
    budget=BUDGET,
    trials={
        "paper": Trials((100, 101), replace(BUDGET["paper"], epochs=20), then={"EMTL": BALLS, "fixed weights": FIXED})
    },
    rates=(1e-3, 5e-4, 2e-3),
    doubled=(),  # 300 epochs are the peers' own
    variants={scale: ({"targets": "standardised"},) for scale in SCALES},
)
