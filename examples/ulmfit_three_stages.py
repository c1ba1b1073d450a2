"""All of ULMFiT on text that every Python has: pre-train, fine-tune, classify, explain.

The general text is the docstrings of the standard library; the task is to tell those about
concurrency from those about the internet, with 150 labels of each. The model is tiny and trains for
seconds, so read the script and not its accuracy: what the stages bring is measured by `make demo`.

    python examples/ulmfit_three_stages.py
"""

import ast
import random
import sysconfig
import tempfile
from pathlib import Path

import torch

import ulmfit_fast as uf

TOPICS = {
    "concurrency": ("asyncio", "concurrent", "multiprocessing", "threading.py", "queue.py"),
    "internet": ("email", "http", "urllib", "xmlrpc", "smtplib.py", "imaplib.py", "ftplib.py"),
}
GENERAL = ("argparse.py", "collections", "ctypes", "json", "logging", "pathlib.py", "unittest")


def docstrings(names: tuple[str, ...]) -> list[str]:
    """Return the docstrings of modules and packages of the standard library."""
    library = Path(sysconfig.get_path("stdlib"))
    found = []
    for path in (library / name for name in names):
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            if not file.is_file():
                continue
            for node in ast.walk(ast.parse(file.read_bytes())):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                    found.append(ast.get_docstring(node))
    whole = dict.fromkeys(" ".join(text.split()) for text in found if text and len(text) > 60)
    return [text[:300] for text in whole]


def main() -> None:
    """Run the three stages and print what the classifier says, and why."""
    torch.set_num_threads(1)  # more do not pay at these sizes
    by_topic = {topic: docstrings(names) for topic, names in TOPICS.items()}
    for texts in by_topic.values():
        random.Random(0).shuffle(texts)
    labelled = [(text, topic) for topic, texts in by_topic.items() for text in texts[:150]]
    held_out = [(text, topic) for topic, texts in by_topic.items() for text in texts[150:190]]
    texts, topics = zip(*labelled, strict=True)

    sizes = {"emb_size": 32, "hidden_size": 48, "num_layers": 2, "max_vocab": 2000}
    model = uf.ULMFiT(**sizes, seed=1, progress=False)
    model.pretrain(docstrings(GENERAL), epochs=1, batch_size=16, lr=0.01)
    model.fine_tune_lm(texts, epochs=3, batch_size=16, lr=0.01)  # any text like that of the task
    model.fit_classifier(texts, topics, epochs=12, batch_size=8, lr=0.02, drop_mult=0.3)

    texts, topics = zip(*held_out, strict=True)
    right = sum(map(str.__eq__, model.predict(texts), topics))
    print(f"{right} of {len(texts)} held-out docstrings are told apart")

    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder, "classifier"))  # JSON and safetensors
        model = uf.ULMFiT.load(Path(folder, "classifier"))
    (answer,) = model.explain(texts[-1:])
    print(f"{answer.label} ({answer.probability:.2f}, really {topics[-1]}):", answer.text)
    strongest = sorted(answer.words, key=lambda word: -abs(word.score))[:4]
    print("most for or against it:", ", ".join(f"{w.token} {w.score:+.2f}" for w in strongest))


if __name__ == "__main__":
    main()
