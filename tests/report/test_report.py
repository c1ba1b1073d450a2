"""The report: a table of means and spreads, and a page that escapes its texts and loads nothing."""

import json
import random
import re
import sys
from copy import deepcopy
from xml.etree import ElementTree

import pytest

from ulmfit_fast.report import (
    Explanation,
    Metrics,
    TokenScore,
    format_table,
    scores,
    write_explanations,
    write_report,
)

METHODS = {
    "majority class": (50.0, 0.0),
    "TF-IDF + logistic regression": (54.0, 2.5),
    "from scratch": (50.1, 0.2),
    "pre-trained": (57.0, 8.0),
    "pre-trained + LM fine-tuned": (59.0, 8.0),
    "+ discriminative rates, STLR, unfreezing": (60.0, 9.0),
}
GROUPS = ["embedding", "rnn0", "rnn1", "head"]


@pytest.fixture(scope="module")
def metrics() -> Metrics:
    """Made-up numbers of the shape that a run leaves behind."""
    rng = random.Random(0)
    accuracy = [
        {
            "method": method,
            "labels": labels,
            "seed": seed,
            "accuracy": (base + gain * rank + (seed - 1) * 0.9) / 100,
        }
        for method, (base, gain) in METHODS.items()
        for rank, labels in enumerate((300, 1000, 3000))
        for seed in range(3)
    ]
    steps = list(range(0, 600, 4))
    peak = [1 - abs(s - 60) / (60 if s < 60 else 540) for s in steps]
    return {
        "version": "0.1.0",
        "seed": 0,
        "quick": True,
        "machine": {"processor": "a processor", "cores": 2, "torch": "2.13.0"},
        "settings": {"model": {"emb_size": 128, "weight_p": 0.5}, "lr": 0.003},
        "seconds": {"corpora": 14.2, "pretrain": 110.0, "fine_tune": 55.5},
        "tokens_per_second": {"pretrain": 12_345.0, "fine_tune": 12_001.0},
        "corpora": {
            "general": {"documents": 14_900, "tokens": 610_000},
            "target": {"documents": 15_000, "tokens": 790_000},
        },
        "perplexity": [
            {"corpus": corpus, "when": when, "perplexity": value}
            for corpus, pair in {"general": (88.1, 131.0), "target": (240.5, 79.3)}.items()
            for when, value in zip(("before", "after"), pair, strict=True)
        ],
        "lm_curves": {
            stage: [
                {"step": s, "loss": low + 3.0 * 0.994**s + rng.gauss(0, 0.12)} for s in range(900)
            ]
            for stage, low in (("pretrain", 4.6), ("fine_tune", 4.3))
        },
        "lr_traces": {
            "classifier, 1,000 labels": {
                "groups": GROUPS,
                "steps": steps,
                "lrs": [
                    [3e-3 * (1 + p * 31) / 32 / 2.6 ** (3 - g) for g in range(4)] for p in peak
                ],
                "unfreeze_steps": [0, 150, 300, 450],
            }
        },
        "accuracy": accuracy,
        "confusion": {"labels": ["intact", "swapped"], "counts": [[612, 138], [198, 552]]},
        "examples": [
            {
                "text": "Return the <b>shortest</b> path & its length.",
                "label": "intact",
                "prediction": "intact",
                "probability": 0.91,
            },
            {
                "text": "The output the is array of counts.",
                "label": "swapped",
                "prediction": "intact",
                "probability": 0.55,
            },
        ],
    }


