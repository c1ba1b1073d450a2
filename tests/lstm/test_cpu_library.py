"""The C kernels' library: built once, at first use, for this CPU, or not at all and said so."""

import contextlib
import ctypes
import logging
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from ulmfit_fast import backend, rng
from ulmfit_fast.kernels.cpu import calls
from ulmfit_fast.kernels.cpu import library as native

ROOT = Path(__file__).parents[2]
COMPILER = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
VARIABLES = (native.SWITCH, native.CACHE_VARIABLE, native.FLAGS_VARIABLE, "CC", "XDG_CACHE_HOME")

pytestmark = pytest.mark.skipif(os.name != "posix", reason="no library is built there")
compiles = pytest.mark.skipif(COMPILER is None, reason="no C compiler")

# A compiler that notes how it is called, and writes a file that is no library.
FAKE = """
case "$*" in *--version*) echo "fake 1.0"; exit 0;; esac
echo "$@" >> "$0.log"
while [ $# -gt 0 ]; do [ "$1" = -o ] && out=$2; shift; done
"""


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """Give each test a home and a folder for temporary files, and forget what was loaded."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(native.tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(native, "_found", None)
    native._version.cache_clear()


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Put the smallest library that passes its check in the place of the kernels."""
    sources = tmp_path / "sources"
    sources.mkdir()
    for name in ("simd.h", "philox.h", "product.h", "tiles.h", "tiles.c", "check.c"):
        shutil.copy(native._SOURCES / name, sources)
    answer = (
        '#include "simd.h"\nEXPORT const char *ulmfit_fast_features(void) { return "small"; }\n'
    )
    (sources / "features.c").write_text(answer, encoding="utf-8")
    monkeypatch.setattr(native, "_SOURCES", sources)
    return sources


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """Return a function that makes a script the compiler, and returns its path."""

    def make(then='echo library > "$out"', name="fake"):
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{FAKE}\n{then}\n", encoding="utf-8")
        path.chmod(0o755)
        monkeypatch.setenv("CC", str(path))
        return path

    return make


def calls_of(path):
    log = Path(f"{path}.log")
    return log.read_text(encoding="utf-8").splitlines() if log.exists() else []


def cache(tmp_path):
    return tmp_path / "home" / ".cache" / "ulmfit_fast"


def names(folder):
    return sorted(path.name for path in folder.glob("*.so"))


def python(code, **environment):
    """Run code that may `import library`, which needs no torch."""
    folders = os.pathsep.join(map(str, (ROOT, ROOT / "kernels" / "cpu")))
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": folders, **environment},
        timeout=300,
    )


# What there is.


@compiles
def test_the_kernels_are_compiled_at_first_use_and_found_at_the_next(tmp_path, small, monkeypatch):
    assert native.library() is native.library()
    assert native.status() == "small"
    (name,) = names(cache(tmp_path))
    made = (cache(tmp_path) / name).stat()
    assert cache(tmp_path).stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(native, "_found", None)
    monkeypatch.setattr(native, "_compile", lambda *_: pytest.fail("compiled again"))
    assert native.library() is not None
    assert (cache(tmp_path) / name).stat().st_ino == made.st_ino
    assert not list((tmp_path / "tmp").iterdir())
    assert {path.name for path in cache(tmp_path).iterdir()} == {name, ".lock"}


@compiles
def test_nothing_is_compiled_at_import(tmp_path, fake):
    log = fake()
    code = "import ulmfit_fast, ulmfit_fast.kernels.cpu.lstm as l; print(l.library.__name__)"
    done = python(code, HOME=str(tmp_path / "home"), CC=str(log))
    assert (done.returncode, done.stdout) == (0, "library\n")
    assert calls_of(log) == [] and not cache(tmp_path).exists()


def test_importing_the_library_needs_nothing_of_posix():
    code = """
        import os, random, sys, logging, tempfile, threading
        sys.modules["fcntl"] = None
        del os.register_at_fork, os.getuid, os.killpg
        import library
        os.name = "nt"
        print(library.library(), library.status())
    """
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("None they are not built on ") and done.stderr == ""


def test_the_answers_of_the_check_are_those_of_the_reference():
    words = rng.philox(native._CHECK_SEED, torch.arange(64), 1, 2, rng.KIND_GATE)
    folded = 0
    for word in words.flatten().tolist():
        folded = (folded << 1 & 0xFFFFFFFF | folded >> 31) ^ word
    assert folded == native._CHECK_WORDS
    assert ctypes.sizeof(calls.Dropout) == native._CHECK_SIZE


