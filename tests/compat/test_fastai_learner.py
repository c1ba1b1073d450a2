"""An accelerated learner does all that it did before, and exchanges files with other learners."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fastai_learners import classifier_learner, corpus, lm_learner
from fastai_parts import NO_DROPOUT, fastai

from ulmfit_fast.compat.fastai import accelerate, restore
from ulmfit_fast.compat.fastai_learner import WeightDropLSTM

ROOT = Path(__file__).parents[2]


def test_the_whole_protocol(tmp_path):
    frame = corpus(texts=80)
    learn = accelerate(lm_learner(tmp_path, frame))
    untrained = learn.validate()[0]
    learn.fit_one_cycle(1, 1e-2)
    assert learn.validate()[0] < untrained - 0.1
    learn.save_encoder("encoder")
    text = learn.predict("the old wave", n_words=4, no_bar=True)
    assert text.startswith("the old wave ") and len(text.split()) > 3
    vocab, dropout = learn.dls.vocab, {"input_p": 0.1, "hidden_p": 0.1, "weight_p": 0.2}
    classifier = accelerate(
        classifier_learner(tmp_path, frame, vocab=vocab, embed_p=0.0, output_p=0.1, **dropout)
    )
    classifier.load_encoder("encoder")
    for name, value in classifier.model[0].module.state_dict().items():
        assert torch.equal(value, learn.model[0].state_dict()[name])
    assert classifier.opt.frozen_idx == 4
    classifier.fit_one_cycle(1, 2e-2)
    classifier.freeze_to(-2)
    classifier.fit_one_cycle(1, slice(1e-2 / 2.6**4, 1e-2))
    classifier.unfreeze()
    classifier.fit_one_cycle(8, slice(2e-2 / 2.6, 2e-2))
    assert classifier.validate()[1] > 0.8
    found = [classifier.predict(text) for text in frame[frame.label == "sea"].text[:5]]
    assert [(label, int(index)) for label, index, _ in found].count(("sea", 0)) >= 4
    assert all(0.99 < scores.sum() < 1.01 for *_, scores in found)


def test_fine_tune_finds_and_clips_as_before(tmp_path):
    learn = accelerate(classifier_learner(tmp_path))
    found = learn.lr_find(num_it=20, show_plot=False)
    assert 1e-7 < found.valley < 10
    before = [parameter.clone() for parameter in learn.model.parameters()]
    learn.add_cb(fastai.GradientClip(0.1))
    learn.fine_tune(2, 1e-2)
    assert learn.opt.frozen_idx == 0 and len(learn.opt.hypers) == 5
    assert all(
        not torch.equal(old, new) for old, new in zip(before, learn.model.parameters(), strict=True)
    )


@pytest.mark.parametrize("make", [lm_learner, classifier_learner])
def test_groups_and_frozen_layers_are_those_of_fastai(tmp_path, make):
    plain, learn = make(tmp_path), accelerate(make(tmp_path))
    names = {id(p): name for name, p in plain.model.named_parameters()}
    ours = {id(p): name for name, p in learn.model.named_parameters()}
    for stage in (-1, -2, -3, 0):
        plain.freeze_to(stage)
        learn.freeze_to(stage)
        for group, other in zip(learn.opt.param_lists, plain.opt.param_lists, strict=True):
            assert [ours[id(p)] for p in group] == [names[id(p)] for p in other]
        for p, other in zip(learn.model.parameters(), plain.model.parameters(), strict=True):
            assert p.requires_grad == other.requires_grad
    learn.freeze_to(-1)
    frozen = {name: p.clone() for name, p in learn.model.named_parameters() if not p.requires_grad}
    learn.fit(1, 1e-2)
    assert all(torch.equal(learn.model.get_parameter(name), p) for name, p in frozen.items())
    assert sum("rnns" in name for name in frozen) == 12


@pytest.mark.parametrize("make", [lm_learner, classifier_learner])
def test_weights_and_optimizer_go_both_ways(tmp_path, make):
    plain, learn = make(tmp_path), accelerate(make(tmp_path))
    for source, target in ((plain, learn), (learn, plain)):
        source.fit(1, 1e-2)
        source.save("stage")
        target.load("stage", with_opt=True)
        assert list(target.validate()) == pytest.approx(list(source.validate()), abs=1e-6)
        saved, loaded = source.opt.state_dict()["state"], target.opt.state_dict()["state"]
        assert len(saved) == len(loaded) > 12
        for old, new in zip(saved, loaded, strict=True):
            assert old.keys() == new.keys()
            assert all(torch.equal(torch.as_tensor(old[k]), torch.as_tensor(new[k])) for k in old)


def test_encoders_go_both_ways(tmp_path):
    plain, learn = lm_learner(tmp_path), accelerate(lm_learner(tmp_path))
    plain.save_encoder("plain")
    learn.save_encoder("ours")
    saved = {name: torch.load(tmp_path / "models" / f"{name}.pth") for name in ("plain", "ours")}
    assert list(saved["plain"]) == list(saved["ours"])
    vocab = learn.dls.vocab
    accelerated = accelerate(classifier_learner(tmp_path, vocab=vocab))
    other = classifier_learner(tmp_path, vocab=vocab)
    for encoder in ("plain", "ours"):
        accelerated.load_encoder(encoder)
        other.load_encoder(encoder)
        other.model[1].load_state_dict(accelerated.model[1].state_dict())
        (ours, targets), (theirs, _) = accelerated.get_preds(), other.get_preds()
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        assert targets.tolist() == [0, 1] * 5


def test_pretrained_files_of_fastai_load(tmp_path):
    plain = lm_learner(tmp_path)
    plain.save("wiki", with_opt=False)
    vocab = [word for word in plain.dls.vocab if word not in ("wave", "tram")]
    fastai.save_pickle(tmp_path / "models" / "wiki.pkl", plain.dls.vocab)
    files = [tmp_path / "models" / name for name in ("wiki.pth", "wiki.pkl")]
    learn = accelerate(lm_learner(tmp_path, vocab=vocab))
    learn.load_pretrained(*files)
    row = learn.dls.vocab.index("salt"), plain.dls.vocab.index("salt")
    assert len(learn.dls.vocab) == len(vocab) < len(plain.dls.vocab)
    for name, value in learn.model.state_dict().items():
        theirs = plain.model.state_dict()[name]
        if "rnns" in name:
            assert torch.equal(value, theirs)
        else:
            assert torch.equal(value[row[0]], theirs[row[1]])


def test_an_exported_learner_predicts_the_same_in_a_new_process(tmp_path):
    learn = accelerate(classifier_learner(tmp_path))
    learn.fit(1, 1e-2)
    text = "the wave and the salt tide"
    scores = learn.predict(text)[2]
    learn.export("learner.pkl")
    learn.fit(1, 1e-2)  # it goes on after an export
    script = """
