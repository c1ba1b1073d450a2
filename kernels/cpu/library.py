"""The C kernels of a CPU: compiled at first use by the system's compiler, kept in a cache folder.

As Triton does with the kernels of a GPU. A compiled library is kept under the digest of its
sources, its flags, the compiler and the CPU, so that none is ever taken for another's; its name
holds its own digest too, so that a torn one is compiled again. Without a compiler, or with
ULMFIT_FAST_NATIVE=0, torch operations do the work.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
import threading
from pathlib import Path

__all__ = ["CACHE_VARIABLE", "FLAGS_VARIABLE", "SWITCH", "build", "library", "status"]

SWITCH = "ULMFIT_FAST_NATIVE"
CACHE_VARIABLE = "ULMFIT_FAST_CACHE"
FLAGS_VARIABLE = "ULMFIT_FAST_CFLAGS"

_log = logging.getLogger("ulmfit_fast")
_SOURCES = Path(__file__).parent
_SECONDS = 120
_COMMON = ("-std=gnu11", "-O3", "-fPIC", "-shared", "-fvisibility=hidden", "-fno-math-errno")
# NaN and infinity keep their meaning: that no exception of floating point is looked at is all.
_LOOPS = ("-fno-trapping-math",)
# The first that the compiler takes: Clang for ARM calls it -mcpu, Apple's knows no OpenMP.
_FOR_THIS_CPU = (
    ("-march=native", "-fopenmp"),
    ("-mcpu=native", "-fopenmp"),
    ("-march=native",),
    ("-mcpu=native",),
    (),
)
_lock = threading.Lock()
_found = None


class BuildFailed(RuntimeError):
    """There is no library: the message says why."""


def library():
    """Return the compiled library, or None where there is none; `status` says why."""
    return _load()[0]


def status():
    """Say in a few words what there is, or why there is nothing."""
    return _load()[1]


def _load():
    global _found
    if _found is None:
        with _lock:
            if _found is None:
                _found = _first_load()
    return _found


def _first_load():
    if os.environ.get(SWITCH, "1") == "0":
        return None, f"{SWITCH}=0"
    try:
        path = build(shlex.split(os.environ.get(FLAGS_VARIABLE, "")))
        loaded = ctypes.CDLL(str(path))
    except (BuildFailed, OSError) as error:
        why = f"the C kernels are not compiled: {error}"
        _log.warning("%s; PyTorch's operations do the work", why)
        return None, why
    loaded.ulmfit_fast_features.restype = ctypes.c_char_p
    return loaded, loaded.ulmfit_fast_features().decode()


def build(flags=(), compiler=None):
    """Return the path of the library, compiled now or found in the cache.

    Args:
        flags: more of them for the compiler, which rule over the usual ones.
        compiler: its command as a list; None looks for $CC, cc, gcc and clang.

    Raises:
        BuildFailed: if nothing compiles it.
    """
    command = compiler or _compiler()
    digest = hashlib.sha256()
    sources = sorted(_SOURCES.glob("*.[ch]"))
    for source in sources:
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    for word in (*_COMMON, *_LOOPS, *flags, _version(tuple(command)), _cpu()):
        digest.update(word.encode() + b"\0")
    key = digest.hexdigest()[:24]
    folder = _cache_folder()
    for kept in folder.glob(f"{key}-*.so"):
        if kept.stem == f"{key}-{_digest_of(kept)}":
            return kept
    return _compile(command, sources, flags, folder, key)


def _compile(command, sources, flags, folder, key):
    units = [str(source) for source in sources if source.suffix == ".c"]
    error = ""
    for for_this_cpu in _FOR_THIS_CPU:
        # Written beside its place: what another process loads is whole.
        descriptor, name = tempfile.mkstemp(dir=folder, suffix=".tmp")
        os.close(descriptor)
        try:
            words = [*command, *_COMMON, *_LOOPS, *for_this_cpu, *flags, *units, "-o", name, "-lm"]
            error = _run(words)
            if not error:
                target = folder / f"{key}-{_digest_of(Path(name))}.so"
                os.replace(name, target)
                _log.info("compiled the C kernels: %s", shlex.join(words))
                return target
        finally:
            Path(name).unlink(missing_ok=True)
    raise BuildFailed(f"{shlex.join(command)} failed: {error}")


def _run(words):
    """Run a compiler; return an empty string, or what went wrong."""
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=_SECONDS, check=False, errors="replace"
        )
    except subprocess.TimeoutExpired:
        return f"it did not end in {_SECONDS} s"
    except OSError as error:
        return str(error)
    if done.returncode == 0:
        return ""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    wrong = [line for line in lines if "error" in line] or lines
    return wrong[0] if wrong else f"exit status {done.returncode}"


def _compiler():
    named = os.environ.get("CC")
    if named:
        return shlex.split(named)
    for name in ("cc", "gcc", "clang"):
        found = shutil.which(name)
        if found:
            return [found]
    raise BuildFailed("there is no C compiler (CC, cc, gcc, clang)")


@functools.lru_cache(maxsize=4)
def _version(command):
    try:
        done = subprocess.run(
            [*command, "--version"],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
            errors="replace",
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildFailed(f"{shlex.join(command)} does not run: {error}") from error
    return shlex.join(command) + done.stdout


def _cpu():
    """Return what tells this CPU's instructions from another's."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return " ".join(platform.uname())
    telling = ("model name", "flags", "Features", "CPU part")
    lines = {line for line in text.splitlines() if line.partition("\t")[0].strip() in telling}
    return platform.machine() + "".join(sorted(lines))


def _digest_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _cache_folder():
    named = os.environ.get(CACHE_VARIABLE)
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    for folder in ([Path(named)] if named else []) + [Path(home) / "ulmfit_fast"]:
        if _writable(folder):
            return folder
    # What is loaded from here runs: it must be this user's alone.
    folder = Path(tempfile.gettempdir()) / f"ulmfit_fast-{getattr(os, 'getuid', int)()}"
    if _writable(folder) and _own(folder):
        return folder
    return Path(tempfile.mkdtemp(prefix="ulmfit_fast-"))


def _writable(folder):
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _own(folder):
    found = folder.lstat()
    return (
        stat.S_ISDIR(found.st_mode)
        and found.st_uid == getattr(os, "getuid", int)()
        and not found.st_mode & 0o022
    )
