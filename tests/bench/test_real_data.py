"""Real labelled sets: which rows a run sees, resuming, the recipe's digest, the bag of words."""

import csv
import dataclasses
import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from benchmarks.real_data import __main__ as program
from benchmarks.real_data import pretraining, runs, tables
from benchmarks.real_data.methods import tfidf
from benchmarks.real_data.models import Models
from benchmarks.real_data.recipes import RECIPES, digest_of, recipe_of
from benchmarks.real_data.runs import Perplexity, Row, read_all
from benchmarks.real_data.sets import Set, Texts, corpus, drawn

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
WORDS = "ada bel cor dun eff fay gil hob ivo jan kit lou moe ned ora pip".split()
TINY = [
    'corpus={"files": ["general.txt"], "valid": null, "test": null}',
    "model.preset=small",
    *(f"model.{name}={size}" for name, size in (("emb_size", 8), ("hidden_size", 8))),
    *("model.num_layers=1", "model.min_freq=1", "pretrain.batch_size=4", "pretrain.bptt=20"),
    *("fine_tune_lm.epochs=1", "fine_tune_lm.batch_size=4", "fine_tune_lm.bptt=10"),
    *("fit_classifier.epochs=1", "precision=float32"),
]


def write_set(folder, name, train, test):
    folder = folder / "labelled" / name
    folder.mkdir(parents=True)
    for part, rows in (("train", train), ("test", test)):
        with (folder / f"{part}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *rows])


def invented(count, seed):
    """Rows whose label is told by one of their words."""
    draw, rows = random.Random(seed), []
    for n in range(count):
        label = ("one", "two")[n % 2]
        words = [draw.choice(WORDS) for _ in range(6)]
        rows.append((" ".join([*words, f"word{label}", str(n)]), label))
    return rows


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    write_set(folder, "toy", invented(120, 0), invented(30, 1))
    draw = random.Random(2)
    lines = (" ".join(draw.choice(WORDS) for _ in range(8)) for _ in range(600))
    (folder / "general.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


def run(data, out, *more, changes=(), methods="tfidf,ulmfit", labels="20"):
    said = []
    arguments = ["--data", str(data), "--sets", "toy", "--labels", labels, "--draws", "2"]
    arguments += ["--methods", methods, "--out", str(out), *more]
    for line in (*TINY, *changes):
        arguments += ["--set", line]
    program.main(arguments, said.append)
    return said


def without_seconds(path):
    rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def test_a_draw_is_in_proportion_and_has_a_row_of_each_class():
    labels = ["a"] * 700 + ["b"] * 290 + ["c"] * 9 + ["d"]
    rows = drawn(labels, 100, seed=3)
    assert Counter(labels[n] for n in rows) == {"a": 69, "b": 29, "c": 1, "d": 1}
    assert rows == drawn(labels, 100, seed=3) != drawn(labels, 100, seed=4)
    assert len(set(rows)) == 100
    # Fewer rows than classes: one of each.
    assert len(drawn([str(n // 2) for n in range(40)], 7, seed=0)) == 20
    # A class is taken whole before another gives more than it has.
    assert Counter(drawn(["a", "a", "b"], 3, seed=0)) == {0: 1, 1: 1, 2: 1}


def test_what_is_measured_is_in_no_draw_and_the_same_for_all(data):
    rows = [*invented(100, 5), *((text.upper(), label) for text, label in invented(10, 5))]
    write_set(data, "copies", rows, invented(20, 6))
    task = Set(data, "copies", "validation")
    assert 15 <= len(task.measured.texts) <= 22
    pool, held_out = ({t.casefold() for t in own.texts} for own in (task.pool, task.measured))
    assert not pool & held_out and len(pool | held_out) == 100
    first, second = task.draw(30, 0), task.draw(30, 1)
    assert set(first.texts) <= set(task.pool.texts) and first != second
    again = Set(data, "copies", "validation")
    assert (again.measured, again.draw(30, 0)) == (task.measured, first)
    test = Set(data, "copies", "test")
    assert test.pool.texts == [text for text, _ in rows]
    assert test.measured.texts == [text for text, _ in invented(20, 6)]
    assert test.draw(None, 2) is test.pool
    with pytest.raises(ValueError, match="part is 'all'"):
        Set(data, "copies", "all")


def test_a_run_that_was_stopped_ends_with_the_same_rows(data, tmp_path, monkeypatch):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    methods = "majority,tfidf,ulmfit,ulmfit+tfidf"
    run(data, whole, methods=methods)
    measured, row_of = [], runs._row

    def failing(*arguments):
        measured.append(arguments[-2:])
        if len(measured) == 4:
            raise KeyboardInterrupt
        return row_of(*arguments)

    monkeypatch.setattr(runs, "_row", failing)
    with pytest.raises(KeyboardInterrupt):
        run(data, stopped, methods=methods)
    assert len(read_all(stopped)) == 3
    said = run(data, stopped, methods=methods)
    assert without_seconds(stopped / "runs-toy.csv") == without_seconds(whole / "runs-toy.csv")
    # 8 rows, the fourth of them begun twice, and none of the language models made again.
    assert len(measured) == 9 and not any("general" in line for line in said)
    assert run(data, stopped, methods=methods) == []
    rows = read_all(stopped)
    assert {row.rows for row in rows} == {20} and {row.part for row in rows} == {"test"}
    # Half of the rows are of one class, and so is the most frequent answer.
    assert {row.accuracy for row in rows if row.method == "majority"} == {0.5}
    recipes = {row.method: row.digest for row in rows}
    assert recipes["majority"] == recipes["tfidf"] == "" and len(recipes["ulmfit"]) == 8
    assert (stopped / "recipes" / f"{recipes['ulmfit']}.json").exists()


def test_a_mean_is_that_of_the_probabilities(data, tmp_path):
    run(data, tmp_path / "out", methods="ulmfit,ulmfit+tfidf,ulmfit_both")
    kept = {
        path.name.split("-")[4].removesuffix(".npz"): np.load(path)["probabilities"]
        for path in (tmp_path / "out" / "answers").glob("toy-test-20-0-*.npz")
    }
    assert set(kept) == {"forward", "backward", "tfidf"}
    assert np.abs(kept["forward"] - kept["backward"]).max() > 1e-4
    task = Set(data, "toy", "test")
    truth = np.array([task.classes.index(label) for label in task.measured.labels])
    rows = {row.method: row for row in read_all(tmp_path / "out") if row.draw == 0}
    for method, other in (("ulmfit+tfidf", "tfidf"), ("ulmfit_both", "backward")):
        mean = (kept["forward"] + kept[other]) / 2
        loss = -np.log(mean[np.arange(len(truth)), truth]).mean()
        assert rows[method].log_loss == pytest.approx(loss, abs=1e-4)
        assert rows[method].accuracy == pytest.approx((mean.argmax(1) == truth).mean(), abs=1e-4)


@pytest.mark.parametrize(
    "line",
    [
        *("seed=1", "fit_classifier.lr=0.02", "fit_classifier.label_smoothing=0.1"),
        *("pretrain.drop_mult=0.2", "model.emb_size=24", "plain.lr=0.01"),
        *("classifier_rule=[[200, 4, 30]]", "corpus.words=1000", "unlabelled_words=10"),
        "unfreezing=0.2",
    ],
)
def test_the_digest_changes_with_a_setting(line):
    recipe = RECIPES["english"]
    changed = recipe.changed([line])
    assert changed.digest != recipe.digest == recipe_of("trec6", None).digest
    assert line.replace(" ", "") in changed.name


def test_a_default_that_is_written_out_is_the_same_recipe():
    recipe = RECIPES["english"]
    assert recipe.changed(["fit_classifier.label_smoothing=0.0"]).digest == recipe.digest
    # Batch sizes by the rows are another recipe than one that is given.
    assert recipe.changed(["fit_classifier.batch_size=16"]).digest != recipe.digest
    assert recipe.classifier_arguments(500)["batch_size"] == 8
    own = recipe.changed(["classifier_rule=[[100, 4, 30]]"])
    sizes = [own.classifier_arguments(n)["batch_size"] for n in (100, 101)]
    assert sizes == [4, 8]


def test_layers_open_over_a_share_of_the_epochs():
    recipe = RECIPES["english"].changed(["unfreezing=0.15", "classifier_rule=[[200, 8, 40]]"])
    found = [recipe.classifier_arguments(rows) for rows in (100, 500, 100_000)]
    assert [(own["epochs"], own["gradual_unfreezing"]) for own in found] == [
        (40, 6),
        (20, 3),
        (5, 1),
    ]
    short = recipe.changed(["unfreezing=0.05"]).classifier_arguments(100_000)
    assert (short["epochs"], short["gradual_unfreezing"]) == (5, 1)
    assert recipe.classifier_arguments(100, plain=True)["gradual_unfreezing"] == 0
    own = recipe.changed(["fit_classifier.gradual_unfreezing=2"])
    assert own.classifier_arguments(100)["gradual_unfreezing"] == 2
    assert "gradual_unfreezing" not in recipe.changed(["unfreezing=null"]).classifier_arguments(100)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("fit_classifier.rate=1", "no setting 'rate'"),
        ("sed=1", "no setting 'sed'"),
        ("corpus.lines=1", "corpus has 'lines'"),
        ("fit_classifier=3", "fit_classifier is 3"),
        ("fit_classifier.lr", "no setting, expected"),
    ],
)
def test_a_wrong_setting_is_refused_before_any_work(line, message):
    with pytest.raises(ValueError, match=message):
        RECIPES["english"].changed([line])


def test_a_recipe_is_read_from_a_file_and_goes_by_the_language(tmp_path):
    pytest.importorskip("tomllib")
    path = tmp_path / "mine.toml"
    path.write_text('base = "portuguese"\nseed = 3\n[fit_classifier]\nlr = 0.5\n', "utf-8")
    recipe = recipe_of("trec6", str(path))
    assert (recipe.name, recipe.seed, recipe.fit_classifier["lr"]) == ("mine", 3, 0.5)
    assert recipe.corpus == RECIPES["portuguese"].corpus
    found = [recipe_of(n, None).name for n in ("pt_x", "de_x", "sms_spam", "mr")]
    assert found == ["portuguese", "german", "english", "english"]
    with pytest.raises(ValueError, match="hi_x is in 'hi'"):
        recipe_of("hi_x", None)


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_tfidf_is_an_own_pipeline_with_its_c_by_cross_validation(classes):
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline

    names = [f"c{n}" for n in range(classes)]
    draw, rows = random.Random(classes), []
    for n in range(90):
        # Words of the class in most texts only, so that C matters.
        own = WORDS[n % classes :: classes] if draw.random() < 0.7 else WORDS
        rows.append((" ".join(draw.choice(own) for _ in range(4)), names[n % classes]))
    texts, labels = map(list, zip(*rows, strict=True))

    def pipeline(c):
        words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\b\w+\b")
        solver = "liblinear" if classes != 3 else "lbfgs"
        model = LogisticRegression(C=c, solver=solver, max_iter=2000)
        return make_pipeline(words, OneVsRestClassifier(model) if classes > 6 else model)

    folds = StratifiedKFold(3, shuffle=True, random_state=0)
    right = [
        (np.sum(cross_val_predict(pipeline(c), texts, labels, cv=folds) == np.array(labels)), c)
        for c in (1, 3, 10, 30, 100, 300, 1000)
    ]
    assert len({count for count, _ in right}) > 1
    expected = pipeline(max(right)[1]).fit(texts, labels).predict_proba(texts[:20])
    found = tfidf(texts[:20], Texts(texts, labels), names)
    assert np.abs(found - expected).max() < 1e-6


def test_tfidf_of_classes_with_too_few_rows_for_folds_answers():
    found = tfidf(["ada", "bel"], Texts(["ada cor", "bel cor"], ["x", "z"]), ["x", "y", "z"])
    assert found.argmax(1).tolist() == [0, 2] and (found[:, 1] == 0).all()


def test_reviews_that_stand_in_a_labelled_set_are_left_out(data, tmp_path):
    write_set(data, "imdb", [("Ada, bel!", "x"), ("cor", "y")], [("Dun eff fay.", "x")])
    lines = ["ada bel", "DUN eff, fay", *(f"gil hob ivo jan {n}" for n in range(20))]
    (data / "reviews.txt").write_text("\n".join(lines), encoding="utf-8")
    recipe = RECIPES["english"].changed(
        [*TINY, 'unlabelled={"toy": ["reviews.txt"], "imdb": ["reviews.txt"]}']
    )
    models = Models(data, tmp_path / "out", recipe, say=lambda line: None)
    assert models._further(["reviews.txt"]) == lines[2:]
    task = Set(data, "toy", "validation")
    note = models.note(models.tuned(task))
    assert note["texts"] == len(task.pool.texts) + 20
    # One that reads the rows of the validation is of the test alone.
    assert models.note(models.tuned(Set(data, "toy", "test")))["texts"] == 120 + 20
    # In two steps the set's own text comes last, by itself.
    two = Models(data, tmp_path / "out", recipe.changed(["domain_step=true"]), say=lambda _: None)
    path = two.tuned(task)
    assert two.note(path)["texts"] == len(task.pool.texts)
    assert path.name != models.tuned(task).name
    (domain,) = (tmp_path / "out" / "models").glob("domain-forward-*.json")
    assert two.note(domain.with_suffix(""))["texts"] == 20


def test_texts_to_measure_a_general_model_on_are_kept_from_it(data):
    train, valid, test = (
        corpus(data, ["general.txt"], held_out=name) for name in ("train", "valid", "test")
    )
    assert (len(train), len(valid), len(test)) == (594, 3, 3)
    assert not {*train} & {*valid} and not {*train} & {*test} and not {*valid} & {*test}
    assert len(corpus(data, ["general.txt"], words=17)) == 3
    (data / "wiki.txt").write_text("= A =\none\n\n= B =\ntwo\nthree\n\n", encoding="utf-8")
    assert corpus(data, ["wiki.txt"], unit="article") == ["= A =\none", "= B =\ntwo\nthree"]


def test_stages_forgetting_and_a_given_model(data, tmp_path):
    out = tmp_path / "out"
    methods = "scratch,pretrained,tuned,ulmfit"
    run(data, out, "--forgetting", "--part", "validation", methods=methods)
    rows = read_all(out)
    assert {row.method for row in rows} == set(methods.split(","))
    found = {row.model: row for row in read_all(out, "forgetting", Perplexity)}
    carried, tuned = found["general, set's vocabulary"], found["fine-tuned"]
    assert carried.vocabulary == tuned.vocabulary != found["general"].vocabulary
    assert carried.own > tuned.own > 1 and carried.general > 1
    said = []
    tables.main(["--rows", str(out), "--forgetting", "--part", "validation"], said.append)
    assert len(said[0].splitlines()) == 5 and f"{tuned.own:,.1f}" in said[0].splitlines()[-1]
    (general,) = (path for path in (out / "models").glob("general-*") if path.is_dir())
    other = tmp_path / "other"
    run(data, other, "--general", str(general), "--part", "validation", methods="pretrained")
    given = {row.draw: row for row in read_all(other)}
    assert not list((other / "models").glob("general-*"))
    for row in rows:
        if row.method == "pretrained":
            assert given[row.draw].accuracy == row.accuracy
            assert given[row.draw].digest != row.digest
    with pytest.raises(ValueError, match="backwards was not given"):
        run(data, other, "--general", str(general), methods="ulmfit_both")


def test_a_language_without_general_text_is_pre_trained_on_the_sets_own(data, tmp_path):
    models = Models(data, tmp_path, RECIPES["german"].changed(TINY[1:]), say=lambda line: None)
    models.recipe.pretrain.update(epochs=1)
    task = Set(data, "toy", "test")
    path = models.tuned(task)
    assert path.name.startswith("own-toy-test-forward")
    assert models.note(path)["stage"] == "pretrain"
    with pytest.raises(ValueError, match="no corpus"):
        models.general()
    assert runs.measure_forgetting(models, task, tmp_path) == []


def test_the_curve_has_a_row_for_each_size_and_set(data, tmp_path):
    arguments = ["--data", str(data), "--out", str(tmp_path), "--sets", "toy", "--labels", "20"]
    for line in TINY:
        arguments += ["--set", line]
    arguments += ["--draws", "2"]
    said = []
    pretraining.main([*arguments, "--sizes", "8/8/1", "--words", "2000"], said.append)
    pretraining.main([*arguments, "--sizes", "12/8/1/20", "--hours", "0.001"], said.append)
    with (tmp_path / "pretraining.csv").open(encoding="utf-8") as file:
        rows = {row["emb_size"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"8", "12"}
    assert int(rows["8"]["words"]) == 2000 and int(rows["12"]["words"]) > 4000
    assert int(rows["12"]["vocabulary"]) < int(rows["8"]["vocabulary"])
    for row in rows.values():
        accuracies = [
            own.accuracy
            for own in read_all(tmp_path)
            if own.method == "ulmfit" and own.digest == row["digest"]
        ]
        assert float(row["accuracy"]) == pytest.approx(np.mean(accuracies), abs=1e-3)
        assert float(row["perplexity"]) > 1 and float(row["seconds"]) > 0
    models = Models(data, tmp_path / "other", RECIPES["english"].changed(TINY))
    least, most = (pretraining.words_in_time(models, seconds) for seconds in (1e-6, 1e6))
    # Whatever else the processor does meanwhile.
    assert least == 50_000 and most > 2_000_000
    picture = tmp_path / "curve.png"
    tables.main(["--curve", str(tmp_path / "pretraining.csv"), "--plot", str(picture)], said.append)
    lines = said[-1].splitlines()
    assert len(lines) == 4 and "8/8/1" in lines[2] + lines[3] and picture.stat().st_size > 1000
    with pytest.raises(ValueError, match="expected E/H/layers"):
        pretraining.main([*arguments, "--sizes", "8/8"], said.append)


def example(method, draw, accuracy, labels="100", digest="d1", part="test"):
    digest = "" if method == "tfidf" else digest
    values = (accuracy, accuracy / 2, 1.0, 2.0, draw, "", digest, "abc", "a cpu", 1)
    return Row("trec6", labels, 100, draw, part, method, *values)


def test_the_page_of_results_shows_the_committed_rows():
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    rows = read_all(RESULTS / "real_data.csv")
    assert tables.accuracies(rows) in text
    assert tables.hypotheses(read_all(RESULTS / "real_data_validation.csv")) in text
    # One recipe for all sets, and it is the one that lies beside the rows.
    (digest,) = {row.digest for row in rows if row.digest}
    recipe = json.loads((RESULTS / "real_data_recipe.json").read_text(encoding="utf-8"))
    assert digest_of({k: v for k, v in recipe.items() if k not in ("name", "given")}) == digest
    assert {row.part for row in rows} == {"test"}


def test_hypotheses_have_a_line_each():
    def row(recipe, digest, accuracy, draw=0, labels="100"):
        own = example("ulmfit", draw, accuracy, labels, digest, "validation")
        return dataclasses.replace(own, recipe=recipe)

    rows = [
        *(row("english", "d1", 0.5), row("english", "d1", 0.6, 1)),
        row("english", "d1", 0.8, 0, "all"),
        *(row("english a.b=2", "d2", 0.7), row("english c.d=1 a.b=2", "d2", 0.7, 1)),
        *(example("tfidf", 0, 0.9, part="validation"), example("ulmfit", 0, 0.9)),
    ]
    assert tables.hypotheses(rows).splitlines() == [
        "| changed | trec6, 100 | trec6, all |",
        "| :------ | ---------: | ---------: |",
        "| english | 55.0 (7.1) |       80.0 |",
        "| `a.b=2` | 70.0 (0.0) |          - |",
    ]


def test_the_table_has_means_and_spreads(tmp_path):
    rows = [
        *(example("tfidf", 0, 0.5), example("tfidf", 1, 0.6), example("ulmfit", 0, 0.7)),
        *(example("ulmfit", 1, 0.7), example("ulmfit", 0, 0.96, labels="all")),
        example("ulmfit", 0, 0.1, part="validation"),
    ]
    assert tables.accuracies(rows).splitlines() == [
        "| set   | labels |      tfidf |     ulmfit | aimed at |   published |",
        "| :---- | :----- | ---------: | ---------: | -------: | ----------: |",
        "| trec6 | 100    | 55.0 (7.1) | 70.0 (0.0) |       72 |             |",
        "| trec6 | all    |          - |       96.0 |       95 | 96.4 ULMFiT |",
    ]
    assert "35.0 (0.0)" in tables.accuracies(rows, measure="macro_f1")
    # Goals and published figures are of the test file.
    assert "published" not in tables.accuracies(rows, part="validation")
    several = tables.accuracies([*rows, example("ulmfit", 0, 0.8, digest="d2")]).splitlines()
    assert several[2].split("|")[3:6] == [" `d1`   ", " 55.0 (7.1) ", " 70.0 (0.0) "]
    assert several[3].split("|")[3:6] == [" `d2`   ", " 55.0 (7.1) ", "       80.0 "]
    for row in rows:
        runs.RowFile(tmp_path, "runs", row.set, Row).append(row)
    said, collected = [], tmp_path / "all.csv"
    arguments = ["--rows", str(tmp_path), "--collect", str(collected)]
    tables.main([*arguments, "--plot", str(tmp_path / "a.png")], said.append)
    assert said == [tables.accuracies(rows)]
    assert (tmp_path / "a.png").stat().st_size > 1000
    assert len(read_all(collected)) == 5
    tables.main(["--rows", str(collected), "--plot", str(tmp_path / "b.png")], said.append)
    assert said[1] == said[0]
    assert Path(tmp_path / "b.png").read_bytes() == (tmp_path / "a.png").read_bytes()
