"""The package's docstrings as the site needs them."""

from __future__ import annotations

import re
from typing import Any

import griffe

# From a prompt to the next blank line, with the indentation of its first line.
_DOCTEST = re.compile(r"^( *)>>> .*(?:\n(?!\s*$).*)*", flags=re.MULTILINE)


def fenced(text: str) -> str:
    """Put fences around doctests, which Markdown would read as quotations within quotations.

    Args:
        text: a docstring.

    Returns:
        The same text with each doctest as a block of code, whichever section it stands in.
    """
    return _DOCTEST.sub(lambda found: f"{found[1]}```pycon\n{found[0]}\n{found[1]}```", text)


class Docstrings(griffe.Extension):
    """Fence the doctests of everything that has a docstring."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Change one object: a module, a class, a function or an attribute."""
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)
