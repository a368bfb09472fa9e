"""Pages of the site that are made and not written: a page per method, and files of the repository as they are.

MkDocs calls `on_files`; nothing is written beside the sources.
"""

import inspect
import json
import re
from html import escape, unescape
from pathlib import Path
from typing import Any

from mtl import solvers
from mtl.methods import METHODS
from mtl.report.html import cells
from mtl.report.verdicts import claims, recorded, summary, why

ROOT = Path(__file__).parents[1]
COPIED = {
    "contributing.md": "CONTRIBUTING.md",
    "data.md": "data/README.md",
    "changelog.md": "CHANGELOG.md",
    "decision_rule.md": "paper/decision_rule.md",
    "attack.md": "paper/attack.md",
}
TABLES = {  # what a table is, in words, where its rows are shown away from it
    "table2_study": "NYUv2, three tasks",
    "table2_unet": "NYUv2, a small U-Net, tuned, ten seeds",
    "table2_gpu": "NYUv2, a wider U-Net, on a GPU",
    "table1_equal": "Census-Income on equal terms, two tasks, two networks",
    "table1_longer": "Census-Income, EMTL and single-task nets at sixteen epochs",
    "table1_study_2": "Census-Income, first study, two tasks, two networks",
    "table1_study_3": "Census-Income, first study, three tasks, two networks",
    "census": "Census-Income in a small net, nothing tuned",
    "table3": "Short videos (KuaiRand), a small run",
    "ab_test_study": "A simulated A/B test, eight worlds",
    "qm9_study": "QM9, eleven targets",
    "many_tasks_study": "Forty binary tasks",
    "many_tasks_longer": "Forty binary tasks, twice the epochs",
    "sim_to_real_study": "Trained in rendered rooms, tested there and on photographs",
    "mt10": "Three tasks of Meta-World, three seeds",
}
RESULTS = TABLES | {  # those whose rows are no methods by name, or say something else of them
    "alpha_sweep_study": "FairGrad for several alpha",
    "fair_losses_study": "Fair losses under other methods: what they change",
    "loss_scale": "A loss in another unit",
    "15_relative_rates": "Relative rates of EMTL and others",
    "hyperparameters_study": "EMTL's hyperparameters",
    "hyperparameters_nyuv2_spread": "EMTL's hyperparameters on NYUv2",
}
PICTURES = {"loss": "loss", "gram": "gram", "surgery": "surgery", "EMTL and fair": "emtl"}
NEEDS = {
    "losses": "the losses alone: one backward pass",
    "gram": "the Gram matrix of the task gradients: a backward pass per task, once through the shared part each",
    "features": "gradients over the features: one backward pass through the trunk",
    "gradients": "the task gradients themselves: a backward pass per task, and their memory",
}
PAPERS = {"fairgrad": "arXiv 2402.15638", "fair-loss": "arXiv 2402.15638", "emtl": "arXiv 2306.09373"}


def table(name: str) -> tuple[list[str], list[list[str]]]:
    """Head and body of a generated Markdown table; nothing where it is not there."""
    path = ROOT / "paper" / "generated" / f"{name}.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    head, *body = cells(text) or [[]]
    return head, body


def grid(top: list[str], rows: list[list[str]]) -> list[str]:
    """A table in Markdown: words left, numbers right."""
    return [f"| {' | '.join(row)} |" for row in (top, [":---", *["---:"] * (len(top) - 1)], *rows)]


def named(row: list[str], name: str, label: str) -> bool:
    """Whether a row is of this method, whatever follows in brackets or after a comma."""
    first = re.sub(r"[*]|^MMoE \+ |\s*[(,].*", "", row[0]).strip()
    return first.lower() in (name, label.lower())


def method_page(name: str) -> str:
    """The page of a method: docstring with its equation, arguments, cost, picture, rows of the tables."""
    kind: Any = METHODS[name]
    text, _, example = inspect.getdoc(kind).partition(">>>")
    head, _, more = text.strip().partition("\n")
    said = [head, "", *more.strip().splitlines()] if more.strip() else [head]
    lines = [f"# {kind.label}", "", "```{.text .wrap}", *said, "```", ""]  # as it stands: <g, d> is no HTML
    if name in PAPERS:
        lines += [f"Paper: [{PAPERS[name]}](https://arxiv.org/abs/{PAPERS[name].split()[1]}).", ""]
    options = [p for p in inspect.signature(kind.__init__).parameters.values() if p.name not in ("self", "n_tasks")]
    made = "".join(f", {p.name}={p.default!r}" for p in options if p.default is not p.empty)
    lines += ["```{.python .wrap}", f'method = mtl.method("{name}", n_tasks=2{made})', "```", ""]
    if example:
        lines += ["```pycon", *f">>>{example}".strip().splitlines(), "```", ""]
    lines += [f"**What it needs:** {NEEDS[kind.needs]}.", ""]
    top, rows = table("11_cost")
    if found := [row for row in rows if row[0] == name]:
        lines += [
            "**What a step costs** as a multiple of one backward (of T backwards), and the peak memory in MiB, on one"
        ]
        lines += ["CPU thread ([notebook 11](../notebooks/11_cost.ipynb)):", "", *grid(top, found), ""]
    families = [row[0] for row in table("10_methods")[1] if re.sub(r"\s*\(.*", "", row[1]) == name]
    if families:
        picture = f"10_methods_{PICTURES[families[0]]}.png"
        lines += [
            "## First update",
            "",
            f"![First updates of methods, {kind.label} among them](../figures/{picture})",
            "",
        ]
    results = []
    for file, said in TABLES.items():
        top, rows = table(file)
        if found := [row for row in rows if named(row, name, kind.label)]:
            results += [f"**{said}**", "", *grid(top, found), ""]
    if results:
        lines += [
            "## How it did",
            "",
            "The whole tables, with n and what is behind them, are on [Results](../results.md).",
            "",
        ]
        lines += results
    return "\n".join(lines)


