"""What a wheel holds, and that the kernels resolve from a checkout and from an install."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KERNELS = {".py", ".md", ".c", ".h"}
LAZY = ["triton", "tokenizers", "safetensors", "typer", "rich", "jinja2", "matplotlib", "sklearn"]


def python(code, *arguments, **kwargs):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
        **kwargs,
    ).stdout.strip()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build a wheel from a copy of the sources, without network or build isolation."""
    return wheel_of(copy_of_sources(tmp_path_factory), tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Build the archive of the sources in the same way."""
    copy, out = copy_of_sources(tmp_path_factory), tmp_path_factory.mktemp("archive")
    command = [sys.executable, "setup.py", "--quiet", "sdist", "--dist-dir", str(out)]
    subprocess.run(command, cwd=copy, check=True)
    (path,) = out.glob("ulmfit_fast-*.tar.gz")
    return path


def copy_of_sources(tmp_path_factory):
    copy = tmp_path_factory.mktemp("source")
    for name in ("ulmfit_fast", "kernels"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, copy / name, ignore=ignore)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    return copy


def wheel_of(source, out):
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*command, "--no-build-isolation", "-w", str(out), str(source)], check=True)
    (path,) = out.glob("ulmfit_fast-*.whl")
    return path


def test_wheel_holds_one_package_with_the_kernels_inside(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"ulmfit_fast"}
    kernels = [path for path in (ROOT / "kernels").rglob("*.*") if path.suffix in KERNELS]
    assert {path.suffix for path in kernels} == KERNELS
    for path in kernels:
        assert f"ulmfit_fast/{path.relative_to(ROOT).as_posix()}" in names
    assert "ulmfit_fast/py.typed" in names
    for path in (ROOT / "ulmfit_fast").rglob("*.*"):
        if path.suffix in {".py", ".jinja"}:
            assert path.relative_to(ROOT).as_posix() in names


def test_wheel_names_the_program_and_the_licence(wheel):
    archive = zipfile.ZipFile(wheel)
    (entry,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
    assert "ulmfit-fast = ulmfit_fast.cli.program:main" in archive.read(entry).decode()
    (metadata,) = (name for name in archive.namelist() if name.endswith("METADATA"))
    text = archive.read(metadata).decode()
    assert "Apache-2.0" in text and "\nAuthor: ulmfit_fast contributors\n" in text
    assert "\nClassifier: Typing :: Typed\n" in text and "\nKeywords: ULMFiT," in text
    core = [line for line in text.splitlines() if line.startswith("Requires-Dist")]
    core = [line.split()[1] for line in core if "extra ==" not in line]
    assert sorted(name.split(">")[0].rstrip(";") for name in core) == ["numpy", "torch", "triton"]


def test_no_link_of_the_description_leads_nowhere(wheel):
    archive = zipfile.ZipFile(wheel)
    (metadata,) = (name for name in archive.namelist() if name.endswith("METADATA"))
    text = archive.read(metadata).decode()
    assert "stage by stage (docs/tutorial.md)" in text
    assert not re.search(r"\]\((?!https?:)", text)


def test_kernels_has_no_init_that_would_shadow_another_package():
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_kernels_resolve_from_an_unpacked_wheel(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = "import ulmfit_fast.kernels as k; print(list(k.__path__)[0])"
    where = python(code, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path), "PATH": ""})
    assert Path(where) == tmp_path / "ulmfit_fast" / "kernels"


def test_a_wheel_of_the_archive_holds_the_same(wheel, archive, tmp_path):
    second = wheel_of(archive, tmp_path)
    assert sorted(zipfile.ZipFile(second).namelist()) == sorted(zipfile.ZipFile(wheel).namelist())


LAYER = """
import sys
sys.path[:0] = sys.argv[1:]
import torch
import ulmfit_fast
from ulmfit_fast.kernels.cpu import library, lstm
if library.library() is None:
    print(library.status())
else:
    x, state = torch.randn(3, 2, 5), torch.zeros(2, 7)
    weights = torch.randn(28, 5), torch.randn(28, 7)
    masks = lstm.Masks(1, (0.0,) * 4, (0.0,) * 4, False, 0)
    output, *_ = lstm.forward(x, state, state, weights, None, None, masks, keep=False)
    plain = torch.nn.LSTM(5, 7, bias=False)
    with torch.no_grad():
        plain.weight_ih_l0.copy_(weights[0])
        plain.weight_hh_l0.copy_(weights[1])
        torch.testing.assert_close(output, plain(x)[0])
    print("right")
print(library._SOURCES)
"""


@pytest.mark.parametrize("place", ["checkout", "wheel"])
def test_the_c_kernels_are_compiled_from_a_checkout_and_from_an_unpacked_wheel(
    wheel, tmp_path, place
):
    folder = ROOT
    if place == "wheel":
        folder = tmp_path / "site"
        zipfile.ZipFile(wheel).extractall(folder)
    # Without PYTHONPATH, which would name the checkout.
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    # That they are found and run is asked here; tests of the library compile them at their best.
    environment["ULMFIT_FAST_CFLAGS"] = "-O0"
    result, where = python(LAYER, folder, cwd=tmp_path, env=environment).splitlines()
    kernels = folder / "kernels" if place == "checkout" else folder / "ulmfit_fast" / "kernels"
    assert Path(where) == kernels / "cpu"
    if any(map(shutil.which, ("cc", "gcc", "clang"))):
        assert result == "right"
    else:
        assert result == "there is no C compiler (CC, cc, gcc, clang)"


def test_kernels_resolve_from_a_checkout():
    code = "import ulmfit_fast.kernels as k; print(list(k.__path__)[0])"
    where = python(code, cwd=ROOT, env={"PYTHONPATH": str(ROOT), "PATH": ""})
    assert Path(where) == ROOT / "kernels"


def test_import_is_quiet_and_takes_nothing_but_torch():
    code = f"import sys, ulmfit_fast; print([m for m in {LAZY} if m in sys.modules])"
    assert python(code, cwd=ROOT) == "[]"


def test_importing_the_estimator_does_not_need_the_demo_extra():
    code = (
        "import sys\n"
        "for name in ('matplotlib', 'sklearn', 'networkx.algorithms', 'typer'):\n"
        "    sys.modules[name] = None\n"
        "import ulmfit_fast; print(ulmfit_fast.ULMFiT.__name__)"
    )
    assert python(code, cwd=ROOT) == "ULMFiT"
