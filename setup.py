"""Metadata of ulmfit-fast; tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

# A link into the repository leads nowhere from the package's page on an index: it becomes text.
README = re.sub(
    r"\[([^]]+)\]\((?!https?:)([^)#]+)[^)]*\)",
    r"\1 (\2)",
    Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
)
VERSION = Path(__file__).with_name("ulmfit_fast") / "system" / "version.py"
TEXT = ["tokenizers>=0.20", "safetensors>=0.4.3", "typer>=0.12", "rich>=13"]
SKLEARN = [*TEXT, "scikit-learn>=1.4"]
DATASETS = [*TEXT, "pyarrow>=15", "datasets>=2.18"]
EXCEL = [*TEXT, "openpyxl>=3.1"]
SPACY = [*TEXT, "spacy>=3.8,<4"]
DEMO = [*SKLEARN, "jinja2>=3.1", "matplotlib>=3.8", "networkx", "sympy"]
TEST = [
    *DEMO,
    "openpyxl>=3.1",
    "pyarrow>=15",
    "pandas>=2",
    "pytest>=8",
    "pytest-benchmark>=4",
    "hypothesis>=6.100",
    "setuptools>=64",
    "wheel",
]

setup(
    name="ulmfit-fast",
    version=re.findall(r'^__version__ = "(.+)"$', VERSION.read_text("utf-8"), flags=re.M)[0],
    description="Fast AWD-LSTM and ULMFiT for PyTorch: weight-drop and gate dropout in the LSTM",
    long_description=README,
    long_description_content_type="text/markdown",
    author="ulmfit_fast contributors",
    license="Apache-2.0",
    # The package itself has no public address yet.
    project_urls={
        "ULMFiT (paper)": "https://arxiv.org/abs/1801.06146",
        "AWD-LSTM (paper)": "https://arxiv.org/abs/1708.02182",
    },
    keywords=["ULMFiT", "AWD-LSTM", "LSTM", "text classification", "language model", "PyTorch"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Environment :: Console",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Text Processing :: Linguistic",
        "Typing :: Typed",
    ],
    python_requires=">=3.10",
    install_requires=["torch>=2.10", 'triton>=3.6; platform_system == "Linux"', "numpy>=1.26"],
    extras_require={
        "text": TEXT,
        "sklearn": SKLEARN,
        "datasets": DATASETS,
        "excel": EXCEL,
        "spacy": SPACY,
        "hub": [*TEXT, "huggingface_hub>=0.23"],
        "compat": [*SPACY, "fastai>=2.8.7", "accelerate>=1"],
        "tensorboard": ["tensorboard>=2.15"],
        # What the tests hand a layer and a table to; nothing of the package imports these.
        "interop": ["polars>=1", "onnx>=1.16", "onnxscript>=0.3", "onnxruntime>=1.18"],
        "demo": DEMO,
        "test": TEST,
        "bench": ["pytest>=8", "pytest-benchmark>=4", "matplotlib>=3.8"],
        "docs": [
            *("mkdocs>=1.6,<2", "mkdocstrings[python]>=1", "pymdown-extensions"),
            *("nbconvert>=7.16", "ipykernel>=6.29"),
        ],
        "fuzz": [*TEXT, "pyarrow>=15", "hypothesis>=6.100", "atheris>=2.3"],
        "dev": [*TEST, "pytest-xdist>=3.5", "ruff", "mypy"],
    },
    packages=[
        *find_packages(include=["ulmfit_fast", "ulmfit_fast.*"]),
        *("ulmfit_fast.kernels", "ulmfit_fast.kernels.cpu"),
    ],
    # The kernels' sources stand at top level, like a csrc/, and are shipped inside the package.
    package_dir={"ulmfit_fast.kernels": "kernels", "ulmfit_fast.kernels.cpu": "kernels/cpu"},
    package_data={
        "ulmfit_fast": ["py.typed"],
        "ulmfit_fast.kernels": ["*.md"],
        # Compiled where they are used, for the CPU that is there.
        "ulmfit_fast.kernels.cpu": ["*.c", "*.h"],
        "ulmfit_fast.report": ["*.jinja"],
    },
    entry_points={"console_scripts": ["ulmfit-fast = ulmfit_fast.cli.program:main"]},
)
