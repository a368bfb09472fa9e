"""What `mtl reproduce` would run: notebooks, their parameters, their order, and the stamps of what is done already."""

import ast
import difflib
import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mtl.errors import RunError
from mtl.files import atomic, root

SCALES = ("smoke", "quick", "paper")
PACKAGE = Path(__file__).resolve().parent.parent
FIGURE = (".pdf", ".png", ".json")
TABLE = (".tex", ".md", ".json")


@dataclass
class Job:
    """One notebook with the parameters it is run with."""

    path: Path
    scale: str
    parameters: dict[str, Any]
    after: tuple[str, ...] = ()
    cells: int = 0
    inputs: str = ""
    stamp: dict[str, Any] | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def copy(self) -> Path:
        """The executed copy; at smoke scale in a folder of its own, as smoke figures are."""
        return executed("smoke" if self.scale == "smoke" else "") / f"{self.name}.ipynb"


def executed(name: str) -> Path:
    """A file of figures/executed/, where finished copies and stamps lie."""
    return root() / "figures" / "executed" / name


def find(notebooks: Sequence[str] = ()) -> list[Path]:
    """Paths of notebooks/NN_*.ipynb, all or those named by number or stem; ValueError lists what there is."""
    folder = root() / "notebooks"
    every = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not every:
        raise ValueError(f"notebooks: expected files notebooks/NN_name.ipynb under {root()}, found none")
    known = {path.stem: path for path in every} | {path.name: path for path in every}
    chosen = []
    for wanted in notebooks:
        hits = [known[wanted]] if wanted in known else [p for p in every if p.stem.split("_", 1)[0] == wanted]
        if not hits:
            near = difflib.get_close_matches(wanted, [path.stem for path in every], 1, 0.5)
            hint = f" (nearest: {near[0]})" if near else ""
            have = ", ".join(path.stem for path in every)
            raise ValueError(f"notebooks: one of {have}, or their numbers; found {wanted!r}{hint}")
        chosen += [path for path in hits if path not in chosen]
    return sorted(chosen) if notebooks else every


def literal(text: str) -> Any:
    """The value of a `-p key=value` on the command line: a Python literal where it is one, else the text itself.

    >>> literal("[0, 1]"), literal("1e-3"), literal("census"), literal("true")
    ([0, 1], 0.001, 'census', True)
    """
    if text in ("true", "false"):
        return text == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def check_parameters(path: Path, parameters: Mapping[str, Any]) -> None:
    """Compare `parameters` with the notebook's parameters cell; papermill itself only warns of unknown ones.

    Raises ValueError naming the notebook, the parameter and what it has instead.
    """
    try:
        from papermill import inspect_notebook
    except ImportError as missing:
        raise RunError("running notebooks needs papermill: pip install -e '.[notebooks]'") from missing
    known = inspect_notebook(str(path))
    for name, value in parameters.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.5)
            hint = f" (nearest: {near[0]})" if near else ""
            have = ", ".join(known) or "none; its parameters cell is missing or empty"
            raise ValueError(f"parameters: {path.name} has {have}; found {name!r}{hint}")
        default = literal(known[name]["default"])
        if not _fits(value, default):
            raise ValueError(
                f"parameters: {name} of {path.name} is a {type(default).__name__} like {default!r}, found {value!r}"
            )


def _fits(value: Any, default: Any) -> bool:
    if default is None or value is None:
        return True
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    kinds = {float: (int, float), tuple: (list, tuple), list: (list, tuple)}
    return isinstance(value, kinds.get(type(default), (type(default),)))


def plan(scale: str, notebooks: Sequence[str] = (), parameters: Mapping[str, Any] | None = None) -> list[Job]:
    """The jobs in dependency order, each with its inputs' hash and, where it is done already, its stamp.

    A notebook names those it must follow in its metadata: `"mtl": {"after": ["02"]}`, or `["*"]` for all others.
    Raises ValueError for an unknown scale, notebook or parameter and for a circle of notebooks.
    """
    if scale not in SCALES:
        raise ValueError(f"scale: one of {', '.join(SCALES)}, found {scale!r}")
    if "scale" in (parameters or {}):
        raise ValueError("parameters: the scale is given by --scale, found it among the parameters too")
    given = {"scale": scale, **(parameters or {})}
    jobs: dict[str, Job] = {}
    for path in find(notebooks):
        notebook = _read(path)
        check_parameters(path, given)
        after = tuple(notebook.get("metadata", {}).get("mtl", {}).get("after", ()))
        jobs[path.stem] = Job(path, scale, given, after, len(notebook["cells"]))
    numbers = {path.stem.split("_", 1)[0]: path.stem for path in find()}
    for job in jobs.values():
        named = [name for name in numbers.values() if name != job.name] if "*" in job.after else job.after
        stems = [numbers.get(name, name) for name in named]
        if unknown := set(stems) - set(numbers.values()):
            raise ValueError(f"{job.path.name}: metadata mtl.after names {', '.join(sorted(unknown))}, found none such")
        job.after = tuple(stem for stem in stems if stem in jobs)
    try:
        order = list(TopologicalSorter({name: job.after for name, job in jobs.items()}).static_order())
    except CycleError as circle:
        raise ValueError(f"metadata mtl.after: notebooks may not wait in a circle, found {circle.args[1]}") from circle
    shared = _shared_inputs()
    for name in order:
        job = jobs[name]
        upstream = [jobs[other].inputs for other in job.after]
        cells = [[c["cell_type"], "".join(c["source"])] for c in _read(job.path)["cells"]]
        text = json.dumps([shared, cells, job.parameters, upstream], sort_keys=True)
        job.inputs = hashlib.sha256(text.encode()).hexdigest()
        job.stamp = _valid_stamp(job)
    return [jobs[name] for name in order]


