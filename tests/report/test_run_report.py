"""The report of a run: its numbers are the record's, texts stay texts, and nothing is loaded."""

import json
import math
import re
from copy import deepcopy
from html.parser import HTMLParser
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest

import ulmfit_fast as uf
from ulmfit_fast.report import RunRecord, write_run_report
from ulmfit_fast.report.charts import chart
from ulmfit_fast.ulmfit.evaluation import Evaluation

VOID = {"meta", "br"}
GAP = "\N{EN DASH}"


class Page(HTMLParser):
    """Elements, what each says, and the tables by the name that a screen reader gives them."""

    def __init__(self, path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.said: list[tuple[str, str]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.elements.append((tag, attributes))
        if tag not in VOID:
            self.open.append(tag)
        if attributes.get("role") == "region":
            name = attributes["aria-label"]
            assert name not in self.tables
            self.rows = self.tables[name] = []
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self.rows[-1].append("")
        if tag in {"p", "h1", "h2", "h3", "li", "pre", "title"}:
            self.said.append((tag, ""))

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "br":
            self.handle_data(" ")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data
        elif self.said and self.said[-1][0] in self.open:
            self.said[-1] = (self.said[-1][0], self.said[-1][1] + data)

    def texts(self, tag):
        return [" ".join(text.split()) for name, text in self.said if name == tag]

    @property
    def charts(self):
        return [own["aria-label"] for tag, own in self.elements if own.get("role") == "img"]


def evaluated(names, *, count=60, skill=2.0, bag=1.0, baselines=True):
    """An evaluation of made-up answers; `skill` and `bag` say how good they are."""
    rng = np.random.default_rng(0)
    truth = np.arange(count) % len(names)

    def answers(weight):
        scores = np.exp(rng.normal(size=(count, len(names))))
        scores[np.arange(count), truth] *= np.exp(weight)
        return scores / scores.sum(axis=1, keepdims=True)

    others = {"majority class": np.full((count, len(names)), 1 / len(names))}
    others["bag of words"] = answers(bag)
    texts = [f"text {n}\nsecond line" for n in range(count)]
    return Evaluation.of(
        texts,
        truth,
        answers(skill),
        names,
        baselines=others if baselines else {},
        notes=["a note"],
    )


def epoch(loss, valid=None, accuracy=None, f1=None):
    return {
        "loss": loss,
        "valid_loss": valid,
        "accuracy": accuracy,
        "macro_f1": f1,
        "seconds": 1.25,
    }


def recorded(found: Evaluation | None, names=("bad", "good")) -> RunRecord:
    """A record as JSON holds it."""
    losses = [{"step": n * 10, "loss": 5.0 - n / 50} for n in range(100)]
    record = {
        "version": "0.1.0",
        "command": "ulmfit-fast train 'a b.csv' --out model && echo <done>",
        "created": "2030-01-02T03:04:05",
        "machine": {"processor": "a processor", "cores": 2},
        "settings": {"model": {"emb_size": 8}, "batch_size": 16},
        "stages": [
            {
                "name": "fine_tune_lm",
                "seconds": 61.5,
                "steps": 1000,
                "epochs": [epoch(4.5), epoch(4.0)],
                "losses": losses,
            },
            {
                "name": "fit_classifier",
                "seconds": 30.0,
                "steps": 1000,
                "epochs": [epoch(0.7, 0.65, 0.71, 0.7), epoch(0.5, 0.55, 0.8125, 0.79)],
                "losses": losses,
            },
        ],
        "data": {
            "rows": 1400,
            "trained_on": 1340,
            "held_out": 60,
            "unlabelled": 12_345,
            "classes": [{"label": str(name), "count": 700, "share": 0.5} for name in names],
            "warnings": ["3 texts are <empty>"],
        },
        "evaluation": None if found is None else found.to_dict(),
        "verdict": None if found is None else found.verdict,
        "examples": [],
    }
    return json.loads(json.dumps(record))


def page_of(record, tmp_path) -> Page:
    write_run_report(record, tmp_path / "run.html")
    return Page(tmp_path / "run.html")


@pytest.mark.parametrize("count", [2, 5, 77])
def test_the_numbers_are_those_of_the_record(count, tmp_path):
    names = [f"class {n}" for n in range(count)]
    found = evaluated(names, count=160)
    page = page_of(recorded(found, names), tmp_path)
    (headline,) = page.texts("h1")
    gain = 100 * found.baseline("bag of words").gains["accuracy"].value
    assert f"Accuracy {100 * found.scores['accuracy'].value:.1f} %, {gain:.1f} points" in headline
    assert "above the bag of words (TF-IDF)" in headline and page.texts("title")[0] == headline
    assert found.verdict in page.texts("p")
    scores = {row[0]: row[1:] for row in page.tables["Scores"]}
    assert scores[""] == ["this classifier", "majority class", "bag of words"]
    for name, title in {"accuracy": "accuracy", "log_loss": "log loss"}.items():
        everybody = [found.scores, *(own.scores for own in found.baselines)]
        assert scores[title] == [str(own[name]) for own in everybody]
    classes = page.tables["Classes"][1:]
    assert len(classes) == count == len(page.tables["Classes of the data"]) - 1
    for own, row in zip(found.classes, classes, strict=True):
        assert row[0].endswith(own.label) and row[1:3] == [str(own.support), str(own.answered)]
        assert row[4] == f"{own.recall:.3f}"
        assert row[3] == (GAP if own.precision is None else f"{own.precision:.3f}")
    right = sum(found.confusion[n][n] for n in range(count))
    if count == 77:
        assert any(f"77 classes: {right} of 160 texts are on" in chart for chart in page.charts)
        cells = [own for tag, own in page.elements if tag == "rect"]
        assert len(cells) == sum(n > 0 for row in found.confusion for n in row)
    else:
        shown = [
            [int(cell.split()[0]) for cell in row[1:]]
            for row in page.tables["Confusion matrix"][1:]
        ]
        assert shown == found.confusion
    assert ("Most often confused" in page.tables) == (count > 2)
    if count > 2:
        first = page.tables["Most often confused"][1]
        most = max(n for y, row in enumerate(found.confusion) for x, n in enumerate(row) if x != y)
        row, column = names.index(first[0]), names.index(first[1])
        assert int(first[2]) == most == found.confusion[row][column]
    answers = [own.count for own in found.bins if own.count]
    assert [int(row[1]) for row in page.tables["Calibration"][1:]] == answers


def test_data_stages_and_machine_are_those_of_the_record(tmp_path):
    page = page_of(recorded(evaluated(["bad", "good"])), tmp_path)
    assert (
        "1,400 rows: 1,340 to train on, 60 held out. 12,345 unlabelled texts for the language "
        "model." in page.texts("p")
    )
    assert "3 texts are <empty>" in page.texts("li")
    assert page.tables["Time"] == [
        ["stage", "epochs", "steps", "seconds"],
        ["Fine-tuning the language model", "2", "1,000", "61.5"],
        ["Fitting the classifier", "2", "1,000", "30.0"],
        ["Total", "4", "2,000", "91.5"],
    ]
    lm, classifier = (
        page.tables[f"{stage}: epochs"]
        for stage in ("Fine-tuning the language model", "Fitting the classifier")
    )
    assert lm == [
        ["epoch", "training loss", "seconds"],
        ["1", "4.500", "1.2"],
        ["2", "4.000", "1.2"],
    ]
    assert classifier[2] == ["2", "0.500", "0.550", "0.812", "0.790", "1.2"]
    assert page.texts("pre") == ["ulmfit-fast train 'a b.csv' --out model && echo <done>"]
    assert ["cores", "2"] in page.tables["machine"]
    assert ["model.emb_size", "8"] in page.tables["setting"]
    assert len(page.charts) == 4
    assert (
        "training loss from 5.000 to 3.020; validation loss from 0.650 to 0.550" in (page.charts[1])
    )
    assert page.charts[2] == (
        "Validation scores: accuracy 0.812 after epoch 2; macro F1 0.790 after epoch 2"
    )
    assert "raw" not in page.source and "fine_tune_lm" not in page.source


def test_the_page_loads_nothing_and_can_be_read_by_a_machine(tmp_path):
    page = page_of(recorded(evaluated(["bad", "good"])), tmp_path)
    assert not {"script", "link", "img", "image", "iframe"} & {tag for tag, _ in page.elements}
    assert "default-src 'none'" in page.source and "http:" not in page.source
    assert "https:" not in page.source and "url(" not in page.source
    levels = [int(tag[1]) for tag, _ in page.said if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    heads = [own for tag, own in page.elements if tag == "th"]
    assert heads and all(own["scope"] in {"col", "row"} for own in heads)
    assert "@media print" in page.source and "prefers-color-scheme: dark" in page.source


TEXTS = [
    "<script>alert('x')</script> & \"quotes\"",
    "</p></article><h1>mine",
    "{{ 7 * 7 }} {% raw %}",
    "long" * 200,
    "\N{PARTY POPPER} \N{FAMILY}",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0643",
    "one\n\ntwo\tthree",
]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_whatever_a_text_or_label_holds_is_text(text, tmp_path):
    found = evaluated([text, "other", "third"])
    record = recorded(found, [text, "other", "third"])
    record["examples"] = [
        {"text": text, "label": text, "prediction": "other", "probability": 0.9},
        {
            "text": text,
            "label": "other",
            "prediction": text,
            "probability": 0.8,
            "words": [{"word": text, "score": 1.0}],
        },
    ]
    record["data"]["warnings"] = record["evaluation"]["notes"] = [text]
    record["command"] = record["settings"][text] = text
    page = page_of(record, tmp_path)
    expected = " ".join(text.split())
    assert page.texts("p").count(expected) == 3, "a plain text, a coloured one and a note"
    assert expected in page.texts("li") and page.texts("pre") == [expected]
    assert page.tables["Classes"][1][0] == text and page.tables["Classes of the data"][1][0] == text
    assert len(page.texts("h1")) == 1 and "script" not in {tag for tag, _ in page.elements}
    assert any(own.get("dir") == "auto" for tag, own in page.elements if tag == "p")


def test_names_within_a_chart_are_text(tmp_path):
    names = [f'<script>{n}</script> & "{n}"' for n in range(11)]
    page = page_of(recorded(evaluated(names, count=44), names), tmp_path)
    assert f"{names[0]} predicted as {names[0]}: " in page.texts("title")[1]
    svg = chart([], "<b>", "&", '"', marks=[(1, "<i>"), (2, "&")])
    assert ElementTree.fromstring(svg).attrib["aria-label"] == '"'
    assert [own.text for own in ElementTree.fromstring(svg).iter("text")][-4:] == [
        "&", "<b>", "<i>", "&"
    ]  # fmt: skip


def test_the_weakest_class_is_named(tmp_path):
    found = evaluated(["bad", "good", "so so"], skill=0.5)
    page = page_of(recorded(found), tmp_path)
    worst = min(found.classes, key=lambda own: own.recall)
    (line,) = (text for text in page.texts("p") if text.startswith("Weakest"))
    assert line.startswith(f"Weakest: {worst.label}, of whose {worst.support} texts ")
    assert f"{100 * worst.recall:.1f} % were found" in line


def test_texts_that_are_empty_or_no_text_at_all(tmp_path):
    record = recorded(evaluated(["bad", "good"]))
    mistake = {"label": "bad", "prediction": "good", "probability": 0.9}
    record["examples"] = [{"text": "", **mistake}, {"text": "half \ud83d", **mistake}]
    page = page_of(record, tmp_path)
    assert "(no text)" in page.texts("p") and "half ?" in page.texts("p")


def test_without_explained_errors_the_evaluation_s_are_shown(tmp_path):
    found = evaluated(["bad", "good"], skill=0.3)
    page = page_of(recorded(found), tmp_path)
    worst = found.mistakes[0]
    says = f"✗ predicted {worst.predicted} with {worst.probability:.2f}, is {worst.label}"
    errors = [text for text in page.texts("p") if text.startswith("✗")]
    assert errors[0] == says and 1 < len(errors) <= 12
    assert "speaks for what was" not in page.source
    assert f'dir="auto">{worst.text}</p>' in page.source


def test_a_classifier_without_errors_has_none(tmp_path):
    page = page_of(recorded(evaluated(["bad", "good"], skill=50.0)), tmp_path)
    assert "No answer on the held-out texts is wrong." in page.texts("p")
    assert page.texts("h1")[0].startswith("Accuracy 100.0 %")


@pytest.mark.parametrize(
    ("skill", "bag", "headline", "verdict"),
    [
        (4.0, 0.0, "points above the bag of words (TF-IDF)", "The classifier beats"),
        (0.0, 4.0, "points below the bag of words (TF-IDF)", "The bag of words wins"),
        (1.0, 1.0, "the bag of words (TF-IDF), within the interval", "The difference from the bag"),
    ],
)
def test_whether_a_bag_of_words_would_have_done_stands_on_top(
    skill, bag, headline, verdict, tmp_path
):
    page = page_of(recorded(evaluated(["bad", "good"], skill=skill, bag=bag)), tmp_path)
    assert page.texts("h1")[0].endswith(headline)
    assert page.texts("p")[0].startswith(verdict)
    kind = "lead" if verdict == "The classifier beats" else "banner"
    assert f'<p class="{kind}">{verdict}' in page.source


def test_twenty_epochs_stand_on_the_page_and_more_scroll(tmp_path):
    # As many as `train` takes where it decides.
    for count, scrolling in ((20, 0), (21, 1)):
        record = recorded(evaluated(["bad", "good"]))
        record["stages"][1]["epochs"] = [epoch(0.5, 0.5, 0.8, 0.8)] * count
        assert page_of(record, tmp_path).source.count('class="scroll long"') == scrolling


def test_a_gain_on_a_few_texts_is_no_gain(tmp_path):
    found = evaluated(["bad", "good"], count=10, skill=50.0, bag=-50.0)
    page = page_of(recorded(found), tmp_path)
    assert page.texts("h1")[0].endswith("(TF-IDF), on too few texts to tell")
    assert '<p class="banner">10 texts are too few to tell' in page.source


def test_what_is_lost_in_one_score_stands_out_though_another_is_won(tmp_path):
    record = recorded(evaluated(["bad", "good"], skill=4.0, bag=0.0))
    gains = record["evaluation"]["baselines"][1]["gains"]
    gains["macro_f1"] = {"value": -0.2, "low": -0.3, "high": -0.1}
    page = page_of(record, tmp_path)
    assert gains["accuracy"]["low"] > 0 and '<p class="banner">The' in page.source


def test_without_baselines_the_page_says_so(tmp_path):
    page = page_of(recorded(evaluated(["bad", "good"], baselines=False)), tmp_path)
    assert page.texts("p")[0] == "There is no simpler classifier to compare with."
    assert "," not in page.texts("h1")[0] and "a note" in page.texts("p")
    assert page.tables["Scores"][0] == ["", "this classifier"]


def test_what_was_not_measured_is_left_out_and_how_to_get_it_is_said(tmp_path):
    record = recorded(None)
    record["stages"], record["settings"], record["data"]["warnings"] = [], {}, []
    record["data"]["unlabelled"] = 0
    page = page_of(record, tmp_path)
    assert page.texts("h1") == ["A classifier that was not measured"]
    assert "ulmfit-fast evaluate --model DIR --text test.csv" in page.texts("p")[0]
    assert page.texts("h2") == ["Data", "Training", "Time", "Machine", "Command", "Settings"]
    assert page.charts == [] and "unlabelled" not in page.source
    for line in ("No stage left a curve.", "All as they are by default."):
        assert line in page.texts("p")


def test_a_single_epoch_and_many_steps_have_an_axis(tmp_path):
    record = recorded(evaluated(["bad", "good"]))
    for stage, last in zip(record["stages"], (10, 4_000_000), strict=True):
        stage["epochs"] = stage["epochs"][:1]
        stage["steps"] = stage["losses"][-1]["step"] = last
    page = page_of(record, tmp_path)
    ticks = re.findall(r'<text x="(\d[\d.]*)" y="192" text-anchor="(\w+)">([^<]*)<', page.source)
    texts = [text for _, _, text in ticks]
    assert "1" in texts and "4,000,000" in texts and not any("." in text for text in texts[:-6])
    for place, anchor, text in ticks:
        reach = 3.2 * len(text) if anchor == "middle" else 0
        assert float(place) + reach <= 360


def test_losses_that_are_no_numbers_are_gaps(tmp_path):
    record = recorded(evaluated(["bad", "good"]))
    for point in record["stages"][0]["losses"][1:]:
        point["loss"] = math.nan
    record["stages"][1]["losses"] = []
    page = page_of(record, tmp_path)
    drawn = [own["d"] for tag, own in page.elements if tag == "path"]
    assert not any("nan" in d or "inf" in d for d in drawn)
    assert "training, an epoch loss from 0.700 to 0.500" in page.charts[1]


def test_the_page_is_the_same_for_the_same_record(tmp_path):
    record = recorded(evaluated(["bad", "good"]))
    before = deepcopy(record)
    write_run_report(record, tmp_path / "a.html")
    write_run_report(json.loads(json.dumps(record)), tmp_path / "b.html")
    assert record == before
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_a_record_without_a_key_is_refused_and_an_old_report_stays(tmp_path):
    path = tmp_path / "run.html"
    path.write_text("old")
    record = recorded(evaluated(["bad", "good"]))
    del record["evaluation"]["bins"]
    with pytest.raises(KeyError, match="bins"):
        write_run_report(record, path)
    del record["stages"]
    with pytest.raises(ValueError, match="the record lacks stages; expected all keys of report"):
        write_run_report(record, path)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_real_run_has_a_page(tmp_path):
    texts = [f"a {word} film number {n}" for n in range(15) for word in ("fine", "dull")]
    model = uf.ULMFiT(emb_size=8, hidden_size=10, num_layers=2, min_freq=1, progress=False)
    model.fit_classifier(texts, [True, False] * 15, epochs=2, batch_size=8, valid=0.2)
    history, found = model.histories["fit_classifier"], model.validation
    record = recorded(found, ["False", "True"])
    scores = zip(history.epochs, history.valid_losses, history.valid_scores, strict=True)
    record["stages"] = [
        {
            "name": "fit_classifier",
            "seconds": sum(own.seconds for own in history.epochs),
            "steps": len(history.losses),
            "epochs": [
                {"loss": own.loss, "valid_loss": valid, **both, "seconds": own.seconds}
                for own, valid, both in scores
            ],
            "losses": [{"step": n, "loss": loss} for n, loss in enumerate(history.losses)],
        }
    ]
    page = page_of(record, tmp_path)
    assert page.tables["Time"][1][:3] == [
        "Fitting the classifier",
        "2",
        str(len(history.losses)),
    ]
    assert [row[0] for row in page.tables["Classes"][1:]] == [str(own) for own in model.labels]


def test_a_long_name_breaks_at_its_signs_and_is_whole(tmp_path):
    names = ["problem_with-delivery", "praise"]
    page = page_of(recorded(evaluated(names), names), tmp_path)
    html = (tmp_path / "run.html").read_text(encoding="utf-8")
    assert html.count("problem_<wbr/>with-<wbr/>delivery") == 3
    assert page.tables["Classes"][1][0] == names[0]
