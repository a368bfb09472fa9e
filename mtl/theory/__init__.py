"""What the two papers' theory says, repaired where it does not hold, as functions whose tests can fail.

rates: relative rate, KL ball, mirror step, regret · bounds: widths that hold and that do not · finite: exact
probabilities on finite classes · fairness: FairGrad's system. What notebooks 07 to 09 show is in `mtl.experiments`.
"""

from mtl.theory.bounds import (
    block_bernstein_width,
    block_hoeffding_width,
    floor_mcdiarmid_width,
    mixture_risk_bound,
    stratified_bernstein_width,
    variance_free_floor,
)
from mtl.theory.fairness import (
    fair_limit,
    fair_rate_bound,
    fair_step_size,
    fair_weights,
    pareto_stationarity,
)
from mtl.theory.finite import FiniteClass, violation_table
from mtl.theory.rates import (
    kl_ball_sandwich,
    kl_ball_sup,
    mirror_ascent_step,
    mirror_kkt_residual,
    player_regret,
    relative_rate,
    relative_rate_variance,
)

__all__ = [
    "FiniteClass",
    "block_bernstein_width",
    "block_hoeffding_width",
    "fair_limit",
    "fair_rate_bound",
    "fair_step_size",
    "fair_weights",
    "floor_mcdiarmid_width",
    "kl_ball_sandwich",
    "kl_ball_sup",
    "mirror_ascent_step",
    "mirror_kkt_residual",
    "mixture_risk_bound",
    "pareto_stationarity",
    "player_regret",
    "relative_rate",
    "relative_rate_variance",
    "stratified_bernstein_width",
    "variance_free_floor",
    "violation_table",
]
