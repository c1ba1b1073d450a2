"""`ulmfit-fast convert`: files of fastai to a model directory and back, wrong ones in one line."""

import os
import pickle
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fastai_formats import FORMATS, V, encoder, expected_logits, state_dict
from typer.testing import CliRunner

from ulmfit_fast import ULMFiT
from ulmfit_fast.cli.program import app
from ulmfit_fast.compat.fastai import classifier_from_fastai, from_fastai
from ulmfit_fast.compat.files import read_tensors, read_words
from ulmfit_fast.data import SPECIALS
from ulmfit_fast.ulmfit.model_files import load_model

WORDS = [*SPECIALS, "film", "dull", "fine", "a", *(f"w{n}" for n in range(V - 13))]
TEXTS = ["a fine film", "a dull film"] * 10
TO_OURS = "--weights {0}/lm.pth --vocab {0}/itos.pkl --tokenizer word --out {0}/new"
TO_FASTAI = "--model {0}/model --to fastai --out {0}/new.pth"


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def run(command: str, folder: Path):
    return CliRunner().invoke(app, ["convert", *command.format(folder).split()])


def succeed(command: str, folder: Path) -> str:
    result = run(command, folder)
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    return result.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.save(state_dict(), tmp_path / "lm.pth")
    (tmp_path / "itos.pkl").write_bytes(pickle.dumps(WORDS))
    return tmp_path


@pytest.mark.parametrize("hidden", [24, 23], ids=["1152", "1150"])
@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_becomes_a_model_and_a_pair_of_fastai(
    folder: Path, kind: str, hidden: int
) -> None:
    tensors = state_dict(kind, hidden)
    torch.save(tensors, folder / "lm.h5")
    said = succeed(f"{TO_OURS} --weights {{0}}/lm.h5 --out {{0}}/model", folder)
    bias = ", no decoder bias" if kind == "0.7" else ""
    assert said == (
        f"3 layers, emb_size 8, hidden_size {hidden}{bias}, 56 words; the model is in "
        f"{folder}/model\nthe tokenizer is word; no preset (--preset fastai_v2 for fastai's); both "
        "are kept with the model\n"
        f"next: ulmfit-fast fine-tune --model {folder}/model --text texts.csv --out "
        f"{folder}/model-tuned\n"
    )
    model = ULMFiT.load(folder / "model", device="cpu")
    assert model.tokenizer.vocab.words == tuple(WORDS)
    assert model.settings.hidden_size == hidden and not model.settings.backwards
    tokens = torch.randint(V, (7, 2))
    with torch.no_grad():
        difference = model.language_model(tokens).logits - expected_logits(tensors, tokens)
    assert difference.abs().max() < 1e-12

    said = succeed("--model {0}/model --to fastai --out {0}/new/back.pth", folder)
    shown = f"emb_sz=8, n_hid={hidden}, n_layers=3" + ", out_bias=False" * (kind == "0.7")
    pair = f"{folder}/new/back.pth and {folder}/new/back.pkl"
    assert said == f"{pair} are for fastai's AWD_LSTM with {shown}\n"
    assert read_words(folder / "new" / "back.pkl") == WORDS
    back = from_fastai(read_tensors(folder / "new" / "back.pth"))
    with torch.no_grad():
        assert back(tokens).logits.equal(model.language_model(tokens).logits)
    assert sorted(os.listdir(folder / "new")) == ["back.pkl", "back.pth"]


def test_a_converted_model_goes_through_the_stages(folder: Path) -> None:
    tensors = {name: value.float() for name, value in state_dict("0.7", 23).items()}
    torch.save(tensors, folder / "lm.pth")
    said = succeed("--weights {0}/lm.pth --tokenizer word --out {0}/model", folder)
    assert said.startswith(f"the vocabulary is {folder.resolve()}/itos.pkl\n3 layers")
    model = ULMFiT.load(folder / "model", device="cpu", progress=False)
    row = WORDS.index("dull")
    old = model.language_model.encoder.encoder.weight[row].clone()
    model.settings = replace(model.settings, min_freq=1)
    model.fine_tune_lm(TEXTS, epochs=1, lr=1e-6, batch_size=4, bptt=5)
    new = model.language_model.encoder.encoder.weight[model.tokenizer.vocab.index("dull")]
    torch.testing.assert_close(new, old, rtol=0, atol=1e-3)
    model.fit_classifier(TEXTS, ["good", "bad"] * 10, epochs=1)
    model.save(folder / "classifier")

    command = "--model {0}/classifier --to fastai --out {0}/clas.pth --part classifier"
    said = succeed(command, folder)
    assert "n_hid=23" in said and said.endswith("\nits classes, in their order: bad, good\n")
    back = classifier_from_fastai(read_tensors(folder / "clas.pth"), bptt=model.classifier.bptt)
    tokens, lengths = torch.randint(2, 9, (6, 3)), torch.tensor([6, 4, 1])
    with torch.no_grad():
        assert back(tokens, lengths).equal(model.classifier(tokens, lengths))


