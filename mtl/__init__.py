"""Multi-task optimisation: EMTL, FairGrad and the methods that they are compared with."""

from importlib import import_module, util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtl.gradients.guard import Accumulator, backward
    from mtl.methods import METHODS, aggregate, method
    from mtl.methods.custom import rule
    from mtl.problems import PROBLEMS, problem
    from mtl.training.fit import Budget, fit

__version__ = "0.2.0"
__all__ = ["METHODS", "PROBLEMS", "Accumulator", "Budget", "aggregate", "backward", "fit", "method", "problem", "rule"]

_HOMES = {"METHODS": "methods", "aggregate": "methods", "method": "methods", "rule": "methods.custom"}
_HOMES |= {"PROBLEMS": "problems", "problem": "problems"}
_HOMES |= {
    "Accumulator": "gradients.guard",
    "Budget": "training.fit",
    "backward": "gradients.guard",
    "fit": "training.fit",
}

EXTRAS = {
    "data": ("pyarrow", "sklearn", "PIL", "setuptools"),
    "figures": ("pandas", "matplotlib", "seaborn", "jinja2"),
    "commands": ("typer", "rich", "yaml", "filelock"),
    "notebooks": ("jupyterlab", "ipykernel", "ipywidgets", "papermill", "psutil", "nbformat", "nbclient"),
    "peers": ("torchjd", "stable_baselines3"),
    "ray": ("ray",),
    "rl": ("metaworld", "mujoco", "gymnasium"),
    "molecules": ("torch_geometric", "xxhash", "aiohttp"),  # the others: what it is imported with
}


def lacking(missing: ModuleNotFoundError) -> str | None:
    """What to install, in one sentence; None where the missing module belongs to no extra.

    >>> lacking(ModuleNotFoundError(name="pandas.io"))
    "needs pandas, which is not installed: pip install '.[figures]' in the checkout of mtl"
    """
    package = (missing.name or "").partition(".")[0]
    extra = next((extra for extra, packages in EXTRAS.items() if package in packages), None)
    if extra is None:
        return None
    return f"needs {package}, which is not installed: pip install '.[{extra}]' in the checkout of mtl"


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Import what is asked for, and no sooner: torch alone takes seconds, which a command need not wait for."""
        if name in _HOMES:
            try:
                return getattr(import_module(f"mtl.{_HOMES[name]}"), name)
            except ModuleNotFoundError as missing:
                if said := lacking(missing):
                    raise ImportError(f"mtl.{name} {said}") from missing
                raise
        if util.find_spec(f"mtl.{name}"):
            return import_module(f"mtl.{name}")
        raise AttributeError(f"module 'mtl' has {', '.join(__all__)}, found no {name!r}")

    def __dir__() -> list[str]:
        return [*globals(), *__all__]
