"""The report in one file: everything in it, nothing fetched, nothing taken for HTML that is none."""

import json
import re
import shutil
from pathlib import Path

import pytest

from mtl.errors import DataError
from mtl.files import root
from mtl.report import html


def test_the_report_holds_everything_and_fetches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paper = root() / "paper"
    monkeypatch.setenv("MTL_ROOT", str(tmp_path))
    with pytest.raises(DataError, match="run `make figures` first"):
        html.write()
    for folder in ("figures", "paper/generated"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("claims.yml", "verdicts.json"):
        shutil.copy(paper / name, tmp_path / "paper" / name)
    facts = {"caption": "A <b>caption</b> & more", "command": "mtl run x", "rows": ["k1", "k2"], "notebook": "01_x"}
    facts["provenance"] = {"git": "abc", "dirty": False}
    (tmp_path / "figures/a.json").write_text(json.dumps(facts | {"kind": "figure", "name": "a"}))
    (tmp_path / "figures/a.png").write_bytes(b"picture")
    (tmp_path / "figures/unseen.json").write_text(json.dumps(facts | {"kind": "figure", "name": "unseen"}))
    (tmp_path / "paper/generated/t.json").write_text(json.dumps(facts | {"kind": "table", "name": "t"}))
    (tmp_path / "paper/generated/t.md").write_text("| m | v |\n| :--- | ---: |\n| <script>x | **2** |\n\nCaption.\n")
    path = html.write()
    text = path.read_text()
    assert path == tmp_path / "build/report.html" and [p.name for p in path.parent.iterdir()] == ["report.html"]
    assert "A &lt;b&gt;caption&lt;/b&gt; &amp; more" in text and "&lt;script&gt;x" in text and "<script" not in text
    assert "<b>2</b>" in text and "k1 k2" in text and "mtl run x" in text and "unseen" not in text
    assert not re.search(r"(?:src|href)=\"(?!data:image/png;base64,|#)", text), "nothing is fetched"
    assert "emtl-table1-best" in text
