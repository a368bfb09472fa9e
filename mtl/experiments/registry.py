"""Every experiment that is made of rows in the ledger, by the name that `mtl run` takes."""

from collections.abc import Callable
from typing import Any

from mtl.experiments import ab_test
from mtl.experiments.alpha import LOSSES, SWEEPS
from mtl.experiments.base import Experiment
from mtl.experiments.census import CENSUS
from mtl.experiments.gap import dose
from mtl.experiments.hyperparameters import HYPERPARAMETERS
from mtl.experiments.hyperparameters_nyuv2 import HYPERPARAMETERS_NYUV2
from mtl.experiments.loss_scale import LOSS_SCALE
from mtl.experiments.many_tasks import LONGER, MANY_TASKS
from mtl.experiments.mt10 import MT10
from mtl.experiments.qm9 import QM9
from mtl.experiments.qm9_messages import QM9_MESSAGES
from mtl.experiments.readings import READINGS
from mtl.experiments.sim_to_real import REFERENCES, SIM_TO_REAL
from mtl.experiments.start import START
from mtl.experiments.table1 import CLICK, TABLE1
from mtl.experiments.table1.equal import EQUAL, HEADS, KUAIRAND, KUAIRAND_HEADS, SIXTEEN
from mtl.experiments.table2 import TABLE2, UNET
from mtl.experiments.table3 import TABLE3

EXPERIMENTS: dict[str, Experiment] = {one.name: one for one in (
    START, CENSUS, TABLE1, EQUAL, SIXTEEN, CLICK, KUAIRAND, HEADS, KUAIRAND_HEADS, TABLE2, UNET, TABLE3, QM9,
    QM9_MESSAGES, MANY_TASKS, LONGER, SIM_TO_REAL, REFERENCES, MT10, HYPERPARAMETERS, HYPERPARAMETERS_NYUV2, LOSS_SCALE,
    READINGS, *SWEEPS.values(), *LOSSES.values(),
)}  # fmt: skip

# Studies of a design of their own, which has nothing to choose but its scale.
DESIGNED: dict[str, Callable[[str], Any]] = {"ab_test": ab_test.study, "gap_dose": dose.study}
