"""paper/claims.yml and paper/verdicts.json: what the papers say, what became of it, and how both are printed."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import yaml
from rich.table import Table as Screen

from mtl.errors import DataError
from mtl.files import atomic, markdown, root
from mtl.report.findings import UNTESTED, WORDS, Check, Finding, Part, tally

if TYPE_CHECKING:
    from mtl.report.captions import Table

COLUMNS = ("claim", "paper", "what it says", "verdict", "scale", "figure or table")
FIELDS = {"id", "paper", "section", "sentence", "test", "figure"}
FILE = "verdicts.json"
EITHER = "emtl-table1-consistent"  # which either of two data sets may reproduce: it counts twice among chances


def claims() -> list[dict[str, Any]]:
    """The entries of paper/claims.yml, in their order. DataError where the file is missing or not as it should be."""
    path = root() / "paper" / "claims.yml"
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as missing:
        raise DataError(f"paper/claims.yml is not in {root()}; run this from a checkout or set MTL_ROOT") from missing
    except (yaml.YAMLError, UnicodeError, RecursionError) as broken:
        raise DataError(f"paper/claims.yml is not YAML: {' '.join(str(broken).split())}") from broken
    if not isinstance(found, list):
        raise DataError(f"paper/claims.yml: must be a list of claims, found {type(found).__name__}")
    for number, claim in enumerate(found, start=1):
        named = claim if isinstance(claim, dict) else {}
        words = all(isinstance(named.get(field), str) for field in FIELDS)
        if not words or set(named) - {"tests", "recalled"} != FIELDS or not isinstance(named.get("tests", []), list):
            needs = f"needs {', '.join(sorted(FIELDS))} as text and may have a list of tests"
            raise DataError(f"paper/claims.yml: entry {number} {needs}, found {str(claim)[:100]}")
    return list(found)


DECIDE = (
    *("data/ledger/*.jsonl", "data/ledger/figures/table1.jsonl", "data/ledger/figure1.npz", "paper/reported/*.csv"),
    *("paper/claims.yml", "mtl/report/claims.py", "mtl/report/findings.py", "mtl/report/stats.py"),
    *("mtl/report/tables.py", "mtl/experiments/**/*.py", "mtl/theory/*.py"),
)


def inputs() -> str:
    """A hash of all that decides the words: rows, printed tables, claims, the rule and what applies it."""
    files = sorted({path for place in DECIDE for path in root().glob(place)})
    whole = hashlib.sha256()
    for path in files:
        said = path.relative_to(root()).as_posix().encode()
        whole.update(said + hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()


def recorded(current: bool = False) -> dict[str, Finding]:
    """Claim id -> what paper/verdicts.json has of it: the words that README, notebooks and paper print.

    `current`: nothing where the file was made from other rows or another rule. DataError where it cannot be read.
    """
    path = root() / "paper" / FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if current and found["inputs"] != inputs():
            return {}
        return {one["claim"]: Finding.of(one) for one in found["findings"]}
    except (OSError, ValueError, KeyError, TypeError) as broken:
        raise DataError(f"paper/{FILE} cannot be read ({broken}); `mtl claims --record` writes it") from broken


def record(findings: Sequence[Finding]) -> None:
    """Write paper/verdicts.json, and paper/generated/claims.tex and claims.md for paper and README."""
    from mtl.report.captions import tex

    made = {"inputs": inputs(), "command": "mtl claims --record", "findings": [one.plain() for one in findings]}
    text = json.dumps(made, indent=1, ensure_ascii=False, allow_nan=False)
    rows = claim_rows(findings)
    body = " \\\\\n".join(" & ".join(tex(cell) for cell in (line[0], line[2], line[3])) for line in rows)
    head = "\\begin{longtable}{lp{.5\\linewidth}p{.22\\linewidth}}\n\\toprule\nclaim & what it says & verdict \\\\\n"
    table = f"{head}\\midrule\n{body} \\\\\n\\bottomrule\n\\end{{longtable}}\n"
    page = f"`mtl claims` prints these, `mtl claims --why ID` what is behind one.\n\n{claims_markdown(findings)}\n"
    for name, content in ((FILE, text + "\n"), ("generated/claims.tex", table), ("generated/claims.md", page)):
        with atomic(root() / "paper" / name) as part:
            part.write_text(content, encoding="utf-8")


def claim_rows(findings: Iterable[Finding]) -> list[tuple[str, ...]]:
    """The cells of COLUMNS for each claim of paper/claims.yml."""
    found = {one.claim: one for one in findings}
    rows: list[tuple[str, ...]] = []
    for claim in claims():
        one = found.get(claim["id"], Finding(claim["id"], UNTESTED, UNTESTED, ()))
        said = claim["sentence"] + " (recalled)" * bool(claim.get("recalled"))
        rows.append((one.claim, claim["paper"], said, one.word, one.scale or "–", claim["figure"]))
    return rows


def claims_table(findings: Iterable[Finding]) -> Screen:
    """The claims for the terminal."""
    table = Screen(box=None, pad_edge=False)
    for name in COLUMNS:  # `--why` takes whole names; of a narrow screen the sentences take what is left
        table.add_column(name, no_wrap=name == COLUMNS[0], overflow="ellipsis" if name == COLUMNS[-1] else "fold")
    for row in claim_rows(findings):
        table.add_row(*row)
    return table


def claims_markdown(findings: Iterable[Finding]) -> str:
    """The claims as a table in Markdown."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *(map(markdown, row) for row in claim_rows(findings))]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def summary(findings: Iterable[Finding]) -> str:
    """How many sentences got which word, as the README says it.

    >>> summary([Finding("a", "reproduced", "reproduced", ()), Finding("b", "1 reproduced, 1 contradicted", "", ())])
    'of 2 sentences 1 reproduced; 1 in parts'
    """
    words = [one.word for one in findings]
    parts = sum(word not in WORDS for word in words)
    return f"of {len(words)} sentences {tally(words)}" + f"; {parts} in parts" * bool(parts)