def _read(path: Path) -> dict[str, Any]:
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as broken:
        raise ValueError(f"{path.name}: expected a notebook (JSON), found {broken}") from broken
    if not isinstance(notebook, dict) or "cells" not in notebook:
        raise ValueError(f"{path.name}: expected a notebook of format 4, found no cells")
    return notebook


def _shared_inputs() -> list[str]:
    """Whatever any notebook may read: sources, published rows, reported numbers, claims, which data are at hand."""
    from mtl.problems.data.download import status

    files = [p for p in sorted(PACKAGE.rglob("*")) if p.is_file() and "__pycache__" not in p.parts]
    # the runner itself cannot change a figure
    shared = [
        f"{p.relative_to(PACKAGE).as_posix()} {sha256(p)}" for p in files if p.relative_to(PACKAGE).parts[0] != "cli"
    ]
    base = root()
    inputs = [*base.glob("data/ledger/*.jsonl"), *base.glob("paper/reported/*"), base / "paper" / "claims.yml"]
    shared += [f"{p.relative_to(base).as_posix()} {sha256(p)}" for p in sorted(inputs) if p.is_file()]
    shared += sorted(f"data {row['name']} {row['found']}" for row in status())
    for package in ("torch", "numpy", "scipy", "scikit-learn", "pandas", "matplotlib", "seaborn"):
        try:
            shared.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            shared.append(f"{package} absent")
    return [*shared, f"python {platform.python_version()}"]


def sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def outputs(manifest: Sequence[Mapping[str, Any]]) -> list[Path]:
    """The files that the figure and table lines of a manifest stand for."""
    found = []
    for line in manifest:
        if line["kind"] in ("figure", "table"):
            path = root() / line["path"]
            found += [path.with_suffix(suffix) for suffix in (FIGURE if line["kind"] == "figure" else TABLE)]
            included = root() / "paper" / "generated" / Path(*Path(line["path"]).parts[1:-1]) / f"fig_{path.stem}.tex"
            found += [included] if line["kind"] == "figure" and included.is_file() else []
    return sorted(set(found))


def stamp_path(job: Job) -> Path:
    return executed(f"{job.name}.{job.scale}.json")


def write_stamp(job: Job, manifest: Sequence[Mapping[str, Any]], seconds: float, finished: str) -> None:
    """Say that `job` is done: its inputs' hash, every output's hash, what it reported. RunError if an output lacks."""
    if lacking := [path for path in outputs(manifest) if not path.is_file()]:
        raise RunError(f"{job.name}: it reported {lacking[0].name}, which is not there")
    made = {path.relative_to(root()).as_posix(): sha256(path) for path in outputs(manifest)}
    stamp: dict[str, Any] = {
        "notebook": job.name,
        "scale": job.scale,
        "parameters": job.parameters,
        "inputs": job.inputs,
    }
    stamp |= {"outputs": made, "manifest": list(manifest), "seconds": round(seconds, 1), "finished": finished}
    with atomic(stamp_path(job)) as part:
        part.write_text(json.dumps(stamp, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_stamp(path: Path) -> dict[str, Any] | None:
    """A stamp, or None where there is none that can be read: the notebook then runs again."""
    try:
        stamp = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return stamp if isinstance(stamp, dict) and {"inputs", "outputs", "manifest"} <= stamp.keys() else None


def _valid_stamp(job: Job) -> dict[str, Any] | None:
    stamp = read_stamp(stamp_path(job))
    if stamp is None or stamp["inputs"] != job.inputs or not job.copy.is_file():
        return None
    files = {root() / name: digest for name, digest in stamp["outputs"].items()}
    return stamp if all(path.is_file() and sha256(path) == digest for path, digest in files.items()) else None
