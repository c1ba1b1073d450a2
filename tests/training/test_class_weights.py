"""Weights of classes and texts: what they do to the loss, where they come from, what is refused."""

import copy
import json
import re
from dataclasses import replace
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from mortal_runs import CLASSIFIER, Died, MortalRun, assert_equal_runs, fit, reports, untimed
from pyarrow import parquet
from sklearn.utils.class_weight import compute_class_weight
from small_models import CONFIG, SETTINGS, documents, make
from torch.nn import functional as F
from typer.testing import CliRunner

from ulmfit_fast import ULMFiT
from ulmfit_fast.cli.program import app
from ulmfit_fast.data import ClassifierBatches, read_weighted
from ulmfit_fast.nn import TextClassifier
from ulmfit_fast.runs import DryRun, Run
from ulmfit_fast.training.classifier_step import ClassifierStep, relative_weights
from ulmfit_fast.training.lr_finder import find_lr
from ulmfit_fast.training.objective import Objective
from ulmfit_fast.training.stages import build_classifier, fit_classifier
from ulmfit_fast.ulmfit.ensemble import fit_ensemble
from ulmfit_fast.ulmfit.labelled import text_weights

# The loss is formed in float32, of few terms: some roundings of its largest term.
FLOAT32 = {"rtol": 16 * torch.finfo(torch.float32).eps, "atol": 1e-7}
LABELS = torch.tensor([0, 1, 2, 2, 1, 2, 2, 0, 2, 2, 2, 1])
SMALL = {"emb_size": 8, "hidden_size": 10, "num_layers": 2, "min_freq": 1, "progress": False}
TEXTS = ["a fine film", "a dull film", "an odd film"] * 8
NAMES = ["good", "bad", "odd"] * 8
QUICK = {"epochs": 2, "batch_size": 7, "gradual_unfreezing": 0}


def classifier() -> TextClassifier:
    """Return one that does the same in training and prediction, in float64, and is often wrong."""
    torch.manual_seed(0)
    model = build_classifier(None, CONFIG, 3, SETTINGS).double().eval()
    with torch.no_grad():
        model.head[-1].weight *= 50
    return model


def step(positions, weights=None, batch_size=99, labels=LABELS, **options):
    """Train on some of twelve texts; return the losses and the sum of the batches' gradients."""
    model, texts = classifier(), documents(12)
    batches = ClassifierBatches([texts[n] for n in positions], labels[positions], batch_size)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    own = relative_weights(weights, len(positions))
    objective = Objective(**{"alpha": 0.0, "beta": 0.0, **options})
    take = ClassifierStep(model, optimizer, objective=objective, weights=own)
    losses, grads = [], None
    for batch in batches:
        losses.append(take(*batch))
        share = [p.grad * len(batch.lengths) / len(positions) for p in model.parameters()]
        grads = share if grads is None else [a + b for a, b in zip(grads, share, strict=True)]
    return losses, grads


ALL = torch.arange(12)
WEIGHTS = torch.tensor([2, 1, 3, 1, 1, 4, 1, 2, 2, 1, 1, 3])


def assert_close(found, expected, **tolerance) -> None:
    for a, b in zip(found, expected, strict=True):
        scale = float(b.abs().max())
        torch.testing.assert_close(a, b, rtol=0, atol=64 * scale * 2.0**-24 + 1e-9, **tolerance)


def test_the_loss_of_all_texts_is_that_of_pytorch_with_weights_of_classes() -> None:
    model, texts = classifier(), documents(12)
    (batch,) = ClassifierBatches(texts, LABELS, 99)
    of_class = torch.tensor([2.0, 0.5, 1.25])
    logits = model(batch.tokens, batch.lengths).float()
    expected = F.cross_entropy(logits, batch.labels, weight=of_class)
    (loss,), _ = step(ALL, of_class[LABELS])
    torch.testing.assert_close(torch.tensor(loss.cross_entropy), expected, **FLOAT32)
    # With smoothing a weight is that of the text, whatever classes its loss speaks of.
    each = F.cross_entropy(logits, batch.labels, label_smoothing=0.2, reduction="none")
    own = of_class[batch.labels]
    (loss,), _ = step(ALL, of_class[LABELS], label_smoothing=0.2)
    expected = (own * each).sum() / own.sum()
    torch.testing.assert_close(torch.tensor(loss.cross_entropy), expected, **FLOAT32)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"clip": 0.05}], ids=str)