def footing(findings: Sequence[Finding]) -> str:
    """How many sentences compare noisy runs, and how many false "reproduced" that could give; one of two data sets is
    enough for `EITHER`."""
    noisy = sum(any(part.d is not None for part in one.parts) for one in findings)
    chances = noisy + sum(one.claim == EITHER for one in findings)
    said = f"{len(findings)} sentences, {noisy} of them compare noisy runs: were all of these false, at most "
    return f"{said}{0.025 * chances:.3g} would be expected to say reproduced"


def evidence(one: Finding) -> str:
    """A line behind a word: the failed gate, the parts, and what else is said.

    >>> evidence(Finding("a", "reproduced", "reproduced", (Part("LS", "reproduced", 2.0, 1.5, 2.5, 1.0, 10),)))
    'LS +2 [+1.5, +2.5], d = 1, n = 10: reproduced'
    """
    failed = [f"gate: {check.name} {check.said}" for check in one.gate if not check.passed and check.decides]
    failed += [f"in brackets: {one.would}"] if one.would != one.word else []
    return "; ".join([*failed, *map(told, one.parts), *filter(None, [one.said])])


def told(part: Part) -> str:
    """A part in one line."""
    if part.value is None:
        return f"{part.name}: {part.word}" + (f" ({part.said})" if part.said else "")
    span = "" if part.low is None else f" [{part.low:+.3g}, {part.high:+.3g}]"
    more = f" (n = {part.needed} would decide)" if part.needed else ""
    said = f" ({part.said})" if part.said else ""
    return f"{part.name} {part.value:+.3g}{span}, d = {part.d:.3g}, n = {part.n}: {part.word}{more}{said}"


def why(one: Finding) -> str:
    """How the rule came to a word: sentence, gate, comparisons, rows."""
    claim = next((claim for claim in claims() if claim["id"] == one.claim), None)
    if claim is None:
        raise DataError(f"claim: must be an id of paper/claims.yml, found {one.claim!r}")
    lines = [f"{one.claim} ({claim['paper']}, {claim['section']}): {claim['sentence']}", f"verdict: {one.word}"]
    if one.would != one.word:
        lines.append(f"the numbers alone, which is no verdict: {one.would}")
    lines += [f"test: {claim['test']}", "gate:" if one.gate else "gate: a check of its own"]
    lines += [f"  {check.name}: {_mark(check)}; {check.said}" for check in one.gate]
    lines += ["comparisons, positive favours the sentence, 95 % intervals:" if _noisy(one) else "checks:"]
    lines += [f"  {told(part)}" for part in one.parts]
    if one.beside:
        lines += ["beside, does not decide:", *(f"  {told(part)}" for part in one.beside)]
    lines += [one.said] if one.said else []
    shown = ", ".join(one.rows[:4]) + (", ..." if len(one.rows) > 4 else "")
    lines.append(f"rows: {len(one.rows)} ({shown}); `mtl row KEY` shows one" if one.rows else "rows: none")
    lines.append(f"scale {one.scale or '–'}; shown in {claim['figure']}; rule: paper/decision_rule.md")
    return "\n".join(lines)


def _noisy(one: Finding) -> bool:
    return any(part.d is not None for part in one.parts)


def _mark(check: Check) -> str:
    return "passed" if check.passed else "not run" if check.passed is None else "FAILED"


def shown(ids: Iterable[str]) -> "Table":
    """The recorded words of some claims as a notebook shows them, and in the manifest of its run."""
    import pandas as pd  # `mtl claims` waits neither for it nor for torch

    from mtl.report.captions import Table, manifest

    known: Mapping[str, Finding] = recorded()
    figures = {claim["id"]: claim["figure"] for claim in claims()}
    lines = []
    for name in ids:
        one = known[name]
        line = {"claim": name, "verdict": one.word, "figure": figures[name], "evidence": evidence(one)}
        manifest({"kind": "verdict", **line, "scale": one.scale})
        lines.append(line)
    return Table(pd.DataFrame(lines))
