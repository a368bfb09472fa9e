"""The small T x T problems inside multi-task methods, each solved exactly and with a certificate."""

from mtl.solvers.alpha_fair import alpha_fair
from mtl.solvers.cagrad import cagrad_dual, cagrad_step
from mtl.solvers.certificate import TOLERANCE, Certificate, rounding
from mtl.solvers.kl import KLStep, ball_edge, kl_ball_step, kl_to_uniform
from mtl.solvers.linear import equal_angles, inverse_root, project_simplex
from mtl.solvers.nonneg import dual_cone, min_norm

__all__ = [
    "TOLERANCE",
    "Certificate",
    "KLStep",
    "alpha_fair",
    "ball_edge",
    "cagrad_dual",
    "cagrad_step",
    "dual_cone",
    "equal_angles",
    "inverse_root",
    "kl_ball_step",
    "kl_to_uniform",
    "min_norm",
    "project_simplex",
    "rounding",
]
