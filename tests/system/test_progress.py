"""The bar: shown where a person watches, and nothing at all where nobody does."""

import io
import sys

import pytest

from ulmfit_fast.system.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(**options) -> list[object]:
    results = []
    with progress_bar("epoch 1/2", 3, **options) as advance:
        for step in range(3):
            results.append(advance(f"loss {step}.125"))
    return results


def terminal_of(monkeypatch) -> Terminal:
    # Not a fixture: pytest puts its own standard error in place when a test begins.
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    return stream


def test_terminal_shows_what_is_done_of_how_much(monkeypatch, capsys) -> None:
    terminal = terminal_of(monkeypatch)
    run()
    shown = terminal.getvalue()
    for part in ("epoch 1/2", "3/3", "loss 2.125"):
        assert part in shown
    assert capsys.readouterr().out == "", "standard output is for results"


def test_silent_on_request(monkeypatch) -> None:
    terminal = terminal_of(monkeypatch)
    run(enabled=False)
    assert terminal.getvalue() == ""


def test_silent_where_nobody_watches(capfd) -> None:
    run()
    assert capfd.readouterr() == ("", "")


def test_works_without_rich(monkeypatch) -> None:
    terminal = terminal_of(monkeypatch)
    for name in ("rich", "rich.console", "rich.progress"):
        monkeypatch.setitem(sys.modules, name, None)
    run()
    assert terminal.getvalue() == ""


@pytest.mark.parametrize("enabled", [True, False], ids=["shown", "silent"])
def test_an_error_goes_through_and_the_bar_is_closed(monkeypatch, enabled: bool) -> None:
    terminal = terminal_of(monkeypatch)
    with (
        pytest.raises(FloatingPointError, match="loss is nan"),
        progress_bar("epoch", 3, enabled=enabled) as advance,
    ):
        advance("loss 1")
        raise FloatingPointError("loss is nan")
    hidden, shown = "\x1b[?25l", "\x1b[?25h"
    assert terminal.getvalue().count(hidden) == terminal.getvalue().count(shown) == int(enabled)
