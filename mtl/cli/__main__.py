"""`python -m mtl.cli`: the command line."""

from mtl.cli import app

app()