def methods_page() -> str:
    """The list of methods."""
    lines = ["# Methods", "", "| name | method | source |", "| --- | --- | --- |"]
    for name, kind in METHODS.items():
        first = escape((inspect.getdoc(kind) or "").split("\n")[0]).replace("|", "&#124;").replace("*", "&#42;")
        lines.append(f"| `{name}` | [{kind.label}](methods/{name}.md) | {first} |")
    return "\n".join(lines) + "\n"


def solvers_page() -> str:
    """The solvers with their docstrings as they stand: inner products <g, d> are no HTML."""
    lines = ["# Solvers", "", inspect.getdoc(solvers) or "", ""]
    for name in solvers.__all__:
        made = getattr(solvers, name)
        call = str(inspect.signature(made)) if callable(made) else ""
        lines += [f"## {name}", "", "```{.text .wrap}", name + call, "", inspect.getdoc(made) or "", "```", ""]
    return "\n".join(lines)


def dashboard() -> list[str]:
    """The verdicts as a picture, and as a table for a phone, where its words are too small (assets/site.css)."""
    lines = ["![Verdicts by the decision rule: one line for each sentence of the papers](figures/verdicts.png)", ""]
    lines += ['<div class="narrow" markdown>', "", "| claim | verdict |", "| --- | --- |"]
    found = recorded()
    lines += [f"| [{claim['id']}](claims.md#{claim['id']}) | {found[claim['id']].word} |" for claim in claims()]
    return [*lines, "", "</div>", ""]


def claims_page() -> str:
    """Each sentence with its verdict and what is behind it: what `mtl claims --why` prints."""
    lines = ["# Claims and their evidence", "", *dashboard()]
    lines += ["How a word is reached: [the decision rule](decision_rule.md), written before the studies it judges.", ""]
    found = recorded()
    for claim in claims():
        one = found[claim["id"]]
        lines += [f"## {one.claim}", "", f"*{claim['paper']}:* {escape(claim['sentence'])}", ""]
        lines += ["```{.text .wrap}", why(one), "```", ""]
    return "\n".join(lines)


def results_page() -> str:
    """The tables that the method pages quote from, and the verdicts."""
    lines = ["# Results", "", *dashboard()]
    lines += [
        "How a verdict is reached: [the decision rule](decision_rule.md), written before the studies it judges.",
        "",
    ]
    for file, said in RESULTS.items():
        path = ROOT / "paper" / "generated" / f"{file}.md"
        if path.is_file():
            lines += [f"## {said}", "", path.read_text(encoding="utf-8"), ""]
    return "\n".join(lines)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put in how many sentences got which word, as the README says it, and the picture of them."""
    return markdown.replace("{{ summary }}", summary(recorded().values())).replace(
        "{{ dashboard }}", "\n".join(dashboard())
    )


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Formulas of notebooks as MathML, which browsers draw without a script, and what their pictures show."""
    if not page.file.src_uri.startswith("notebooks/"):
        return html
    from latex2mathml.converter import convert

    parts = re.split(r"(<(?:pre|code|script|style)\b.*?</(?:pre|code|script|style)>)", html, flags=re.DOTALL)
    for n in range(0, len(parts), 2):
        parts[n] = re.sub(r"\$([^$]+)\$", lambda found: convert(unescape(found[1])), parts[n])
    cells = json.loads(Path(page.file.abs_src_path).read_text(encoding="utf-8"))["cells"]
    shown = [out["metadata"] for cell in cells for out in cell.get("outputs", []) if "image/png" in out.get("data", {})]
    texts = iter([escape(one.get("image/png", {}).get("alt", "")) for one in shown])
    html = "".join(parts).replace('href="../docs/words.md"', 'href="../../words/"')
    return re.sub(r'alt="No description has[^"]*"', lambda _: f'alt="{next(texts)}"', html)


def on_files(files: Any, config: Any) -> Any:
    """Add the made pages, the repository's own texts, notebooks and pictures (a hook of MkDocs)."""
    from mkdocs.structure.files import File

    pages = {f"methods/{name}.md": method_page(name) for name in METHODS}
    pages |= {
        "methods.md": methods_page(),
        "results.md": results_page(),
        "claims.md": claims_page(),
        "solvers.md": solvers_page(),
    }
    for uri, content in pages.items():
        files.append(File.generated(config, uri, content=content))
    copies = {uri: ROOT / path for uri, path in COPIED.items()}
    copies |= {f"figures/{path.name}": path for path in (ROOT / "figures").glob("*.png")}
    for uri, path in copies.items():
        files.append(File.generated(config, uri, abs_src_path=str(path)))
    for path in (ROOT / "notebooks").glob("*.ipynb"):  # in the plain form, which the plugin for notebooks understands
        files.append(File(f"notebooks/{path.name}", str(ROOT), config.site_dir, config.use_directory_urls))
    return files


try:  # before the plugin that renders notebooks, which only sees what is there already
    from mkdocs.plugins import event_priority

    on_files = event_priority(100)(on_files)
except ModuleNotFoundError:  # the tests make pages without MkDocs
    pass