def test_preset_and_tokenizer_stay_with_the_model(folder: Path) -> None:
    pytest.importorskip("spacy", reason="needs the package spacy")
    said = succeed("--weights {0}/lm.pth --preset fastai_v2 --out {0}/model", folder)
    assert "the tokenizer is spacy; the preset is fastai_v2; both are kept" in said
    model = ULMFiT.load(folder / "model", device="cpu", progress=False)
    assert model.settings.preset.name == "fastai_v2" and model.settings.hidden_size == 24
    assert model.settings.tokenizer == model.tokenizer.kind == "spacy"
    assert model.tokenizer.tokens("gonna")[1:] == ["gon", "na"]
    model.language_model.float()
    model.settings = replace(model.settings, min_freq=1)
    model.fine_tune_lm(["gonna stop"] * 40, epochs=1, batch_size=4, bptt=5)
    assert model.tokenizer.vocab.words[9:] == ("gon", "na", "stop")
    assert model.language_model.config.weight_p == 0.2


def test_words_that_are_not_of_fastai_are_ours(folder: Path) -> None:
    words = ["<unk>", "<eos>", *(f"w{n}" for n in range(V - 2))]
    (folder / "itos.pkl").write_bytes(pickle.dumps(words))
    said = succeed("--weights {0}/lm.pth --out {0}/model", folder)
    assert "the tokenizer is word" in said
    assert ULMFiT.load(folder / "model", device="cpu").tokenizer.kind == "word"


def test_without_spacy_one_line_says_what_to_do(folder: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "spacy", None)
    message = "needs the package spacy; pip install 'ulmfit-fast[spacy]'"
    for option, mend in (("", "; or pass --tokenizer word"), ("--tokenizer spacy", "")):
        result = run(f"--weights {{0}}/lm.pth --out {{0}}/new {option}", folder)
        assert result.exit_code == 2 and result.stderr.splitlines()[1].startswith("error: ")
        assert message + mend in result.stderr and "Traceback" not in result.stderr
    assert not (folder / "new").exists()


def test_an_encoder_there_and_back(folder: Path) -> None:
    torch.save(encoder(state_dict()), folder / "enc.pth")
    succeed(f"{TO_OURS} --weights {{0}}/enc.pth --out {{0}}/model", folder)
    assert not load_model(folder / "model").language_model.decoder.bias.any()
    succeed("--model {0}/model --to fastai --part encoder --out {0}/back.pth", folder)
    old, new = (read_tensors(folder / name) for name in ("enc.pth", "back.pth"))
    assert list(new) == list(old) and all(new[name].equal(old[name]) for name in old)


def test_a_backward_model_stays_one(folder: Path) -> None:
    succeed(f"{TO_OURS} --backwards --out {{0}}/model", folder)
    assert load_model(folder / "model").settings["backwards"] is True
    assert ULMFiT.load(folder / "model", device="cpu").settings.backwards
    said = succeed("--model {0}/model --to fastai --out {0}/back.pth", folder)
    assert said.endswith("\nit reads text from its end; fastai's data needs backwards=True\n")


def test_pieces_of_words_are_said_to_be_pieces(folder: Path) -> None:
    model = ULMFiT(emb_size=4, hidden_size=6, tokenizer="subword", max_vocab=40, progress=False)
    model.pretrain(TEXTS * 3, epochs=1, batch_size=4, bptt=5).save(folder / "pieces")
    said = succeed("--model {0}/pieces --to fastai --out {0}/back.pth", folder)
    assert said.endswith("\nits words are pieces; fastai has to split texts into the same ones\n")


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_the_help_names_what_is_replaced() -> None:
    text = run("--help", Path()).output
    said = " ".join("".join(c if c.isprintable() and c.isascii() else " " for c in text).split())
    assert "both FILE.pth and FILE.pkl" in said


