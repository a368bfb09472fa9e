"""What `mtl reproduce` would run: notebooks, their parameters, their order, and the stamps of what is done already."""

import ast
import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mtl import sources
from mtl.cli.arguments import literal, nearest
from mtl.files import atomic, root
from mtl.scales import NOTEBOOKS, known_scale

PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "pandas", "matplotlib")
SUFFIXES = {"figure": (".pdf", ".png", ".json"), "table": (".tex", ".md", ".json")}
Stamp = dict[str, Any]
STAMP: dict[str, type] = {
    "notebook": str,
    "scale": str,
    "inputs": str,
    "finished": str,
    "outputs": dict,
    "manifest": list,
}
STAMP |= {"seconds": float}
LINES = {"verdict": ("claim", "verdict", "evidence"), "default": ("name", "used_by")}  # texts in its manifest
Cell = tuple[str, str, list[str]]  # its type, text and tags


@dataclass
class Job:
    """One notebook with the parameters it is run with, and where its files lie."""

    path: Path
    scale: str
    parameters: dict[str, Any]
    cells: list[Cell] = field(repr=False)
    after: tuple[str, ...] = ()
    inputs: str = ""
    stamp: Stamp | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def copy(self) -> Path:
        """The executed copy; at smoke scale in a folder of its own, as smoke figures are."""
        return executed("smoke" if self.scale == "smoke" else "") / f"{self.name}.ipynb"

    def file(self, kind: str) -> Path:
        """Its stamp, and under names that nothing takes for a result, what it writes while it is at work."""
        return executed(f"{self.name}.{self.scale}.json" if kind == "stamp" else f".{self.name}.{kind}")


def executed(name: str) -> Path:
    """A file of figures/executed/, where finished copies and stamps lie."""
    return root() / "figures" / "executed" / name


def find(notebooks: Sequence[str] = ()) -> list[Path]:
    """Paths of notebooks/NN_*.ipynb, all or those named by number or stem; ValueError lists what there is."""
    every = {path: {path.stem[:2], path.stem, path.name} for path in root().glob("notebooks/[0-9][0-9]_*.ipynb")}
    if not every:
        raise ValueError(f"notebooks: expected files notebooks/NN_name.ipynb under {root()}, found none")
    stems = sorted(path.stem for path in every)
    if unknown := [name for name in notebooks if not any(name in names for names in every.values())]:
        hint = nearest(unknown[0], stems)
        raise ValueError(f"notebooks: one of {', '.join(stems)}, or their numbers; found {unknown[0]!r}{hint}")
    return sorted(path for path, names in every.items() if not notebooks or names & set(notebooks))


def check_parameters(notebook: str, given: Mapping[str, Any], cell: str) -> None:
    """ValueError for a parameter that the notebook's cell does not have, or not so; papermill itself only warns."""
    nodes = [node for node in ast.parse(cell, notebook).body if isinstance(node, ast.Assign)]
    known = {ast.unparse(node.targets[0]): literal(ast.unparse(node.value)) for node in nodes}
    for name, value in given.items():
        if name not in known:
            have = ", ".join(known) or "none; its parameters cell is missing or empty"
            raise ValueError(f"parameters: {notebook} has {have}; found {name!r}{nearest(name, list(known))}")
        kind = type(known[name])
        fit = {float: (float, int), tuple: (tuple, list), list: (list, tuple)}.get(kind, (kind,))
        if known[name] is not None and type(value) not in fit:
            said = f"a {kind.__name__} like {known[name]!r}"
            raise ValueError(f"parameters: {name} of {notebook} is {said}, found {value!r}")


def plan(scale: str, notebooks: Sequence[str] = (), parameters: Mapping[str, Any] | None = None) -> list[Job]:
    """The jobs in dependency order, each with its inputs' hash and, where it is done already, its stamp.

    A notebook names those it must follow in its metadata: `"mtl": {"after": ["02"]}`, or `["*"]` for all others.
    Raises ValueError for an unknown scale, notebook or parameter and for a circle of notebooks.
    """
    known_scale(scale)
    if "scale" in (parameters := parameters or {}):
        raise ValueError("parameters: the scale is given by --scale, found it among the parameters too")
    chosen, stems = find(notebooks), {path.stem[:2]: path.stem for path in find()}
    jobs: dict[str, Job] = {}
    for path in chosen:
        about, cells = _read(path)
        job = jobs[path.stem] = Job(path, scale, {"scale": scale, **parameters}, cells)
        check_parameters(path.name, job.parameters, "\n".join(text for _, text, tags in cells if "parameters" in tags))
        named = about.get("mtl", {}).get("after", ())
        if not isinstance(named, list | tuple) or not all(isinstance(name, str) for name in named):
            raise ValueError(f"{path.name}: metadata mtl.after must be a list of names, found {named!r}")
        after = {stems.get(n) or n for n in named} if "*" not in named else {*stems.values()} - {job.name}
        if unknown := after - {*stems.values()}:
            raise ValueError(f"{path.name}: metadata mtl.after names {', '.join(sorted(unknown))}, found none such")
        job.after = tuple(sorted(after & {other.stem for other in chosen}))
    try:
        order = list(TopologicalSorter({name: job.after for name, job in jobs.items()}).static_order())
    except CycleError as circle:
        raise ValueError(f"metadata mtl.after: notebooks may not wait in a circle, found {circle.args[1]}") from circle
    from mtl.problems.data.download import status

    data = [row["name"] for row in status() if row["found"]]
    versions = [platform.python_version(), *map(version, PACKAGES)]
    for job in (jobs[name] for name in order):
        upstream = [jobs[other].inputs for other in job.after]
        text = json.dumps([*_inputs(job, data), versions, upstream], sort_keys=True)
        job.inputs = hashlib.sha256(text.encode()).hexdigest()
        job.stamp = _valid_stamp(job)
    return [jobs[name] for name in order]


