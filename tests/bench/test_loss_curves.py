"""The curves of both precisions: the same steps, rows and picture, and the verdict."""

import csv

from benchmarks import loss_curves


def test_both_precisions_take_the_same_steps_on_the_same_texts(tmp_path):
    said = []
    code = loss_curves.main(
        ["--out", str(tmp_path), "--packages", "networkx", "--tiny"], said.append
    )
    with (tmp_path / "loss_curves.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert (tmp_path / "loss_curves.png").stat().st_size > 1000
    kinds = {(row["precision"], row["seed"]) for row in rows}
    assert kinds == {(name, seed) for name in ("float32", "bfloat16") for seed in "01"}
    first = {k: [float(r["loss"]) for r in rows if (r["precision"], r["seed"]) == k] for k in kinds}
    assert len({len(losses) for losses in first.values()}) == 1
    assert all(losses[-1] < losses[0] for losses in first.values())
    one, other = first["float32", "0"], first["bfloat16", "0"]
    assert 0 < max(abs(a - b) for a, b in zip(one, other, strict=True)) < 0.02
    assert code == 0 and len(said) == 5 and "two seeds" in said[-1]


def test_curves_that_part_are_a_failure(tmp_path, monkeypatch):
    def train(texts, held_out, precision, seed, **values):
        losses = [4.0 + 0.1 * seed + (precision == "bfloat16")] * 40
        return loss_curves.Curve(precision, seed, losses, 50.0)

    monkeypatch.setattr(loss_curves, "train", train)
    arguments = ["--out", str(tmp_path), "--packages", "networkx", "--tiny"]
    assert loss_curves.main(arguments, lambda line: None) == 1
