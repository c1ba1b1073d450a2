"""What the package offers can be found right after its import, whatever was imported before."""

import importlib
import inspect
import operator
import os
import pkgutil
import pydoc
import subprocess
import sys
from pathlib import Path

import pytest

import ulmfit_fast as uf

ROOT = Path(__file__).parents[2]
# The program is run, not imported.
PACKAGES = sorted(
    path.parent.name
    for path in (ROOT / "ulmfit_fast").glob("*/__init__.py")
    if path.parent.name != "cli"
)
HEAVY = ["datasets", "fastai", "matplotlib", "pandas", "pyarrow", "rich", "safetensors", "sklearn"]
HEAVY += ["spacy", "tensorboard", "tokenizers", "typer"]


def fresh(program, *, fails=False):
    """Run a program in a new process that has imported nothing; return what it prints."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment
    )
    assert (done.returncode != 0) == fails, done.stderr
    return done.stderr if fails else done.stdout


def public(module):
    return [name for name in dir(module) if not name.startswith("__")]


def test_every_submodule_and_public_name_is_listed():
    for module in (uf, *(getattr(uf, name) for name in PACKAGES)):
        listed = dir(module)
        assert listed == sorted(set(listed))
        assert set(getattr(module, "__all__", ())) <= set(listed)
        for found in pkgutil.iter_modules(module.__path__[:1]):
            program = found.name.startswith(("_", "cli"))
            assert program or found.name in listed
        assert {"__name__", "__doc__", "__file__"} <= set(listed)
        assert not {"annotations", "TYPE_CHECKING", "lazy_attributes"} & set(listed)
    assert {"ULMFiT", "ULMFiTClassifier", "find_lr", "data", "report", "serving"} <= set(dir(uf))
    assert {"accelerate", "from_fastai"} <= set(dir(uf.compat.fastai))
    assert {"quantize", "export_classifier", "int8"} <= set(dir(uf.serving))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process for each name takes long by spawn")
def test_each_name_is_there_first_as_it_is_last():
    names = [f"uf.{name}" for name in public(uf)]
    names += [
        f"uf.{package}.{name}" for package in PACKAGES for name in public(getattr(uf, package))
    ]
    # Whatever is asked of a module first, what it imports is the same.
    sources = {}
    for name in names:
        value = operator.attrgetter(name.removeprefix("uf."))(uf)
        source = getattr(value, "__module__", getattr(value, "__name__", name))
        sources.setdefault(source if source.startswith("ulmfit_fast") else name, name)
    out = fresh(
        "import os, ulmfit_fast as uf\n"
        "before = dir(uf)\n"
        f"for name in {list(sources.values())}:\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        try:\n"
        "            eval(name)\n"
        "        except BaseException as error:\n"
        "            print(name, repr(error), flush=True)\n"
        "        os._exit(0)\n"
        "    os.waitpid(child, 0)\n"
        f"found = [eval(name) for name in {names}]\n"
        "print(dir(uf) == before, len(found))\n"
    )
    assert out == f"True {len(names)}\n"
    assert len(names) > 150 and len(sources) > 60


def test_the_import_brings_nothing_heavy():
    uses = "dir(uf)", "uf.data, uf.serving, uf.runs, uf.find_lr, uf.compat.fastai, uf.ULMFiT"
    found = f"print([name for name in {HEAVY} if name in sys.modules])"
    program = "".join(f"{use}\n{found}\n" for use in uses)
    assert fresh(f"import sys, ulmfit_fast as uf\n{program}") == "[]\n" * 2


def test_everything_comes_with_a_star():
    out = fresh(
        "from ulmfit_fast import *\nprint(*sorted(n for n in dir() if n != '__builtins__'))"
    )
    names = out.split()
    assert set(uf.__all__) <= set(names)
    assert set(names) - set(uf.__all__) <= {name for name in names if name.startswith("__")}


def test_what_needs_a_package_that_is_missing_is_not_offered_and_says_so():
    block = "import sys; sys.modules['sklearn'] = None\n"
    out = fresh(
        block + "import inspect, pydoc, ulmfit_fast as uf\n"
        "from ulmfit_fast import *\n"
        "names = {*dir(uf), *uf.__all__, *dir()}\n"
        "print(sorted({'ULMFiT', 'ULMFiTClassifier', 'sklearn_classifier'} & names))\n"
        "inspect.getmembers(uf)\n"
    )
    assert out == "['ULMFiT']\n"
    error = fresh(block + "import ulmfit_fast as uf\nuf.ULMFiTClassifier", fails=True)
    assert error.splitlines()[-1].endswith("pip install 'ulmfit-fast[sklearn]'")


@pytest.mark.parametrize(
    ("module", "name", "near"),
    [
        ("ulmfit_fast", "ULMfit", "ULMFiT"),
        ("ulmfit_fast", "UlmFit", "ULMFiT"),
        ("ulmfit_fast", "Lstm", "LSTM"),
        ("ulmfit_fast", "find_Ir", "find_lr"),
        ("ulmfit_fast", "date", "data"),
        ("ulmfit_fast.optim", "SlantedTriangularLr", "SlantedTriangularLR"),
        ("ulmfit_fast.nn", "Lstm", "LSTM"),
        ("ulmfit_fast.data", "Tokeniser", "Tokenizer"),
        ("ulmfit_fast.data", "read_labeled", "read_labelled"),
        ("ulmfit_fast.serving", "quantise", "quantize"),
        ("ulmfit_fast.presets", "fastai_07", "fastai07"),
    ],
)
def test_a_misspelt_name_is_told_the_near_one(module, name, near):
    with pytest.raises(AttributeError) as caught:
        getattr(importlib.import_module(module), name)
    message = f"module {module!r} has no attribute {name!r}. Did you mean: {near!r}?"
    assert str(caught.value) == message
    assert not hasattr(importlib.import_module(module), name)


def test_a_name_like_none_and_a_probe_suggest_nothing():
    for name in ("xyzzy", "_lstm", "__wrapped__"):
        with pytest.raises(AttributeError, match=f"no attribute '{name}'$"):
            getattr(uf, name)


def test_the_suggestion_is_made_once():
    error = fresh("import ulmfit_fast as uf\nuf.ULMfit", fails=True)
    assert error.lower().count("did you mean") == 1


def test_help_shows_it():
    text = pydoc.plain(pydoc.render_doc(uf))
    assert "class ULMFiT(" in text and "class LSTM(" in text and "find_lr(" in text
    assert inspect.getdoc(uf.find_lr)


@pytest.mark.slow
def test_type_checkers_see_it(tmp_path):
    pytest.importorskip("mypy")
    program = tmp_path / "program.py"
    names = ["ULMFiT", "find_lr", "data.Tokenizer", "report.write_report", "serving.quantize"]
    names += ["compat.fastai.accelerate", "presets.paper", "runs.Run", "LSTM", "training.settings"]
    program.write_text("import ulmfit_fast as uf\n" + "".join(f"uf.{name}\n" for name in names))
    with program.open("a") as file:
        file.write("uf.ULMfit\nuf.data.tokeniser\n")
    # PyTorch's own sources say nothing of our names, and take most of the time.
    mypy = [sys.executable, "-m", "mypy", "--strict", "--no-site-packages"]
    done = subprocess.run(
        [*mypy, "--cache-dir", tmp_path / "cache", program],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"MYPYPATH": str(ROOT)},
    )
    lines = [line for line in done.stdout.splitlines() if "program.py" in line]
    assert len(lines) == 2, done.stdout
    assert '"ULMfit"' in lines[0] and '"tokeniser"' in lines[1]
