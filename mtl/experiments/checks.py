"""What the papers say on theory and the landscape: the test of each claim in the suite, the figure that shows it.

The verdicts themselves come from `theory_claims` and `figure1.claims`. A test of the suite follows every entry.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import pandas as pd

from mtl import report


class Check(NamedTuple):
    """The tests that fail if the claim is decided wrongly ("room/file::test"), the figure."""

    tests: tuple[str, ...]
    figure: str


CHECKS: dict[str, Check] = {
    "emtl-thm1": Check(
        ("theory/bounds::proposition_4_counterexample", "theory/bounds::negative_controls_fail_as_they_must"),
        "07_theory_emtl",
    ),
    "emtl-thm1-repaired": Check(
        (
            "theory/bounds::every_theorem_holds_by_enumeration",
            "theory/bounds::theorem_1_is_vacuous_below_ten_tasks_and_does_not_decay_in_n",
        ),
        "07_theory_emtl",
    ),
    "emtl-variance-alone": Check(
        ("theory/bounds::proposition_3_every_variance_only_width_fails_below_its_floor",), "07_theory_emtl"
    ),
    "emtl-surrogate": Check(
        ("theory/rates::sandwich_holds_over_1e5_cases_and_is_sharp", "theory/rates::remainder_is_third_order"),
        "07_theory_ball",
    ),
    "emtl-eq10": Check(
        ("theory/bounds::equation_10_static_sign_is_wrong_and_dynamic_identity_holds",), "07_theory_player"
    ),
    "emtl-player": Check(
        (
            "theory/rates::mirror_step_satisfies_its_kkt_conditions_and_a_wrong_step_does_not",
            "theory/rates::regret_stays_below_its_bound",
        ),
        "07_theory_player",
    ),
    "emtl-rho-grid": Check(("theory/rates::saturation_begins_at_log_T",), "07_theory_ball"),
    "gap-observational": Check(
        (
            "experiments/gap::planted_effects_are_found_and_absent_ones_are_not",
            "experiments/gap::published_rows_are_the_design_on_three_real_data_sets",
        ),
        "08_theory_gap",
    ),
    "gap-causal": Check(
        (
            "experiments/gap::planted_effects_are_found_and_absent_ones_are_not",
            "experiments/gap::published_rows_are_the_design_on_three_real_data_sets",
        ),
        "08_theory_gap_doses",
    ),
    "emtl-lowers-variance": Check(
        ("experiments/theorem::whether_emtl_lowers_the_variance_follows_from_the_rows",), "08_theory_methods"
    ),
    "emtl-fig1-bandit": Check(("experiments/figure1::runs_end_where_they_were_measured_to_end",), "01_figure1_toy"),
    "emtl-fig1-mgda": Check(("experiments/figure1::runs_end_where_they_were_measured_to_end",), "01_figure1_toy"),
    "emtl-fig1-nash-imtl": Check(
        ("experiments/figure1::the_sentences_of_the_paper_are_judged_by_the_table",), "01_figure1_toy"
    ),
    "emtl-fig1-emtl": Check(
        (
            "experiments/figure1::the_sentences_of_the_paper_are_judged_by_the_table",
            "experiments/figure1::frozen_norm_converges_and_raw_rates_are_scale_free_at_every_scale",
        ),
        "01_figure1_scales",
    ),
    "fairgrad-unique": Check(
        ("theory/fairness::solvable_iff_not_pareto_stationary_independence_is_not_needed",), "09_theory_solver"
    ),
    "fairgrad-limits": Check(
        (
            "theory/fairness::limit_zero_is_the_dual_cone_projection_and_not_ls",
            "theory/fairness::limit_infinity_is_mgda_over_its_squared_length",
        ),
        "09_theory_fairgrad",
    ),
    "fairgrad-convergence": Check(
        ("theory/fairness::rate_bound_holds_and_a_tenfold_smaller_one_would_not",), "09_theory_rate"
    ),
    "fairgrad-solver": Check(
        ("theory/fairness::published_solver_misses_silently_on_small_gradients_and_ours_does_not",), "09_theory_solver"
    ),
}


def judged(claims: Iterable[Any]) -> pd.DataFrame:
    """Report each verdict with its figure; a line per claim: claim, test, verdict, figure, evidence.

    >>> judged([{"claim": "emtl-player", "verdict": "reproduced", "evidence": "..."}])["figure"].item()
    '07_theory_player'
    """
    rows = []
    for claim in claims:
        check = CHECKS[claim["claim"]]
        rows.append(report.verdict(**claim, figure=check.figure) | {"test": ", ".join(check.tests).replace("_", " ")})
    return pd.DataFrame(rows)[["claim", "test", "verdict", "figure", "evidence"]]
