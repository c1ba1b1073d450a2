"""A progress bar where a person watches, silence where nobody does."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Advance", "progress_bar"]

Advance = Callable[[str], None]


@contextmanager
def progress_bar(
    description: str, total: int, *, done: int = 0, enabled: bool = True
) -> Iterator[Advance]:
    """Show a bar on standard error while the block runs.

    Example:
        >>> with progress_bar("epoch 1", total=2, enabled=False) as advance:
        ...     for step in range(2):
        ...         advance(f"loss {step}")

    Args:
        description: what is going on.
        total: how many steps there are.
        done: how many of them are behind us.
        enabled: False shows nothing; nor is anything shown when standard error is no terminal, or
            `rich` is not installed.

    Yields:
        A function that takes one step and shows a note beside the bar.
    """
    # There is none in a program without a console, nor where it is closed.
    if not enabled or sys.stderr is None or not sys.stderr.isatty():
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
