"""Which files a number depends on: the import closure of some modules, found from the imports themselves.

The registries `mtl`, `mtl.methods`, `mtl.problems` and `mtl.models` import everything, so they are never gone through:
`from mtl.methods import method` leads nowhere, `from mtl.models import MMoE` to the file that defines it. A new
benchmark or method therefore changes no other row's hash.
"""

import ast
import hashlib
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cached_property, lru_cache
from itertools import takewhile
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, NamedTuple

PACKAGE = Path(__file__).resolve().parent
REGISTRIES = {"mtl": "", "mtl.models": "", "mtl.methods": "METHODS", "mtl.problems": "PROBLEMS"}  # name of the dict
REGISTRIES |= {"mtl.problems.registry": ""}  # where `mtl.problems` has what it names
PLACE = re.compile(r" at 0x[0-9a-f]+")  # in memory, which differs from process to process
Import = tuple[str, str | None]  # (module, name) of `from module import name`, (module, None) of `import module`


class File(NamedTuple):
    """What is read from a program, once: all its imports, those by name at its top level, strings, dict literals."""

    imports: frozenset[Import]
    exports: dict[str, tuple[str, str]]
    words: frozenset[Any]
    dicts: dict[str, dict[Any, str]]


def _scan(tree: ast.Module) -> File:
    found, words = set[Import](), set[Any]()
    exports, dicts = dict[str, tuple[str, str]](), dict[str, dict[Any, str]]()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {(node.module, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {(alias.name, None) for alias in node.names}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "mtl":
            found.add(("mtl", node.attr))
        elif isinstance(node, ast.Constant):
            words.add(node.value)
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module:
            exports |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict):
            pairs = zip(node.value.keys, node.value.values, strict=True)
            named = {k.value: v.id for k, v in pairs if isinstance(k, ast.Constant) and isinstance(v, ast.Name)}
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            dicts |= {target.id: named for target in targets if isinstance(target, ast.Name)}
    return File(frozenset(found), exports, frozenset(words), dicts)


@lru_cache(maxsize=512)
def _scanned(path: Path, changed: int) -> File:
    return _scan(ast.parse(path.read_text(encoding="utf-8"), str(path)))


def _read(path: Path) -> File:
    return _scanned(path, path.stat().st_mtime_ns)


def file_of(module: str) -> Path | None:
    """The file of a module of this package, or None where it is no module.

    >>> file_of("mtl.methods.emtl").name, file_of("mtl.methods").name, file_of("torch")
    ('emtl.py', '__init__.py', None)
    """
    first, *rest = module.split(".")
    path = PACKAGE.joinpath(*rest)
    places = [path.with_suffix(".py")] if rest else []
    return next((p for p in [*places, path / "__init__.py"] if p.is_file()), None) if first == "mtl" else None


def resolve(module: str, name: str | None) -> str | None:
    """The module that an import really needs; None for other packages and for what a registry itself defines.

    >>> resolve("mtl.models", "MMoE"), resolve("mtl.methods", "method"), resolve("mtl.report", "style")
    ('mtl.models.recsys', None, 'mtl.report.style')
    """
    if (path := file_of(module)) is None:
        return None
    if name is not None:
        if file_of(inner := f"{module}.{name}"):
            return None if inner in REGISTRIES else inner
        if path.name == "__init__.py" and (origin := _exports(module, path).get(name)):
            return resolve(*origin)
    return None if module in REGISTRIES else module


def _home(module: str) -> Path | None:
    """The file with the imports of a registry."""
    return file_of(f"{module}.registry") if module in REGISTRIES else None


def _exports(module: str, path: Path) -> dict[str, tuple[str, str]]:
    home = _home(module)
    return _read(path).exports | (_read(home).exports if home else {})


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
        queue += [needed for pair in _read(path).imports if (needed := resolve(*pair))]
    return dict(sorted(found.items()))


def digest(modules: Iterable[str]) -> str:
    """sha256 over names and bytes of the files that these modules import."""
    total = hashlib.sha256()
    for module, path in closure(modules).items():
        total.update(module.encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()


def entries(registry: str) -> dict[str, str]:
    """Key -> module of the dict literal of a registry.

    >>> entries("mtl.methods")["emtl"], entries("mtl.problems")["census"]
    ('mtl.methods.emtl', 'mtl.problems.census')
    """
    path = _home(registry) or file_of(registry)
    assert path is not None
    named = _read(path).dicts.get(REGISTRIES[registry], {})
    return {str(key): module for key, name in named.items() if (module := resolve(registry, name))}


def used_by(text: str) -> dict[str, Path]:
    """Closure of a program (a notebook's code), with each method and problem that it or its experiments name.

    A file that imports METHODS or PROBLEMS itself shows them all, and so depends on them all.
    """
    own = _scan(ast.parse(text))
    found = closure(module for pair in own.imports if (module := resolve(*pair)))
    files = [own, *map(_read, found.values())]
    for registry in ("mtl.methods", "mtl.problems"):
        everything = any((registry, REGISTRIES[registry]) in one.imports for one in files)
        words = frozenset().union(*(one.words for one in files))
        found |= closure(module for key, module in entries(registry).items() if everything or key in words)
    return dict(sorted(found.items()))


def code_digest(function: FunctionType, *more: Any) -> str:
    """Eight digits of what a function does, its defaults, what it took from a function around it, and of `more`.

    Its place in a file or notebook does not count, nor does what it reads from its module.

    >>> one, same, other = (lambda x: x + 2), (lambda x: x + 2), (lambda x: x + 3)
    >>> code_digest(one) == code_digest(same), code_digest(one) == code_digest(other)
    (True, False)
    """
    around = []
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # of a name that is not bound yet
            around.append(cell.cell_contents)
    defaults = function.__defaults__, sorted((function.__kwdefaults__ or {}).items())
    return _code(function.__code__, *defaults, *around, *more)


def class_digest(kind: type) -> str:
    """Eight digits of the classes from outside of this package that `kind` is made of; "" for one of its own.

    >>> from mtl.methods import METHODS
    >>> class Mine(METHODS["ls"]):
    ...     def weights(self, losses, gram=None):
    ...         return losses / losses.sum()
    >>> class_digest(METHODS["ls"]), len(class_digest(Mine))
    ('', 8)
    """
    own = list(takewhile(lambda one: not one.__module__.startswith("mtl."), kind.__mro__))
    if not own:
        return ""
    told = [
        (name, _told(value, deep=True))
        for one in own
        for name, value in sorted(vars(one).items())
        if _counts(name, value)
    ]
    return hashlib.sha256(repr(told).encode()).hexdigest()[:8]


def _counts(name: str, value: Any) -> bool:
    return not name.startswith("__") or isinstance(value, FunctionType)


def _code(code: CodeType, *more: Any) -> str:
    digest = hashlib.sha256(code.co_code + repr(code.co_names).encode())
    for value in (*code.co_consts, *more):
        digest.update(_told(value).encode())
    return digest.hexdigest()[:8]


def _told(value: Any, deep: bool = False) -> str:
    """A value in a text that is the same in every process."""
    if isinstance(value, staticmethod | classmethod):
        value = value.__func__
    elif isinstance(value, property | cached_property):
        value = value.fget if isinstance(value, property) else value.func
    if isinstance(value, CodeType):
        return _code(value)
    if isinstance(value, FunctionType):
        return code_digest(value) if deep else _code(value.__code__)  # it may have taken itself from around it
    if hasattr(value, "tolist") and hasattr(value, "dtype"):  # whose repr leaves out what is long
        return f"{value.dtype} {value.tolist()}"
    if isinstance(value, Mapping) and value:
        return "{" + ", ".join(f"{_told(k)}: {_told(v)}" for k, v in value.items()) + "}"
    if isinstance(value, frozenset):  # whose order differs from process to process
        return repr(sorted(map(repr, value)))
    return PLACE.sub("", repr(value))
