"""A progress bar where a person watches, on a terminal or in a notebook; else silence."""

from __future__ import annotations

import html
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Advance", "is_watched", "progress_bar"]

Advance = Callable[[str], None]
# A notebook's page is written anew no more often than this.
_SECONDS = 0.5


def is_watched() -> bool:
    """Return whether a person sees a bar: on a terminal, or in a notebook."""
    return _notebook() is not None or _on_terminal()


def _on_terminal() -> bool:
    # There is no stream in a program without a console, and it may be closed, or be anything.
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except (AttributeError, ValueError):
        return False


def _notebook() -> Any:
    """Return the module that shows things in a notebook, or None outside of one."""
    # What runs in a notebook has been imported by it.
    python = sys.modules.get("IPython")
    shell = None if python is None else python.get_ipython()
    if shell is None or getattr(shell, "kernel", None) is None:
        return None
    from IPython import display

    return display


@contextmanager
def progress_bar(
    description: str, total: int, *, done: int = 0, enabled: bool = True
) -> Iterator[Advance]:
    """Show a bar on standard error, in a notebook below the cell, while the block runs.

    Example:
        >>> with progress_bar("epoch 1", total=2, enabled=False) as advance:
        ...     for step in range(2):
        ...         advance(f"loss {step}")

    Args:
        description: what is going on.
        total: how many steps there are.
        done: how many of them are behind us.
        enabled: False shows nothing; nor is anything shown outside of a notebook when standard
            error is no terminal, or `rich` is not installed.

    Yields:
        A function that takes one step and shows a note beside the bar.
    """
    display = _notebook() if enabled else None
    if display is not None:
        yield from _in_notebook(display, description, total, done)
        return
    if not enabled or not _on_terminal():
        yield lambda note: None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    except ModuleNotFoundError:
        yield lambda note: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(description, total=total, completed=done, note="")
        yield lambda note: progress.update(task, advance=1, note=note)


def _in_notebook(display: Any, description: str, total: int, done: int) -> Iterator[Advance]:
    begun = shown = time.monotonic()
    first, note = done, ""

    def page() -> Any:
        each = (time.monotonic() - begun) / max(1, done - first)
        left = f", {(total - done) * each:.0f} s left" if first < done < total else ""
        words = html.escape(f"{description}: {done:,} of {total:,}{left}; {note}".rstrip("; "))
        return display.HTML(f'<progress max="{total}" value="{done}"></progress> {words}')

    handle = display.display(page(), display_id=True)

    def advance(said: str) -> None:
        nonlocal done, note, shown
        done, note = done + 1, said
        if time.monotonic() - shown >= _SECONDS:
            shown = time.monotonic()
            handle.update(page())

    try:
        yield advance
    finally:
        handle.update(page())