def _read(path: Path) -> tuple[dict[str, Any], list[Cell]]:
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        cells = [(c["cell_type"], "".join(c["source"]), c["metadata"].get("tags", [])) for c in notebook["cells"]]
        return notebook["metadata"], cells
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as broken:
        raise ValueError(f"{path.name}: expected a notebook of format 4 (JSON), found {broken!r}") from broken


def _inputs(job: Job, data: Sequence[str]) -> list[Any]:
    """What its results depend on: itself, the modules it goes through, the files and the data found that these name."""
    texts = [text.splitlines() for kind, text, _ in job.cells if kind == "code"]
    code = "\n".join(line for text in texts for line in text if not line.lstrip().startswith(("%", "!")))
    try:
        files = sources.used_by(code)
    except SyntaxError:  # a cell in another language may need anything
        files = {str(path): path for path in sources.PACKAGE.rglob("*.py")}
    used = {module: path.read_bytes() for module, path in files.items()}
    said = b"\0".join([code.encode(), *used.values()])

    def named(name: str) -> bool:
        return any(f"{quote}{name}{quote}".encode() in said for quote in "'\"")

    places = ("data/ledger/*.jsonl", "data/ledger/*.npz", "paper/reported/*", "paper/claims.yml", "paper/verdicts.json")
    papers = [path for place in places for path in root().glob(place)]
    return [
        [job.cells, job.parameters],
        {module: hashlib.sha256(text).hexdigest() for module, text in used.items()},
        {path.name: sha256(path) for path in papers if named(path.name) or named(path.stem)},
        sorted(filter(named, data)),
    ]


def sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def outputs(manifest: Sequence[Mapping[str, Any]]) -> list[str]:
    """The files, from the root, that the figure and table lines of a manifest stand for."""
    found: set[Path] = set()
    for line in manifest:
        if line["kind"] in SUFFIXES:
            path = Path(line["path"])
            found |= {path.with_suffix(suffix) for suffix in SUFFIXES[line["kind"]]}
            included = Path("paper/generated", *path.parts[1:-1], f"fig_{path.stem}.tex")
            found |= {included} if (root() / included).is_file() else set()
    return sorted(path.as_posix() for path in found)


def write_stamp(job: Job, manifest: Sequence[Mapping[str, Any]], seconds: float) -> str:
    """Say that `job` is done: its inputs' hash, every output's hash, what it reported; what is wrong, if anything."""
    made = outputs(manifest)
    if lacking := [name for name in made if not (root() / name).is_file()]:
        return f"it reported {Path(lacking[0]).name}, which is not there"
    stamp: Stamp = {"notebook": job.name, "scale": job.scale, "parameters": job.parameters, "inputs": job.inputs}
    stamp |= {"outputs": {name: sha256(root() / name) for name in made}, "manifest": list(manifest)}
    stamp |= {"seconds": round(seconds, 1), "finished": datetime.now(UTC).isoformat(timespec="seconds")}
    with atomic(job.file("stamp")) as part:
        part.write_text(json.dumps(stamp, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return ""


def read_stamp(path: Path) -> Stamp | None:
    """A stamp, or None where there is none that can be read: the notebook then runs again."""
    try:
        stamp = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    whole = isinstance(stamp, dict) and all(isinstance(stamp.get(name), kind) for name, kind in STAMP.items())
    if not whole or stamp["scale"] not in NOTEBOOKS:
        return None
    for line in stamp["manifest"]:
        needed = LINES.get(str(line.get("kind")), ("kind",)) if isinstance(line, dict) else ("kind",)
        if not isinstance(line, dict) or not all(isinstance(line.get(name), str) for name in needed):
            return None
    return stamp


def _valid_stamp(job: Job) -> Stamp | None:
    stamp = read_stamp(job.file("stamp"))
    if stamp is None or stamp["inputs"] != job.inputs or not job.copy.is_file():
        return None
    files = {root() / name: digest for name, digest in stamp["outputs"].items()}
    return stamp if all(path.is_file() and sha256(path) == digest for path, digest in files.items()) else None
