"""Serve a saved classifier over HTTP with Flask: POST {"texts": [...]} to /predict.

Needs `pip install -r examples/requirements.txt`, which the package itself does not. Requests that
come in together are answered by one call of the model, since a batch costs little more than a text.
Models are JSON and safetensors, and nothing is unpickled. What does not fit is refused with status
400 and a line that says why; when too much is waiting, with 503.

    python examples/serve.py --model classifier    # on 127.0.0.1:8000; without --model, a toy
    python examples/serve.py --check               # ask the application itself, and exit
    curl -H 'Content-Type: application/json' -d '{"texts": ["a fine film"]}' localhost:8000/predict
"""

import argparse
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any

from flask import Flask, abort, jsonify, request
from werkzeug.exceptions import HTTPException

import ulmfit_fast as uf
from ulmfit_fast.serving import Prediction

MAX_TEXTS, MAX_CHARACTERS = 64, 20_000  # of a request, and of a text
WAITING, PATIENCE = 256, 30.0  # requests in the queue, and seconds that one of them waits

Request = tuple[list[str], "Future[list[Prediction]]"]


class Batcher:
    """Lets one thread, which owns the model, answer the requests of many."""

    def __init__(self, model: uf.ULMFiT, max_texts: int = 128, wait: float = 0.005) -> None:
        self.model, self.max_texts, self.wait = model, max_texts, wait
        self.calls = 0
        self._queue: queue.Queue[Request] = queue.Queue(WAITING)
        threading.Thread(target=self._run, daemon=True).start()

    def predict(self, texts: list[str]) -> list[Prediction]:
        """Return what the classifier says of each text; called from any thread."""
        future: Future[list[Prediction]] = Future()
        self._queue.put_nowait((texts, future))
        try:
            return future.result(PATIENCE)
        finally:
            future.cancel()  # nobody waits for it any more

    def _run(self) -> None:
        while True:
            requests = [one for one in self._together() if one[1].set_running_or_notify_cancel()]
            if not requests:
                continue
            try:
                texts = [text for texts, _ in requests for text in texts]
                self.calls += 1
                answers = self.model.predict_stream(texts, chunk_size=len(texts))
                results = list(answers)
            except Exception as error:  # it belongs to those who asked, and the thread goes on
                for _, future in requests:
                    future.set_exception(error)
                continue
            for texts, future in requests:
                future.set_result(results[: len(texts)])
                del results[: len(texts)]

    def _together(self) -> Iterator[Request]:
        """Wait for a request, and take those that come within `wait` seconds of the one before."""
        taken = self._queue.get()
        count = len(taken[0])
        yield taken
        while count < self.max_texts:
            try:
                taken = self._queue.get(timeout=self.wait)
            except queue.Empty:
                return
            count += len(taken[0])
            yield taken


def checked_texts(body: Any) -> list[str]:
    """Return the texts of a request's JSON, or end it with status 400 and the reason."""
    texts = body.get("texts") if isinstance(body, dict) else None
    if not isinstance(texts, list) or not 1 <= len(texts) <= MAX_TEXTS:
        abort(400, f'expected {{"texts": [...]}} with 1 to {MAX_TEXTS} texts')
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            abort(400, f"texts[{index}] is {str(text)[:40]}, expected a string")
        if not text.strip():
            abort(400, f"texts[{index}] is empty, expected some words")
        if len(text) > MAX_CHARACTERS:
            abort(400, f"texts[{index}] has {len(text)} characters, expected <= {MAX_CHARACTERS}")
    return texts


def create_app(model: uf.ULMFiT) -> Flask:
    """Return the application: any WSGI server with threads can run it, in one process."""
    app = Flask(__name__)
    # A character takes up to 12 bytes of JSON, as two escapes.
    app.config["MAX_CONTENT_LENGTH"] = 12 * MAX_TEXTS * MAX_CHARACTERS
    app.extensions["batcher"] = batcher = Batcher(model)

    @app.post("/predict")
    def predict() -> Any:
        texts = checked_texts(request.get_json())
        try:
            found = batcher.predict(texts)
        except (queue.Full, FutureTimeoutError):
            abort(503, "too many requests are waiting, try again later")
        labels = [
            {
                "label": one.label,
                "probabilities": dict(zip(map(str, model.labels), one.probabilities, strict=True)),
            }
            for one in found
        ]
        return jsonify(predictions=labels)

    @app.get("/health")
    def health() -> Any:
        return jsonify(labels=model.labels, version=uf.__version__)

    @app.errorhandler(HTTPException)
    def refused(error: HTTPException) -> Any:
        return jsonify(error=error.description), error.code

    return app


def toy_model() -> uf.ULMFiT:
    """Train a classifier of a few words."""
    texts = ["a fine and moving film", "a long and tiresome evening"] * 40
    model = uf.ULMFiT(emb_size=16, hidden_size=24, num_layers=2, min_freq=1, progress=False)
    return model.fit_classifier(texts, ["good", "bad"] * 40, lr=0.02)


def check(app: Flask) -> None:
    """Ask the application as its users would, and raise if an answer is not the model's own."""
    batcher: Batcher = app.extensions["batcher"]
    texts = [f"a fine film {'indeed ' * n}" for n in range(16)]

    def ask(text: str) -> Any:
        return app.test_client().post("/predict", json={"texts": [text]})

    with ThreadPoolExecutor(len(texts)) as threads:
        answers = list(threads.map(ask, texts))
    wanted = batcher.model.predict_stream(texts)
    for answer, own in zip(answers, wanted, strict=True):
        (said,) = answer.get_json()["predictions"]
        worst = max(
            abs(a - b)
            for a, b in zip(said["probabilities"].values(), own.probabilities, strict=True)
        )
        if said["label"] != own.label or worst > 1e-4:
            raise RuntimeError(f"the server says {said}, and the model {own}")
    refused = ask("")
    if refused.status_code != 400:
        raise RuntimeError(f"an empty text got status {refused.status_code}, expected 400")
    print(f"{len(texts)} requests at once, answered by {batcher.calls} calls of the model")
    print("an empty text:", refused.get_json()["error"])


def main() -> None:
    """Parse the options, and serve."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="directory of a saved model with a classifier")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--check", action="store_true", help="ask the application, and exit")
    options = parser.parse_args()
    try:
        model = uf.ULMFiT.load(options.model) if options.model else toy_model()
    except (OSError, ValueError) as error:
        parser.error(f"--model {options.model}: {error}")
    if model.classifier is None:
        parser.error(f"--model {options.model} has no classifier; run fit-classifier first")
    app = create_app(model)
    if options.check:
        check(app)
        return
    from waitress import serve

    # As many threads as requests may become one batch: each waits for its answer.
    serve(app, host=options.host, port=options.port, threads=32)


if __name__ == "__main__":
    main()
