"""The docstrings of installed packages as a text corpus: read with ``ast``, nothing is imported."""

from __future__ import annotations

import ast
import gc
import importlib.util
import logging
import os
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from ulmfit_fast.studies.prose import prose_paragraphs, sentence_key
from ulmfit_fast.system.scoped import ignoring

_log = logging.getLogger("ulmfit_fast")

# Tests and vendored copies hold no prose of their own; the last three are applications.
_SKIPPED_DIRECTORIES = {
    "site-packages", "dist-packages", "__pycache__", "_vendor", "test", "tests", "testing",
    "idlelib", "lib2to3", "turtledemo",
}  # fmt: skip
# A file with fewer docstrings than one in this many bytes is not worth the parse: in the packages
# of the demo, such files take one sixth of the time and hold 2 % of the words.
_BYTES_PER_DOCSTRING = 8_000


class Document(NamedTuple):
    """The prose of one docstring.

    >>> Document("networkx classes/graph.py:Graph.add_node", "Add a node.").text
    'Add a node.'

    Args:
        source: where the text stands, "package module/path:qualified.name".
        text: its sentences, one paragraph a line.
    """

    source: str
    text: str


def read_docstrings(package: str) -> list[Document]:
    r"""Collect the English sentences in the docstrings of an installed package.

    Code, maths, tables and citations are dropped, and a sentence that the package repeats is kept
    where it stands first; names and numbers do not make a sentence another one. The package is read
    from its files and never imported.

    >>> documents = read_docstrings("json")
    >>> documents[-1].source, documents[-1].text[:36]
    ('json tool.py:', 'Command-line tool to validate and pr')

    Args:
        package: a top-level package, or "stdlib" for the standard library of this interpreter
            (with the reference topics that ``help()`` shows).

    Returns:
        The documents in the order of the files and of the lines in them; the same on every run.

    Raises:
        ValueError: the name is no top-level package that keeps its source in a directory.
        ModuleNotFoundError: the package is not installed.
    """
    seen: set[str] = set()
    documents: list[Document] = []
    for source, docstring in raw_docstrings(package):
        text = _new_text(docstring, seen)
        if text:
            documents.append(Document(source, text))
    _log.info("%s: %d documents", package, len(documents))
    return documents


def raw_docstrings(package: str) -> Iterator[tuple[str, str]]:
    """Yield the docstrings of an installed package as they stand, with where each one stands.

    >>> source, docstring = next(raw_docstrings("json"))
    >>> source, docstring[:19]
    ('json __init__.py:', 'JSON (JavaScript Ob')

    Args:
        package: as for `read_docstrings`.

    Yields:
        "package module/path:qualified.name" and the docstring, in the order of the files.

    Raises:
        ValueError: the name is no top-level package that keeps its source in a directory.
        ModuleNotFoundError: the package is not installed.
    """
    files = skipped = 0
    for root, path in _source_files(package):
        files += 1
        with _quiet_parsing():
            docstrings = _docstrings(path)
        if docstrings is None:
            skipped += 1
            continue
        where = f"{package} {path.relative_to(root).as_posix()}"
        for name, docstring in docstrings:
            yield f"{where}:{name}", docstring
    _log.info("%s: %d files, %d unreadable ones skipped", package, files, skipped)


def _source_files(package: str) -> Iterator[tuple[Path, Path]]:
    for root in _directories(package):
        for folder, subfolders, names in os.walk(root):
            subfolders[:] = sorted(set(subfolders) - _SKIPPED_DIRECTORIES)
            yield from (
                (root, Path(folder, name)) for name in sorted(names) if name.endswith(".py")
            )


def _directories(package: str) -> list[Path]:
    if package == "stdlib":
        return [Path(sysconfig.get_path("stdlib"))]
    if not package.isidentifier():
        raise ValueError(
            f"package={package!r} is not a top-level package name; "
            "give a name such as 'numpy', or 'stdlib'"
        )
    # For a dotted name find_spec would import the parent; for a top-level one it only looks.
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise ModuleNotFoundError(
            f"package {package!r} is not installed; pip install 'ulmfit-fast[demo]'", name=package
        )
    directories = [Path(p) for p in spec.submodule_search_locations or () if Path(p).is_dir()]
    if not directories:
        raise ValueError(
            f"package={package!r} is a single module; give a package that is a directory"
        )
    return directories


@contextmanager
def _quiet_parsing() -> Iterator[None]:
    """Parse without the cycle collector, which doubles the time, and the files' syntax warnings."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        with ignoring(Warning):
            yield
    finally:
        if collecting:
            gc.enable()


def _docstrings(path: Path) -> list[tuple[str, str]] | None:
    """Return the (qualified name, docstring) pairs of a file, or None when it cannot be read."""
    try:
        source = path.read_bytes()
        help_topics = path.parts[-2:] == ("pydoc_data", "topics.py")
        quotes = source.count(b'"""') + source.count(b"'''")
        if not help_topics and quotes // 2 * _BYTES_PER_DOCSTRING < len(source):
            return []
        module = ast.parse(source)
    except (OSError, SyntaxError, ValueError, RecursionError):
        return None
    return list(_topics(module) if help_topics else _visit(module, ""))


def _visit(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str
) -> Iterator[tuple[str, str]]:
    docstring = ast.get_docstring(node, clean=False)
    if docstring:
        yield name, docstring
    for child in _statements(node.body):
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from _visit(child, f"{name}.{child.name}" if name else child.name)
        elif isinstance(child, (ast.Expr, ast.Assign)) and isinstance(child.value, ast.Call):
            yield from _added_docstrings(child.value)


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for statement in body:
        if isinstance(statement, (ast.If, ast.Try)):
            yield from _statements(statement.body)
            yield from _statements(statement.orelse)
        else:
            yield statement


def _added_docstrings(call: ast.Call) -> Iterator[tuple[str, str]]:
    """Find what ``add_newdoc(...)`` and ``add_docstr(...)`` attach to functions written in C."""
    function = (
        call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    )
    if not function.lstrip("_").startswith(("add_newdoc", "add_docstr")) or len(call.args) < 2:
        return
    *target, text = call.args
    name = ".".join(ast.unparse(part).strip("'\"") for part in target)
    entries = text.elts if isinstance(text, ast.List) else [text]
    for entry in entries:
        if isinstance(entry, ast.Tuple) and len(entry.elts) == 2:
            attribute, entry = entry.elts
            yield f"{name}.{ast.unparse(attribute).strip(chr(39))}", _literal_text(entry)
        else:
            yield name, _literal_text(entry)


def _literal_text(node: ast.expr) -> str:
    """Join the literal parts of a text that is put together with ``+`` or ``.format``."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.BinOp):
        return _literal_text(node.left) + _literal_text(node.right)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return _literal_text(node.func.value)
    return ""


def _topics(module: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(module):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if key is not None:
                    yield f"topics.{_literal_text(key)}", _literal_text(value)


def _new_text(docstring: str, seen: set[str]) -> str:
    """Return the sentences of a docstring that are not in ``seen`` yet, one paragraph a line."""
    lines = []
    for paragraph in prose_paragraphs(docstring):
        new = []
        for sentence in paragraph:
            key = sentence_key(sentence)
            if key not in seen:
                seen.add(key)
                new.append(sentence)
        if new:
            lines.append(" ".join(new))
    return "\n".join(lines)
