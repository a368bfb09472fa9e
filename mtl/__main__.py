"""The command `mtl`, also `python -m mtl`; and what to install where a package of an extra is missing."""

import sys

from mtl import lacking


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
