"""The search for a learning rate: its curve, its suggestions, and that it leaves all as it was."""

import copy
import csv
import math

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from ulmfit_fast import ULMFiT
from ulmfit_fast.cli.program import app
from ulmfit_fast.nn import AWDLSTMConfig, LanguageModel
from ulmfit_fast.training.lr_finder import LRFinderResult, find_lr, suggest
from ulmfit_fast.training.stages import TrainingSettings, build_classifier

CONFIG = AWDLSTMConfig(14, emb_size=8, hidden_size=10, num_layers=2)
SETTINGS = TrainingSettings(batch_size=4, bptt=6, factor=2.0)
KINDS = pytest.mark.parametrize("kind", ["language model", "classifier"])


def documents(count=24):
    draw = np.random.default_rng(0)
    return [draw.integers(2, 14, 8).astype(np.int32) for _ in range(count)]


def make(kind):
    torch.manual_seed(1)
    model = LanguageModel(CONFIG)
    return model if kind == "language model" else build_classifier(model, CONFIG, 2, SETTINGS)


def search(model, settings=SETTINGS, **options):
    labels = None if isinstance(model, LanguageModel) else torch.arange(24) % 2
    return find_lr(model, documents(), settings, labels=labels, progress=False, **options)


@KINDS
def test_the_rate_grows_exponentially_until_the_loss_runs_away(kind):
    result = search(make(kind), stop_factor=2.0, end_lr=1000.0)
    ratios = [b / a for a, b in zip(result.lrs, result.lrs[1:], strict=False)]
    assert result.lrs[0] == 1e-7
    assert ratios == pytest.approx([(1000 / 1e-7) ** (1 / 99)] * len(ratios))
    assert 20 < len(result.lrs) < 100, "it is to run away before the end"
    assert result.smoothed[-1] > 2 * min(result.smoothed)
    assert all(s <= 2 * min(result.smoothed[: i + 1]) for i, s in enumerate(result.smoothed[:-1]))


def test_the_smoothed_loss_is_a_mean_with_its_start_corrected():
    result = search(make("language model"))
    for n in (1, 2, 30, len(result.losses)):
        weights = 0.02 * 0.98 ** np.arange(n)[::-1]
        wanted = (weights * result.losses[:n]).sum() / weights.sum()
        assert result.smoothed[n - 1] == pytest.approx(wanted)
    assert result.smoothed[0] == pytest.approx(result.losses[0])


@KINDS
def test_everything_is_left_as_it_was(kind):
    model = make(kind).eval()
    for parameter in list(model.parameters())[:2]:
        parameter.requires_grad_(False)
    list(model.parameters())[3].grad = torch.ones_like(list(model.parameters())[3])
    state = copy.deepcopy(model.state_dict())
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    flags = [p.requires_grad for p in model.parameters()]
    generator = torch.get_rng_state()
    first = search(model, stop_factor=100.0)
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert not model.training and [p.requires_grad for p in model.parameters()] == flags
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        assert (parameter.grad is None) == (grad is None)
        assert grad is None or torch.equal(parameter.grad, grad)
    assert torch.equal(torch.get_rng_state(), generator)
    assert max(first.smoothed) > min(first.smoothed), "the copy did train"
    torch.randn(3)
    assert search(model, stop_factor=100.0) == first


@KINDS
def test_an_error_on_the_way_leaves_all_as_it_was_too(kind):
    model, calls = make(kind), []

    def fail(module, args):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt

    model.register_forward_pre_hook(fail)
    state, generator = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        search(model)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@KINDS
def test_a_loss_that_is_not_finite_is_the_end(kind):
    model, calls = make(kind), []
    last = model.decoder if kind == "language model" else model.head

    def break_it(module, args, output):
        calls.append(1)
        return output * (math.nan if len(calls) == 30 else 1.0)

    last.register_forward_hook(break_it)
    result = search(model)
    assert len(result.lrs) == len(result.losses) == len(result.smoothed) == 29


