"""No source of the package runs what it reads, or unpacks it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "ulmfit_fast").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")])

# By the last two names of what is called; modules that do nothing else are refused whole.
FORBIDDEN = {
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads"),
    *("torch.jit.load", "jit.load", "export.load", "package.PackageImporter", "hub.load"),
    *("yaml.load", "yaml.unsafe_load", "os.system", "os.popen", "pandas.read_pickle"),
    *("shutil.unpack_archive", "importlib.import_module", "runpy.run_path", "code.interact"),
}
FORBIDDEN_NAMES = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_METHODS = {"extractall", "extract", "read_pickle", "unpack_archive"}
FORBIDDEN_MODULES = {"joblib", "dill", "cloudpickle", "shelve", "marshal", "yaml", "runpy"}


def faults_of(source: str) -> list[str]:
    """Return what a source may not do, by line."""
    faults = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            names = [module or "", *(alias.name for alias in node.names)]
            full = [f"{module}.{alias.name}" for alias in node.names]
            wrong = FORBIDDEN_MODULES & {name.split(".")[0] for name in names}
            faults += [f"{node.lineno}: import {name}" for name in wrong | (FORBIDDEN & {*full})]
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        last_two = ".".join(called.split(".")[-2:])
        options = {option.arg: ast.unparse(option.value) for option in node.keywords}
        wrong = (
            last_two in FORBIDDEN
            or called in FORBIDDEN_NAMES
            or called.split(".")[-1] in FORBIDDEN_METHODS
            or (last_two == "torch.load" and options.get("weights_only") != "True")
            or (last_two == "np.load" and options.get("allow_pickle", "False") != "False")
            or options.get("shell", "False") != "False"
            or options.get("trust_remote_code", "False") != "False"
        )
        if wrong:
            faults.append(f"{node.lineno}: {called}")
    return faults


# The public names that are imported when they are asked for stand in a table in the code.
AUDITED = {"ulmfit_fast/__init__.py": {"importlib.import_module"}}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_runs_what_it_reads(path: Path) -> None:
    allowed = AUDITED.get(str(path.relative_to(ROOT)), set())
    faults = faults_of(path.read_text(encoding="utf-8"))
    assert [fault for fault in faults if fault.split(": ")[1] not in allowed] == []


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load('a')",
        "torch.load('a', weights_only=False)",
        "from pickle import loads",
        "pickle.Unpickler(file).load()",
        "import joblib",
        "from joblib import load",
        "eval('1')",
        "exec(text)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(text, shell=True)",
        "tarfile.open(path).extractall()",
        "yaml.load(text)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "os.system(text)",
    ],
)
def test_the_scan_finds(source: str) -> None:
    assert faults_of(source)


def test_the_scan_lets_pass() -> None:
    fine = (
        "model.eval()\nnp.load(p, mmap_mode='r')\ntorch.load(p, weights_only=True)\nre.compile(x)"
    )
    assert faults_of(fine) == []
