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

EXPERIMENTS: dict[str, Experiment] = {
    "start": START,
    "census": CENSUS,
    "table1": TABLE1,
    "table1_equal": EQUAL,
    "table1_longer": SIXTEEN,
    "table1_click": CLICK,
    "table1_kuairand": KUAIRAND,
    "table1_heads": HEADS,
    "table1_kuairand_heads": KUAIRAND_HEADS,
    "table2": TABLE2,
    "table2_unet": UNET,
    "table3": TABLE3,
    "qm9": QM9,
    "qm9_messages": QM9_MESSAGES,
    "many_tasks": MANY_TASKS,
    "many_tasks_longer": LONGER,
    "sim_to_real": SIM_TO_REAL,
    "sim_to_real_levels": REFERENCES,
    "mt10": MT10,
    "hyperparameters": HYPERPARAMETERS,
    "hyperparameters_nyuv2": HYPERPARAMETERS_NYUV2,
    "loss_scale": LOSS_SCALE,
    "readings": READINGS,
    **{one.name: one for family in (SWEEPS, LOSSES) for one in family.values()},
}

# Studies of a design of their own, which has nothing to choose but its scale.
DESIGNED: dict[str, Callable[[str], Any]] = {"ab_test": ab_test.study, "gap_dose": dose.study}
