"""JSON that somebody else may have written: whatever is wrong with it is one kind of error."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

__all__ = ["parse_json"]


def parse_json(text: str, name: object) -> Any:
    """Parse a JSON text.

    >>> parse_json('{"version": 1}', "meta.json")
    {'version': 1}

    Args:
        text: the JSON.
        name: what holds it, for the error.

    Raises:
        ValueError: if it is not valid JSON, has a key twice, nests too deeply or has a number that
            is too long.
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    # Deep nesting ends in RecursionError, a number of thousands of digits in a plain ValueError.
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not valid JSON ({error}); save it anew") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        key, count = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {key!r:.60} occurs {count} times")
    return found
