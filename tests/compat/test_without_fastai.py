"""What holds where fastai is missing; the other tests of this folder are skipped there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ulmfit_fast.compat.fastai import accelerate, restore
from ulmfit_fast.compat.fastai_learner import WeightDropLSTM

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("function", [accelerate, restore])
def test_a_missing_fastai_is_named_with_its_mend(monkeypatch, function):
    for name in ("fastai", "fastai.text.models.awdlstm"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install 'ulmfit-fast\[compat\]'"):
        function(torch.nn.Linear(2, 2))


def test_the_compat_package_imports_no_fastai():
    script = "import sys, ulmfit_fast.compat; print('fastai' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (run.returncode, run.stdout.strip()) == (0, "False"), run.stderr


def test_a_layer_has_the_names_of_fastai():
    names = ["weight_hh_l0_raw", "module.weight_ih_l0", "module.bias_ih_l0", "module.bias_hh_l0"]
    assert list(WeightDropLSTM(3, 4).state_dict()) == names
    both = list(WeightDropLSTM(3, 4, bidirectional=True).state_dict())
    reverse = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]
    assert both == [*names, *(f"module.{name}_l0_reverse" for name in reverse)]
