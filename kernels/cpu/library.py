"""The C kernels of a CPU: compiled at first use by the system's compiler, kept in a cache folder.

As Triton does with the kernels of a GPU. A library is kept under the digest of its sources, its
flags, the compiler and the CPU, so that none is ever taken for another's; its name holds its own
digest too, so that a torn one is compiled again. What was compiled answers a few questions before
it is used. Without a compiler, or with ULMFIT_FAST_NATIVE=0, PyTorch's operations do the work.
"""

import atexit
import contextlib
import ctypes
import functools
import hashlib
import logging
import math
import os
import platform
import re
import shlex
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

__all__ = [
    "CACHE_VARIABLE",
    "FLAGS_VARIABLE",
    "SWITCH",
    "BuildFailed",
    "NoCompiler",
    "build",
    "library",
    "status",
]

SWITCH = "ULMFIT_FAST_NATIVE"
CACHE_VARIABLE = "ULMFIT_FAST_CACHE"
FLAGS_VARIABLE = "ULMFIT_FAST_CFLAGS"

_log = logging.getLogger("ulmfit_fast")
_SOURCES = Path(__file__).parent
# How long a compiler may take, which needs three; and another process, whose library one waits for.
_SECONDS = 300
# NaN and infinity keep their meaning: what these promise is that nobody looks at errno, or at the
# exceptions of floating point.
_COMMON = (
    *("-std=gnu11", "-O3", "-fPIC", "-shared", "-fvisibility=hidden"),
    *("-fno-math-errno", "-fno-trapping-math"),
)
# The first that the compiler takes: Clang for ARM calls it -mcpu, Apple's knows no OpenMP.
_FOR_THIS_CPU = (
    ("-march=native", "-fopenmp"),
    ("-mcpu=native", "-fopenmp"),
    ("-march=native",),
    ("-mcpu=native",),
    (),
)
# So many are kept, and any that a process has loaded this month: where a folder is another
# machine's, what is unlinked is gone for those that run it.
_KEPT, _DAYS = 8, 30
_NAME = re.compile(r"[0-9a-f]{24}-[0-9a-f]{16}\.so")
_BUILDING = ".ulmfit-fast-building-"
_FULL = ("No space left on device", "Disk quota exceeded")
# Of check.c: the seed, the folded words of `ulmfit_fast.rng.philox`, and the bytes of a `dropout`.
_CHECK_SEED, _CHECK_WORDS, _CHECK_SIZE = 0x0123456789ABCDEF, 0x296429B6, 48
_lock = threading.Lock()
_found = None


class BuildFailed(RuntimeError):
    """There is no library: the message says why."""


class NoCompiler(BuildFailed):
    """There is nothing to build with, which is no fault of anything."""


class _Recipe(NamedTuple):
    """What a library is made of, and the digest of all of it."""

    command: list
    flags: tuple
    units: list
    key: str


def _after_fork():
    global _lock
    # A thread of the parent that is no more may have held it.
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def library():
    """Return the compiled library, or None where there is none; `status` says why."""
    return _load()[0]


def status():
    """Say in a few words what the library is, or why there is none."""
    return _load()[1]


def _load():
    global _found
    if _found is None:
        with _lock:
            if _found is None:
                _found = _first_load()
    return _found


def _first_load():
    if os.environ.get(SWITCH, "").strip() == "0":
        return None, _log_absence(f"{SWITCH}=0", logging.INFO)
    if os.name != "posix":
        return None, _log_absence(f"they are not built on {platform.system()}", logging.INFO)
    try:
        recipe = _recipe(_split_variable(FLAGS_VARIABLE), None)
        loaded = _in_first_folder(recipe, lambda folder: _load_checked(recipe, folder))
    except NoCompiler as error:
        return None, _log_absence(str(error), logging.INFO)
    except BuildFailed as error:
        return None, _log_absence(str(error), logging.WARNING)
    return loaded, loaded.ulmfit_fast_features().decode()


def _log_absence(why, level):
    _log.log(level, "no C kernels: %s; PyTorch's operations do the work", why)
    return why


