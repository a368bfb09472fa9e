"""Multi-task optimisation: EMTL, FairGrad and the methods that they are compared with."""

from mtl.gradients import backward
from mtl.methods import METHODS, aggregate, method
from mtl.methods.custom import rule
from mtl.problems import PROBLEMS, problem
from mtl.training.fit import Budget, fit

__all__ = ["METHODS", "PROBLEMS", "Budget", "aggregate", "backward", "fit", "method", "problem", "rule"]
