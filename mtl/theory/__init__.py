"""What the two papers' theory says, repaired where it does not hold, as functions whose tests can fail.

rates: relative rate, KL ball, mirror step, regret · bounds: widths that hold and that do not · finite: exact
probabilities on finite classes · fairness: FairGrad's system. What notebooks 07 to 09 show is in `mtl.experiments`.
"""
