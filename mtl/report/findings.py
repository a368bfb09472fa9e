"""What the decision rule says of a sentence, as values that are kept and printed; no arithmetic, so no NumPy."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

REPRODUCED, SMALLER, EQUAL = "reproduced", "smaller than claimed", "practically equal"
CONTRADICTED, ASSAY, POWER = "contradicted", "inconclusive (assay)", "inconclusive (power)"
READING, UNTESTED = "depends on the reading", "not tested"
WORDS = (REPRODUCED, SMALLER, EQUAL, CONTRADICTED, ASSAY, POWER, READING, UNTESTED)


@dataclass(frozen=True)
class Part:
    """One comparison of a sentence, or one check of its own: its word, and the numbers or words behind it."""

    name: str
    word: str
    value: float | None = None  # positive favours the sentence
    low: float | None = None  # of the 95 % interval; none for n < 3
    high: float | None = None
    d: float | None = None
    n: int = 0
    needed: int | None = None  # the n that would decide, where the power is too small
    said: str = ""
    wide: tuple[float, float] | None = None  # the simultaneous interval, where it is one of several rivals


@dataclass(frozen=True)
class Check:
    """One part of a gate; `passed` is None where it was not run, which is not passed."""

    name: str
    passed: bool | None
    said: str
    decides: bool = True  # A/A rows void a table only where they are there


@dataclass(frozen=True)
class Finding:
    """What became of a claim: its word, the word that its numbers would have without the gate, all that says so."""

    claim: str
    word: str
    would: str
    parts: tuple[Part, ...]
    gate: tuple[Check, ...] = ()
    beside: tuple[Part, ...] = ()  # further rivals: a second line, which does not decide
    said: str = ""
    scale: str = ""
    n: int = 0
    rows: tuple[str, ...] = ()

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Self:
        """The inverse of `plain`; what a finding no longer has is passed over."""
        own = {one.name: plain[one.name] for one in fields(cls) if one.name in plain}
        parts = {name: tuple(_part(one) for one in plain[name]) for name in ("parts", "beside")}
        own |= {**parts, "gate": tuple(Check(**one) for one in plain["gate"]), "rows": (*plain["rows"],)}
        return cls(**own)


def _part(plain: Mapping[str, Any]) -> Part:
    return Part(**{**plain, "wide": plain["wide"] and tuple(plain["wide"])})


def tally(words: Iterable[str]) -> str:
    """How many parts got which word, in the order of WORDS.

    >>> tally(["contradicted", "reproduced", "reproduced"])
    '2 reproduced, 1 contradicted'
    """
    counts = Counter(words)
    return ", ".join(f"{counts[word]} {word}" for word in WORDS if counts[word])


def known(word: str) -> bool:
    """Whether a word is one of the rule's, or a tally of them."""
    return all(re.sub(r"^\d+ ", "", one) in WORDS for one in word.split(", "))