def test_what_is_compiled_for_is_this_cpu(monkeypatch):
    if not Path("/proc/cpuinfo").exists():
        pytest.skip("no /proc/cpuinfo")
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    told = {line for line in text.splitlines() if line.startswith(("flags", "Features", "isa"))}
    assert told and told <= set(native._cpu().splitlines())
    # Its speed at the moment does not tell one from another.
    assert "MHz" not in native._cpu()


# What makes a library another one.


@pytest.mark.parametrize("what", ["source", "header", "flags", "version", "command", "cpu", "libc"])
def test_each_part_of_the_key_makes_another_library(tmp_path, small, fake, monkeypatch, what):
    path = fake()
    first = native.build()
    if what == "source":
        with (small / "features.c").open("a") as file:
            file.write("\n")
    elif what == "header":
        with (small / "simd.h").open("a") as file:
            file.write("\n")
    elif what == "flags":
        assert native.build(["-g"]) != first
        assert calls_of(path)[-1].split().index("-g") > calls_of(path)[-1].split().index("-O3")
        return
    elif what == "version":
        path.write_text(path.read_text().replace("fake 1.0", "fake 1.1"))
        native._version.cache_clear()
    elif what == "command":
        fake(name="another")
    elif what == "cpu":
        monkeypatch.setattr(native, "_cpu", lambda: "another")
    else:
        monkeypatch.setattr(native.platform, "libc_ver", lambda: ("musl", "1"))
    second = native.build()
    assert second != first and second.exists() and first.exists()
    assert len(names(cache(tmp_path))) == 2


@compiles
def test_a_library_of_another_cpu_is_never_loaded(tmp_path, small, monkeypatch):
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(native, "_cpu", lambda: "another")
        other = native.build()
    loaded = []
    real = ctypes.CDLL
    monkeypatch.setattr(ctypes, "CDLL", lambda path: loaded.append(path) or real(path))
    assert native.library() is not None
    assert len(loaded) == 1 and str(other) not in loaded


def test_flags_of_the_variable_come_after_the_usual_ones(fake, small, monkeypatch):
    path = fake()
    monkeypatch.setenv(native.FLAGS_VARIABLE, "-O1 '-DNAME=two words'")
    native.build(native._split_variable(native.FLAGS_VARIABLE))
    assert native.library() is None
    assert len({line.partition(" -o ")[0] for line in calls_of(path)}) == 1
    line = calls_of(path)[0]
    assert line.index("-march=native") < line.index("-O1 -DNAME=two words") < line.index("check.c")


def test_a_compiler_may_come_with_arguments(fake, small, monkeypatch):
    path = fake()
    monkeypatch.setenv("CC", f"env LANGUAGE=de {path} -pipe")
    native.build()
    assert calls_of(path)[0].startswith("-pipe -std=")


# Torn, old and stray files.


@compiles
@pytest.mark.parametrize("how", ["torn", "tampered", "empty", "a broken link", "a folder"])
def test_what_is_not_whole_is_compiled_again(tmp_path, small, monkeypatch, how):
    first = native.build()
    data = first.read_bytes()
    first.unlink()
    if how == "a folder":
        first.mkdir()
    elif how == "a broken link":
        first.symlink_to("nowhere")
    else:
        changed = bytes([data[-1] ^ 1])
        first.write_bytes({"torn": data[:-100], "tampered": data[:-1] + changed, "empty": b""}[how])
    if how == "a folder":
        # Nothing can take its place there: the library goes to the next folder.
        assert native.build().parent.parent == tmp_path / "tmp"
    else:
        again = native.build()
        assert again.parent == first.parent
        assert native._find_built(native._recipe((), None), again.parent) == again
        assert names(again.parent) == [again.name]
    assert native.library() is not None


