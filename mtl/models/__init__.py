"""Models: shared parameters, one head per task, and the representation between them."""

from mtl.models.base import Branched, MultiTaskModel, SingleTask, seeded
from mtl.models.recsys import PLE, MMoE, dcn, dcn_click, shared_bottom, single_task
from mtl.models.small import lenet, lenet_single_task, mlp, mlp_single_task
from mtl.models.tabular import TabularInput

__all__ = [
    "PLE",
    "Branched",
    "MMoE",
    "MultiTaskModel",
    "SingleTask",
    "TabularInput",
    "dcn",
    "dcn_click",
    "lenet",
    "lenet_single_task",
    "mlp",
    "mlp_single_task",
    "seeded",
    "shared_bottom",
    "single_task",
]
