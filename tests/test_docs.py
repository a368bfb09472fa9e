"""What the site shows runs: the recipes, and a page for each method from the registry."""

import doctest
import importlib.util
import json
import re
from types import ModuleType

import pytest

from mtl.files import root
from mtl.methods import METHODS

RECIPES = (root() / "docs" / "recipes.md").read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore")
def test_every_recipe_runs() -> None:
    text = re.sub(r"^```.*$", "", RECIPES, flags=re.MULTILINE)
    examples = doctest.DocTestParser().get_doctest(text, {}, "docs/recipes.md", None, 0)
    said: list[str] = []
    doctest.DocTestRunner().run(examples, out=said.append)
    assert len(examples.examples) > 50
    assert not said, "".join(said)


def test_the_lightning_module_trains() -> None:
    lightning = pytest.importorskip("lightning")
    import torch

    shown: dict[str, object] = {}
    setup = doctest.script_from_examples(RECIPES.partition("## Plain torch")[0])
    module = re.findall(r"^```python\n(.*?)^```", RECIPES, re.MULTILINE | re.DOTALL)[0]
    exec(setup + module, shown)
    rows = torch.utils.data.TensorDataset(torch.randn(8, 8), torch.randn(8, 2))
    made = shown["Multitask"]()  # type: ignore[operator]
    lightning.Trainer(fast_dev_run=True, accelerator="cpu").fit(made, torch.utils.data.DataLoader(rows, 4))


def pages() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pages", root() / "docs" / "pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_method_has_a_page_with_its_equation_and_its_rows() -> None:
    made = pages()
    for name, kind in METHODS.items():
        page = made.method_page(name)
        assert kind.__doc__ is not None
        assert page.startswith(f"# {kind.label}")
        assert kind.__doc__.split("\n")[0] in page
    assert "sum_t &lt;g_t,d&gt;^(1-alpha)" in made.methods_page()
    page = made.method_page("fairgrad")
    assert "10_methods_gram.png" in page
    assert "arXiv 2402.15638" in page
    for file, said in made.TABLES.items():  # no table has been renamed, and each has rows of methods
        rows = made.table(file)[1]
        assert any(made.named(row, name, kind.label) for row in rows for name, kind in METHODS.items()), file
        assert f"**{said}**" in page or not any(made.named(row, "fairgrad", "FairGrad") for row in rows)
    assert "What a step costs" in page


def test_what_scale_costs_is_what_was_measured() -> None:
    page = " ".join((root() / "docs/scale.md").read_text().split())
    found = {
        name: json.loads((root() / f"benchmarks/results/{name}_cpu.json").read_text()) for name in ("engines", "stream")
    }
    names = {"here": "here", "processes": "two processes", "ray": "Ray on this machine, `--jobs 2`"}
    lines = {(line["engine"], line["warm"]): line for line in found["engines"]["engines"]}
    for name, said in names.items():
        cold, warm = lines[name, False], lines[name, True]
        assert f"| {said} | {cold['per_min']:.0f} | {warm['per_min']:.0f} | {cold['first_s']:.1f} s |" in page
    runs = {(run["rows"], run["processes"]): run for run in found["stream"]["runs"]}
    whole, one, two = runs[100_000_000, 1], runs[20_000_000, 1], runs[20_000_000, 2]
    memory, rate = ([line[k] for line in whole["curve"]] for k in ("peak_mib", "rows_per_cpu_s"))
    assert f"({whole['written']['gib']:.2f} GiB)" in page
    assert f"{memory[-1]:.0f} MiB at the end, {memory[0]:.0f} after" in page and memory[-1] < 1.1 * memory[0]
    assert f"{min(rate) / 1e3:.0f} to {max(rate) / 1e3:.0f} thousand rows" in page
    assert f"took {two['wall_s']:.0f} s where one process took {one['wall_s']:.0f}" in page
    (apart,) = found["stream"]["compared"]
    assert f"{apart['losses_apart']:.5f} of a loss" in page and f"AUC {apart['auc_apart']:.5f}" in page
