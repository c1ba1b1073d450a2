"""Descriptions of parameters with the type they were documented with, the type cut out."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

from ulmfit_fast.studies.docstrings import raw_docstrings
from ulmfit_fast.studies.prose import sentence_key

__all__ = ["TYPES", "parameter_descriptions", "type_of"]

TYPES = ("array", "bool", "callable", "collection", "dict", "float", "int", "str")

_NAMES = {
    "array": "array array_like array-like ndarray tensor torch.tensor matrix maskedarray longtensor"
    " np.ndarray numpy.ndarray tensor_like floattensor",
    "bool": "bool boolean booleans",
    "callable": "callable function func",
    "collection": "list tuple set sequence iterable iterator container collection frozenset",
    "dict": "dict dictionary mapping ordereddict",
    "float": "float number floating double real",
    "int": "int integer ints int64 long",
    "str": "str string strings",
}
_TYPE_OF = {name: kind for kind, names in _NAMES.items() for name in names.split()}

# "name : type" over an indented description, and "name (type): description".
_NUMPY_ENTRY = re.compile(r"(\s*)[*\\]{0,2}[A-Za-z_]\w*(?:, *[*\\]{0,2}\w+)* ?: (\S.*)")
_GOOGLE_ENTRY = re.compile(
    r"(\s+)[*\\`]{0,2}[A-Za-z_]\w*`{0,2} \(([^()]*(?:\([^()]*\)[^()]*)*)\): ?(.*)"
)
_UNCERTAIN = re.compile(
    r"\s*(?:[,.]?\s*\boptional\b.*|\(default.*|[,.]?\s*\bdefault\b.*|,? or None\b.*)", re.IGNORECASE
)
_CLASS_ROLE = re.compile(r":(?:class|obj|any|py:class):`[~.]*([^`]*)`")
_LITERAL = re.compile(r"``?([^`]+)``?")
_LEAST_WORDS = 4


def type_of(documented: str) -> str | None:
    """Return which of `TYPES` a documented type is; None if it is another one, or several.

    >>> type_of("int, optional"), type_of("list of str"), type_of("array_like or None")
    ('int', 'collection', 'array')
    >>> type_of("int or float"), type_of("NetworkX graph")
    (None, None)

    Args:
        documented: the type as a docstring states it.
    """
    text = _CLASS_ROLE.sub(r"\1", documented).replace("`", "")
    text = re.sub(r"Optional\[(.*)\]", r"\1", text)
    text = _UNCERTAIN.sub("", text, count=1).strip().rstrip(".").lower()
    if re.search(r"\bor\b|\||, *(?!of\b)\w+$|^union\[", text.split("[")[0]):
        return None
    # "list of ints" and "Tuple[int]" are what stands first; "typing.Callable" is its last part.
    first = re.split(r"[\s,\[(]", text, maxsplit=1)[0]
    return _TYPE_OF.get(first) or _TYPE_OF.get(first.rsplit(".", 1)[-1])


def parameter_descriptions(package: str) -> list[tuple[str, str]]:
    """Read the described parameters of a package's docstrings.

    Args:
        package: a top-level package whose docstrings have sections in numpy's or google's layout.

    Returns:
        Descriptions of at least four words, none twice, with their type, in the order of the files.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    seen: dict[str, int] = {}
    pairs: list[tuple[str, str] | None] = []
    for _, docstring in raw_docstrings(package):
        for documented, description in _entries(docstring):
            kind = type_of(documented)
            key = sentence_key(description)
            if kind is None or len(key.split()) < _LEAST_WORDS:
                continue
            if key not in seen:
                seen[key] = len(pairs)
                pairs.append((description, kind))
                continue
            first = pairs[seen[key]]
            if first is not None and first[1] != kind:
                # The same words under two types: neither is the answer.
                pairs[seen[key]] = None
    return [pair for pair in pairs if pair is not None]


def _entries(docstring: str) -> Iterator[tuple[str, str]]:
    """Yield documented type and description of each parameter, in either layout."""
    lines = inspect.cleandoc(docstring).expandtabs().splitlines()
    for number, line in enumerate(lines):
        google = _GOOGLE_ENTRY.fullmatch(line)
        found = google or _NUMPY_ENTRY.fullmatch(line)
        if found is None:
            continue
        body = [google[3]] if google else []
        for below in lines[number + 1 :]:
            # A blank line ends it, and so does what is not deeper than the entry.
            if not below.strip() or len(below) - len(below.lstrip()) <= len(found[1]):
                break
            body.append(below.strip())
        description = " ".join(
            " ".join(_LITERAL.sub(r"\1", _CLASS_ROLE.sub(r"\1", b)) for b in body).split()
        )
        if description:
            yield found[2], description
