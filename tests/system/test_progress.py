"""The bar: shown where a person watches, and nothing at all where nobody does."""

import io
import sys
import types

import pytest

from ulmfit_fast.system import progress
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


def test_silent_where_standard_error_is_closed(monkeypatch) -> None:
    closed = io.StringIO()
    closed.close()
    for stream in (closed, None, object()):
        monkeypatch.setattr(sys, "stderr", stream)
        run()
    assert not progress.is_watched()


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


class _Handle:
    pages: list[str]

    def update(self, page):
        self.pages.append(page)


def test_a_notebook_has_a_bar_below_the_cell(monkeypatch, capsys):
    handle, shell = _Handle(), types.SimpleNamespace(kernel=object())

    def show(page, display_id):
        assert display_id
        handle.pages = [page]
        return handle

    display = types.SimpleNamespace(HTML=str, display=show)
    python = types.SimpleNamespace(get_ipython=lambda: shell, display=display)
    monkeypatch.setitem(sys.modules, "IPython", python)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr(progress, "_SECONDS", 0.0)
    with progress.progress_bar("epoch <1>", 3, done=1) as advance:
        advance("loss 0.5")
        advance("loss 0.25")
    assert progress.is_watched()
    assert handle.pages[0].endswith(' value="1"></progress> epoch &lt;1&gt;: 1 of 3')
    assert " s left; loss 0.5" in handle.pages[1]
    assert handle.pages[-1].endswith("epoch &lt;1&gt;: 3 of 3; loss 0.25")
    with progress.progress_bar("epoch", 3, enabled=False) as advance:
        advance("loss")
    assert len(handle.pages) == 4 and capsys.readouterr() == ("", "")
    # IPython on a terminal has no kernel.
    shell.kernel = None
    assert not progress.is_watched()