def build(flags=(), compiler=None):
    """Return the path of the library, compiled now or found in the cache.

    Args:
        flags: more of them for the compiler, which rule over the usual ones.
        compiler: its command as a list; None looks for $CC, cc, gcc and clang.

    Raises:
        BuildFailed: if nothing compiles it, or there is nowhere to keep it.
    """
    recipe = _recipe(tuple(flags), compiler)
    return _in_first_folder(recipe, lambda folder: _find_or_build(recipe, folder))


def _in_first_folder(recipe, use):
    """Use the first folder that can be written to, and loaded from."""
    why = "there is no folder to keep them in"
    for folder in _folders():
        try:
            return use(folder)
        except OSError as error:
            why = str(error)
    raise BuildFailed(why)


def _load_checked(recipe, folder):
    """Load the library and ask it what is known."""
    path = _find_or_build(recipe, folder)
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError:
        if path.exists():
            raise
        # It was an old one, and another process took it away.
        loaded = ctypes.CDLL(str(_find_or_build(recipe, folder)))
    wrong = _self_check(loaded)
    if wrong:
        command = shlex.join(recipe.command)
        raise BuildFailed(f"what {command} compiled fails its own check: {wrong}")
    return loaded


def _self_check(loaded):
    try:
        loaded.ulmfit_fast_features.restype = ctypes.c_char_p
        words, size = loaded.ulmfit_fast_check_philox, loaded.ulmfit_fast_check_size
        tanh, product = loaded.ulmfit_fast_check_tanh, loaded.ulmfit_fast_check_product
    except AttributeError as error:
        return str(error)
    words.restype, size.restype, tanh.restype = ctypes.c_uint32, ctypes.c_int64, None
    if words(ctypes.c_uint64(_CHECK_SEED)) != _CHECK_WORDS:
        return "other random numbers"
    if size() != _CHECK_SIZE:
        return "another layout of structures"
    if not product():
        return "other products in bfloat16"
    points = [-math.inf, -3.0, -0.1, 0.0, 0.1, 0.7, 3.0, math.inf, *(math.nan,) * 11]
    values = (ctypes.c_float * len(points))(*points)
    tanh(values, ctypes.c_int64(len(points)))
    for x, value in zip(points, values, strict=True):
        right = math.isnan(value) if math.isnan(x) else abs(value - math.tanh(x)) < 1e-6
        if not right:
            return f"tanh({x}) = {value}"
    return ""


def _recipe(flags, compiler):
    command = list(compiler or _compiler())
    sources = sorted(_SOURCES.glob("*.[ch]"))
    units = [str(source) for source in sources if source.suffix == ".c"]
    if not units:
        raise BuildFailed(f"the sources are not in {_SOURCES}")
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    told = (*_COMMON, *map(str, _FOR_THIS_CPU), *flags)
    for word in (*told, _version(tuple(command)), _cpu(), *platform.libc_ver()):
        digest.update(word.encode(errors="surrogateescape") + b"\0")
    return _Recipe(command, flags, units, digest.hexdigest()[:24])


def _find_or_build(recipe, folder):
    kept = _find_built(recipe, folder)
    if kept is None:
        with _build_lock(folder):
            kept = _find_built(recipe, folder) or _compile(recipe, folder)
    with contextlib.suppress(OSError):
        os.utime(kept)
    return kept


def _find_built(recipe, folder):
    for path in sorted(folder.glob(f"{recipe.key}-*.so")):
        with contextlib.suppress(OSError):
            if path.stem == f"{recipe.key}-{_digest_of(path)}":
                return path
    return None


def _compile(recipe, folder):
    # Made beside its place and moved there: what another process loads is whole.
    with tempfile.TemporaryDirectory(dir=folder, prefix=_BUILDING) as work:
        made = Path(work) / "kernels.so"
        for for_this_cpu in _FOR_THIS_CPU:
            words = [*recipe.command, *_COMMON, *for_this_cpu, *recipe.flags]
            words += [*recipe.units, "-o", str(made), "-lm"]
            done = _run(words, TMPDIR=work)
            if done.returncode == 0 and made.is_file():
                break
        else:
            if any(text in done.stderr for text in _FULL):
                raise OSError(f"{folder} is full")
            raise BuildFailed(f"{shlex.join(recipe.command)} failed: {_first_error(done)}")
        _log.info("compiled the C kernels: %s", shlex.join(words))
        target = folder / f"{recipe.key}-{_digest_of(made)}.so"
        os.replace(made, target)
    _remove_stale(folder, target)
    return target