def test_few_points_are_no_curve():
    model = make("language model")
    model.decoder.register_forward_hook(lambda module, args, output: output * math.nan)
    with pytest.raises(ValueError, match="ran away after 0 steps, expected at least 17"):
        search(model)


def test_with_an_unfreezing_plan_the_first_stage_is_searched():
    model, seen = make("classifier"), []
    hook = lambda module, args: seen.append([p.requires_grad for p in module.parameters()])  # noqa: E731
    model.register_forward_pre_hook(hook)
    search(model, TrainingSettings(batch_size=4, bptt=6, gradual_unfreezing=1))
    head = len(list(model.head.parameters()))
    assert all(flags == [False] * (len(flags) - head) + [True] * head for flags in seen)


def curve(kind):
    rates = [10 ** (-7 + 8 * i / 60) for i in range(61)]
    if kind == "fall and rise":
        logs = [math.log10(rate) for rate in rates]
        return rates, [
            5 - 3 / (1 + math.exp(-2 * (x + 3))) + (2 * max(0, x + 0.5)) ** 3 for x in logs
        ]
    if kind == "waves":
        rise = [0 if i < 45 else 0.02 * (i - 45) ** 2 for i in range(61)]
        return rates, [4 + 0.3 * math.sin(i) - 0.03 * i + rise[i] for i in range(61)]
    sign = 1 if kind == "rise" else -1
    return rates, [9 + sign * 0.1 * i for i in range(61)]


@pytest.mark.parametrize(
    ("kind", "valley", "steep", "minimum"),
    [
        ("fall and rise", 1.165914e-04, 1.000000e-03, 3.414549e-02),
        ("waves", 2.511886e-03, 3.414549e-03, 5.411695e-03),
        ("fall", 7.356423e-04, 8.576959e-07, 1.0),
    ],
)
def test_suggestions_are_those_of_fastai(kind, valley, steep, minimum):
    """Recorded from fastai 2.8.12, `callback.schedule`: valley, steep, minimum."""
    found = suggest(*curve(kind))
    assert (found.valley, found.minimum) == pytest.approx((valley, minimum), rel=1e-6)
    if kind != "fall":  # All slopes are one there, up to rounding.
        assert found.steep == pytest.approx(steep, rel=1e-6)


def test_a_rising_curve_suggests_its_start():
    assert suggest(*curve("rise")).valley == 1e-7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start_lr": 0.0}, r"start_lr is 0.0 and end_lr is 10.0, expected 0 < start_lr"),
        ({"end_lr": 1e-8}, "end_lr is 1e-08"),
        ({"end_lr": math.inf}, "end_lr is inf"),
        ({"steps": 9}, "steps is 9, expected a whole number, at least 10"),
        ({"stop_factor": 1.0}, r"stop_factor is 1.0, expected a number above 1"),
    ],
    ids=str,
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        search(make("language model"), **options)


def test_a_ulmfit_is_no_model():
    with pytest.raises(TypeError, match="model is a ULMFiT, expected a LanguageModel or a TextCl"):
        find_lr(ULMFiT(), [], TrainingSettings())


def test_labels_are_for_classifiers():
    labels = torch.zeros(24, dtype=torch.int64)
    with pytest.raises(ValueError, match="model is a LanguageModel, expected labels=None"):
        find_lr(make("language model"), documents(), SETTINGS, labels=labels)
    with pytest.raises(ValueError, match="model is a TextClassifier, expected labels for each"):
        find_lr(make("classifier"), documents(), SETTINGS)
    with pytest.raises(ValueError, match="there are 0 documents"):
        find_lr(make("language model"), [], SETTINGS)
    with pytest.raises(ValueError, match="expected as many of each and at least 2"):
        suggest([0.1], [1.0])


@pytest.mark.parametrize("ending", [".png", ".svg"])
def test_the_plot_has_a_logarithmic_axis(tmp_path, ending):
    result = search(make("language model"))
    path = result.plot(tmp_path / f"curve{ending}")
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG") if ending == ".png" else b"<svg" in data
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    with pytest.raises(ValueError, match=r"ends in '\.xyz', expected one of .*png"):
        result.plot(tmp_path / "curve.xyz")
    assert len(list(tmp_path.iterdir())) == 1