import sys
from fastai.text.all import load_learner
learn = load_learner(sys.argv[1])
print([type(rnn).__module__ for rnn in learn.model[0].module.rnns])
with learn.no_bar():
    print(learn.predict(sys.argv[2])[2].tolist())
"""
    command = [sys.executable, "-W", "ignore", "-c", script, str(tmp_path / "learner.pkl"), text]
    run = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    modules, printed = run.stdout.strip().splitlines()[-2:]
    assert modules == str(["ulmfit_fast.compat.fastai_learner"] * 3)
    torch.testing.assert_close(torch.tensor(json.loads(printed)), scores, rtol=1e-5, atol=1e-6)


def test_a_restored_learner_is_exported_without_this_package(tmp_path):
    learn = accelerate(classifier_learner(tmp_path))
    learn.export("ours.pkl")
    restore(learn).export("plain.pkl")
    found = [b"ulmfit_fast" in (tmp_path / name).read_bytes() for name in ("ours.pkl", "plain.pkl")]
    assert found == [True, False]


@pytest.mark.parametrize("precision", ["to_bf16", "to_fp16"])
def test_mixed_precision(tmp_path, precision, monkeypatch):
    # fastai's callback knows CUDA alone, and without it does nothing; here it does it on the CPU.
    monkeypatch.setattr(
        "fastai.callback.fp16.autocast", lambda _, dtype: torch.autocast("cpu", dtype=dtype)
    )
    monkeypatch.setattr(
        "fastai.callback.fp16.GradScaler", lambda _, **kw: torch.amp.GradScaler("cpu", **kw)
    )
    learn = accelerate(lm_learner(tmp_path))
    before = learn.validate()[0]
    getattr(learn, precision)()
    learn.fit(2, 1e-2)
    half = {"to_bf16": torch.bfloat16, "to_fp16": torch.float16}[precision]
    assert learn.recorder.losses[-1] < before - 0.1
    learn.model.train()
    with torch.autocast("cpu", dtype=half):
        learn.model(learn.dls.one_batch()[0])
    assert {part.dtype for part in learn.model[0].hidden[0]} == {half, torch.float32}
    learn.to_fp32()
    assert learn.validate()[0] < before - 0.1
    learn.fit(1, 1e-3)


def test_a_learner_goes_on_in_the_middle_of_its_training(tmp_path, in_float64):
    curves = []
    for changes in ((), (accelerate, restore, accelerate)):
        fastai.set_seed(0)
        learn = lm_learner(tmp_path, frame=corpus(texts=24), **NO_DROPOUT)
        steps = [lambda learn: learn, *changes]
        curve = []
        for epoch in range(4):
            steps[epoch % len(steps)](learn)
            # Adam's state lives on from epoch to epoch, with the parameters that it belongs to.
            learn.fit(1, 1e-2, reset_opt=False)
            curve += [float(loss) for loss in learn.recorder.losses]
            curve.append(learn.recorder.final_record[1])
        assert isinstance(learn.model[0].rnns[0], WeightDropLSTM) == bool(changes)
        curves.append(curve)
    assert len(curves[0]) > 50 and curves[0][-1] < curves[0][0] - 0.1
    assert curves[0] == pytest.approx(curves[1], abs=1e-10)
