"""The examples run as they stand, and the server refuses what it should."""

import csv
import importlib.util
import os
import re
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
OPTIONS = {"serve.py": ["--check"]}


def loaded(name):
    spec = importlib.util.spec_from_file_location(f"{name}_example", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def requirements():
    return re.findall(r"^[\w-]+", (EXAMPLES / "requirements.txt").read_text(), flags=re.MULTILINE)


def run(name, *options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), *options]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr
    assert not result.stderr
    return result.stdout


def test_the_list_of_examples_is_whole():
    listed = re.findall(r"`python examples/(\w+\.py)`", (EXAMPLES / "README.md").read_text())
    assert sorted(listed) == sorted(path.name for path in EXAMPLES.glob("*.py"))


def test_the_tickets_are_as_noisy_as_people_write_and_the_same_again(tmp_path):
    write = loaded("make_tickets").write
    for name in ("first", "again"):
        write(tmp_path / name, 200)
    first, again = sorted((tmp_path / "first").iterdir()), sorted((tmp_path / "again").iterdir())
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    with (tmp_path / "first" / "tickets.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 200 and len({row["id"] for row in rows}) == 200
    counts = Counter(row["label"] for row in rows)
    assert len(counts) == 4 and counts["cancelamento"] < 200 / 8
    text = "|".join(row["text"] for row in rows)
    for noise in ("\n", '"', "😡", "não", "nao", "NAO"):
        assert noise in text
    excel = (tmp_path / "first" / "tickets_excel.csv").read_bytes()
    assert excel.decode("cp1252").splitlines()[0] == "número;mensagem;categoria"
    with pytest.raises(UnicodeDecodeError):
        excel.decode("utf-8")


@pytest.mark.slow
def test_the_dropouts_help_on_text_that_was_not_trained_on():
    plain, dropping = map(float, re.findall(r"([\d.]+) nats", run("drop_in_lstm.py")))
    assert dropping < plain


@pytest.mark.slow
def test_the_three_stages_learn_the_task():
    right, held_out = map(int, re.findall(r"(\d+) of (\d+) held", run("ulmfit_three_stages.py"))[0])
    assert held_out == 80 and right >= 55  # by chance 40 +- 4.5


@pytest.mark.slow
def test_conversion_keeps_the_parameters():
    assert "parameters are the same objects: True" in run("convert_existing_model.py")


@pytest.mark.slow
def test_the_server_answers_as_the_model_does():
    for name in requirements():
        pytest.importorskip(name)
    output = run("serve.py", "--check")
    calls = int(re.search(r"16 requests at once, answered by (\d+) calls", output)[1])
    assert calls < 16


@pytest.fixture(scope="module")
def serve():
    for name in requirements():
        pytest.importorskip(name)
    return loaded("serve")


class Model:
    """Says that each text is as good as it is long, once it is allowed to."""

    labels = ("good", "bad")

    def __init__(self):
        self.allowed = threading.Event()
        self.allowed.set()
        self.error = None

    def predict_stream(self, texts, chunk_size):
        from ulmfit_fast.serving import Prediction

        assert self.allowed.wait(30)
        if self.error:
            raise self.error
        shares = [1 / (1 + len(text)) for text in texts]
        return [Prediction("good", 1 - bad, (1 - bad, bad)) for bad in shares]


def post(app, **body):
    answer = app.test_client().post("/predict", **body)
    return answer.status_code, answer.get_json()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"json": {}}, 'expected {"texts": [...]} with 1 to 64 texts'),
        ({"json": ["a"]}, 'expected {"texts": [...]} with 1 to 64 texts'),
        ({"json": {"texts": []}}, "1 to 64 texts"),
        ({"json": {"texts": ["a"] * 65}}, "1 to 64 texts"),
        ({"json": {"texts": "a film"}}, "1 to 64 texts"),
        ({"json": {"texts": ["a", 3]}}, "texts[1] is 3, expected a string"),
        ({"json": {"texts": ["a", " "]}}, "texts[1] is empty"),
        ({"json": {"texts": ["a" * 20_001]}}, "texts[0] has 20001 characters"),
        ({"data": "{", "content_type": "application/json"}, "could not understand"),
    ],
)
def test_the_server_says_what_does_not_fit(serve, body, reason):
    status, answer = post(serve.create_app(Model()), **body)
    assert status == 400 and reason in answer["error"]


def test_the_server_refuses_other_content_and_too_much_of_it(serve):
    app = serve.create_app(Model())
    assert post(app, data="texts=a")[0] == 415
    app.config["MAX_CONTENT_LENGTH"] = 10
    assert post(app, json={"texts": ["a film of some length"]})[0] == 413


def test_each_request_gets_its_own_answers_from_one_batch(serve):
    model = Model()
    batcher = serve.Batcher(model, wait=0.05)
    model.allowed.clear()
    wanted = [["a" * (10 * n + k) for k in range(1, n + 2)] for n in range(6)]
    answers = {}
    ask = [
        threading.Thread(target=lambda n=n: answers.update({n: batcher.predict(wanted[n])}))
        for n in range(6)
    ]
    for thread in ask:
        thread.start()
    model.allowed.set()
    for thread in ask:
        thread.join()
    for n, texts in enumerate(wanted):
        assert [one.probabilities[1] for one in answers[n]] == [1 / (1 + len(t)) for t in texts]
    assert batcher.calls < 6


def test_the_server_goes_on_after_an_error_and_refuses_when_too_much_waits(serve, monkeypatch):
    model = Model()
    batcher = serve.create_app(model).extensions["batcher"]
    model.error = RuntimeError("out of memory")
    with pytest.raises(RuntimeError, match="out of memory"):
        batcher.predict(["a"])
    model.error = None
    assert batcher.predict(["a"])[0].label == "good"

    monkeypatch.setattr(serve, "PATIENCE", 0.05)
    app = serve.create_app(model)
    model.allowed.clear()
    status, answer = post(app, json={"texts": ["a"]})
    model.allowed.set()
    assert status == 503 and "try again later" in answer["error"]