def test_what_is_there_is_replaced_when_that_is_asked_for(folder: Path) -> None:
    command = f"{TO_OURS} --out {{0}}/model"
    succeed(command, folder)
    succeed("--model {0}/model --to fastai --out {0}/back.pth", folder)
    before = contents(folder)
    for again in (command, "--model {0}/model --to fastai --out {0}/back.pth"):
        result = run(again, folder)
        assert result.exit_code == 2 and "--overwrite replaces it" in result.stderr
    (folder / "back.pth").unlink()
    result = run("--model {0}/model --to fastai --out {0}/back.pth", folder)
    assert result.exit_code == 2 and "back.pkl is there already" in result.stderr
    torch.save(state_dict(hidden=20), folder / "lm.pth")
    succeed(f"{command} --overwrite", folder)
    succeed("--model {0}/model --to fastai --out {0}/back.pth --overwrite", folder)
    after = contents(folder)
    assert before.keys() == after.keys()
    changed = {name for name in before if before[name] != after[name]}
    weights = {"lm.pth", "back.pth", "model/language_model.safetensors", "model/config.json"}
    assert changed == weights


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("--out {0}/new", "--weights and --model are both missing, expected one of them"),
        (f"{TO_OURS} --model {{0}}/model", "--model does not go with --weights"),
        (f"{TO_OURS} --to fastai", "--to does not go with --weights"),
        (f"{TO_OURS} --part encoder", "--part does not go with --weights"),
        (f"{TO_FASTAI} --vocab {{0}}/itos.pkl", "--vocab does not go with --model"),
        (f"{TO_FASTAI} --backwards", "--backwards does not go with --model"),
        (f"{TO_FASTAI} --tokenizer word", "--tokenizer does not go with --model"),
        (f"{TO_FASTAI} --preset paper", "--preset does not go with --model"),
        (f"{TO_OURS} --preset fastai", "preset is 'fastai', expected one of paper, fastai07"),
        ("--model {0}/model --out {0}/new.pth", "--to is missing, expected --to fastai"),
        (f"{TO_FASTAI} --out {{0}}/new.h5", "new.h5 does not end in .pth, where fastai looks"),
        (f"{TO_FASTAI} --out {{0}}/lm.pth/new.pth", "lm.pth, which is a file"),
        (f"{TO_FASTAI} --model {{0}}/none", "none"),
        (f"{TO_FASTAI} --part classifier", "model has no classifier; choose another --part"),
        (f"{TO_OURS} --weights {{0}}/none.pth", "none.pth"),
        (f"{TO_OURS} --weights {{0}}/evil.pth", "evil.pth is refused: it asks for posix.mkdir"),
        (f"{TO_OURS} --vocab {{0}}/evil.pkl", "evil.pkl is refused: it asks for posix.mkdir"),
        (f"{TO_OURS} --vocab {{0}}/short.txt", "short.txt has 2 words and "),
        (f"{TO_OURS} --weights {{0}}/other.pth", "other.pth: the state_dict is no AWD-LSTM"),
        (f"{TO_OURS} --out {{0}}/itos.pkl", "itos.pkl is a file, expected a directory"),
        (f"{TO_OURS} --out {{0}}", "holds something other than a model"),
        ("--weights {0}/none.pth --out {0}/new", "--weights "),
        ("--weights {0}/lm.pth --out {0}/new", "--vocab is missing, and 2 .pkl files lie beside"),
    ],
)
def test_bad_input_is_one_line(folder: Path, command: str, message: str) -> None:
    succeed("--weights {0}/lm.pth --tokenizer word --out {0}/model", folder)
    torch.save({"hook": Payload(folder / "made")}, folder / "evil.pth")
    torch.save({"weight": torch.ones(1)}, folder / "other.pth")
    (folder / "evil.pkl").write_bytes(pickle.dumps(Payload(folder / "made")))
    (folder / "short.txt").write_text("the\ncat\n")
    before = contents(folder)
    result = run(command, folder)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert message.replace("posix", os.mkdir.__module__) in result.stderr
    assert result.stdout == "" and contents(folder) == before
    assert not (folder / "made").exists()
