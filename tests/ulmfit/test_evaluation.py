"""What an evaluation says, shows, keeps and refuses."""

import copy
import json
import re

import numpy as np
import pytest

from ulmfit_fast.nn.weights import Place
from ulmfit_fast.ulmfit.evaluation import BAG_OF_WORDS, MAJORITY, Evaluation, Interval

LABELS = ["bad", "good", "so so"]
PLACE = Place("validation.json")


def chances(truth, right, seed=0):
    """Return probabilities whose answer is right for this share of the texts."""
    draw = np.random.default_rng(seed)
    found = np.full((len(truth), 3), 0.15)
    wrong = draw.permutation(len(truth)) >= right * len(truth)
    found[np.arange(len(truth)), (truth + wrong) % 3] = 0.7
    return found


def evaluation(own=0.8, other=None, rows=200, **options):
    truth = np.arange(rows) % 3
    baselines = {} if other is None else {BAG_OF_WORDS: chances(truth, other, 1)}
    baselines[MAJORITY] = np.tile([0.5, 0.3, 0.2], (rows, 1))
    texts = [f"text {n}" for n in range(rows)]
    options = {"baselines": baselines, **options}
    return Evaluation.of(texts, truth, chances(truth, own), LABELS, **options)


def test_an_interval_has_the_value_and_what_a_bootstrap_should_have():
    found = evaluation().scores["accuracy"]
    # sqrt(0.8 * 0.2 / 200) = 0.0283
    assert found.value == 0.8
    assert found.low == pytest.approx(0.8 - 1.96 * 0.0283, abs=0.01)
    assert found.high == pytest.approx(0.8 + 1.96 * 0.0283, abs=0.01)
    assert Interval.of(0.03, np.linspace(0.04, 0.08, 100)).low == 0.03
    assert Interval.of(0.03, np.linspace(0.01, 0.02, 100)).high == 0.03


def test_a_difference_is_of_pairs():
    truth = np.arange(200) % 3
    better = chances(truth, 0.8)
    worse = better.copy()
    # Wrong on ten more of the same texts, so that only these decide.
    fixed = np.flatnonzero(better.argmax(axis=1) == truth)[:10]
    worse[fixed] = np.roll(worse[fixed], 1, axis=1)
    found = Evaluation.of([""] * 200, truth, better, LABELS, baselines={BAG_OF_WORDS: worse})
    gain = found.baselines[0].gains["accuracy"]
    assert gain.value == pytest.approx(0.05)
    alone = found.scores["accuracy"]
    assert gain.high - gain.low < 0.7 * (alone.high - alone.low)
    assert gain.low > 0.02
    same = Evaluation.of([""] * 200, truth, better, LABELS, baselines={BAG_OF_WORDS: better})
    assert same.baselines[0].gains["macro_f1"] == Interval(0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("own", "other", "start"),
    [
        (
            0.9,
            0.6,
            "The classifier beats the bag of words in accuracy and macro F1: accuracy 0.900",
        ),
        (0.6, 0.9, "The bag of words wins in accuracy and macro F1: accuracy 0.600 against 0.900"),
        (
            0.8,
            0.8,
            "The difference from the bag of words is within the interval, it may do as well",
        ),
        (0.9, None, "The classifier beats the majority class in accuracy and macro F1: accuracy"),
    ],
)
def test_one_sentence_says_whether_a_bag_of_words_would_have_done(own, other, start):
    verdict = evaluation(own, other).verdict
    assert verdict.startswith(start) and verdict.endswith(").")
    assert evaluation(own, baselines={}).verdict == ""


@pytest.mark.parametrize(("own", "other"), [(1.0, 0.0), (0.0, 1.0)])
def test_a_few_texts_tell_no_two_classifiers_apart(own, other):
    start = "19 texts are too few to tell the classifier from the bag of words: accuracy"
    assert evaluation(own, other, rows=19).verdict.startswith(start)
    assert evaluation(own, other, rows=1).verdict.startswith("1 text is too few to tell the")
    assert "too few" not in evaluation(own, other, rows=20).verdict


def test_one_score_that_is_lost_is_said_whatever_the_other():
    # Better on many texts of a class, and worse on all of a rare one.
    truth = np.array([0] * 300 + [1] * 20)
    own, other = np.zeros((320, 2)), np.zeros((320, 2))
    own[:, 0] = 1
    other[np.arange(320), truth] = 1
    other[:15] = [0, 1]
    found = Evaluation.of([""] * 320, truth, own, ["a", "b"], baselines={BAG_OF_WORDS: other})
    assert found.verdict.startswith("The bag of words wins in macro F1: accuracy 0.938 against")


def test_a_table_for_a_terminal():
    text = str(evaluation(0.8, 0.6, notes=["A note."]))
    assert text.startswith("200 texts, 3 classes\n\n")
    assert re.search(r"\n {17} +classifier +bag of words +majority class\n", text)
    assert re.search(r"\naccuracy +0\.800 \(0\.\d{3} to 0\.\d{3}\) +0\.600 \(", text)
    assert re.search(r"\nclass +precision +recall +F1 +texts\nbad +0\.\d{3} +0\.\d{3}", text)
    assert re.search(r"\ntexts of / said to be +bad +good +so so\nbad +\d+ +\d+ +0\n", text)
    assert text.endswith(".\n\nA note.")
    assert max(map(len, text.split("\n\n")[1].splitlines())) < 90