def test_old_libraries_go_when_there_are_more_than_a_handful(tmp_path, fake, small, monkeypatch):
    folder = cache(tmp_path)
    folder.mkdir(parents=True, mode=0o700)
    now = time.time()
    for i in range(12):
        path = folder / f"{i:024x}-{i:016x}.so"
        path.write_text("old")
        os.utime(path, (now, now - (40 + i) * 86400))
    recent = folder / f"{20:024x}-{20:016x}.so"
    recent.write_text("used a week ago")
    os.utime(recent, (now, now - 7 * 86400))
    others = [folder / "libuser.so", folder / "notes.txt", folder / "building-site"]
    others[0].write_text("of somebody else")
    os.utime(others[0], (0, 0))
    others[1].write_text("")
    others[2].mkdir()
    left, fresh = folder / f"{native._BUILDING}x", folder / f"{native._BUILDING}y"
    left.mkdir(), fresh.mkdir()
    (left / "kernels.so").write_text("")
    os.utime(left, (now, now - 2 * 86400))
    fake()
    torn = folder / f"{native._recipe((), None).key}-{0:016x}.so"
    torn.write_text("half")
    made = native.build()
    assert not torn.exists()
    ours = [name for name in names(folder) if native._NAME.fullmatch(name)]
    assert len(ours) == native._KEPT
    assert {made.name, recent.name, f"{0:024x}-{0:016x}.so"} <= set(ours)
    assert f"{11:024x}-{11:016x}.so" not in ours
    assert all(path.exists() for path in others)
    assert not left.exists() and fresh.exists()


def test_what_was_used_this_month_stays_however_many_there_are(tmp_path, fake, small):
    folder = cache(tmp_path)
    folder.mkdir(parents=True, mode=0o700)
    for i in range(20):
        (folder / f"{i:024x}-{i:016x}.so").write_text("in use on another machine")
    fake()
    native.build()
    assert len(names(folder)) == 21


def test_use_keeps_a_library_young(fake, small):
    fake()
    made = native.build()
    os.utime(made, (0, 0))
    assert native.build() == made
    assert time.time() - made.stat().st_mtime < 3600


@compiles
def test_a_library_that_another_process_took_away_is_compiled_again(small, monkeypatch):
    real, opened = ctypes.CDLL, []

    def once_too_late(path):
        opened.append(path)
        if len(opened) == 1:
            os.unlink(path)
        return real(path)

    monkeypatch.setattr(ctypes, "CDLL", once_too_late)
    assert native.library() is not None and len(opened) == 2
    assert Path(opened[0]).parent == Path(opened[1]).parent


@compiles
def test_a_library_runs_on_when_its_file_is_gone(tmp_path, small):
    loaded = native.library()
    shutil.rmtree(cache(tmp_path))
    assert loaded.ulmfit_fast_check_philox(ctypes.c_uint64(native._CHECK_SEED)) == (
        native._CHECK_WORDS
    )


# Where it is kept.


def test_a_named_folder_is_the_first(tmp_path, fake, small, monkeypatch):
    fake()
    monkeypatch.setenv(native.CACHE_VARIABLE, "~/a/b")
    assert native.build().parent == tmp_path / "home" / "a" / "b"
    assert not cache(tmp_path).exists()


def test_a_cache_of_the_desktop_is_the_next(tmp_path, fake, small, monkeypatch):
    fake()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert native.build().parent == tmp_path / "xdg" / "ulmfit_fast"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert native.build().parent == cache(tmp_path)


@pytest.mark.parametrize("home", ["a file", "read-only", "missing", "no user", "full", "another's"])
def test_without_a_home_it_is_a_temporary_folder_of_the_users_own(
    tmp_path, fake, small, monkeypatch, home
):
    fake()
    monkeypatch.chdir(tmp_path)
    if home == "a file":
        (tmp_path / "home").write_text("")
    elif home == "read-only":
        # Not even root may write there.
        monkeypatch.setenv("HOME", "/proc/self")
        monkeypatch.setenv(native.CACHE_VARIABLE, "/proc/self")
    elif home == "missing":
        monkeypatch.setenv("HOME", "/proc/self/missing")
    elif home == "no user":
        monkeypatch.delenv("HOME")
        monkeypatch.setattr(native.os.path, "expanduser", lambda path: path)
    elif home == "full":
        where = cache(tmp_path)
        full = "echo 'cc1: error: No space left on device' >&2; exit 1"
        fake(f'case "$out" in {where}*) {full};; esac\necho library > "$out"')
    else:
        cache(tmp_path).mkdir(parents=True)
        cache(tmp_path).chmod(0o777)
    made = native.build()
    assert made.parent == tmp_path / "tmp" / f"ulmfit_fast-{os.getuid()}"
    assert made.parent.stat().st_mode & 0o777 == 0o700
    assert made == native.build()
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize("how", ["everyone may write", "a link", "a file"])
def test_a_temporary_folder_that_is_not_the_users_own_is_not_used(tmp_path, fake, small, how):
    fake()
    (tmp_path / "home").write_text("")
    own = tmp_path / "tmp" / f"ulmfit_fast-{os.getuid()}"
    if how == "everyone may write":
        own.mkdir()
        own.chmod(0o777)
    elif how == "a link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        own.symlink_to(tmp_path / "elsewhere")
    else:
        own.write_text("")
    made = native.build()
    assert made.parent != own and made.parent.parent == tmp_path / "tmp"
    assert made.parent.stat().st_mode & 0o777 == 0o700


