"""`ulmfit-fast predict`: formats, order, files that appear as a whole, and pipes."""

import contextlib
import csv
import importlib
import io
import json
import os
import stat
import subprocess
import sys
import threading

import pytest
from typer.testing import CliRunner

from ulmfit_fast import ULMFiT
from ulmfit_fast.cli.program import app
from ulmfit_fast.serving import predictor, quantize

TEXTS = ["a fine film", "a dull, long story"] * 20
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
# What is written unbuffered needs no flush, and hides that there is none.
ENVIRONMENT.pop("PYTHONUNBUFFERED", None)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model and the files that it classifies."""
    folder = tmp_path_factory.mktemp("predict")
    model = ULMFiT(
        emb_size=8, hidden_size=10, num_layers=2, min_freq=1, progress=False, device="cpu"
    )
    model.fit_classifier(TEXTS, [1, 0] * 20, epochs=4, lr=0.05, batch_size=8)
    model.save(folder / "model")
    (folder / "texts.txt").write_text("\n".join(TEXTS))
    (folder / "none.txt").write_text("\n")
    return folder


def command(folder, *options):
    return ["predict", "--model", folder / "model", "--text", folder / "texts.txt", *options]


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def written(folder, *options):
    result = run(*command(folder, *options))
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    return result.stdout


def test_csv_with_every_class(made):
    model = ULMFiT.load(made / "model", device="cpu")
    rows = list(csv.reader(io.StringIO(written(made, "--all"))))
    assert rows[0] == ["label", "probability", "prob_0", "prob_1"]
    for row, scores in zip(rows[1:], model.predict_proba(TEXTS), strict=True):
        assert row[0] == str(model.labels[scores.argmax()])
        assert row[1:] == [f"{p:.4f}" for p in (scores.max(), *scores)]
    assert {row[0] for row in rows[1:]} == {"0", "1"}


def test_jsonl_keeps_the_kind_of_label(made):
    model = ULMFiT.load(made / "model", device="cpu")
    short = [json.loads(line) for line in written(made, "--format", "jsonl").splitlines()]
    full = [json.loads(line) for line in written(made, "--format", "jsonl", "--all").splitlines()]
    for row, more, found in zip(short, full, model.predict_stream(TEXTS), strict=True):
        assert row == {"label": found.label, "probability": pytest.approx(found.probability, 1e-3)}
        assert more.pop("probabilities") == pytest.approx(
            dict(zip("01", found.probabilities, strict=True)), abs=1e-4
        )
        assert more == row and type(row["label"]) is int


HOSTILE = ["plain", "olá, você", 'a "quote"', "two\nlines", "carriage\rreturn", " | ", "", "x.csv"]


@pytest.fixture
def table(made, tmp_path):
    """A .csv file with a column of every kind of field, and the columns by name."""
    columns = {
        "id": [str(n) for n in range(8)],
        "text": ["a fine film", *HOSTILE[1:4], "a dull\rstory", *HOSTILE[5:]],
        "label": ["1", "0"] * 4,
        "note": HOSTILE,
    }
    with (tmp_path / "in.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerows([columns, *zip(*columns.values(), strict=True)])
    return tmp_path / "in.csv", columns


def answered(made, table, *options, format="csv", **pipes):
    """Return the rows that come of a file."""
    command = ["predict", "--model", made / "model", "--text", table, "--format", format, *options]
    result = CliRunner().invoke(app, [str(part) for part in command], **pipes)
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    if format == "jsonl":
        return [json.loads(line) for line in result.stdout.splitlines()]
    return list(csv.DictReader(io.StringIO(result.stdout, newline="")))


def test_the_id_goes_along_by_itself_and_other_columns_when_asked_for(made, table):
    path, columns = table
    model = ULMFiT.load(made / "model", device="cpu")
    labels = [str(label) for label in model.predict(columns["text"])]
    rows = answered(made, path, "--chunk-size", 3, "--batch-size", 2)
    assert list(rows[0]) == ["id", "label", "probability"]
    assert [row["id"] for row in rows] == columns["id"]
    assert [row["label"] for row in rows] == labels
    rows = answered(made, path, "--keep", "note,id")
    assert list(rows[0]) == ["note", "id", "label", "probability"]
    assert [row["note"] for row in rows] == HOSTILE
    rows = answered(made, path, "--keep", "all", "--all")
    assert list(rows[0]) == [*columns, "predicted_label", "probability", "prob_0", "prob_1"]
    assert {name: [row[name] for row in rows] for name in columns} == columns
    assert [row["predicted_label"] for row in rows] == labels
    assert answered(made, path, "--keep", "all", format="jsonl")[4] == {
        **{name: values[4] for name, values in columns.items()},
        "predicted_label": int(rows[4]["predicted_label"]),
        "probability": float(rows[4]["probability"]),
    }


def test_records_keep_values_of_any_kind_and_may_lack_them(made, tmp_path):
    path, half = tmp_path / "in.jsonl", "\ud83d"
    records = [
        {"text": "a fine film", "ID": 1.5, "tags": ["ã"], "more": None},
        {"text": "a dull film", "tags": {"a": half}, "other": 1},
    ]
    path.write_text("\n".join(map(json.dumps, records)))
    kept = [{n: record.get(n) for n in records[0]} for record in records]
    rows = answered(made, path, "--keep", "all", format="jsonl")
    assert [{name: row[name] for name in kept[0]} for row in rows] == kept
    (tmp_path / "one.csv").write_text("text,id\na fine film,7\n")
    rows = answered(made, path, "--text", tmp_path / "one.csv", "--text", made / "texts.txt")
    assert [(row["ID"], row["id"]) for row in rows[:4]] == [
        ("1.5", ""),
        ("", ""),
        ("", "7"),
        ("", ""),
    ]
    assert len(rows) == 43
    assert answered(made, path, "--keep", "tags")[0]["tags"] == '["ã"]'


def test_parquet_and_pipes_keep_columns(made, tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"id": [3.5, None], "text": ["a fine film", "a dull film"]})
    frame.to_parquet(tmp_path / "in.parquet")
    assert [row["id"] for row in answered(made, tmp_path / "in.parquet")] == ["3.5", ""]
    # As they are: not the names that the library datasets has for them.
    pyarrow = pytest.importorskip("pyarrow")
    features = {"info": {"features": {"id": {"names": ["no", "yes"]}}}}
    named = pyarrow.table({"id": [1], "text": ["a fine film"]})
    named = named.replace_schema_metadata({"huggingface": json.dumps(features)})
    importlib.import_module("pyarrow.parquet").write_table(named, tmp_path / "named.parquet")
    assert [row["id"] for row in answered(made, tmp_path / "named.parquet")] == ["1"]
    pipe = tmp_path / "pipe.csv"
    os.mkfifo(pipe)
    writer = threading.Thread(target=frame.to_csv, args=(pipe,), kwargs={"index": False})
    writer.start()
    assert [row["id"] for row in answered(made, pipe, "--keep", "id")] == ["3.5", ""]
    writer.join()


FORMS = [
    ("in.csv", ";", "cp1252", ()),
    ("in.tsv", "\t", "utf-8", ()),
    ("in.csv", "\t", "utf-16", ()),
    ("in.csv", ":", "cp850", ("--delimiter", ":", "--encoding", "cp850")),
]


@pytest.mark.parametrize(("name", "sign", "encoding", "options"), FORMS)
def test_kept_columns_are_read_as_the_texts_are(
    made, tmp_path, caplog, name, sign, encoding, options
):
    rows = [
        ("ID", "corpo", "preço"),
        ("ã1", "a fine film", "9,50 maçãs"),
        ("2", "a dull, long story", "não"),
    ]
    path = tmp_path / name
    path.write_bytes("".join(f"{sign.join(row)}\n" for row in rows).encode(encoding))
    options = ("--text-column", "corpo", *options)
    found = answered(made, path, "--keep", "all", *options)
    assert [tuple(row.values())[:3] for row in found] == rows[1:] and tuple(found[0])[:3] == rows[0]
    assert [row["label"] for row in found] == ["1", "0"]
    is_said = not (sign == "\t" and encoding == "utf-8") and len(options) == 2
    assert [path.name in record.getMessage() for record in caplog.records] == [True] * is_said
    assert [row["preço"] for row in answered(made, path, "--keep", "preço", *options)] == [
        row[2] for row in rows[1:]
    ]
    assert [row["ID"] for row in answered(made, path, *options)] == ["ã1", "2"]


def test_kept_columns_of_excel(made, tmp_path):
    openpyxl = pytest.importorskip("openpyxl", reason="openpyxl reads Excel's files")
    book, path = openpyxl.Workbook(), tmp_path / "in.xlsx"
    rows = [("id", "text", "preço"), (1, "a fine film", 9.5), (None, "a dull film", "não")]
    for row in rows:
        book.active.append(row)
    # A cell beside the header that is only coloured.
    book.active.cell(1, 4).fill = openpyxl.styles.PatternFill("solid", "ff0000")
    book.active.cell(1, 5).fill = openpyxl.styles.PatternFill("solid", "ff0000")
    book.save(path)
    found = answered(made, path, "--keep", "all", format="jsonl")
    assert list(found[0]) == ["id", "text", "preço", "label", "probability"]
    assert [tuple(row.values())[:3] for row in found] == rows[1:]
    assert [row["id"] for row in answered(made, path)] == ["1", ""]


def test_a_pipe_without_a_kept_column_names_no_option_of_others(made, tmp_path):
    pipe = tmp_path / "pipe.csv"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("text,n\na fine film,1\n",))
    writer.start()
    result = run("predict", "--model", made / "model", "--text", pipe, "--keep", "id")
    writer.join()
    assert result.exit_code == 2 and "has no column 'id'; its columns are" in result.stderr
    assert result.stderr.endswith("; pass the name of one\n")


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "utf-16", "cp850"])
def test_standard_input_is_in_any_encoding(made, monkeypatch, encoding):
    said = []
    real = predictor.read_texts
    monkeypatch.setattr(predictor, "read_texts", lambda rows, **form: real(tee(rows, said), **form))
    options = ("--encoding", encoding) if encoding == "cp850" else ()
    content = "é só um filme\nnão é ação\n"
    assert len(answered(made, "-", *options, input=content.encode(encoding))) == 2
    assert [row["text"] for row in said] == content.splitlines()


def tee(values, seen):
    for value in values:
        seen.append(value)
        yield value


def test_standard_input_is_texts_one_a_line(made):
    rows = answered(made, "-", input="a fine film\n\nolá\r\na dull, long story".encode())
    assert len(rows) == 3
    assert [row["label"] for row in rows[::2]] == ["1", "0"]


def test_a_text_is_classified_as_it_is_written(made):
    result = run("predict", "--model", made / "model", "a fine film", "a dull, long story", "a\nb")
    lines = result.stdout.splitlines()
    assert result.exit_code == 0 and lines[0] == "label,probability" and len(lines) == 4
    assert [line.partition(",")[0] for line in lines[1:3]] == ["1", "0"]


def test_below_the_threshold_an_answer_is_unsure_and_the_likeliest_labels_tell(made, table):
    path, _ = table
    probabilities = [float(row["probability"]) for row in answered(made, path)]
    middle = (min(probabilities) + max(probabilities)) / 2
    rows = answered(made, path, "--threshold", middle, "--top", 2)
    assert list(rows[0])[1:] == [
        *("label", "probability", "label_1", "probability_1", "label_2", "probability_2"),
    ]
    for row, probability in zip(rows, probabilities, strict=True):
        assert row["label"] == ("unsure" if probability < middle else row["label_1"])
        assert float(row["probability_1"]) == probability == float(row["probability"])
        assert {row["label_1"], row["label_2"]} == {"0", "1"}
    lines = answered(made, path, "--threshold", middle, "--top", 1, format="jsonl")
    for line, row in zip(lines, rows, strict=True):
        assert line["top"] == [
            {"label": int(row["label_1"]), "probability": float(row["probability_1"])}
        ]
        assert line["label"] == ("unsure" if row["label"] == "unsure" else int(row["label"]))


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("", "there is nothing to classify; pass --text FILE, --text - or a text, such as"),
        ("{0}/texts.txt", " is the name of a file, expected a text; pass --text for"),
        ("none.csv", "'none.csv' is the name of a file, expected a text"),
        ("film --text {0}/texts.txt", "there are the text 'film' and --text"),
        ("film --keep id", "--keep is 'id' without a file that has columns; leave it out"),
        ("--text {0}/texts.txt --keep id", "texts.txt has no column 'id'; its columns are none"),
        ("--text - --keep id", "/dev/stdin has no column 'id'; its columns are none"),
        (
            "--text {1} --keep id,Note",
            "error: --keep: {1} has no column 'Note'; its columns are 'id', 'text'",
        ),
        ("film --top 3", "--top is 3, expected 1 to 2, the model's classes"),
        ("film --top 0", "--top is 0, expected 1 to 2"),
        ("film --threshold 50", "--threshold is 50.0, expected a number from 0 to 1"),
        ("film --threshold nan", "--threshold is nan, expected a number from 0 to 1"),
    ],
)
def test_what_cannot_be_answered_is_one_line(made, table, command, message):
    result = run("predict", "--model", made / "model", *command.format(made, table[0]).split())
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert message.format(made, table[0]) in result.stderr


def test_a_class_called_unsure_refuses_a_threshold(made, tmp_path):
    model = ULMFiT.load(made / "model", device="cpu")
    model.labels = ["sure", "unsure"]
    model.save(tmp_path / "model")
    result = run("predict", "--model", tmp_path / "model", "film", "--threshold", 0.5)
    assert result.exit_code == 2 and "the model has a class 'unsure'" in result.stderr


@pytest.mark.slow
def test_a_file_is_not_answered_into_what_is_piped_in(made, tmp_path):
    path = tmp_path / "in.txt"
    path.write_text("a fine film\n")
    arguments = ("predict", "--model", made / "model", "--text", "-", "--out", path, "--overwrite")
    with path.open() as piped, started(*arguments, stdin=piped, stderr=subprocess.PIPE) as process:
        error = process.stderr.read()
        assert error.startswith("error: ") and "would be written over" in error
        assert error.count("\n") == 1 and process.stdout.read() == ""
        assert process.wait(60) == 2 and path.read_text() == "a fine film\n"


@pytest.mark.parametrize("options", [("--batch-size", 1), ("--chunk-size", 1, "--batch-size", 7)])
def test_sizes_change_no_row(made, options):
    expected = list(csv.reader(io.StringIO(written(made))))
    for row, want in zip(csv.reader(io.StringIO(written(made, *options))), expected, strict=True):
        assert row[0] == want[0]
        # The fourth digit of a number that lies on the edge may be rounded either way.
        assert row == want or float(row[1]) == pytest.approx(float(want[1]), abs=1.01e-4)


def test_int8(made):
    small = quantize(ULMFiT.load(made / "model", device="cpu"))
    rows = [json.loads(line) for line in written(made, "--int8", "--format", "jsonl").splitlines()]
    expected = [round(one.probability, 4) for one in small.predict_stream(TEXTS)]
    assert [row["probability"] for row in rows] == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--format", "tsv"), "--format is 'tsv', expected csv or jsonl"),
        (("--chunk-size", 0), "--chunk-size is 0, expected at least 1"),
        (("--batch-size", 0), "--batch-size is 0, expected at least 1"),
    ],
)
def test_wrong_options_are_one_line_and_leave_nothing(made, tmp_path, options, message):
    result = run(*command(made, "--out", tmp_path / "new" / "out.csv", *options))
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr == f"error: {message}\n" and os.listdir(tmp_path) == []


def test_what_is_no_file_is_not_replaced(made, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    result = run(*command(made, "--out", pipe))
    assert result.exit_code == 2 and "is no regular file" in result.stderr
    assert stat.S_ISFIFO(pipe.stat().st_mode) and os.listdir(tmp_path) == ["pipe"]


def test_a_file_appears_when_it_is_complete_and_behind_a_link(made, tmp_path, monkeypatch):
    target, link = tmp_path / "target.csv", tmp_path / "link.csv"
    target.write_text("of old")
    link.symlink_to(target)
    real, seen = predictor.Predictor._prediction, []

    def watched(self, row):
        seen.append(target.read_text())
        return real(self, row)

    monkeypatch.setattr(predictor.Predictor, "_prediction", watched)
    result = run(*command(made, "--out", link))
    assert result.exit_code == 2 and "is there already; --overwrite replaces it" in result.stderr
    written(made, "--out", link, "--chunk-size", 2, "--overwrite")
    assert len(seen) == 40 and set(seen) == {"of old"}
    assert link.is_symlink() and len(target.read_text().splitlines()) == 41
    assert sorted(os.listdir(tmp_path)) == ["link.csv", "target.csv"]
    (tmp_path / "plain").touch()
    assert target.stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ValueError("line 30 is wrong"), 2, "error: line 30 is wrong\n"),
        (KeyboardInterrupt(), 130, "interrupted; {out} is not written\n"),
    ],
    ids=["error", "interruption"],
)
def test_what_ends_half_way_leaves_the_older_file(
    made, tmp_path, monkeypatch, error, code, message
):
    out, real, count = tmp_path / "out.csv", predictor.Predictor._prediction, iter(range(99))
    out.write_text("of old")

    def failing(self, row):
        if next(count) == 30:
            raise error
        return real(self, row)

    monkeypatch.setattr(predictor.Predictor, "_prediction", failing)
    result = run(*command(made, "--out", out, "--overwrite"))
    assert (result.exit_code, result.stderr) == (code, message.format(out=out))
    assert out.read_text() == "of old" and os.listdir(tmp_path) == ["out.csv"]


def test_an_interruption_of_a_stream_is_one_word(made, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(predictor.Predictor, "_prediction", interrupted)
    result = run(*command(made))
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "interrupted\n")


@contextlib.contextmanager
def started(*arguments, **pipes):
    """Run the command as a process of its own, which a test does not outlive."""
    whole = [sys.executable, "-m", "ulmfit_fast", *map(str, arguments)]
    with subprocess.Popen(
        whole, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, **pipes
    ) as process:
        killer = threading.Timer(120, process.kill)
        killer.start()
        try:
            yield process
        finally:
            killer.cancel()
            process.kill()


@pytest.mark.slow
def test_rows_come_out_while_texts_still_come_in(made, tmp_path):
    pipe = tmp_path / "endless.txt"
    os.mkfifo(pipe)
    arguments = ("predict", "--model", made / "model", "--text", pipe, "--chunk-size", 2)
    with started(*arguments, stderr=subprocess.PIPE) as process:
        with pipe.open("w") as texts:
            for turn in range(3):
                print("a fine film\na dull, long story", file=texts, flush=True)
                # Not one more text has been written, and the file has no end yet.
                read = [process.stdout.readline() for _ in range(2 if turn else 3)]
                assert all(read) and (turn or read[0] == "label,probability\n")
        assert process.wait(60) == 0 and process.stdout.read() == process.stderr.read() == ""


@pytest.mark.slow
def test_a_reader_that_has_enough_ends_it_quietly(made, tmp_path):
    many = tmp_path / "many.txt"
    many.write_text("a fine film\n" * 20_000)
    with started(*command(made, "--text", many), stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == "label,probability\n"
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == 141


def test_the_precision_of_a_prediction(made, tmp_path):
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\n" + "".join(f'"{t}",{1 - n % 2}\n' for n, t in enumerate(TEXTS)))
    plain, half = (written(made, "--all", *more) for more in ((), ("--precision", "bfloat16")))
    numbers = [
        [float(row["prob_1"]) for row in csv.DictReader(io.StringIO(t))] for t in (plain, half)
    ]
    apart = max(abs(a - b) for a, b in zip(*numbers, strict=True))
    assert 0 < apart < 0.05
    evaluate = ["evaluate", "--model", made / "model", "--text", rows, "--json"]
    found = [run(*evaluate, *more) for more in ((), ("--precision", "bfloat16"))]
    losses = [json.loads(result.stdout)["scores"]["log_loss"]["value"] for result in found]
    assert 0 < abs(losses[0] - losses[1]) < 0.05
    for wrong in (command(made), evaluate):
        result = run(*wrong, "--precision", "int4")
        assert result.exit_code == 2 and "--precision is 'int4', expected one of" in result.stderr
    result = run(*command(made), "--precision", "bfloat16", "--int8")
    assert (
        result.exit_code == 2 and "--int8 and --precision bfloat16 are both given" in result.stderr
    )
