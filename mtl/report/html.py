"""One HTML file of all that the last `make figures` left: verdicts, figures, tables, captions, commands, keys."""

import base64
import json
import re
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2

from mtl.errors import DataError
from mtl.files import atomic, root
from mtl.report.verdicts import COLUMNS, claim_rows, recorded, summary

# The macro: a table whose first line is its head; **bold** is bold.
PAGE = """{% macro table(cells) %}<table>{% for line in cells %}{% set tag = "th" if loop.first else "td" %}<tr>
{%- for cell in line %}<{{ tag }}>{% if cell|length > 4 and cell[:2] == cell[-2:] == "**" %}<b>{{ cell[2:-2] }}</b>
{%- else %}{{ cell }}{% endif %}</{{ tag }}>{% endfor %}</tr>{% endfor %}</table>{% endmacro -%}
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>mtl: figures, tables and verdicts</title>
<style>
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; font-size: 13px; display: block; overflow-x: auto }
td, th { padding: .15rem .6rem; text-align: left; border-bottom: 1px solid #8886 }
img { max-width: 100%; background: white } figure { margin: 2rem 0 } figcaption, details { font-size: 13px }
code { overflow-wrap: anywhere }
</style></head><body>
<h1>mtl: figures, tables and verdicts</h1>
<p>What came out: {{ summary }}. Everything below is in this file; nothing is fetched.</p>
<nav><ul>{% for book, _ in books %}<li><a href="#{{ book }}">{{ book }}</a></li>{% endfor %}</ul></nav>
<h2>Verdicts</h2>
{{ table(verdicts) }}
{% for book, parts in books %}<h2 id="{{ book }}">{{ book }}</h2>
{% for part in parts %}<figure id="{{ part.kind }}-{{ part.name }}">
{% if part.image %}<img alt="{{ part.caption }}" src="data:image/png;base64,{{ part.image }}">
{% else %}{{ table(part.cells) }}{% endif %}
<figcaption><b>{{ part.name }}.</b> {{ part.caption }}</figcaption>
<details><summary>Where it comes from</summary><p><code>{{ part.command }}</code></p>
<p>Commit {{ part.provenance.git }}{{ " (with changes)" if part.provenance.dirty }}, {{ part.rows|length }} rows of the
ledger{{ ": " if part.rows }}<code>{{ part.rows|join(" ") }}</code></p></details></figure>
{% endfor %}{% endfor %}</body></html>
"""


def cells(text: str) -> list[list[str]]:
    """The cells of a table in Markdown, without the line of dashes; a pipe within one is escaped.

    >>> cells("| a | b |\\n| :--- | ---: |\\n| p \\\\| q | **2** |\\n\\nCaption.")
    [['a', 'b'], ['p | q', '**2**']]
    """
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip()[1:-1])] for line in lines]
    return rows[:1] + rows[2:]


def parts(scale: str = "") -> list[dict[str, Any]]:
    """Every side-car with its picture or cells; `scale`: "smoke" for those in folders of their own."""
    found = []
    for folder in ("figures", "paper/generated"):
        for path in sorted((root() / folder / scale).glob("*.json")):
            made = json.loads(path.read_text(encoding="utf-8"))
            picture, text = path.with_suffix(".png"), path.with_suffix(".md")
            if made.get("kind") == "figure" and picture.is_file():
                made["image"] = base64.b64encode(picture.read_bytes()).decode()
            elif made.get("kind") == "table" and text.is_file():
                made["cells"] = cells(text.read_text(encoding="utf-8"))
            else:
                continue
            found.append({"notebook": None, "command": "", "rows": [], **made})
    return sorted(found, key=lambda one: (one["notebook"] or "", one["kind"], one["name"]))


def write(scale: str = "") -> Path:
    """Write build/report.html and return its path. DataError where there is nothing to show."""
    if not (made := parts(scale)):
        raise DataError(f"report: figures/ and paper/generated/ hold nothing in {root()}; run `make figures` first")
    books = [(book or "all tables", list(own)) for book, own in groupby(made, key=lambda one: one["notebook"])]
    words = recorded()
    page = jinja2.Environment(autoescape=True).from_string(PAGE)  # no file of ours holds HTML
    verdicts = [COLUMNS, *claim_rows(words.values())]
    text = page.render(books=books, summary=summary(words.values()), verdicts=verdicts)
    path = root() / "build" / "report.html"
    with atomic(path) as part:
        part.write_text(text, encoding="utf-8")
    return path