@compiles
def test_a_folder_for_one_process_goes_with_it(tmp_path, small):
    (tmp_path / "home").write_text("")
    (tmp_path / "tmp" / f"ulmfit_fast-{os.getuid()}").write_text("")
    code = f"""
        import library
        from pathlib import Path
        library._SOURCES = Path({str(small)!r})
        print(library.status())
    """
    done = python(code, HOME=str(tmp_path / "home"), TMPDIR=str(tmp_path / "tmp"))
    assert (done.stdout, done.stderr) == ("small\n", "")
    assert len(list((tmp_path / "tmp").iterdir())) == 1


@compiles
def test_a_folder_that_nothing_may_be_run_from_is_passed_over(tmp_path, small, monkeypatch):
    real = ctypes.CDLL

    def without_home(path):
        if path.startswith(str(tmp_path / "home")):
            raise OSError("failed to map segment from shared object")
        return real(path)

    monkeypatch.setattr(ctypes, "CDLL", without_home)
    assert native.library() is not None
    assert len(names(tmp_path / "tmp" / f"ulmfit_fast-{os.getuid()}")) == 1


def test_no_folder_at_all_is_a_reason(tmp_path, fake, small, monkeypatch):
    fake()
    monkeypatch.setenv("HOME", "/proc/self")

    def nowhere(*_, **__):
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(native.tempfile, "gettempdir", nowhere)
    assert native.library() is None
    assert native.status() == "there is no folder to keep them in"


# What does not compile.


def refused(caplog, level=logging.WARNING):
    """Return the reason, after two looks: it stands in the log once."""
    with caplog.at_level(logging.DEBUG, logger="ulmfit_fast"):
        assert native.library() is None and native.library() is None
    reason = native.status()
    told = f"no C kernels: {reason}; PyTorch's operations do the work"
    assert [(r.levelno, r.getMessage()) for r in caplog.records] == [(level, told)]
    return reason


def test_the_switch_turns_them_off(tmp_path, caplog, fake, monkeypatch):
    path = fake()
    monkeypatch.setenv(native.SWITCH, "0")
    assert refused(caplog, logging.INFO) == "ULMFIT_FAST_NATIVE=0"
    assert calls_of(path) == [] and not cache(tmp_path).exists()


