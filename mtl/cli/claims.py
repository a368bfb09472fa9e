"""`mtl claims`: what became of each sentence, by the decision rule, from committed rows; nothing is trained."""

from collections.abc import Callable

from mtl.cli.arguments import nearest
from mtl.files import root
from mtl.report.findings import Finding
from mtl.report.verdicts import FILE, claims, claims_markdown, claims_table, footing, record, recorded, why


def show(say: Callable[[object], None], *, markdown: bool, reason: str, keep: bool, anew: str) -> None:
    """Print the table, or why one claim got its word; `keep` writes paper/verdicts.json, `anew` makes checks again."""
    names = [claim["id"] for claim in claims()]
    if reason and reason not in names:
        raise ValueError(f"why: must be one of {', '.join(names)}, found {reason!r}{nearest(reason, names)}")
    found: list[Finding] = [] if keep or anew or not (root() / "paper" / FILE).exists() else [*recorded(True).values()]
    if not found:  # the file is of other rows or of another rule
        from mtl.experiments.verdicts import check, findings

        if anew:
            row = check(anew)
            say(f"{anew}: row {row['key']}, {row['wall_s']:.0f} s, in data/ledger/local/checks")
        found = findings()
    if keep:
        from mtl.experiments import budgets
        from mtl.experiments.verdicts import picture

        record(found)
        picture(found)
        budgets.save()
    if reason:
        say(why(next(one for one in found if one.claim == reason)))
    elif markdown:
        say(claims_markdown(found))
    else:
        say(claims_table(found))
        say(footing(found))
