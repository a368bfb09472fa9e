"""The command `mtl`, also `python -m mtl`; and what to install where a package of an extra is missing."""

import sys

EXTRAS = {
    "data": ("pyarrow", "sklearn", "PIL", "setuptools"),
    "figures": ("pandas", "matplotlib", "seaborn", "jinja2"),
    "commands": ("typer", "rich", "yaml", "filelock"),
    "notebooks": ("jupyterlab", "ipykernel", "ipywidgets", "papermill", "psutil", "nbformat", "nbclient"),
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


def main() -> None:
    """Run the command line, or say what is not installed."""
    try:
        from mtl.cli import app
    except ModuleNotFoundError as missing:
        if said := lacking(missing):
            sys.exit(f"mtl: the command line {said}")
        raise
    app()


if __name__ == "__main__":
    main()
