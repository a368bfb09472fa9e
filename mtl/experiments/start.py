"""The first notebook: three methods and single-task learning on Census-Income, and room for one's own."""

from dataclasses import replace
from functools import cached_property
from typing import Any

import pandas as pd

from mtl.experiments.base import Experiment
from mtl.experiments.study import Study
from mtl.report import captioned
from mtl.training.fit import Budget


class Start(Study):
    """Test AUC per task and their mean."""

    @property
    def command(self) -> str:
        """That of the notebook, where the reader's own rule is."""
        return f"mtl reproduce --notebooks {self.experiment.notebook} --scale {self.scale}"

    @cached_property
    def table(self) -> pd.DataFrame:
        return captioned(super().table, "Test AUC, mean ± 95 % interval; score is the mean AUC")


START = Experiment(
    name="start",
    problem="census",
    fallback="digits",
    notebook="00_start_here",
    shows=Start,
    methods=(("STL", "stl", {}), ("LS", "ls", {}), ("FairGrad", "fairgrad", {"alpha": 2.0}), ("EMTL", "emtl", {})),
    models=("mmoe",),
    seeds=dict.fromkeys(("smoke", "quick", "paper"), (0, 1)),
    budget={"smoke": Budget(2, 256, lr=2e-3), "quick": Budget(3, 512, lr=2e-3), "paper": Budget(30, 2048, patience=5)},
    variants=dict.fromkeys(("smoke", "quick", "paper"), ({"tasks": 3},)),
)


def with_rule(label: str, name: str, **point: Any) -> Experiment:
    """The same comparison with one more method: a name from METHODS or of one's own `mtl.rule`.

    Raises ValueError for a label that the comparison has already.
    """
    if label in (labels := [one for one, _, _ in START.entries("quick")]):
        raise ValueError(f"label: must be none of {', '.join(labels)}, found {label!r}")
    return replace(START, methods=(*START.methods, (label, name, point)))
