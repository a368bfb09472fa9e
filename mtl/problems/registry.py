"""All problems by name, and what stands in for one whose data are not found."""

from mtl.problems.aliexpress import AliExpress
from mtl.problems.aliexpress_like import AliExpressLike
from mtl.problems.base import SPLITS, Batch, BinaryProblem, Metric, Problem
from mtl.problems.celeba import CelebA
from mtl.problems.census import Census
from mtl.problems.census40 import Census40, Census40Like
from mtl.problems.data.raw import MissingDataError
from mtl.problems.digits import Digits
from mtl.problems.few import FewCensus, FewKuaiRand, FewMultiMNIST, FewQM9
from mtl.problems.kuairand import KuaiRand, KuaiRandClick
from mtl.problems.molecules import GeneratedMolecules
from mtl.problems.multimnist import MultiMNIST
from mtl.problems.qm9 import QM9
from mtl.problems.qm9_graphs import GeneratedGraphs, QM9Graphs
from mtl.problems.scaled import ScaledCensus, ScaledDigits
from mtl.problems.scenes.cityscapes import Cityscapes
from mtl.problems.scenes.nyuv2 import NYUv2
from mtl.problems.scenes.rooms import Rooms
from mtl.problems.shortvideo import ShortVideo
from mtl.problems.sim_to_real import SimToReal, SimToSim

PROBLEMS: dict[str, type[Problem]] = {
    "census": Census,
    "census_scaled": ScaledCensus,
    "census40": Census40,
    "census40_like": Census40Like,
    "aliexpress": AliExpress,
    "aliexpress_like": AliExpressLike,
    "kuairand": KuaiRand,
    "kuairand_click": KuaiRandClick,
    "shortvideo": ShortVideo,
    "multimnist": MultiMNIST,
    "digits": Digits,
    "nyuv2": NYUv2,
    "cityscapes": Cityscapes,
    "rooms": Rooms,
    "celeba": CelebA,
    "sim_to_real": SimToReal,
    "sim_to_sim": SimToSim,
    "qm9": QM9,
    "molecules": GeneratedMolecules,
    "qm9_graphs": QM9Graphs,
    "molecules_graphs": GeneratedGraphs,
    "qm9_few": FewQM9,
    "kuairand_few": FewKuaiRand,
    "census_few": FewCensus,
    "multimnist_few": FewMultiMNIST,
}
# what takes the place of a data set that is not found, if the caller agrees; digits for all others
STAND_INS: dict[str, type[Problem]] = dict.fromkeys(("nyuv2", "cityscapes", "rooms"), Rooms)
STAND_INS |= {"aliexpress": AliExpressLike, "aliexpress_like": AliExpressLike, "census_scaled": ScaledDigits}
STAND_INS |= dict.fromkeys(("kuairand", "kuairand_few", "shortvideo"), ShortVideo)
STAND_INS |= dict.fromkeys(("qm9", "qm9_few", "molecules"), GeneratedMolecules)
STAND_INS |= dict.fromkeys(("qm9_graphs", "molecules_graphs"), GeneratedGraphs)
STAND_INS |= dict.fromkeys(("census40", "census40_like"), Census40Like)
STAND_INS |= dict.fromkeys(("sim_to_real", "sim_to_sim"), SimToSim)

__all__ = [
    "PROBLEMS",
    "SPLITS",
    "STAND_INS",
    "Batch",
    "BinaryProblem",
    "Metric",
    "MissingDataError",
    "Problem",
]
