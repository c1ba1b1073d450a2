"""What the commands write to consoles and pipes of any encoding, and say of missing devices."""

import io
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from ulmfit_fast import ULMFiT
from ulmfit_fast.cli.app import say
from ulmfit_fast.cli.program import app
from ulmfit_fast.system.progress import progress_bar

# Of the second no encoding but UTF-8 and its kind has all.
TEXTS, LABELS = ["größe 一 film", "a dull film"] * 10, ["gut \U0001f602", "schön"] * 10
MODULE = [sys.executable, "-m", "ulmfit_fast"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    directory = tmp_path_factory.mktemp("output")
    model = ULMFiT(emb_size=8, hidden_size=10, num_layers=1, min_freq=1, progress=False)
    model.pretrain(TEXTS, epochs=1, batch_size=4, bptt=6)
    model.fit_classifier(TEXTS, LABELS, epochs=3, lr=0.05).save(directory / "m")
    (directory / "new.txt").write_text("\n".join(TEXTS[:4]), encoding="utf-8")
    (directory / "rows.csv").write_text("text,label\na film,a\na dull film,b\n")
    return directory


COMMANDS = {
    "csv": "predict --model {0}/m --text {0}/new.txt --all",
    "jsonl": "predict --model {0}/m --text {0}/new.txt --format jsonl --all",
    "generate": "generate --model {0}/m --prompt größe一\U0001f602 --max-tokens 3 --count 2",
}


@pytest.mark.parametrize("charset", ["ascii", "cp1252", "utf-16", "cp037"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_pipe_gets_utf8(folder, charset, command):
    arguments = COMMANDS[command].format(folder).split(" ")
    expected = CliRunner(charset="utf-8").invoke(app, arguments)
    found = CliRunner(charset=charset).invoke(app, arguments)
    assert (found.exit_code, expected.exit_code, expected.stderr) == (0, 0, "")
    assert found.stdout_bytes == expected.stdout_bytes
    assert "\U0001f602" in found.stdout_bytes.decode("utf-8") and b"\r" not in found.stdout_bytes


def test_a_pipe_gets_what_a_file_gets(folder):
    for command in (COMMANDS["csv"], COMMANDS["jsonl"]):
        arguments = command.format(folder).split(" ")
        piped = CliRunner(charset="cp1252").invoke(app, arguments)
        filed = CliRunner(charset="cp1252").invoke(
            app, [*arguments, "--out", f"{folder}/out", "--overwrite"]
        )
        assert filed.exit_code == 0
        assert (folder / "out").read_bytes() == piped.stdout_bytes


def test_a_terminal_keeps_its_encoding_and_gets_every_line(folder):
    master, slave = os.openpty()
    done = subprocess.run(
        [*MODULE, *COMMANDS["csv"].format(folder).split(" ")],
        stdout=slave,
        stderr=subprocess.PIPE,
        env={**ENVIRONMENT, "PYTHONIOENCODING": "cp1252"},
        check=False,
    )
    os.close(slave)
    shown = b""
    while True:
        try:
            part = os.read(master, 1 << 16)
        except OSError:
            break
        if not part:
            break
        shown += part
    os.close(master)
    assert (done.returncode, done.stderr) == (0, b"")
    lines = shown.decode("cp1252").splitlines()
    assert len(lines) == 5 and "schön" in lines[0] and r"gut \U0001f602" in lines[0]


def test_the_encoding_of_the_caller_comes_back(folder, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="cp1252", errors="replace")
    monkeypatch.setattr(sys, "stdout", stream)
    app(COMMANDS["csv"].format(folder).split(" "), standalone_mode=False)
    assert (stream.encoding, stream.errors) == ("cp1252", "replace")
    assert "schön".encode() in stream.buffer.getvalue()


def test_a_reader_that_leaves_ends_it_quietly():
    """Before the first line; tests of predict have one that leaves after it."""
    done = subprocess.Popen(
        [*MODULE, "info"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
    )
    done.stdout.close()
    assert done.stderr.read() == b""
    done.stderr.close()
    assert done.wait(60) == 141


def test_a_closed_output_is_one_line(folder):
    line = f'"{sys.executable}" -m ulmfit_fast {COMMANDS["csv"].format(folder)} >&-'
    done = subprocess.run(["sh", "-c", line], stderr=subprocess.PIPE, env=ENVIRONMENT, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: standard output is closed, expected a file or a pipe")
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("command", ["info", "generate --model {0}/m"])
def test_what_nobody_could_read_is_not_a_success(folder, command, monkeypatch, capsys):
    # What Python makes of a stream that is closed when it starts.
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(SystemExit) as ended:
        app(command.format(folder).split(" "))
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "error: standard output is closed, expected a file or a pipe\n"
    )


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is full")
@pytest.mark.parametrize("command", ["--help", "info"])
def test_a_full_disk_is_one_line(command):
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*MODULE, *command.split(" ")], stdout=full, stderr=subprocess.PIPE, env=ENVIRONMENT
        )
    assert done.returncode == 2
    assert done.stderr == b"error: no space left on device\n"


def test_a_training_needs_no_standard_error(folder, tmp_path):
    command = f"fit-classifier --model {folder}/m --text {folder}/rows.csv --out {tmp_path}/n"
    line = f'"{sys.executable}" -m ulmfit_fast {command} --epochs 1 2>&-'
    assert subprocess.run(["sh", "-c", line], env=ENVIRONMENT, check=False).returncode == 0
    assert ULMFiT.load(tmp_path / "n").labels == ["a", "b"]


def test_no_file_gets_the_number_of_a_closed_stream(tmp_path):
    code = (
        "from ulmfit_fast.cli import program as cli\n"
        f"cli.app = lambda: print(open({str(tmp_path / 'a')!r}, 'w').fileno())\n"
        "cli.main()"
    )
    line = f'"{sys.executable}" -c "$0" 2>&-'
    done = subprocess.run(["sh", "-c", line, code], stdout=subprocess.PIPE, env=ENVIRONMENT)
    assert int(done.stdout) > 2


@pytest.mark.parametrize(
    "command",
    [
        "pretrain --text {0}/new.txt --out {0}/n",
        "fine-tune --model {0}/m --text {0}/new.txt --out {0}/n",
        "fit-classifier --model {0}/m --text {0}/rows.csv --out {0}/n",
        "predict --model {0}/m --text {0}/new.txt",
        "find-lr --model {0}/m --text {0}/new.txt --out {0}/n.png",
        "generate --model {0}/m",
        "explain --model {0}/m --text {0}/new.txt --out {0}/n.html",
        "ablate --task {0}/rows.csv --general {0}/new.txt --out {0}/n",
    ],
    ids=lambda command: command.split(" ")[0],
)
@pytest.mark.parametrize("device", ["mps", "meta"])
def test_a_device_that_is_not_there_is_one_line(folder, command, device):
    before = sorted(path.name for path in folder.iterdir())
    arguments = [*command.format(folder).split(" "), "--device", device]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.startswith(f"error: --device is '{device}', expected cpu, or cuda where ")
    assert result.stderr.count("\n") == 1 and len(result.stderr) < 200
    assert sorted(path.name for path in folder.iterdir()) == before


class _Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


def test_a_line_beside_a_progress_bar_has_a_line_of_its_own(monkeypatch):
    terminal = _Terminal(io.BytesIO(), encoding="utf-8", newline="")
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    with progress_bar("epoch 1/2", 3) as advance:
        advance("loss 1")
        say("two epochs")
        advance("loss 2")
    say("the end")
    terminal.flush()
    text = terminal.buffer.getvalue().decode()
    assert "\x1b[2Ktwo epochs\n" in text and text.endswith("the end\n")
    monkeypatch.setattr(sys, "stderr", None)
    say("nobody")
