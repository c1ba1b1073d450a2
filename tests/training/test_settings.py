"""Each setting by itself and beside the others: what is taken, what is refused, and why."""

import math

import numpy as np
import pytest

from ulmfit_fast.training.precision import Precision
from ulmfit_fast.training.settings import at_stage
from ulmfit_fast.training.stages import TrainingSettings
from ulmfit_fast.ulmfit.settings import training_settings

STAGED = {"gradual_unfreezing": 1, "schedule_per": "stage"}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"optimizer": "lamb"}, "optimizer is 'lamb', expected one of adam, adamw, sgd, nt_asgd"),
        ({"schedule": True}, "schedule is True, expected one of slanted, one_cycle, cosine, con"),
        ({"schedule_per": "epoch"}, "schedule_per is 'epoch', expected one of run, stage"),
        ({"group_order": "width"}, "group_order is 'width', expected one of depth, fastai"),
        ({"precision": "fp16"}, "precision is 'fp16', expected one of float32, bfloat16, float16"),
        ({"chain_thaw": 1}, "chain_thaw is 1, expected True or False"),
        ({"random_bptt": "yes"}, "random_bptt is 'yes', expected True or False"),
        ({"rescale_lr": None}, "rescale_lr is None, expected True or False"),
        ({"nonmono": 0}, "nonmono is 0, expected a whole number, at least 1"),
        ({"epochs": True}, "epochs is True, expected a whole number"),
        ({"factor": 0.0}, "factor is 0.0, expected a positive number"),
        ({"eps": -1.0}, "eps is -1.0, expected a positive number"),
        ({"lr": "fast"}, "lr is 'fast', expected a positive number"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1, expected a number, at least 0"),
        ({"alpha": math.nan}, "alpha is nan, expected a number, at least 0"),
        ({"beta": math.inf}, "beta is inf"),
        ({"div": 0.5}, "div is 0.5, expected a number, at least 1"),
        ({"div_final": 0.0}, "div_final is 0.0"),
        ({"ratio": 0.5}, r"ratio is 0.5, expected a number, at least 1 \(math.inf allowed\)"),
        ({"valid_share": 1.0}, r"valid_share is 1.0, expected a share in \[0, 1\)"),
        ({"label_smoothing": -0.1}, "label_smoothing is -0.1, expected a share in"),
        ({"betas": (0.9,)}, r"betas is \(0.9,\), expected 2 numbers in \[0, 1\)"),
        ({"betas": None}, "betas is None, expected 2 numbers"),
        ({"betas": (0.9, 1.0)}, "betas is .*, expected 2 numbers"),
        ({"moms": (0.8, 0.7)}, "moms is .*, expected 3 numbers"),
        ({"cut_frac": 0.0}, "cut_frac is 0.0, expected one or several shares between 0 and 1"),
        ({"cut_frac": (), **STAGED}, r"cut_frac is \(\), expected one or several shares"),
        ({"pct_start": (0.3, 1.0), **STAGED}, r"pct_start is \(0.3, 1.0\), expected one or"),
        ({"lr_decay": 0.0, **STAGED}, "lr_decay is 0.0, expected one or several positive"),
        ({"lr_multipliers": ()}, r"lr_multipliers is \(\), expected a positive number for each"),
        ({"lr_multipliers": (1.0, 0.0)}, "lr_multipliers is .*, expected a positive number"),
        ({"lr_multipliers": 2.0}, "lr_multipliers is 2.0, expected a positive number for each"),
        ({"gradual_unfreezing": 1.5}, "gradual_unfreezing is 1.5, .* or a sequence of numbers"),
        ({"gradual_unfreezing": (1, 0)}, r"gradual_unfreezing is \(1, 0\), .* each at least 1"),
        ({"gradual_unfreezing": "11"}, "gradual_unfreezing is '11', expected a number of epochs"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_value_out_of_its_range_is_named(setting, message):
    with pytest.raises(ValueError, match=message):
        TrainingSettings(**setting)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"chain_thaw": True}, "chain_thaw is True and gradual_unfreezing is 0.*pass grad.*=1"),
        ({"lr_decay": 0.5}, "lr_decay is 0.5, which is for stages, and there is no unfreezing"),
        ({"cut_frac": (0.1, 0.2)}, "cut_frac is .*, and there is no unfreezing plan"),
        ({"reset_optimizer": True}, "reset_optimizer is True, .* no unfreezing plan"),
        (
            {"lr_decay": 0.5, "gradual_unfreezing": 1},
            'and one schedule spans the run; pass schedule_per="stage"',
        ),
        ({"pct_start": [0.1], "gradual_unfreezing": 1}, "pct_start is .* spans the run"),
        (
            {"optimizer": "nt_asgd", "reset_optimizer": True, **STAGED},
            "would forget the averages of nt_asgd",
        ),
        ({"capture": True, "optimizer": "sgd"}, 'needs optimizer="adam" or "adamw"'),
        ({"capture": True, "optimizer": "nt_asgd"}, 'needs optimizer="adam" or "adamw"'),
        ({"capture": True, "random_bptt": True}, "leave random_bptt out"),
        ({"capture": True, "precision": "float16"}, "leave float16 out"),
        ({"capture": True, "schedule": "one_cycle"}, "pass moms=None"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_settings_that_do_not_go_together(setting, message):
    with pytest.raises(ValueError, match=message):
        TrainingSettings(**setting)


def test_what_goes_together():
    TrainingSettings(capture=True, schedule="one_cycle", moms=None, precision="bfloat16")
    TrainingSettings(gradual_unfreezing=1, chain_thaw=True, reset_optimizer=True)
    TrainingSettings(ratio=math.inf, lr=np.float32(0.1), clip=1, moms=None)
    assert TrainingSettings(gradual_unfreezing=1).has_stages
    assert not TrainingSettings(gradual_unfreezing=()).has_stages


def test_sequences_become_tuples():
    settings = TrainingSettings(
        betas=[0.8, 0.99],
        gradual_unfreezing=[1, 2],
        lr_multipliers=[1.0, 0.5],
        cut_frac=[0.3, 0.1],
        schedule_per="stage",
    )
    assert settings.betas == (0.8, 0.99) and settings.gradual_unfreezing == (1, 2)
    assert settings.lr_multipliers == (1.0, 0.5) and settings.cut_frac == (0.3, 0.1)
    assert hash(settings) == hash(TrainingSettings(**vars(settings)))


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'slanted'; pass one of epochs, lr.*capture"):
        training_settings(slanted=False)


def test_a_value_of_each_stage():
    assert [at_stage((1, 2), stage) for stage in range(4)] == [1, 2, 2, 2]
    assert at_stage(3, 5) == 3


def test_precision_of_a_device():
    assert Precision.of("float32", "cpu") == (None, None)
    with pytest.raises(ValueError, match="'float16' and the model is on cpu, expected CUDA; pass"):
        Precision.of("float16", "cpu")
    with pytest.raises(ValueError, match="precision is 'half', expected one of float32"):
        Precision.of("half", "cpu")
