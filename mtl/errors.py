"""The errors a caller may want to tell apart; all else is a plain ValueError or TypeError."""


class DataError(Exception):
    """A data set is missing, incomplete or not what it should be; says what, where and what to do."""


class NonFiniteError(ValueError):
    """A loss, gradient or Gram matrix holds NaN or infinity; says which task."""


class NonPositiveError(ValueError):
    """A loss is zero or negative where the method has no meaning for it, as a logarithm; says which task."""


class RunError(RuntimeError):
    """A training run or a notebook ended without a result; says which and where its log lies."""
