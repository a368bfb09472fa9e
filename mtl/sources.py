"""Which files a number depends on: the import closure of some modules, found from the imports themselves.

The registries `mtl`, `mtl.methods`, `mtl.problems` and `mtl.models` import everything, so they are never gone through:
`from mtl.methods import method` leads nowhere, `from mtl.models import MMoE` to the file that defines it. A new
benchmark or method therefore changes no other row's hash.
"""

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent
REGISTRIES = {"mtl": "", "mtl.models": "", "mtl.methods": "METHODS", "mtl.problems": "PROBLEMS"}  # name of the dict


def file_of(module: str) -> Path | None:
    """The file of a module of this package, or None where it is no module.

    >>> file_of("mtl.methods.emtl").name, file_of("mtl.methods").name, file_of("torch")
    ('emtl.py', '__init__.py', None)
    """
    first, *rest = module.split(".")
    if first != "mtl":
        return None
    path = PACKAGE.joinpath(*rest)
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if rest and p.is_file()), None) or (
        path / "__init__.py" if (path / "__init__.py").is_file() else None
    )


@lru_cache(maxsize=512)
def _parsed(path: Path, changed: int) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def _tree(path: Path) -> ast.Module:
    return _parsed(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=512)
def _imports(tree: ast.Module) -> frozenset[tuple[str, str | None]]:
    """(module, name) of `from module import name`, (module, None) of `import module`, wherever they stand."""
    return frozenset(_pairs(tree))


def _pairs(tree: ast.Module) -> Iterator[tuple[str, str | None]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "mtl":
            yield "mtl", node.attr


@lru_cache(maxsize=512)
def _words(tree: ast.Module) -> frozenset[Any]:
    """The constants of a program."""
    return frozenset(node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))


def resolve(module: str, name: str | None) -> str | None:
    """The module that an import really needs; None for other packages and for what a registry itself defines.

    >>> resolve("mtl.models", "MMoE"), resolve("mtl.methods", "method"), resolve("mtl.report", "style")
    ('mtl.models.recsys', None, 'mtl.report.style')
    """
    if (path := file_of(module)) is None:
        return None
    if name is None:
        return None if module in REGISTRIES else module
    if file_of(f"{module}.{name}"):
        return f"{module}.{name}"
    if path.name == "__init__.py":
        for node in _tree(path).body:
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        return resolve(node.module, alias.name)
    return None if module in REGISTRIES else module


def closure(modules: Iterable[str]) -> dict[str, Path]:
    """Module -> file of all that these modules import, themselves included, in alphabetical order.

    Raises ValueError for a module that is not there.

    >>> "mtl.solvers.kl" in closure(["mtl.methods.emtl"]), "mtl.methods.gram" in closure(["mtl.methods.emtl"])
    (True, False)
    """
    found: dict[str, Path] = {}
    queue = list(modules)
    while queue:
        module = queue.pop()
        if module in found:
            continue
        if (path := file_of(module)) is None:
            raise ValueError(f"module: must be a module of mtl, found {module!r}")
        found[module] = path
        queue += [needed for pair in _imports(_tree(path)) if (needed := resolve(*pair))]
    return dict(sorted(found.items()))


def entries(registry: str) -> dict[str, str]:
    """Key -> module of the dict literal of a registry.

    >>> entries("mtl.methods")["emtl"], entries("mtl.problems")["census"]
    ('mtl.methods.emtl', 'mtl.problems.census')
    """
    path = file_of(registry)
    assert path is not None
    for node in _tree(path).body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or not isinstance(node.value, ast.Dict):
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if any(isinstance(target, ast.Name) and target.id == REGISTRIES[registry] for target in targets):
            pairs = zip(node.value.keys, node.value.values, strict=True)
            named = {ast.literal_eval(k): v.id for k, v in pairs if k is not None and isinstance(v, ast.Name)}
            return {key: module for key, name in named.items() if (module := resolve(registry, name))}
    return {}


def used_by(text: str) -> dict[str, Path]:
    """Closure of a program (a notebook's code), with each method and problem that it or its experiments name.

    A file that imports METHODS or PROBLEMS itself shows them all, and so depends on them all.
    """
    tree = ast.parse(text)
    found = closure(module for pair in _imports(tree) if (module := resolve(*pair)))
    trees = [tree, *(_tree(path) for path in found.values())]
    for registry in ("mtl.methods", "mtl.problems"):
        known = entries(registry)
        words = frozenset().union(*map(_words, trees))
        everything = any((registry, REGISTRIES[registry]) in _imports(one) for one in trees)
        found |= closure(module for key, module in known.items() if everything or key in words)
    return dict(sorted(found.items()))


def digest(modules: Iterable[str]) -> str:
    """sha256 over names and bytes of the files that these modules import."""
    total = hashlib.sha256()
    for module, path in closure(modules).items():
        total.update(module.encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()
