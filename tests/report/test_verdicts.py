"""paper/verdicts.json: it is what the committed rows say, and README, paper and notebooks print its words."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from mtl.experiments.verdicts import findings
from mtl.files import root
from mtl.report import verdicts
from mtl.report.findings import known

ROOT = Path(__file__).parents[2]
OLD = re.compile("not reproduced|not testable here|conditional (?:and|by|at scale)")


def test_the_file_is_what_the_committed_rows_say() -> None:
    here, made = verdicts.recorded(), {one.claim: one for one in findings()}
    assert {name: one.word for name, one in made.items()} == {name: one.word for name, one in here.items()}
    assert json.loads(json.dumps([one.plain() for one in made.values()])) == json.loads(
        json.dumps([here[name].plain() for name in made])
    )
    assert verdicts.recorded(current=True) == here, "`mtl claims --record` after a change of rows, rule or experiments"


def test_what_decides_the_words_is_there() -> None:
    """Studies in folders of their own were left out, and so were the statistics."""
    found = {path.relative_to(root()).as_posix(): place for place in verdicts.DECIDE for path in root().glob(place)}
    assert set(found.values()) == set(verdicts.DECIDE), "a pattern that matches nothing"
    assert {"mtl/experiments/gap/rates.py", "mtl/experiments/figure1/ends.py", "mtl/report/stats.py"} <= set(found)


def test_every_claim_has_a_word_of_the_rule_and_a_reason() -> None:
    here = verdicts.recorded()
    assert list(here) == [claim["id"] for claim in verdicts.claims()]
    for name, one in here.items():
        assert known(one.word) and known(one.would), name
        assert f"verdict: {one.word}" in verdicts.why(one) and (one.parts or one.word == "not tested")
    footing = verdicts.footing(list(here.values()))
    assert "34 sentences, 20 of them" in footing and "at most 0.525 would" in footing


def test_a_sentence_is_shown_where_its_rows_are() -> None:
    """The scale of its figure or table is that of the rows that gave its word."""
    here = verdicts.recorded()
    for claim in verdicts.claims():
        cards = [ROOT / folder / f"{claim['figure']}.json" for folder in ("figures", "paper/generated")]
        scales = {json.loads(card.read_text(encoding="utf-8"))["scale"] for card in cards if card.exists()}
        assert scales, f"{claim['id']}: {claim['figure']} is no figure or table"
        if here[claim["id"]].scale:
            assert scales == {here[claim["id"]].scale}, claim["id"]


def test_readme_and_paper_have_these_words() -> None:
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    here = verdicts.recorded()
    assert verdicts.summary(here.values()) in readme, verdicts.summary(here.values())
    assert not OLD.search(readme)
    count = Counter("parts" if "," in one.word else one.word for one in here.values())
    abstract = " ".join((ROOT / "paper/sections/introduction.tex").read_text(encoding="utf-8").split())
    said = f"Of {len(here)} sentences, one of them our repair of EMTL's theorem, {count['reproduced']} are reproduced "
    said += f"(five on theory or solvers), {count['contradicted']} contradicted and {count['practically equal']} "
    said += (
        f"practically equal, {count['depends on the reading']} depend on the reading (six of EMTL's formulas, two of "
    )
    said += f"a statement), {count['parts']} have parts that differ, and "
    assert f"{said}{count['inconclusive (assay)']} cannot be decided" in abstract, said
    page = (ROOT / "paper/generated/claims.md").read_text(encoding="utf-8")
    assert verdicts.claims_markdown(here.values()) in page, "`mtl claims --record`"
    table = (ROOT / "paper/generated/claims.tex").read_text(encoding="utf-8")
    assert all(f"{name} &" in table for name in verdicts.recorded())


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_have_no_words_of_their_own(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not OLD.search(text) and "verdict(" not in text


@pytest.mark.parametrize(
    "path", [*sorted((ROOT / "notebooks").glob("*.ipynb")), ROOT / "README.md"], ids=lambda p: p.stem
)
def test_a_word_beside_a_claim_is_that_of_the_file(path: Path) -> None:
    here, text = verdicts.recorded(), path.read_text(encoding="utf-8").replace("\\n", " ")
    for name, said in re.findall(r"`((?:emtl|fairgrad|gap)-[a-z0-9-]+)`: ([a-z ]+(?:\((?:assay|power)\))?)", text):
        assert here[name].word == said, name


CELLS = re.compile(r"<td[^>]*>((?:emtl|fairgrad|gap)-[a-z0-9-]+)</td>\s*<td[^>]*>([^<]*)</td>")


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_prints_the_words_of_the_file(path: Path) -> None:
    """Its outputs are committed, and made before the words were recorded they would be of yesterday."""
    here, cells = verdicts.recorded(), json.loads(path.read_text(encoding="utf-8"))["cells"]
    shown = ["".join(out.get("data", {}).get("text/html", "")) for cell in cells for out in cell.get("outputs", ())]
    for name, said in CELLS.findall("\n".join(shown)):
        assert here[name].word == said, name