def _first_error(done):
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    wrong = [line for line in lines if "error" in line] or lines
    if wrong:
        return wrong[0]
    return f"exit status {done.returncode}" if done.returncode else "it wrote nothing"


def _remove_stale(folder, newest):
    """Remove torn libraries of the same key, and what nobody has used for long."""
    now = time.time()
    with contextlib.suppress(OSError):
        libraries = [path for path in folder.glob("*.so") if _NAME.fullmatch(path.name)]
        ages = {path: now - path.lstat().st_mtime for path in libraries if path != newest}
        torn = {path for path in ages if path.name[:24] == newest.name[:24]}
        old = sorted(ages.keys() - torn, key=ages.__getitem__)[_KEPT - 1 :]
        for path in torn | {path for path in old if ages[path] > _DAYS * 86400}:
            path.unlink(missing_ok=True)
    for left in folder.glob(f"{_BUILDING}*"):
        # Of a process that was killed.
        with contextlib.suppress(OSError):
            if now - left.stat().st_mtime > 86400:
                shutil.rmtree(left)


def _run(words, **environment):
    """Run a compiler, whose messages are in English, and end all that it started with it."""
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
            env={**os.environ, "LC_ALL": "C", **environment},
        )
    except (OSError, ValueError) as error:
        raise BuildFailed(f"{words[0]} does not run: {error}") from error
    with process:
        try:
            out, wrong = process.communicate(timeout=_SECONDS)
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            raise BuildFailed(f"{words[0]} did not end in {_SECONDS} s") from error
    return subprocess.CompletedProcess(words, process.returncode, out, wrong)


def _compiler():
    named = _split_variable("CC")
    if named:
        return named
    for name in ("cc", "gcc", "clang"):
        found = shutil.which(name)
        if found:
            return [found]
    raise NoCompiler("there is no C compiler (CC, cc, gcc, clang)")


def _split_variable(variable):
    value = os.environ.get(variable, "")
    try:
        return tuple(shlex.split(value))
    except ValueError as error:
        raise BuildFailed(f"{variable} is {value!r}: {error}") from error


@functools.lru_cache(maxsize=4)
def _version(command):
    done = _run([*command, "--version"])
    return shlex.join(command) + done.stdout + done.stderr


@functools.lru_cache(maxsize=1)
def _cpu():
    """Return what tells this CPU's instructions from another's."""
    names = {"model name", "flags", "Features", "CPU implementer", "CPU part", "isa", "cpu"}
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        lines = {line for line in text.splitlines() if line.partition(":")[0].strip() in names}
    except OSError:
        # Of macOS.
        with contextlib.suppress(BuildFailed):
            text = _run(["sysctl", "machdep.cpu"]).stdout
        lines = set(text.splitlines())
    return "\n".join([platform.machine(), *sorted(lines)])


def _digest_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _folders():
    """Yield the folders to keep a library in; what is loaded from them runs.

    So each is this user's alone, but for one that the user named.
    """
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        folder = Path(os.path.abspath(os.path.expanduser(named)))
        if _make_folder(folder):
            yield folder
    caches = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(caches):
        caches = os.path.expanduser("~/.cache")
    # A user without a home has "~" for one.
    if os.path.isabs(caches):
        folder = Path(caches) / "ulmfit_fast"
        if _make_folder(folder) and _is_private(folder):
            yield folder
    with contextlib.suppress(OSError):
        folder = Path(tempfile.gettempdir()) / f"ulmfit_fast-{os.getuid()}"
        if _make_folder(folder) and _is_private(folder):
            yield folder
        folder = Path(tempfile.mkdtemp(prefix="ulmfit_fast-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        yield folder


def _make_folder(folder):
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder.is_dir()


def _is_private(folder):
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022


@contextlib.contextmanager
def _build_lock(folder):
    """Wait for another process that compiles, as long as a compiler may take."""
    import fcntl

    try:
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError:
        # Another user's, in a folder for several; or of a folder that cannot be written to at all.
        yield
        return
    try:
        end = time.monotonic() + _SECONDS
        while time.monotonic() < end:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.05)
            except OSError:
                # A file system without locks: both compile, and the last one's is kept.
                break
        yield
    finally:
        # Not by closing alone: a process that was forked meanwhile has the descriptor too.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)