def drawn(monkeypatch, tmp_path, rates, losses):
    """Return the rates that a plot shows: of its line, and of the three points."""
    from matplotlib.axes import Axes

    found, plot = [], Axes.plot
    monkeypatch.setattr(
        Axes, "plot", lambda self, *args, **k: found.append(args) or plot(self, *args, **k)
    )
    suggestions = suggest(rates[:-5], losses[:-5])
    LRFinderResult(rates, losses, losses, suggestions).plot(tmp_path / "curve.svg")
    line, *points = (args[0] for args in found)
    return line, points, suggestions


def test_the_plot_shows_where_the_loss_moves(monkeypatch, tmp_path):
    rates, losses = curve("fall and rise")
    losses[-3:] = 30.0, 60.0, 90.0
    line, points, _ = drawn(monkeypatch, tmp_path, rates, losses)
    low, high = (losses[rates.index(rate)] for rate in (line[0], line[-1]))
    # Flat before, and running away behind.
    assert rates.index(line[0]) > 10 and low > losses[0] - 0.15
    assert high < 20 and rates.index(line[-1]) < 58
    assert line[0] <= min(points) and max(points) <= line[-1]


@pytest.mark.parametrize("kind", ["rise", "fall", "waves"])
def test_every_suggestion_is_on_the_plot(monkeypatch, tmp_path, kind):
    line, points, suggestions = drawn(monkeypatch, tmp_path, *curve(kind))
    assert points == [getattr(suggestions, name) for name in ("valley", "steep", "minimum")]
    # The tenth of a rate may lie before the first one.
    assert line[0] <= min(points[:2]) and max(points) <= line[-1]
    assert kind != "rise" or len(line) == 61


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("find-lr")
    texts = ["a fine film", "a dull, long story"] * 20
    with (folder / "rows.csv").open("w", newline="") as file:
        rows = [(text, "bad" if "dull" in text else "good") for text in texts]
        csv.writer(file).writerows([("body", "verdict"), *rows])
    model = ULMFiT(emb_size=8, hidden_size=10, num_layers=2, min_freq=1, progress=False)
    model.pretrain(texts, epochs=1, batch_size=4, bptt=10).save(folder / "lm")
    return folder


@pytest.mark.parametrize("labels", [[], ["--labels", "verdict"]], ids=["lm", "classifier"])
def test_the_command_draws_and_prints(saved, labels, tmp_path):
    out = tmp_path / "plots" / "curve.png"
    command = ["find-lr", "--model", saved / "lm", "--text", saved / "rows.csv", "--out", out]
    options = ["--text-column", "body", "--batch-size", "4", "--bptt", "10", *labels]
    result = CliRunner().invoke(app, [str(part) for part in [*command, *options]])
    assert result.exit_code == 0, result.output
    assert out.read_bytes().startswith(b"\x89PNG")
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["valley", "steep", "minimum"]
    assert all(1e-9 < float(line.split()[1]) < 10 for line in lines)
    rate = lines[0].split()[1]
    said = result.stderr.splitlines()
    assert len(said) == 2 and said[0].startswith(f"take --lr {rate}, half-way along the longest")
    command = "fit-classifier" if labels else "fine-tune"
    assert said[1].startswith(f"next: ulmfit-fast {command} --model {saved / 'lm'} --text {saved}")
    assert f"--text-column body {'--label-column verdict ' if labels else ''}--lr {rate}" in said[1]


def test_the_command_refuses_a_directory_and_another_ending(saved):
    for out, message in ((saved, "is a directory"), (saved / "curve.abc", "ends in '.abc'")):
        command = ["find-lr", "--model", saved / "lm", "--text", saved / "rows.csv", "--out", out]
        options = ["--text-column", "body", "--batch-size", "4", "--bptt", "10"]
        result = CliRunner().invoke(app, [str(part) for part in [*command, *options]])
        assert result.exit_code == 2 and message in " ".join(result.output.split())