def test_a_weight_of_two_is_the_text_twice(options) -> None:
    (loss,), grads = step(ALL, WEIGHTS, **options)
    (repeated,), expected = step(ALL.repeat_interleave(WEIGHTS), **options)
    assert loss.cross_entropy == pytest.approx(repeated.cross_entropy, rel=1e-6)
    assert_close(grads, expected)
    (plain,), _ = step(ALL, **options)
    assert abs(loss.cross_entropy - plain.cross_entropy) > 1e-3


@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_the_batches_of_an_epoch_come_to_the_weighted_loss(batch_size) -> None:
    """A mean over the weights of each batch would leave nothing of them in batches of one text."""
    (whole,), expected = step(ALL, WEIGHTS)
    losses, grads = step(ALL, WEIGHTS, batch_size)
    assert np.mean([loss.cross_entropy for loss in losses]) == pytest.approx(
        whole.cross_entropy, rel=1e-6
    )
    assert_close(grads, expected)


def test_a_batch_without_weight_has_no_gradient() -> None:
    model, texts = classifier(), documents(12)
    (batch,) = ClassifierBatches(texts[:4], LABELS[:4], 9)
    weights = torch.tensor([0.0, 0.0, 0.0, 0.0, 2.0])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    objective = Objective(alpha=0.0, beta=0.0, clip=0.1)
    loss = ClassifierStep(model, optimizer, objective=objective, weights=weights)(*batch)
    assert loss == (0.0, 0.0)
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_activations_are_regularised_alike_and_bfloat16_comes_close() -> None:
    (plain,), _ = step(ALL, alpha=2.0, beta=1.0)
    (loss,), _ = step(ALL, WEIGHTS, alpha=2.0, beta=1.0)
    assert loss.regularisers == pytest.approx(plain.regularisers, rel=1e-12)
    assert loss.cross_entropy != pytest.approx(plain.cross_entropy, rel=1e-3)
    settings = replace(SETTINGS, gradual_unfreezing=0, epochs=1, batch_size=12, alpha=0.0, beta=0.0)
    losses = [
        fit_classifier(
            make("classifier"), documents(), LABELS.clamp(max=1),
            replace(settings, precision=precision), weights=WEIGHTS, progress=False,
        ).losses[0]
        for precision in ("float32", "bfloat16")
    ]  # fmt: skip
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=0.1)


def trained(weights, **settings):
    torch.manual_seed(5)
    model = make("classifier")
    labels = LABELS.clamp(max=1)
    history = fit_classifier(
        model, documents(), labels, replace(SETTINGS, epochs=3, **settings), weights=weights,
        progress=False,
    )  # fmt: skip
    return history, [*model.state_dict().values()]


def test_proportions_alone_matter_and_equal_weights_are_none() -> None:
    history, state = trained(None)
    for equal in (torch.ones(12), torch.full((12,), 1e300, dtype=torch.float64)):
        same, own = trained(equal)
        assert same.losses == history.losses
        assert all(torch.equal(a, b) for a, b in zip(own, state, strict=True))
    weighted, state = trained(WEIGHTS)
    assert weighted.losses != history.losses
    for factor in (0.25, 2.0**900):
        same, own = trained(WEIGHTS.double() * factor)
        assert same.losses == weighted.losses
        assert all(torch.equal(a, b) for a, b in zip(own, state, strict=True))
    # An epoch's loss is the mean over its texts, so the weighted one.
    sizes = np.array([4, 4, 4])
    first = np.dot(weighted.losses[:3], sizes) / 12
    assert weighted.epochs[0].loss == pytest.approx(first, rel=1e-12)


@pytest.mark.parametrize(
    "weights",
    [torch.ones(11), torch.zeros(12), torch.ones(12, 1), -torch.ones(12), torch.full((12,), np.nan),
     torch.full((12,), np.inf)],
    ids=["few", "zero", "two-dimensional", "negative", "nan", "inf"],
)  # fmt: skip
def test_the_pipeline_refuses_other_weights(weights) -> None:
    with pytest.raises(ValueError, match=r"weights of shape .* expected \(12,\) finite numbers"):
        trained(weights)


