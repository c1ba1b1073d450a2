"""Two processes on one training: equal to one on the joined batch, whatever is frozen or killed."""

import gc
import json
import weakref
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from small_models import CONFIG, documents, make
from torch import nn
from two_processes import (
    FITTING,
    PLAIN,
    UNFREEZING,
    VALIDATED,
    WEIGHTS,
    classifier_steps,
    fit,
    in_two,
    steps,
    two,
)

from ulmfit_fast import ULMFiT
from ulmfit_fast.data import LMBatches
from ulmfit_fast.nn import LanguageModel
from ulmfit_fast.runs import Run
from ulmfit_fast.system import distributed
from ulmfit_fast.training.stages import train_language_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def done(directory):
    """What two processes found, each thing in its turn: they take longer to start than to work."""
    names = ["gradients", "masks", "train", "resumed", "classifier", "weighted_classifier"]
    names += ["fit", "weighted_fit", "validated_fit", "fit_and_resume", "full_disk"]
    return two(directory, *names)


def assert_all_equal(a, b, **tolerance):
    for x, y in zip(a, b, strict=True):
        assert (x is None) == (y is None)
        if x is not None:
            torch.testing.assert_close(x, y, **tolerance)


def test_gradients_are_those_of_one_process_on_the_joined_batch(done):
    first, second = done["gradients"]
    whole = steps(4)
    exact = {"rtol": 0, "atol": 1e-12}
    for n in range(3):
        for found in (first, second):
            assert found["losses"][n] == pytest.approx(whole["losses"][n], abs=1e-12)
            assert_all_equal(found["grads"][n], whole["grads"][n], **exact)
    # The second step had frozen groups, without any gradient.
    assert any(g is None for g in first["grads"][1]) and all(
        g is not None for g in first["grads"][2]
    )
    assert_all_equal(first["weights"], second["weights"], rtol=0, atol=0)
    assert_all_equal(first["weights"], whole["weights"], **exact)
    for (h, c), (h_1, c_1), (h_2, c_2) in zip(
        whole["state"], first["state"], second["state"], strict=True
    ):
        assert_all_equal([h, c], [torch.cat([h_1, h_2], 1), torch.cat([c_1, c_2], 1)], **exact)


def test_each_process_has_masks_of_its_own(done):
    first, second = done["masks"]
    assert first["drawn"] != second["drawn"] and first["after"] == second["after"]
    assert first["losses"] == second["losses"]
    assert not torch.equal(first["state"][0][0], second["state"][0][0])
    assert_all_equal(first["weights"], second["weights"], rtol=0, atol=0)


