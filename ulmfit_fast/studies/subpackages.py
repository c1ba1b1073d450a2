"""Docstrings with the sub-package they stand in."""

from __future__ import annotations

from collections import Counter

from ulmfit_fast.studies.docstrings import read_docstrings

__all__ = ["subpackage_documents"]

_LEAST_DOCUMENTS = 120
_LEAST_WORDS = 8
# One sub-package with half of all documents would be the answer to everything.
_MOST_DOCUMENTS = 480


def subpackage_documents(package: str) -> list[tuple[str, str]]:
    """Read the prose of a package's docstrings with the sub-package that each is from.

    Args:
        package: a top-level package with sub-packages.

    Returns:
        Texts of at least eight words and their sub-package, in the order of the files: evenly
        chosen 480 at most of each sub-package, and none of those with fewer than 120.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    found: dict[str, list[str]] = {}
    for document in read_docstrings(package):
        path = document.source.split(" ", 1)[1]
        if "/" in path and len(document.text.split()) >= _LEAST_WORDS:
            found.setdefault(path.split("/")[0], []).append(document.text)
    pairs = []
    for name, texts in found.items():
        if len(texts) >= _LEAST_DOCUMENTS:
            kept = min(len(texts), _MOST_DOCUMENTS)
            pairs += [(texts[i * len(texts) // kept], name) for i in range(kept)]
    counts = Counter(text for text, _ in pairs)
    return [(text, name) for text, name in pairs if counts[text] == 1]