def test_no_compiler(caplog, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    # As many machines are: the log says it, but not the shell's, which shows warnings.
    assert refused(caplog, logging.INFO) == "there is no C compiler (CC, cc, gcc, clang)"


def test_a_compiler_that_is_not_there(caplog, monkeypatch):
    monkeypatch.setenv("CC", "/nowhere/cc -m64")
    assert refused(caplog).startswith("/nowhere/cc does not run: ")


@pytest.mark.parametrize("variable", ["CC", native.FLAGS_VARIABLE])
def test_words_that_do_not_end(caplog, monkeypatch, variable, small):
    monkeypatch.setenv(variable, "cc '-O2")
    assert refused(caplog) == f'{variable} is "cc \'-O2": No closing quotation'


def test_a_compiler_that_fails_says_its_first_error(caplog, fake, small, tmp_path):
    said = "echo 'In file included' >&2; echo 'x.c:1: error: no' >&2; echo 'error: two' >&2; exit 1"
    path = fake(said)
    assert refused(caplog) == f"{path} failed: x.c:1: error: no"
    assert len(calls_of(path)) == len(native._FOR_THIS_CPU)
    assert {p.name for p in cache(tmp_path).iterdir()} == {".lock"}


@pytest.mark.parametrize(
    ("then", "why"),
    [
        ("exit 3", "exit status 3"),
        ("", "it wrote nothing"),
        ('echo half > "$out"; exit 1', "exit status 1"),
    ],
)
def test_a_compiler_that_says_nothing(caplog, fake, small, then, why):
    path = fake(then)
    assert refused(caplog) == f"{path} failed: {why}"


@pytest.mark.parametrize("when", ["asked its version", "compiling"])
def test_a_compiler_that_hangs_is_ended_with_what_it_started(
    caplog, fake, small, monkeypatch, when
):
    monkeypatch.setattr(native, "_SECONDS", 1)
    path = fake("sleep 60 & echo $! > $0.child; wait")
    if when == "asked its version":
        text = path.read_text().replace(
            'echo "fake 1.0"; exit 0', "sleep 60 & echo $! > $0.child; wait"
        )
        path.write_text(text)
    start = time.monotonic()
    assert refused(caplog) == f"{path} did not end in 1 s"
    assert time.monotonic() - start < 10
    assert len(calls_of(path)) == (when == "compiling")
    child = int(Path(f"{path}.child").read_text())
    for _ in range(100):
        if not running(child):
            break
        time.sleep(0.05)
    assert not running(child)


def running(process):
    with contextlib.suppress(OSError):
        state = (
            Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
        )
        return state != "Z"
    return False


def test_what_is_no_library_is_not_used(caplog, fake, small):
    fake()
    with caplog.at_level(logging.WARNING, logger="ulmfit_fast"):
        assert native.library() is None
    assert ".so: " in native.status() and len(caplog.records) == 1


@compiles
@pytest.mark.parametrize(
    ("name", "old", "new", "why"),
    [
        ("philox.h", "0xD2511F53u", "0xD2511F55u", "other random numbers"),
        ("philox.h", "uint32_t active;", "uint64_t active;", "another layout of structures"),
        ("simd.h", "0x4b400000u", "0x4b400001u", "tanh(-3.0) = "),
        (
            "check.c",
            "ulmfit_fast_check_size",
            "another",
            "undefined symbol: ulmfit_fast_check_size",
        ),
    ],
)
def test_a_library_that_fails_its_check_is_not_used(small, name, old, new, why, monkeypatch):
    text = (small / name).read_text(encoding="utf-8")
    assert old in text
    (small / name).write_text(text.replace(old, new), encoding="utf-8")
    assert native.library() is None
    assert " compiled fails its own check: " in native.status() and why in native.status()


@compiles
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the flags are those of x86")
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("multiply_tiles(3, 5, 7)", "multiply_tiles(3, 5, 6)"),
        ("multiply_tiles(3, 4, 7)", "multiply_tiles(2, 4, 7)"),
    ],
)
def test_tiles_that_multiply_wrongly_are_found_out(small, old, new, monkeypatch):
    monkeypatch.setenv(native.FLAGS_VARIABLE, "-march=x86-64 -DULMFIT_FAST_EMULATE_TILES")
    text = (small / "tiles.h").read_text(encoding="utf-8")
    assert old in text
    (small / "tiles.h").write_text(text.replace(old, new), encoding="utf-8")
    assert native.library() is None
    assert native.status().endswith("fails its own check: other products in bfloat16")


@compiles
@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ("-fassociative-math -fno-signed-zeros", "fails its own check: tanh("),
        ("-ffinite-math-only", "NaN and infinity keep their meaning here"),
    ],
)
def test_flags_that_change_what_numbers_mean_are_found_out(small, monkeypatch, flags, why):
    monkeypatch.setenv(native.FLAGS_VARIABLE, flags)
    assert native.library() is None
    assert why in native.status()


def test_sources_that_are_not_there(caplog, fake, monkeypatch, tmp_path):
    fake()
    monkeypatch.setattr(native, "_SOURCES", tmp_path / "archive.zip")
    assert refused(caplog) == f"the sources are not in {tmp_path / 'archive.zip'}"


def test_a_compiler_without_openmp_or_march_is_asked_for_less(fake, small):
    path = fake()
    refuse = 'case "$*" in *-fopenmp*|*-march*) echo "error: unsupported" >&2; exit 1;; esac'
    path.write_text(path.read_text().replace('echo "$@" >>', f'{refuse}\necho "$@" >>'))
    native.build()
    (line,) = calls_of(path)
    assert "-mcpu=native" in line


@compiles
def test_one_thread_is_said(monkeypatch):
    monkeypatch.setattr(native, "_FOR_THIS_CPU", ((),))
    monkeypatch.setenv(native.FLAGS_VARIABLE, "-O0")
    assert native.library() is not None
    assert native.status().endswith("one thread")
    assert backend.native_status() == native.status()


# Several at once.


