"""No source of the package runs what it reads, or makes tensors of the caller's default dtype."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
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


# What is imported when it is asked for is a submodule that stands in the package's own directory.
AUDITED = {"ulmfit_fast/system/lazy.py": {"importlib.import_module"}}


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


# Everything that PyTorch's default dtype or device would decide, and what it has to be told.
BOTH = {"dtype", "device"}
MAKERS = {
    **dict.fromkeys(
        (
            *("torch.empty", "torch.zeros", "torch.ones", "torch.full", "torch.arange"),
            *("torch.tensor", "torch.as_tensor", "torch.asarray", "torch.scalar_tensor"),
            *("torch.rand", "torch.randn", "torch.randint", "torch.randperm", "torch.normal"),
            *("torch.linspace", "torch.logspace", "torch.eye", "torch.empty_strided"),
            *("nn.Linear", "nn.Embedding", "nn.LSTM", "nn.BatchNorm1d", "_BatchNorm"),
            *("LSTM", "WeightDropLSTM", "AWDLSTM", "LanguageModel", "TextClassifier"),
        ),
        BOTH,
    ),
    "torch.Tensor": {"another maker"},
    "torch.Generator": {"device"},
}


def undecided(source: str) -> list[str]:
    """Return the calls of a source that leave their dtype or device to PyTorch's default."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {option.arg: ast.unparse(option.value) for option in node.keywords}
        needed = MAKERS.get(called, set())
        if given.get("device") in ("'meta'", '"meta"'):
            # What has no values gets those of a state_dict, and their dtype.
            needed = needed - {"dtype"}
        # `**made` passes on what the caller was told.
        if needed - given.keys() and None not in given:
            found.append(f"{node.lineno}: {called}")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_tensors_say_their_dtype_and_device(path: Path) -> None:
    assert undecided(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "torch.zeros(3, device=x.device)",
        "torch.tensor([1], dtype=torch.int64)",
        "nn.Linear(3, 4)",
        "torch.Generator().manual_seed(1)",
        "torch.Tensor([1.0])",
        "LanguageModel(config, dtype=torch.float32)",
    ],
)
def test_the_scan_for_defaults_finds(source: str) -> None:
    assert undecided(source)


def test_the_scan_for_defaults_lets_pass() -> None:
    fine = (
        "x.new_zeros(3)\nnn.Linear(3, 4, **made)\nLanguageModel(config, device='meta')\n"
        "torch.zeros(3, dtype=x.dtype, device=x.device)\ntorch.Generator(device='cpu')"
    )
    assert undecided(fine) == []
