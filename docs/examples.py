"""Doctests of docstrings as code: without a fence Markdown takes `>>>` for three quotations."""

import re
from typing import Any

from griffe import Extension

EXAMPLE = re.compile(r"^>>> .*?(?=\n[ \t]*\n|\Z)", re.MULTILINE | re.DOTALL)


class Examples(Extension):
    """An extension of mkdocstrings' reader (mkdocs.yml names it)."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        if obj.docstring and not obj.is_alias:
            obj.docstring.value = EXAMPLE.sub(r"\n```pycon\n\g<0>\n```\n", obj.docstring.value)
