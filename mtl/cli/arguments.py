"""Words of the command line as values."""

import ast
import difflib
import math
import os
import re
from collections.abc import Collection, Iterable
from typing import Any

import typer


def literal(text: str) -> Any:
    """A Python literal where the text is one, else the text itself.

    >>> literal("[0, 1]"), literal("1e-3"), literal("census"), literal("true"), literal("{[]}")
    ([0, 1], 0.001, 'census', True, '{[]}')
    """
    if text in ("true", "false"):
        return text == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # all that its documentation names
        return text


def nearest(name: str, known: Iterable[str]) -> str:
    """
    >>> nearest("cencus", ["census", "digits"]), nearest("x", [])
    (' (nearest: census)', '')
    """
    near = difflib.get_close_matches(name, list(known), 1)
    return f" (nearest: {near[0]})" if near else ""


def pairs(texts: Iterable[str]) -> dict[str, Any]:
    """The `-p key=value` of a command.

    >>> pairs(["tasks=3", "name=a=b"])
    {'tasks': 3, 'name': 'a=b'}
    """
    found = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not key.isidentifier() or not sign:
            raise ValueError(f"-p: expected key=value, found {text!r}")
        found[key] = literal(value)
    return found


def names(text: str, known: Collection[str] = ()) -> list[str]:
    """Names with commas between them; where one is `known` to have commas itself, the longest that is known.

    >>> names("00, 01,"), names("LS,LS, losses 1,MGDA", ["LS", "LS, losses 1", "MGDA"])
    (['00', '01'], ['LS', 'LS, losses 1', 'MGDA'])
    """
    parts, found = [name.strip() for name in text.split(",") if name.strip()], []
    while parts:
        longest = next((n for n in range(len(parts), 1, -1) if ", ".join(parts[:n]) in known), 1)
        found.append(", ".join(parts[:longest]))
        del parts[:longest]
    return found


def seeds(text: str) -> tuple[int, ...] | None:
    """None where nothing is given.

    >>> seeds("0-2,5"), seeds("")
    ((0, 1, 2, 5), None)
    """
    numbers: list[int] = []
    for part in names(text):
        first, dash, last = part.partition("-")
        ok = all(word.isdecimal() and len(word) < 10 for word in ([first, last] if dash else [first]))
        if not ok or (dash and int(last) < int(first)):
            raise ValueError(f"seeds: like 0-4 or 0,2,5, each range upwards, found {text!r}")
        if int(last or first) - int(first) >= 10_000:
            raise ValueError(f"seeds: at most 10,000 in a range, found {part!r}")
        numbers += range(int(first), int(last or first) + 1)
    if text and not numbers:
        raise ValueError(f"seeds: like 0-4 or 0,2,5, found {text!r}")
    return tuple(dict.fromkeys(numbers)) or None


def seconds(value: float | None, name: str = "deadline") -> float | None:
    """The value itself; ValueError for what is no span of time."""
    if value is not None and not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name}: seconds, at least 0 and finite, found {value}")
    return value


def device(name: str) -> str:
    """The name itself where torch could have such a device; whether it is here, a run finds out."""
    if not re.fullmatch(r"cpu|cuda(:[0-9]{1,2})?", name):
        raise ValueError(f"device: cpu, cuda or cuda:N, found {name!r}")
    return name


def alone(context: typer.Context, what: str, taken: Collection[str]) -> None:
    """ValueError for an option that was given where `what`, which may be an option itself, takes only others."""
    for one in context.command.params:
        source = context.get_parameter_source(one.name or "")
        other = one.param_type_name == "option" and one.opts[0] not in (what, *taken)
        if other and source is not None and source.name != "DEFAULT":
            raise ValueError(f"{what}: takes {', '.join(taken)} alone, found {one.opts[0]}")


def cores() -> int:
    """Cores that this process may use: `--jobs` where it is not given."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