def test_a_class_that_was_never_said_has_no_precision():
    truth = np.array([0, 0, 1])
    probabilities = np.array([[0.9, 0.1, 0], [0.8, 0.2, 0], [0.6, 0.4, 0]])
    found = Evaluation.of(["a", "b", "c"], truth, probabilities, LABELS)
    good, never = found.classes[1:]
    assert (good.precision, good.recall, good.f1, good.support) == (None, 0.0, 0.0, 1)
    assert (never.precision, never.recall, never.f1, never.support) == (None, None, None, 0)
    assert re.search(r"\nso so +- +- +- +0\n", str(found))
    assert found.scores["macro_f1"].value == pytest.approx(0.4)


def test_of_many_classes_the_most_confused_are_shown():
    labels = [f"a class with a long name, number {n}" for n in range(12)]
    truth = np.arange(240) % 12
    probabilities = np.eye(12)[truth]
    probabilities[truth == 3] = np.eye(12)[7]
    probabilities[:1] = np.eye(12)[2]
    text = str(Evaluation.of(["a"] * 240, truth, probabilities, labels))
    assert re.search(
        r"said to be +texts\na class wi\.\.\., number 3 +a class wi\.\.\., number 7 +20\n", text
    )
    assert text.count("a class wi...") == 12 + 4


def test_the_most_certain_mistakes_come_first():
    truth = np.zeros(120, np.int64)
    wrong = np.linspace(0.51, 0.99, 120)
    probabilities = np.stack([1 - wrong, wrong], axis=1)
    probabilities[60] = [0.9, 0.1]
    texts = [f"text {n}" for n in range(120)]
    found = Evaluation.of(texts, truth, probabilities, [1, 2]).mistakes
    assert [own.row for own in found[:3]] == [119, 118, 117] and len(found) == 50
    first = found[0]
    assert (first.text, first.label, first.predicted) == ("text 119", 1, 2)
    assert (first.probability, first.label_probability) == pytest.approx((0.99, 0.01))


@pytest.mark.parametrize("labels", [LABELS, [1, 2, 3], [False, "a", 2]])
def test_it_goes_through_json(labels):
    truth = np.arange(30) % 3
    baselines = {MAJORITY: chances(truth, 0.4)}
    made = Evaluation.of(
        ["half \ud800"] * 30, truth, chances(truth, 0.8), labels, baselines=baselines, notes=["n"]
    )
    values = json.loads(json.dumps(made.to_dict()))
    assert values["verdict"] == made.verdict and values["scores"]["accuracy"]["value"] == 0.8
    assert Evaluation.from_dict(values, labels, PLACE) == made
    hidden = made.without_texts()
    assert {own.text for own in hidden.mistakes} == {""} and hidden.scores == made.scores


FAULTS = {
    "no object": (lambda v: [v], "it is .*, expected an object with rows, labels, scores"),
    "lacking": (lambda v: v.pop("bins"), "it is .*, expected an object with rows"),
    "labels": (lambda v: v.update(labels=["a"]), r"labels is \['a'\], expected .*, those of the m"),
    "rows": (lambda v: v.update(rows=-1), "rows is -1, expected a whole number"),
    "score": (lambda v: v["scores"].pop("log_loss"), "scores is .*, expected an object with acc"),
    "number": (
        lambda v: v["scores"]["accuracy"].update(low="x"),
        "scores.accuracy.low is 'x', expected a finite number",
    ),
    "infinite": (
        lambda v: v["baselines"][0]["gains"]["macro_f1"].update(high=float("inf")),
        r"baselines\[0\].gains.macro_f1.high is inf, expected a finite number",
    ),
    "name": (
        lambda v: v["baselines"][0].update(name=3),
        r"baselines\[0\].name is 3, expected a st",
    ),
    "baselines": (lambda v: v.update(baselines=None), "baselines is None, expected a list"),
    "confusion": (lambda v: v["confusion"].pop(), "confusion is .*, expected a list of 3"),
    "row": (lambda v: v["confusion"][1].pop(), r"confusion\[1\] is .*, expected a list of 3"),
    "count": (lambda v: v["confusion"][1].append(v["confusion"][1].pop() + 0.5), "a whole number"),
    "classes": (lambda v: v["classes"].pop(), "classes is .*, expected a list of 3"),
    "class": (
        lambda v: v["classes"][0].update(f1=True),
        r"classes\[0\].f1 is True, expected a fin",
    ),
    "bins": (lambda v: v["bins"].append(v["bins"][0]), "bins is .*, expected a list of 10"),
    "mistake": (
        lambda v: v["mistakes"][0].update(text=1),
        r"mistakes\[0\].text is 1, expected a st",
    ),
    "unknown": (
        lambda v: v["mistakes"][0].update(predicted="none"),
        "mistakes has the label 'none', expected a known one",
    ),
    "notes": (lambda v: v.update(notes=[1]), "notes is 1, expected a string"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_values_that_are_damaged_are_named(name):
    change, message = FAULTS[name]
    values = json.loads(json.dumps(evaluation(0.8, 0.6, rows=30).to_dict()))
    changed = change(values)
    found = changed if name == "no object" else values
    with pytest.raises(ValueError, match=rf"^validation.json: .*{message}.*; save the model again"):
        Evaluation.from_dict(copy.deepcopy(found), LABELS, PLACE)