def test_balanced_and_mappings_are_those_of_scikit_learn() -> None:
    draw = np.random.default_rng(0)
    for _ in range(5):
        labels = draw.choice(["a", "b", "c", "d"], 60, p=[0.6, 0.25, 0.1, 0.05]).tolist()
        own = draw.integers(1, 5, 60).astype(float)
        classes, positions = np.unique(labels, return_inverse=True)
        mapping = {"a": 0.5, "c": 3}
        for class_weight in ("balanced", mapping, {}):
            expected = compute_class_weight(class_weight, classes=classes, y=np.array(labels))
            np.testing.assert_allclose(
                text_weights(labels, class_weight), expected[positions], rtol=1e-14
            )
        repeated = np.repeat(labels, own.astype(int))
        expected = compute_class_weight("balanced", classes=classes, y=repeated)
        found = text_weights(labels, "balanced", own)
        np.testing.assert_allclose(
            found / found.sum(),
            expected[positions] * own / (expected[positions] * own).sum(),
            rtol=1e-12,
        )
        sums = np.bincount(positions, found)
        np.testing.assert_allclose(sums, sums[0], rtol=1e-12)
    assert text_weights(["a", "b"]) is None
    # A class whose texts do not count neither fails nor changes the others.
    found = text_weights(["a", "b", "b", "c"], "balanced", [1, 1, 1, 0])
    np.testing.assert_allclose(found, [4 / 4, 2 / 4, 2 / 4, 0])


@pytest.mark.parametrize(
    ("labels", "mapping"),
    [
        (["a", "b"], {"b": 3}),
        (["a", "b"], {np.str_("b"): np.float32(3)}),
        ([0, 1], {1: 3}),
        ([0, 1], {np.int64(1): 3}),
        ([0, 1], {torch.tensor(1): torch.tensor(3).item()}),
        ([0, 1], {"1": 3}),
        (["0", "1"], {1: 3}),
        ([False, True], {True: 3}),
        ([False, True], {np.True_: 3}),
        ([False, True], {"True": 3}),
        ([False, True], {1: 3}),
        ([0.0, 1.0], {1: 3}),
    ],
    ids=repr,
)
def test_classes_are_named_as_they_are_or_as_they_are_written(labels, mapping) -> None:
    assert text_weights(labels, mapping).tolist() == [1.0, 3.0]


@pytest.mark.parametrize(
    "weights",
    [
        [1, 2, 0.5],
        (n for n in (1, 2, 0.5)),
        np.array([1, 2, 0.5], np.float16),
        torch.tensor([1, 2, 0.5], dtype=torch.bfloat16, requires_grad=True),
        pd.Series([1, 2, 0.5], index=[7, 7, 1]),
        pd.array([1, 2, 0.5], dtype="Float64"),
        pa.chunked_array([[1.0, 2.0], [0.5]]),
        np.array([1, 2, 0.5], object),
    ],
    ids=lambda weights: type(weights).__name__,
)
def test_weights_of_texts_come_in_any_row_of_numbers(weights) -> None:
    found = text_weights(["a", "b", "b"], None, weights)
    assert (found / found[0]).tolist() == [1.0, 2.0, 0.5]
    assert text_weights(["a", "b"], None, np.array([True, True])).tolist() == [1.0, 1.0]


def refused(**options):
    return lambda: ULMFiT(**SMALL).fit_classifier(TEXTS, NAMES, **QUICK, **options)