def test_processes_that_come_at_once_compile_once(tmp_path, fake, small):
    path = fake('sleep 1\necho library > "$out"')
    code = f"""
        import library
        from pathlib import Path
        library._SOURCES = Path({str(small)!r})
        print(library.build())
    """
    with ThreadPoolExecutor(4) as pool:
        paths = {done.stdout.strip() for done in pool.map(python, [code] * 4)}
    (made,) = paths
    assert Path(made).parent == cache(tmp_path)
    assert len(calls_of(path)) == 1


@pytest.mark.parametrize("how", ["no locks", "another user's", "held for too long"])
def test_without_a_lock_it_is_compiled_all_the_same(tmp_path, fake, small, monkeypatch, how):
    import fcntl

    fake()
    folder = cache(tmp_path)
    folder.mkdir(parents=True, mode=0o700)
    if how == "no locks":
        monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(37, "none")))
    elif how == "another user's":
        (folder / ".lock").mkdir()
    else:
        monkeypatch.setattr(native, "_SECONDS", 1)
    with (folder / ".locked").open("w") as held:
        if how == "held for too long":
            os.link(folder / ".locked", folder / ".lock")
            fcntl.flock(held, fcntl.LOCK_EX)
        assert native.build().parent == folder


@compiles
def test_threads_that_come_at_once_load_once(small, monkeypatch):
    compiled, real = [], native._compile
    monkeypatch.setattr(native, "_compile", lambda *a: compiled.append(1) or real(*a))
    start, found = threading.Barrier(6), []

    def ask():
        start.wait()
        found.append(native.library())

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(compiled) == 1 and len({id(one) for one in found}) == 1 and found[0] is not None


def in_child(send):
    send.send(native.status())


def status_of_a_fork():
    """Ask in a process that is forked from this one."""
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=in_child, args=(send,))
    child.start()
    try:
        assert receive.poll(60), "it hangs"
        return receive.recv()
    finally:
        child.kill()
        child.join()


@compiles
def test_a_fork_has_what_its_parent_loaded(small, monkeypatch):
    assert native.status() == "small"
    monkeypatch.setattr(native, "_first_load", lambda: (None, "loaded again"))
    assert status_of_a_fork() == "small"


def test_a_fork_while_another_thread_loads_does_not_wait_for_it(monkeypatch):
    begun, end = threading.Event(), threading.Event()

    def slow():
        begun.set()
        end.wait(60)
        return None, "in the parent"

    monkeypatch.setattr(native, "_first_load", slow)
    thread = threading.Thread(target=native.library)
    thread.start()
    begun.wait(60)
    monkeypatch.setattr(native, "_first_load", lambda: (None, "in the child"))
    try:
        assert status_of_a_fork() == "in the child"
    finally:
        end.set()
        thread.join()


def test_an_interrupt_ends_the_compiler_and_leaves_the_next_try(fake, small, monkeypatch, tmp_path):
    path = fake("sleep 60 & echo $! > $0.child; wait")
    real = subprocess.Popen.communicate

    def interrupted(self, *arguments, **options):
        if "-o" not in self.args:
            return real(self, *arguments, **options)
        while not Path(f"{path}.child").exists() or not Path(f"{path}.child").read_text().strip():
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "communicate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        native.library()
    child = int(Path(f"{path}.child").read_text())
    for _ in range(100):
        if not running(child):
            break
        time.sleep(0.05)
    assert not running(child) and native._found is None
    assert {p.name for p in cache(tmp_path).iterdir()} == {".lock"}


# The real ones.


@compiles
def test_the_kernels_of_this_package_compile_and_say_what_they_are():
    loaded = native.library()
    assert loaded is not None, native.status()
    assert loaded.lanes() in (4, 8, 16)
    words = native.status().split(", ")
    assert words[0] in ("AVX-512", "AVX2", "AVX", "NEON", "128 bits")
    assert words[-1] in ("OpenMP", "one thread")
    said = backend.native_status()
    if words[-1] == "OpenMP":
        assert said == f"{native.status()}, {torch.get_num_threads()} threads"


def test_the_backend_says_why_there_are_none(monkeypatch):
    monkeypatch.setenv(native.SWITCH, "0")
    assert backend.native_status() == "none: ULMFIT_FAST_NATIVE=0"


@compiles
def test_tanh_of_the_check_is_that_of_the_standard(small):
    points = torch.linspace(-9, 9, 1001)
    values = points.clone()
    native.library().ulmfit_fast_check_tanh(
        ctypes.c_void_p(values.data_ptr()), ctypes.c_int64(1001)
    )
    assert (values.double() - points.double().tanh()).abs().max() < 3e-7