def test_unfreezing_and_early_stopping_agree_and_only_the_first_writes(done, directory):
    first, second = done["train"]
    for name in ("losses", "valid_losses"):
        assert first[name] == second[name]
    assert_all_equal(first["weights"], second["weights"], rtol=0, atol=0)
    lines = (directory / "train" / "two" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == len(first["losses"]) + len(first["valid_losses"])
    # Of both processes.
    assert json.loads(lines[0])["tokens"] == 2 * UNFREEZING.batch_size * UNFREEZING.bptt
    # One process would not go on with it: half of the state would have nowhere to go.
    run = Run(directory / "train" / "two", resume=True)
    with pytest.raises(ValueError, match="processes is 1, and 2 in the run"):
        train_language_model(LanguageModel(CONFIG), documents(60), UNFREEZING, seed=3, run=run)


def test_two_processes_resume_exactly(done):
    for found in done["resumed"]:
        whole, again = found["whole"], found["again"]
        assert whole["losses"] == again["losses"]
        assert whole["valid_losses"] == again["valid_losses"]
        assert_all_equal(whole["weights"], again["weights"], rtol=0, atol=0)
        assert torch.equal(whole["generator"], again["generator"])


@pytest.mark.parametrize(
    ("what", "weights"), [("classifier", None), ("weighted_classifier", WEIGHTS[:5])]
)
def test_a_classifiers_gradients_and_statistics_are_those_of_the_joined_batch(done, what, weights):
    first, second = done[what]
    whole = classifier_steps(weights)
    exact = {"rtol": 0, "atol": 1e-12}
    for n in range(4):
        for found in (first, second):
            assert found["losses"][n] == pytest.approx(whole["losses"][n], abs=1e-12)
            assert_all_equal(found["grads"][n], whole["grads"][n], **exact)
    assert whole["losses"][0][1] > 0
    assert any(g is None for g in first["grads"][1]) and all(
        g is not None for g in first["grads"][2]
    )
    for name, value in whole["state"].items():
        assert torch.equal(first["state"][name], second["state"][name])
        torch.testing.assert_close(first["state"][name], value, **exact)


@pytest.mark.parametrize(("what", "weights"), [("fit", None), ("weighted_fit", WEIGHTS)])
def test_a_classifier_is_fitted_as_in_one_process_on_the_joined_batches(
    done, directory, tmp_path, what, weights
):
    first, second = done[what]
    joined = replace(FITTING, batch_size=8)
    whole = fit(tmp_path / "one", settings=joined, config=PLAIN, weights=weights)
    assert len(whole["losses"]) == 4 * 4
    assert first["losses"] == second["losses"] == pytest.approx(whole["losses"], abs=1e-9)
    assert_all_equal(first["weights"], second["weights"], rtol=0, atol=0)
    assert_all_equal(first["weights"], whole["weights"], rtol=0, atol=1e-8)
    reports = map(json.loads, (directory / what / "two" / "metrics.jsonl").read_text().splitlines())
    texts = [report["texts"] for report in reports if "texts" in report and "step" in report]
    assert sorted(set(texts))[-1] == 8


def test_two_processes_stop_at_the_same_epoch_as_one(done, tmp_path):
    first, second = done["validated_fit"]
    joined = replace(VALIDATED, batch_size=8)
    whole = fit(tmp_path / "one", settings=joined, config=PLAIN)
    assert first["valid"] == second["valid"] and 2 <= len(whole["valid"][0]) < 6
    assert first["valid"][0] == pytest.approx(whole["valid"][0], abs=1e-8)
    assert first["valid"][1] == whole["valid"][1]
    assert_all_equal(first["weights"], second["weights"], rtol=0, atol=0)
    assert_all_equal(first["weights"], whole["weights"], rtol=0, atol=1e-7)


def test_two_processes_fit_a_classifier_on_where_they_were_killed(done):
    for found in done["fit_and_resume"]:
        whole, again = found["whole"], found["again"]
        assert whole["losses"] == again["losses"]
        assert_all_equal(whole["weights"], again["weights"], rtol=0, atol=0)
        assert torch.equal(whole["generator"], again["generator"])


def test_both_end_where_the_first_cannot_write(done):
    first, second = done["full_disk"]
    assert "No space left" in first["error"] and "the first process failed" in second["error"]


def test_the_command_line_under_torchrun(tmp_path):
    """A classifier; the benchmark of several processes pre-trains with torchrun itself."""
    lm = ULMFiT(emb_size=8, hidden_size=12, min_freq=1, progress=False)
    texts = [f"the {w} film had an end" for w in ("fine", "dull")] * 20
    lm.pretrain(texts, epochs=1, batch_size=4, bptt=10).save(tmp_path / "lm")
    table = tmp_path / "labelled.csv"
    rows = [f"the {w} film had an end,{w}" for w in ("fine", "dull")] * 40
    table.write_text("\n".join(["text,label", *rows]))
    command = ["-m", "ulmfit_fast", "fit-classifier", "--model", tmp_path / "lm", "--text", table]
    command += ["--out", tmp_path / "classifier", "--epochs", 2, "--batch-size", 8]
    command += ["--class-weight", "dull=2", "--checkpoint-steps", 3]
    ended = in_two(*command)
    for code, _, error in ended:
        assert code == 0, error[-3000:]
    assert sum("the model is in" in "".join(output) for _, *output in ended) == 1
    model = ULMFiT.load(tmp_path / "classifier")
    assert model.labels == ["dull", "fine"] and len(model.predict(["the fine film"])) == 1
    # Rank zero has removed what the run no longer needs.
    run = tmp_path / "classifier" / "checkpoints" / "fit_classifier"
    assert {path.name for path in run.iterdir()} == {"run.json", "tokenizer.json"}


def test_parts_of_a_stream_are_the_rows_of_the_whole():
    ids = torch.arange(1000)
    whole = list(LMBatches(ids, 6, 9))
    for rank in range(3):
        part = list(LMBatches(ids, 2, 9, part=(rank, 3)))
        assert len(part) == len(whole)
        for (x, y), (own_x, own_y) in zip(whole, part, strict=True):
            assert torch.equal(x[:, 2 * rank : 2 * rank + 2], own_x)
            assert torch.equal(y[:, 2 * rank : 2 * rank + 2], own_y)
    with pytest.raises(ValueError, match=r"expected at least 1501 .* in each of 3 processes"):
        LMBatches(ids, 500, 9, part=(0, 3))


def test_one_process_needs_none_of_it(monkeypatch):
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    with distributed.launched() as found:
        assert found == (0, 1)
    before = torch.get_rng_state()
    with distributed.own_masks(torch.device("cpu")):
        assert torch.equal(torch.get_rng_state(), before)
    values = torch.ones(2)
    assert distributed.mean_(values) is values and distributed.gathered(values)[0].tolist() == [
        1,
        1,
    ]
    assert distributed.any_rank(True) and not distributed.any_rank(False)
    assert distributed.shared_text(lambda: "é") == "é"
    make("language model")


def test_what_holds_the_processes_together_is_gone_before_they_part(monkeypatch):
    """DistributedDataParallel is in reference cycles, and holds the process group."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(dist, "init_process_group", lambda *names: None)
    holder, alive = nn.Module(), []
    holder.itself = [holder]
    watched = weakref.ref(holder)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: alive.append(watched()))
    gc.disable()
    try:
        with distributed.launched():
            del holder
    finally:
        gc.enable()
    assert alive == [None]


def test_where_there_are_gpus_each_process_takes_its_own_and_nccl_its_tensors(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: asked.append(device))
    monkeypatch.setattr(dist, "init_process_group", lambda backend: asked.append(backend))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: asked.append("end"))
    with distributed.launched():
        assert asked == [1, "cpu:gloo,cuda:nccl"]
    assert asked[2:] == ["end"]