ONES = [1.0] * 24


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (refused(class_weight="balance"), ValueError,
         'class_weight is \'balance\' (str), expected "balanced" or a mapping from label to'),
        (refused(class_weight=[1, 2, 3]), TypeError, "class_weight is [1, 2, 3] (list), expected"),
        (refused(class_weight=2.0), TypeError, "class_weight is 2.0 (float), expected"),
        (refused(class_weight={"goood": 2}), ValueError,
         "class_weight has 'goood', which is no class of the texts; their classes are ['bad', "),
        (refused(class_weight={"good": 1, "bad": 1, "odd": 1, "more": 1}), ValueError,
         "class_weight has 'more', which is no class"),
        (refused(class_weight={"good": -1}), ValueError,
         "class_weight['good'] is -1, expected a finite number, at least 0"),
        (refused(class_weight={"good": float("nan")}), ValueError, "class_weight['good'] is nan"),
        (refused(class_weight={"good": 10**400}), ValueError, "class_weight['good'] is 1000"),
        (refused(class_weight={"good": "2"}), TypeError,
         "class_weight['good'] is '2' (str), expected a number"),
        (refused(class_weight={"good": None}), TypeError, "class_weight['good'] is None"),
        (refused(class_weight={"good": 0, "bad": 0}), ValueError,
         "the texts with a weight above 0 are of the classes ['odd'], expected at least two"),
        (lambda: text_weights([0, 1], {1: 2, "1": 3}), ValueError,
         "class_weight has 1 and '1', which are one class; leave one out"),
        (refused(sample_weight=ONES[1:]), ValueError,
         "there are 23 values of sample_weight for 24 texts, expected one for each text"),
        (refused(sample_weight=[*ONES[1:], -0.5]), ValueError,
         "sample_weight[23] is -0.5, expected a finite number, at least 0"),
        (refused(sample_weight=np.array([np.nan, *ONES[1:]])), ValueError,
         "sample_weight[0] is nan, expected"),
        (refused(sample_weight=[np.inf, *ONES[1:]]), ValueError, "sample_weight[0] is inf"),
        (refused(sample_weight=[None, *ONES[1:]]), TypeError,
         "sample_weight[0] is None (NoneType), expected a number"),
        (refused(sample_weight=pd.array([None, *ONES[1:]], dtype="Float64")), ValueError,
         "sample_weight[0] is nan"),
        (refused(sample_weight=["1", *ONES[1:]]), TypeError, "sample_weight[0] is '1' (str)"),
        (refused(sample_weight=[[1.0], *ONES[1:]]), TypeError, "sample_weight[0] is [1.0] (list)"),
        (refused(sample_weight=[1j, *ONES[1:]]), TypeError, "sample_weight[0] is 1j (complex)"),
        (refused(sample_weight=[0] * 24), ValueError, "sample_weight is 0 for all texts"),
        (refused(sample_weight="weight"), TypeError,
         "sample_weight is 'weight' (str), expected a number for each text; name a column of the"),
        (refused(sample_weight=2.0), TypeError, "sample_weight is 2.0 (float)"),
        (refused(sample_weight={"good": [2.0] * 24}), ValueError,
         "the dict has no column 'weight'; its columns are 'good'; pass the name of one"),
        (refused(sample_weight=pd.DataFrame([[1.0, 2.0]] * 24, columns=["weight", "weight"])),
         ValueError, "the DataFrame has the column 'weight' 2 times; its columns are 'weight', "),
        (refused(sample_weight=pd.DataFrame({"weight": [*ONES[1:], None]})), ValueError,
         "sample_weight[23] is nan, expected a finite number, at least 0"),
        (refused(sample_weight=np.ones((24, 1))), ValueError,
         "sample_weight has shape (24, 1), expected (24,), a number for each text; pass one"),
        (refused(sample_weight=torch.ones(1, 24)), ValueError, "sample_weight has shape (1, 24)"),
        (refused(sample_weight=[1] + [0] * 23), ValueError, "are of the classes ['good'], exp"),
        (refused(weight_column="weight"), ValueError,
         "weight_column is 'weight' beside labels, expected both in columns of the texts or both"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_refuses_in_one_line(call, error, message) -> None:
    with pytest.raises(error, match=re.escape(message)) as found:
        call()
    assert "\n" not in str(found.value)


def test_a_text_of_weight_0_is_left_out() -> None:
    rest = [text for text in TEXTS if "odd" not in text]
    names = [name for name in NAMES if name != "odd"]
    texts, labels = [*rest, *["a torn film"] * 5], [*names, *["bad", "good", "good", "bad", "bad"]]
    whole = ULMFiT(**SMALL).fit_classifier(rest, names, **QUICK)
    left = ULMFiT(**SMALL).fit_classifier(
        texts, labels, **QUICK, sample_weight=[3] * len(rest) + [0] * 5
    )
    assert left.tokenizer.to_json() == whole.tokenizer.to_json()
    assert left.histories["fit_classifier"].losses == whole.histories["fit_classifier"].losses
    assert np.array_equal(left.predict_proba(texts), whole.predict_proba(texts))
    # The class itself stays, and is not answered.
    model = ULMFiT(**SMALL).fit_classifier(TEXTS, NAMES, epochs=8, lr=0.05, class_weight={"odd": 0})
    assert model.labels == ["bad", "good", "odd"] and "odd" not in model.predict(TEXTS)


def rare(count, draw):
    """Return texts of which one in ten is rare; a word is likelier there, but never decides."""
    labels = [n % 10 == 0 for n in range(count)]
    words = [draw.random() < (0.8 if label else 0.3) for label in labels]
    others = draw.choice(["film", "story", "song", "play"], (count, 2))
    texts = [f"a {a} with {'doubt' if w else 'joy'} and a {b}"
             for w, (a, b) in zip(words, others, strict=True)]  # fmt: skip
    return texts, ["rare" if label else "common" for label in labels]


@pytest.mark.parametrize("kind", ["class_weight", "sample_weight"])
def test_balanced_weights_raise_the_recall_of_a_rare_class(kind) -> None:
    draw = np.random.default_rng(3)
    texts, labels = rare(300, draw)
    held_out, truth = rare(200, draw)
    weights = {"class_weight": "balanced"}
    if kind == "sample_weight":
        weights = {"sample_weight": [9.0 if label == "rare" else 1.0 for label in labels]}
    options = {"epochs": 6, "lr": 0.02, "batch_size": 16, "gradual_unfreezing": 0, "drop_mult": 0.1}
    recalls = []
    for own in ({}, weights):
        model = ULMFiT(**SMALL).fit_classifier(texts, labels, **options, **own)
        answers = model.predict(held_out)
        found = [a == t for a, t in zip(answers, truth, strict=True) if t == "rare"]
        recalls.append(sum(found) / len(found))
    # By the seed the plain model finds from none to a third of them, whatever its kernels are.
    assert recalls[1] > max(0.6, recalls[0] + 0.3)


def test_presets_and_the_dry_run_take_weights() -> None:
    dry = DryRun(steps=2)
    with dry.measuring():
        ULMFiT(**SMALL).fit_classifier(TEXTS, NAMES, **QUICK, class_weight={"odd": 4}, run=dry)
    assert dry.estimate.epoch_steps == (4, 4)
    losses = [
        ULMFiT(**SMALL, preset="fastai_v2")
        .fit_classifier(TEXTS, NAMES, epochs=1, batch_size=7, class_weight=own)
        .histories["fit_classifier"]
        .losses
        for own in (None, "balanced", {"odd": 4})
    ]
    assert losses[0] == losses[1] != losses[2]


def test_a_run_with_weights_goes_on_exactly_and_with_no_others(tmp_path) -> None:
    settings = CLASSIFIER["regularised"]
    weights = torch.tensor(np.random.default_rng(1).random(40))
    expected = fit("classifier", settings, weights=weights)
    for n, at in enumerate((3, 6, 13)):
        run = MortalRun(tmp_path, at, checkpoint_steps=2, resume=n > 0)
        with pytest.raises(Died):
            fit("classifier", settings, run, weights=weights)
    for other in (None, weights.flip(0), weights + 0.1):
        with pytest.raises(ValueError, match=r"weights is .*, and '.*' in the run in"):
            fit("classifier", settings, Run(tmp_path, resume=True), weights=other)
    # Others only by a factor.
    again = fit("classifier", settings, Run(tmp_path, resume=True), weights=weights * 8)
    assert_equal_runs(expected, again)
    fit("classifier", settings, Run(tmp_path / "whole"), weights=weights)
    assert untimed(tmp_path) == untimed(tmp_path / "whole")
    steps = [r["loss"] for r in reports(tmp_path) if not r.get("epoch_ended")]
    assert steps == pytest.approx(expected[1].losses, rel=1e-12)
    plain = tmp_path / "plain"
    with pytest.raises(Died):
        fit("classifier", settings, MortalRun(plain, 3, checkpoint_steps=2))
    with pytest.raises(ValueError, match=r"weights is '.*', and None in the run in"):
        fit("classifier", settings, Run(plain, resume=True), weights=weights)
    # A run of before there were weights.
    path = plain / "checkpoints" / "fit_classifier" / "run.json"
    description = json.loads(path.read_text())
    assert description["fingerprint"].pop("weights") is None
    path.write_text(json.dumps(description))
    fit("classifier", settings, Run(plain, resume=True))


def test_the_search_for_a_rate_is_of_the_weighted_loss() -> None:
    def search(weights):
        labels = LABELS.clamp(max=1)
        return find_lr(
            make("classifier"), documents(), SETTINGS, labels=labels, weights=weights, steps=30,
            progress=False,
        ).losses  # fmt: skip

    plain = search(None)
    assert search(torch.full((12,), 3.0)) == plain != search(WEIGHTS)
    with pytest.raises(ValueError, match=r"expected \(12,\) finite numbers"):
        search(WEIGHTS[1:])
    with pytest.raises(ValueError, match="LanguageModel, expected weights=None"):
        find_lr(make("language model"), documents(), SETTINGS, weights=WEIGHTS, progress=False)


ROWS = [
    {"text": text, "label": name, "weight": 1 + n % 4}
    for n, (text, name) in enumerate(zip(TEXTS, NAMES, strict=True))
]


def written(folder, rows=ROWS):
    """Write a table in each format; return the sources of it."""
    frame = pd.DataFrame(rows)
    frame.to_csv(folder / "rows.csv", index=False)
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    table = pa.Table.from_pylist(rows)
    parquet.write_table(table, folder / "rows.parquet")
    return [*(folder / f"rows.{kind}" for kind in ("csv", "jsonl", "parquet")), frame, table]


def test_weights_are_read_from_a_column(tmp_path) -> None:
    weights = [row["weight"] for row in ROWS]
    expected = ULMFiT(**SMALL).fit_classifier(TEXTS, NAMES, **QUICK, sample_weight=weights)
    for source in written(tmp_path):
        texts, labels, found = read_weighted(source)
        assert (texts, labels, found) == (TEXTS, NAMES, weights)
        model = ULMFiT(**SMALL).fit_classifier(source, **QUICK, weight_column="weight")
        for name in ("losses", "lrs"):
            own, other = (m.histories["fit_classifier"] for m in (model, expected))
            assert getattr(own, name) == getattr(other, name)


def test_classes_with_names_and_numbers_of_any_kind(tmp_path) -> None:
    names = {"info": {"features": {"label": {"names": ["good", "bad", "odd"]}}}}
    columns = {"text": TEXTS, "label": [n % 3 for n in range(24)]}
    weights = [Decimal(n + 1) / 4 for n in range(24)]
    table = pa.table({**columns, "weight": weights})
    table = table.replace_schema_metadata({"huggingface": json.dumps(names)})
    parquet.write_table(table, tmp_path / "rows.parquet")
    expected = TEXTS, NAMES, [float(weight) for weight in weights]
    assert read_weighted(tmp_path / "rows.parquet") == expected
    frame = pd.DataFrame({**columns, "weight": np.arange(24, dtype=np.float32)})
    assert read_weighted(frame) == (TEXTS, columns["label"], [float(n) for n in range(24)])
    # One column may be both: the more stars, the more it counts.
    texts, stars, found = read_weighted(frame, weight_column="label")
    assert texts == TEXTS and stars == found == columns["label"]


@pytest.mark.parametrize("value", [None, "", "much", -1.0, float("nan"), [1.0]], ids=repr)
def test_a_row_without_a_weight_is_named_or_left_out(tmp_path, caplog, value) -> None:
    rows = copy.deepcopy(ROWS)
    for row in rows:
        row["weight"] = value if row is rows[4] else str(row["weight"])
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    pd.DataFrame(rows).to_csv(tmp_path / "rows.csv", index=False)
    for name, line in (("rows.jsonl", 5), ("rows.csv", 6)):
        message = rf"{name}, line {line}: 'weight' is .*, expected a finite number, at least 0"
        with pytest.raises(ValueError, match=message):
            ULMFiT(**SMALL).fit_classifier(tmp_path / name, **QUICK, weight_column="weight")
        texts, _, weights = read_weighted(tmp_path / name, on_error="skip")
        assert f"1 row skipped: {tmp_path / name}, line {line}: 'weight'" in caplog.text
        assert len(texts) == len(weights) == 23
        assert weights == [float(row["weight"]) for row in rows if row is not rows[4]]


def test_a_missing_weight_or_label_of_a_table_is_named_with_its_row(caplog) -> None:
    for column, reason in (
        ("weight", "expected a finite number, at least 0; mend or drop the row"),
        ("label", "expected a label; fill it in or drop the row"),
    ):
        rows = [{**row, column: None} if row is ROWS[4] else row for row in ROWS]
        sources = {
            "the DataFrame, row 4": pd.DataFrame(rows),
            "the Table, row 4": pa.Table.from_pylist(rows),
            "the dict, row 4": {name: [row[name] for row in rows] for name in ROWS[0]},
            "record 4": rows,
        }
        for place, source in sources.items():
            message = rf"^{place}: '{column}' is (None|nan|<NA>), {reason}$"
            with pytest.raises(ValueError, match=message):
                ULMFiT(**SMALL).fit_classifier(source, **QUICK, weight_column="weight")
            caplog.clear()
            texts, labels, weights = read_weighted(source, on_error="skip")
            assert f"1 row skipped: {place}: '{column}'" in caplog.text
            assert texts == [*TEXTS[:4], *TEXTS[5:]] and labels == [*NAMES[:4], *NAMES[5:]]
            assert weights == [row["weight"] for row in rows if row is not rows[4]]


def test_a_column_of_weights_is_there_exactly_once(tmp_path) -> None:
    lines = [
        "text,label,weight,weight",
        *(f"{t},{n},1,2" for t, n in zip(TEXTS, NAMES, strict=True)),
    ]
    (tmp_path / "rows.csv").write_text("\n".join(lines))
    row = '{"text": "a", "label": "b", "weight": 1, "weight": 2}'
    (tmp_path / "rows.jsonl").write_text(row)
    rows = pd.DataFrame([["a", "b", 1.0, 2.0]], columns=["text", "label", "weight", "weight"])
    table = pa.table([["a"], ["b"], [1.0], [2.0]], names=list(rows.columns))
    for source in (tmp_path / "rows.csv", tmp_path / "rows.jsonl", rows, table):
        with pytest.raises(ValueError, match="has the column 'weight' 2 times; its columns are"):
            read_weighted(source)


def test_records_and_booleans_have_weights(tmp_path) -> None:
    weights = [row["weight"] for row in ROWS]
    truth = [name == "good" for name in NAMES]
    rows = [{**row, "label": label} for row, label in zip(ROWS, truth, strict=True)]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    for source in (rows, pd.DataFrame(rows), pa.Table.from_pylist(rows), tmp_path / "rows.jsonl"):
        texts, labels, found = read_weighted(source)
        assert (texts, labels, found) == (TEXTS, truth, weights)
        assert all(type(label) is bool for label in labels)
    model = ULMFiT(**SMALL).fit_classifier(
        rows, **QUICK, weight_column="weight", class_weight={True: 2}
    )
    same = ULMFiT(**SMALL).fit_classifier(
        TEXTS, np.array(truth), **QUICK, sample_weight=weights, class_weight={"True": 2}
    )
    assert model.labels == same.labels == [False, True]
    assert np.array_equal(model.predict_proba(TEXTS), same.predict_proba(TEXTS))


@pytest.mark.parametrize(
    "table",
    [
        lambda columns: columns,
        pd.DataFrame,
        pa.table,
        lambda columns: pd.DataFrame(columns).to_records(index=False),
    ],
    ids=["dict", "pandas", "Arrow", "NumPy"],
)
def test_labels_and_weights_come_in_tables(table) -> None:
    weights = [row["weight"] for row in ROWS]
    expected = ULMFiT(**SMALL).fit_classifier(TEXTS, NAMES, **QUICK, sample_weight=weights)
    for name, own in (("weight", {}), ("mass", {"weight_column": "mass"})):
        given = table({"label": NAMES, name: weights})
        model = ULMFiT(**SMALL).fit_classifier(TEXTS, given, **QUICK, sample_weight=given, **own)
        assert np.array_equal(model.predict_proba(TEXTS), expected.predict_proba(TEXTS))
    with pytest.raises(ValueError, match="has no column 'weight'; its columns are 'label', 'mass'"):
        ULMFiT(**SMALL).fit_classifier(TEXTS, given, **QUICK, sample_weight=given)


def test_columns_of_weights_that_are_not_there(tmp_path) -> None:
    for source in written(tmp_path):
        with pytest.raises(ValueError, match="has no column 'mass'; its columns are 'text', 'lab"):
            read_weighted(source, weight_column="mass")
    for name in ("good", "bad"):
        (tmp_path / "folder" / name).mkdir(parents=True)
        (tmp_path / "folder" / name / "1.txt").write_text("a text")
    with pytest.raises(ValueError, match=r"1\.txt has no column 'weight'; pass a \.csv"):
        read_weighted(tmp_path / "folder")
    with pytest.raises(ValueError, match=r"beside sample_weight, expected .*; leave out one"):
        ULMFiT(**SMALL).fit_classifier(
            tmp_path / "rows.csv", **QUICK, weight_column="weight", sample_weight=ONES
        )


def test_both_models_of_an_ensemble_have_the_weights(tmp_path, monkeypatch) -> None:
    weights = [row["weight"] for row in ROWS]
    options = {**QUICK, "class_weight": {"odd": 2}}
    both = fit_ensemble(
        TEXTS, NAMES, **SMALL, fit_classifier={**options, "sample_weight": iter(weights)}
    )
    for model in both.models:
        alone = ULMFiT(**SMALL, backwards=model.backwards)
        alone.fit_classifier(TEXTS, NAMES, **options, sample_weight=weights)
        assert np.array_equal(alone.predict_proba(TEXTS), model.predict_proba(TEXTS))
    source = written(tmp_path)[0]
    read = fit_ensemble(source, **SMALL, fit_classifier={**options, "weight_column": "weight"})
    assert np.array_equal(read.predict_proba(TEXTS), both.predict_proba(TEXTS))
    monkeypatch.setattr(ULMFiT, "pretrain", None)
    for wrong in ({"class_weight": {"more": 2}}, {"sample_weight": ONES[1:]}):
        with pytest.raises(ValueError, match=r"no class of the texts|23 values of sample_weight"):
            fit_ensemble(TEXTS, NAMES, **SMALL, pretrain_texts=TEXTS, fit_classifier=wrong)


def run(*args: object):
    return CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with a language model, and a table whose labels are numbers."""
    folder = tmp_path_factory.mktemp("weights")
    model = ULMFiT(**SMALL).pretrain(TEXTS, epochs=1, batch_size=4, bptt=10)
    model.save(folder / "lm")
    written(folder, [{**row, "label": NAMES.index(row["label"])} for row in ROWS])
    return folder


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--class-weight", "balanced"], {"class_weight": "balanced"}),
        (["--class-weight", "1=2.5", "--class-weight", "0=4"], {"class_weight": {1: 2.5, 0: 4}}),
        (["--class-weight", '{"2": 3}'], {"class_weight": {2: 3}}),
        (["--set", 'class_weight={"2": 3}'], {"class_weight": {2: 3}}),
        (["--weight-column", "weight"], {"weight_column": "weight"}),
        (["--weight-column", "weight", "--class-weight", "balanced"],
         {"class_weight": "balanced", "weight_column": "weight"}),
    ],
    ids=" ".join,
)  # fmt: skip
def test_the_command_line_takes_weights(saved, tmp_path, given, expected) -> None:
    rows = saved / "rows.jsonl"
    command = ("fit-classifier", "--model", saved / "lm", "--text", rows, "--out", tmp_path / "out")
    result = run(*command, "--epochs", 1, "--batch-size", 7, *given)
    assert result.exit_code == 0, result.output
    model = ULMFiT.load(saved / "lm", progress=False)
    model.fit_classifier(rows, epochs=1, batch_size=7, **expected)
    assert reports(tmp_path / "out")[0]["loss"] == model.histories["fit_classifier"].losses[0]
    plain = ULMFiT.load(saved / "lm", progress=False).fit_classifier(rows, epochs=1, batch_size=7)
    losses = [m.histories["fit_classifier"].losses for m in (model, plain)]
    assert (losses[0] == losses[1]) == (given == ["--class-weight", "balanced"])
    # To go on with other weights is refused.
    other = [*command, "--epochs", 1, "--batch-size", 7, "--class-weight", "2=7", "--resume"]
    result = run(*other)
    assert result.exit_code == 2 and "in the run in" in result.output, result.output


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--class-weight", "balance"], "--class-weight is 'balance', expected balanced alone, "),
        (["--class-weight", "balanced", "--class-weight", "1=2"], "is 'balanced', expected balanc"),
        (["--class-weight", "1=much"], "--class-weight is '1=much', expected"),
        (["--class-weight", "=2"], "--class-weight is '=2', expected"),
        (["--class-weight", '{"1": }'], "--class-weight is '{\"1\": }', expected"),
        (["--class-weight", "1=2", "--class-weight", "1=3"], "--class-weight has '1' twice"),
        (["--class-weight", '{"1": 2, "1": 3}'], "--class-weight has '1' twice"),
        (["--class-weight", '{"1": "2"}'], "--class-weight '1' is '2' (str), expected a number"),
        (["--class-weight", '{"1": NaN}'], "--class-weight '1' is nan, expected a finite"),
        (["--class-weight", "good=2"],
         "--class-weight has 'good', which is no class of the texts; their classes are [0, 1, 2]"),
        (["--weight-column", "mass"], "has no column 'mass'"),
        (["--weight-column", "text"], "line 1: 'text' is 'a fine film', expected a finite number"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_the_command_line_refuses_in_one_line(saved, tmp_path, given, message) -> None:
    result = run(
        "fit-classifier", "--model", saved / "lm", "--text", saved / "rows.jsonl",
        "--out", tmp_path / "out", *given,
    )  # fmt: skip
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: ") and message in result.stderr
    assert not (tmp_path / "out").exists()


def test_labels_of_the_command_line_may_hold_an_equals_sign() -> None:
    from ulmfit_fast.cli.app import class_weight_of

    assert class_weight_of(["a=b=2", "{x=3", "balanced=4"]) == {"a=b": 2, "{x": 3, "balanced": 4}
    assert class_weight_of(None) is None is class_weight_of([])


def test_the_search_of_the_command_line_takes_weights(saved, tmp_path, monkeypatch) -> None:
    seen = []

    def search(model, documents, settings, **options):
        seen.append((len(documents), options["weights"], options["labels"].tolist()))
        return find_lr(model, documents, settings, progress=False, **options)

    monkeypatch.setattr("ulmfit_fast.training.lr_finder.find_lr", search)
    command = ["find-lr", "--model", saved / "lm", "--text", saved / "rows.csv", "--steps", 30]
    command += ["--out", tmp_path / "lr.svg"]
    own = ["--label-column", "label", "--class-weight", "2=0", "--weight-column", "weight"]
    result = run(*command, *own)
    assert result.exit_code == 0, result.output
    count, weights, labels = seen[0]
    assert count == 16 and labels == [0, 1] * 8
    assert (weights / weights[0]).tolist() == [
        row["weight"] for row in ROWS if row["label"] != "odd"
    ]
    result = run(*command, "--class-weight", "balanced")
    assert result.exit_code == 2 and "name its --label-column" in result.stderr
