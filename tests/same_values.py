"""Say whether two checkouts of this project compute the same, bit for bit.

    python tests/same_values.py OLD NEW

Each checkout runs in processes of its own, on this machine: layers on every backend, the masks,
and from the shell a pre-training, a fine-tuning and a classifier, each whole and killed and
resumed, with what they leave and answer. Prints what differs, and ends with 1 if anything does.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import pydoc_data.topics
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

SMALL = ["--seed", "3", "--batch-size", "8", "--checkpoint-steps", "5"]
# Where and when something ran is no value.
_UNLIKE = {"tokens_per_second", "texts_per_second"}


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def layers() -> Iterator[tuple[str, str]]:
    """Yield digests of masks, outputs and gradients of the checkout that is imported."""
    import torch

    import ulmfit_fast as uf

    def of(*tensors: torch.Tensor) -> str:
        return digest(
            b"".join(t.detach().contiguous().view(torch.uint8).numpy().tobytes() for t in tensors)
        )

    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    backends = (
        ("triton-stepwise", "triton-persistent") if interpreted else ("reference", "eager", "torch")
    )
    drawn = uf.dropout_masks(
        7, hidden_size=17, batch_size=3, steps=4, weight_p=0.3, gate_p=(0.1, 0.0, 0.2, 0.3)
    )
    yield "masks", of(drawn.weight, drawn.gate)
    cases = {
        "plain": {},
        "weights": {"weight_p": 0.5},
        "gates": {"weight_p": 0.2, "gate_p": 0.3},
        "sequence": {"gate_p": (0.2, 0.0, 0.2, 0.2), "gate_mask": "sequence"},
    }
    for backend in backends:
        for name, options in cases.items():
            if backend == "torch" and "gate_p" in options:
                continue
            for shape in ("", " bidirectional", " lengths"):
                if backend == "torch" and shape == " lengths":
                    continue
                for dtype in (torch.float32, torch.float64, torch.bfloat16):
                    if interpreted and dtype != torch.float32:
                        continue
                    torch.manual_seed(1)
                    lstm = uf.LSTM(
                        9, 17, num_layers=2, bidirectional=shape == " bidirectional",
                        backend=backend, dtype=dtype, **options,
                    )  # fmt: skip
                    x = torch.randn(6, 4, 9).to(dtype).requires_grad_()
                    lengths = torch.tensor([6, 1, 4, 0]) if shape == " lengths" else None
                    output, (h, c) = lstm(x, lengths=lengths, seed=11)
                    (output.sum() + h.square().sum() + c.sum()).backward()
                    grads = [p.grad for p in lstm.parameters()]
                    yield f"{backend} {name}{shape} {dtype}", of(output, h, c, x.grad, *grads)


def command(directory: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "ulmfit_fast", *map(str, arguments)]


def run(directory: Path, *arguments: str) -> str:
    done = subprocess.run(
        command(directory, *arguments), cwd=directory, capture_output=True, text=True, timeout=900
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, arguments))}: {done.stderr[-2000:]}")
    return done.stdout


def killed(directory: Path, out: str, *arguments: str) -> None:
    """Kill a command some reports after it has begun, go on with it, twice, and let it end."""
    metrics = directory / out / "metrics.jsonl"
    for reports in (7, 18):
        process = subprocess.Popen(
            command(directory, *arguments, "--out", out, "--resume"),
            cwd=directory, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        while process.poll() is None:
            if metrics.exists() and len(metrics.read_text().splitlines()) >= reports:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.005)
        process.wait()
    run(directory, *arguments, "--out", out, "--resume")


def without_times(value: object) -> object:
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in _UNLIKE}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def left(directory: Path) -> Iterator[tuple[str, str]]:
    """Yield digests of the files of a model or run."""
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        if "checkpoints" in path.parts:
            # How long it took so far is in them; that a killed run ends alike proves the rest.
            continue
        if path.suffix == ".jsonl":
            lines = [without_times(json.loads(line)) for line in path.read_text().splitlines()]
            yield name, digest(json.dumps(lines, sort_keys=True).encode())
        elif path.suffix in (".safetensors", ".json"):
            yield name, digest(path.read_bytes())


def stages(directory: Path) -> Iterator[tuple[str, str]]:
    """Yield digests of what the stages leave and answer."""
    texts = [line for topic in pydoc_data.topics.topics.values() for line in topic.splitlines()]
    texts = [line.strip() for line in texts if len(line) > 30][:1500]
    (directory / "wiki.txt").write_text("\n".join(texts))
    parts = {"tune.csv": texts[:600], "labelled.csv": texts[:96], "new.csv": texts[96:120]}
    for name, part in parts.items():
        with (directory / name).open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(("text", "label"))
            rows.writerows((text, ("long", "short")[len(text) < 66]) for text in part)
    sizes = ["--emb-size", "32", "--hidden-size", "48", "--bptt", "24", "--epochs", "2"]
    pretrain = ["pretrain", "--text", "wiki.txt", *sizes, *SMALL]
    tune = ["fine-tune", "--model", "general", "--text", "tune.csv", "--epochs", "2", *SMALL]
    fit = ["fit-classifier", "--model", "tuned", "--text", "labelled.csv", "--epochs", "2", *SMALL]
    for out, arguments in (("general", pretrain), ("tuned", tune), ("classifier", fit)):
        run(directory, *arguments, "--out", out)
        killed(directory, f"{out}-killed", *arguments)
    run(directory, "predict", "--model", "classifier", "--text", "new.csv", "--out", "answers.csv")
    for out in ("general", "tuned", "classifier"):
        for kind in (out, f"{out}-killed"):
            yield from ((f"{kind}/{name}", value) for name, value in left(directory / kind))
    yield "answers.csv", digest((directory / "answers.csv").read_bytes())
    said = run(directory, "generate", "--model", "tuned", "--prompt", "The", "--seed", "5")
    yield "generated", digest(said.encode())


def record(what: str, directory: Path) -> None:
    found = dict(layers() if what == "layers" else stages(directory))
    json.dump(found, sys.stdout)


def values(checkout: Path, directory: Path) -> dict[str, str]:
    """Return the digests of a checkout by their names."""
    found: dict[str, str] = {}
    for what, interpret in (("layers", "0"), ("layers", "1"), ("stages", "0")):
        own = directory / f"{what}-{interpret}"
        own.mkdir(parents=True)
        environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
        environment |= {"TRITON_INTERPRET": interpret, "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            [sys.executable, __file__, "--record", what, str(own)],
            env=environment, cwd=own, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"{checkout}: {done.stderr[-3000:]}")
        found |= json.loads(done.stdout)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("checkouts", type=Path, nargs="*")
    parser.add_argument("--record", nargs=2)
    asked = parser.parse_args()
    if asked.record:
        record(asked.record[0], Path(asked.record[1]))
        return 0
    old, new = (path.resolve() for path in asked.checkouts)
    with tempfile.TemporaryDirectory() as scratch:
        before, after = (
            values(path, Path(scratch) / name) for name, path in (("old", old), ("new", new))
        )
    unlike = sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))
    for name in unlike:
        print(f"DIFFERS {name}: {before.get(name, 'not there')}, {after.get(name, 'not there')}")
    print(f"{len(before)} values, {len(unlike)} differ")
    return int(bool(unlike))


if __name__ == "__main__":
    sys.exit(main())