@pytest.fixture(scope="module")
def page(metrics, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("report") / "out" / "report.html"
    write_report(metrics, path)
    assert list(path.parent.iterdir()) == [path]
    return path.read_text(encoding="utf-8")


def elements(page: str) -> list[tuple[str, dict[str, str]]]:
    """Name and attributes of every element; a parse error when the page is not well-formed."""
    root = ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>"))
    return [(element.tag.rpartition("}")[2], element.attrib) for element in root.iter()]


def test_headings_are_in_order_and_the_first_names_the_gain(page):
    headings = [tag for tag, _ in elements(page) if re.fullmatch(r"h\d", tag)]
    assert headings[0] == "h1" and headings.count("h1") == 1 and "h3" in headings
    assert headings[1] == "h2"
    headline = "<h1>78.0 ± 0.9 % right with 3,000 labels, 19.0 points above TF-IDF</h1>"
    assert headline in page.replace("\N{NO-BREAK SPACE}", " ")


def test_where_a_bag_of_words_wins_the_headline_says_so(metrics, tmp_path):
    metrics = deepcopy(metrics)
    for entry in metrics["accuracy"]:
        entry["accuracy"] += 0.3 * ("TF-IDF" in entry["method"])
    write_report(metrics, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "labels, by TF-IDF + logistic regression: no stage gains on it</h1>" in text


def test_page_loads_nothing(page):
    for tag, attributes in elements(page):
        assert tag not in {"script", "link", "img", "image", "iframe", "object"}
        for name, value in attributes.items():
            assert not name.endswith(("src", "href")) or value.startswith("#")
    assert "url(http" not in page and "@import" not in page


def test_page_has_every_section_and_number(page):
    for heading in (
        "Accuracy by method",
        "Confusion",
        "A few sentences",
        "language model",
        "rates",
        "Time",
        "Machine",
        "Settings",
    ):
        assert heading in page
    for number in (
        "612",
        "131.0",
        "+49\N{NO-BREAK SPACE}%",
        "12,345",
        "110.0",
        "610,000",
        "78.0 ± 0.9",
        "model.weight_p",
    ):
        assert number in page


def test_charts_have_a_description_and_tables_have_heads(page):
    charts = [attributes for tag, attributes in elements(page) if tag == "svg"]
    charts = [chart for chart in charts if chart.get("aria-hidden") != "true"]
    assert len(charts) == 4
    assert all(chart["role"] == "img" and len(chart["aria-label"]) > 40 for chart in charts)
    assert all("scope" in attributes for tag, attributes in elements(page) if tag == "th")


def test_charts_follow_the_theme(page):
    style, charts = page[: page.index("<body>")], page[page.index("<svg") : page.rindex("</svg>")]
    light, dark = style.split("prefers-color-scheme: dark")
    names = set(re.findall(r"--color: var\(--([\w-]+)\)", charts))
    assert names == {"muted", *(f"series-{number}" for number in range(4))}
    assert not re.search(r"#[0-9a-f]{6}", charts)
    assert all(f"--{name}: #" in light and f"--{name}: #" in dark for name in names)


def test_a_chart_says_what_its_labels_say(metrics, tmp_path):
    metrics = deepcopy(metrics)
    metrics["accuracy"] = [{**metrics["accuracy"][0], "method": "<b> & --muted #2662cc"}]
    write_report(metrics, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "</svg> &lt;b&gt; &amp; --muted #2662cc</li>" in text and elements(text)


def test_a_stage_is_called_the_same_everywhere(metrics, tmp_path):
    metrics = deepcopy(metrics)
    metrics["seconds"] = {"pre-train": 110.0, "fine-tune the language model": 55.5, "total": 170.0}
    metrics["tokens_per_second"] = {"pretrain": 12_345, "fine_tune_lm": 12_001}
    write_report(metrics, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    row = '<tr><th scope="row"><bdi>{}</bdi></th><td>{}</td><td>{}</td></tr>'
    assert row.format("Pre-training", "110.0", "12,345") in text
    assert row.format("Fine-tuning the language model", "55.5", "12,001") in text
    assert row.format("Total", "170.0", "\N{EN DASH}") in text
    assert "pretrain<" not in text and "called" not in text


def test_without_jinja2_the_extra_that_brings_it_is_named(metrics, tmp_path, monkeypatch):
    for module in [m for m in sys.modules if m.partition(".")[0] == "jinja2"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    message = r"jinja2 is not installed; pip install 'ulmfit-fast\[demo\]'"
    with pytest.raises(ModuleNotFoundError, match=message):
        write_report(metrics, tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_texts_are_escaped(page):
    assert "Return the &lt;b&gt;shortest&lt;/b&gt; path &amp; its length." in page
    assert "<b>" not in page


def test_wrong_answers_are_marked_by_more_than_colour(page):
    assert page.count("✗") == 1


def test_page_is_the_same_for_the_same_metrics_after_json(metrics, tmp_path):
    write_report(metrics, tmp_path / "a.html")
    write_report(json.loads(json.dumps(metrics)), tmp_path / "b.html")
    assert (tmp_path / "a.html").read_text() == (tmp_path / "b.html").read_text()


def test_parts_that_were_not_measured_are_left_out(metrics, tmp_path):
    metrics = deepcopy(metrics)
    for key in ("perplexity", "examples"):
        metrics[key] = []
    for key in ("lm_curves", "lr_traces", "corpora", "tokens_per_second"):
        metrics[key] = {}
    metrics["confusion"] = {"labels": [], "counts": []}
    metrics["accuracy"] = metrics["accuracy"][:1]
    write_report(metrics, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert text.count('role="img"') == 1 and "Confusion" not in text and "one seed" in text


def test_spread_is_the_sample_standard_deviation():
    values = {0: 0.60, 1: 0.62, 2: 0.67}
    entries = [{"method": "a", "labels": 10, "seed": s, "accuracy": v} for s, v in values.items()]
    assert scores(entries)["a"][10] == {"mean": 63.0, "spread": pytest.approx(3.605551)}


def test_table_lines_up_and_fills_gaps(metrics):
    metrics = deepcopy(metrics)
    metrics["accuracy"] = [
        e for e in metrics["accuracy"] if e["method"] != "pre-trained" or e["labels"] > 300
    ]
    lines = format_table(metrics).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert len(lines) == 2 + len(METHODS)
    assert [cell.strip() for cell in lines[5].split("|")[1:3]] == ["pre-trained", "\N{EN DASH}"]


def test_incomplete_metrics_are_refused(metrics, tmp_path):
    metrics = deepcopy(metrics)
    del metrics["confusion"]
    with pytest.raises(ValueError, match="metrics lack confusion; pass"):
        write_report(metrics, tmp_path / "report.html")
    metrics["confusion"] = {"labels": [], "counts": []}
    metrics["accuracy"] = []
    with pytest.raises(ValueError, match=r"metrics\['accuracy'\] is empty"):
        write_report(metrics, tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_a_failing_page_leaves_the_old_report(metrics, tmp_path):
    metrics = deepcopy(metrics)
    path = tmp_path / "report.html"
    path.write_text("old")
    metrics["examples"] = [{"text": "only"}]
    with pytest.raises(KeyError):
        write_report(metrics, path)
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def explained(text: str, values: list[float]) -> Explanation:
    words = [TokenScore(*pair) for pair in zip(text.split(), values, strict=True)]
    return Explanation(text, "<good>", 0.875, [], words)


def test_explained_words_are_coloured_by_sign_and_size(tmp_path):
    path = tmp_path / "page.html"
    values = [1.0, -0.5, 0.01, 0.0, -7.0]
    write_explanations([explained("a <b>bad</b> & dull film", values)], path)
    page = path.read_text(encoding="utf-8")
    words = [a for tag, a in elements(page) if tag == "span" and "title" in a]
    assert [a["class"] for a in words] == [
        "word for",
        "word against",
        "word",
        "word",
        "word against",
    ]
    assert [a.get("style") for a in words] == [
        "--share: 1.00", "--share: 0.50", None, None, "--share: 1.00"
    ]  # fmt: skip
    assert [a["title"] for a in words] == ["+1.00", "-0.50", "+0.01", "+0.00", "-7.00"]
    assert "&lt;b&gt;bad&lt;/b&gt;" in page and ">&amp;</span>" in page and "<b>" not in page
    assert "<strong>&lt;good&gt;</strong>" in page and "probability 0.875" in page
    assert "1 text<" in page and "script" not in page and "http" not in page.split("<body>")[1]
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_to_explain_leaves_the_old_page(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("old")
    with pytest.raises(ValueError, match="there are no explanations; pass at least one"):
        write_explanations([], path)
    with pytest.raises(KeyError):
        write_explanations([{"text": "only"}], path)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_examples_of_a_report_may_be_coloured(metrics, tmp_path):
    metrics = deepcopy(metrics)
    metrics["examples"][0]["words"] = [{"word": "<path>", "score": 0.5}]
    write_report(metrics, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert '<span class="word for" style="--share: 0.50" title="+0.50">&lt;path&gt;</span>' in page
    assert "shortest" not in page and "The output the is array" in page
    assert ">filled word</span> speaks for what was" in page
    assert elements(page)
