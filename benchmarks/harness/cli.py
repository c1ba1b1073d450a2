"""The command line that every question shares."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from benchmarks.harness.rows import Row
from benchmarks.harness.settings import Settings


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a run."""
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], help="default: cuda where there is one"
    )
    parser.add_argument("--repeats", type=int, help="samples of each time")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes: run, measure nothing")


def settings_of(options: argparse.Namespace) -> Settings:
    """Make the settings that the options ask for."""
    values = {"tiny": options.tiny}
    if options.repeats:
        values["repeats"] = options.repeats
    return Settings.of(options.device, **values)


def run_question(run: Callable[[Settings], list[Row]], text: str | None) -> None:
    """Answer one question and print its rows; `benchmarks.report` also writes them."""
    parser = argparse.ArgumentParser(description=(text or "").split("\n")[0])
    add_options(parser)
    settings = settings_of(parser.parse_args())
    run(settings)
    for note in settings.notes:
        settings.say(f"note: {note}")
