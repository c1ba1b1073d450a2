"""No command writes over what it reads or what is not its own, or twice without being asked."""

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

import ulmfit_fast as uf
from ulmfit_fast.cli.program import app
from ulmfit_fast.compat.fastai import read_fastai, write_fastai
from ulmfit_fast.data import Tokenizer, TokenStore, Vocab, read_texts
from ulmfit_fast.data.reading.outputs import check_apart, inside
from ulmfit_fast.data.reading.published import read_ag_news, read_imdb, read_wikitext
from ulmfit_fast.nn import AWDLSTMConfig, LanguageModel
from ulmfit_fast.runs import Run
from ulmfit_fast.serving import export_classifier
from ulmfit_fast.ulmfit.ensemble import Ensemble

TEXTS = ["a fine film", "a dull, long story"] * 20
SIZES = {"emb_size": 4, "hidden_size": 6, "num_layers": 2, "min_freq": 1, "progress": False}


@pytest.fixture(scope="module")
def model() -> uf.ULMFiT:
    model = uf.ULMFiT(**SIZES, device="cpu").pretrain(TEXTS, epochs=1, batch_size=4, bptt=10)
    return model.fit_classifier(TEXTS, ["+", "-"] * 20, epochs=1, batch_size=8)


@pytest.fixture
def folder(model: uf.ULMFiT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What commands read, under several names each; the working directory."""
    monkeypatch.chdir(tmp_path)
    model.save("m")
    Path("m", "metrics.jsonl").write_text("{}\n")
    rows = [f'"{text}",{label}' for text, label in zip(TEXTS, ["+", "-"] * 20, strict=True)]
    Path("texts").mkdir()
    for name in ("mine.csv", "texts/a.csv"):
        Path(name).write_text("\n".join(["text,label", *rows]) + "\n")
    write_fastai(model.language_model, model.tokenizer.vocab, "lm.pth")
    TokenStore.build("store", TEXTS, model.tokenizer, workers=1, progress=False)
    Path("sub").mkdir()
    for link, target in (("link.csv", "mine.csv"), ("model", "m"), ("linked", "texts")):
        Path(link).symlink_to(target)
    os.link("mine.csv", "second.csv")
    Path("texts", "b.csv").symlink_to("../mine.csv")
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in sorted(folder.rglob("*"))
    }


def run(command: str):
    return CliRunner().invoke(app, command.split())


PREDICT, EXPLAIN = "predict --model m --text mine.csv", "explain --model m --text mine.csv"
FIND = "find-lr --model m --text mine.csv --steps 12 --batch-size 2"
TUNE = "fine-tune --model m --text mine.csv --epochs 1 --batch-size 2 --bptt 5"
FIT = "fit-classifier --model m --text mine.csv --epochs 1"
PRETRAIN = "pretrain --text mine.csv --epochs 1 --batch-size 2 --bptt 5 --min-freq 1"
SAME_FILE = ["mine.csv", "./sub/../mine.csv", "link.csv", "second.csv"]
OVER = [
    *(f"{command} --out {out}" for command in (PREDICT, EXPLAIN, FIND) for out in SAME_FILE),
    f"{PREDICT} --out m/config.json",
    f"{PREDICT} --out model/classifier.safetensors",
    f"{PREDICT} --out m/metrics.jsonl",
    "predict --model m --text texts --out mine.csv",
    "predict --model m --text texts --out texts/answers.csv",
    "predict --model m --text linked --out texts/deep/answers.jsonl --format jsonl",
    *(f"{command} --out {out}" for command in (TUNE, FIT) for out in ("m", "model", "sub/../m")),
    f"{TUNE} --out m --resume",
    f"{TUNE} --out m/checkpoints",
    "fine-tune --model m --text texts --out texts/new",
    "fine-tune --model m --text texts --out linked/new",
    "pretrain --text texts --out texts",
    "pretrain --text m/metrics.jsonl --out m",
    "pretrain --text store --out store",
    "tokenize --text texts --out texts",
    "tokenize --text mine.csv --model store --out store",
    "tokenize --text mine.csv --model m --out m",
    "tokenize --text mine.csv --tokenizer m/tokenizer.json --out m/tokenizer.json",
    "convert --weights lm.pth --out lm.pth",
    "convert --weights lm.pth --vocab lm.pkl --out .",
    "convert --model m --to fastai --out m",
    "ablate --task mine.csv --general texts --out texts/out",
    "ablate --task mine.csv --general texts --out mine.csv",
]


@pytest.mark.parametrize("command", OVER)
def test_nothing_that_is_read_is_written_over(folder: Path, command: str) -> None:
    before = contents(folder)
    again = [] if "--resume" in command else ["--overwrite"]
    for options in ([], again):
        result = run(" ".join([command, *options]))
        assert result.exit_code == 2, result.output
        assert result.stderr.startswith("error: --out ") and result.stderr.count("\n") == 1
        assert result.stdout == "" and contents(folder) == before


def test_letters_of_the_other_case_are_the_same_file_where_the_system_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.stat

    def as_on_macos(path, *args, **options):
        return real(str(path).replace("MINE", "mine"), *args, **options)

    monkeypatch.setattr(os, "stat", as_on_macos)
    with pytest.raises(FileExistsError, match=r"MINE\.csv is read, and would be written over"):
        check_apart(Path("MINE.csv"), [Path("mine.csv")], is_text=True)


@pytest.mark.parametrize(
    "command",
    [
        f"{PREDICT} --out sub/answers.csv",
        f"{PREDICT} --out m/answers.csv",
        "predict --model m --text texts --out texts/.hidden/answers.csv",
        "explain --model m --text texts --out texts/page.html",
        "tokenize --text texts --out texts/ids --workers 1",
    ],
)
def test_what_does_no_harm_is_written(folder: Path, command: str) -> None:
    before = contents(folder)
    result = run(command)
    assert result.exit_code == 0, result.output
    after = contents(folder)
    assert after.items() > before.items() and Path(command.split("--out ")[1].split()[0]).exists()


COMMANDS = {
    PREDICT: "out.csv",
    EXPLAIN: "out.html",
    FIND: "out.png",
    "convert --model m --to fastai": "out.pth",
    "convert --tokenizer word --weights lm.pth --vocab lm.pkl": "out",
    TUNE: "out",
    FIT: "out",
    f"{PRETRAIN} --emb-size 4 --hidden-size 6 --num-layers 2": "out",
    "tokenize --text mine.csv --min-freq 1 --workers 1": "out",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_second_run_asks_to_overwrite_or_to_resume(folder: Path, command: str) -> None:
    command = f"{command} --out {COMMANDS[command]}"
    assert run(command).exit_code == 0
    before = contents(folder)
    result = run(command)
    assert result.exit_code == 2 and result.stderr.count("\n") == 1 and result.stdout == ""
    resumes = command.split()[0] in ("pretrain", "fine-tune", "fit-classifier")
    assert ("--resume goes on with it" in result.stderr) == resumes
    assert "--overwrite replaces it" in result.stderr and contents(folder) == before
    if resumes:
        assert "both" in run(f"{command} --resume --overwrite").stderr
        assert run(f"{command} --resume").exit_code == 0
    assert contents(folder).keys() == before.keys()
    result = run(f"{command} --overwrite")
    assert result.exit_code == 0, result.output
    assert contents(folder).keys() == before.keys()


def test_an_empty_place_is_free(folder: Path) -> None:
    Path("out.csv").touch()
    Path("out").mkdir()
    assert run(f"{PREDICT} --out out.csv").exit_code == 0 and Path("out.csv").stat().st_size
    assert run(f"{TUNE} --out out").exit_code == 0 and Path("out", "config.json").exists()


def test_a_run_that_is_not_there_is_not_resumed_over_a_model(folder: Path) -> None:
    assert run(f"{TUNE} --out out").exit_code == 0
    before = contents(folder)
    for out in ("out", "store"):
        result = run(f"{FIT} --out {out} --resume")
        assert result.exit_code == 2 and result.stderr.count("\n") == 1
        assert out == "store" or "no fit_classifier run to go on with" in result.stderr
    assert contents(folder) == before
    assert run(f"{FIT} --out out --overwrite").exit_code == 0
    assert uf.ULMFiT.load("out", progress=False).labels == ["+", "-"]


def test_an_unfinished_run_is_gone_on_with_or_begun_anew_as_asked(folder: Path) -> None:
    run(f"{TUNE} --out out --checkpoint-steps 2 --keep-checkpoints")
    path = Path("out", "checkpoints", "fine_tune_lm", "run.json")
    description = json.loads(path.read_text())
    path.write_text(json.dumps({**description, "finished": False}))
    with pytest.raises(FileExistsError, match=r"\(resume=True\).*\(overwrite=True\)"):
        Run("out").check("fine_tune_lm")
    assert "--resume goes on with it, --overwrite" in run(f"{TUNE} --out out").stderr
    result = run(f"{TUNE} --out out --set lr=0.01 --overwrite")
    assert result.exit_code == 0, result.output
    assert json.loads(path.read_text())["fingerprint"]["settings"]["lr"] == 0.01
    with pytest.raises(ValueError, match="resume and overwrite are both asked for"):
        Run("out", resume=True, overwrite=True)


@pytest.mark.parametrize("name", ["notes.txt", "config.json"])
@pytest.mark.parametrize(
    "command",
    [
        TUNE,
        "convert --tokenizer word --weights lm.pth --vocab lm.pkl",
        "tokenize --text mine.csv",
        "demo --quick",
    ],
)
def test_a_directory_of_something_else_is_kept_even_when_told_to_overwrite(
    folder: Path, command: str, name: str
) -> None:
    Path("theirs").mkdir()
    Path("theirs", name).write_text('{"model_type": "bert"}')
    before = contents(folder)
    for options in ("", " --overwrite"):
        result = run(f"{command} --out theirs{options}")
        assert result.exit_code == 2 and "holds something other than a" in result.stderr
        assert contents(folder) == before


def test_a_demo_and_an_ablation_ask_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("ulmfit_fast.studies.demo.run_demo", lambda *a, **o: asked.append(a))
    monkeypatch.setattr("ulmfit_fast.report.format_table", str)
    Path("out").mkdir()
    Path("out", "metrics.json").write_text("{}")
    result = run("demo --out out")
    assert result.exit_code == 2 and "--out out holds metrics.json already" in result.stderr
    assert not asked and run("demo --out out --overwrite").exit_code == 0 and asked
    for name in ("ablation_mine.csv", "ablation_mine.json", "ablation_other.csv"):
        Path("out", name).write_text("")
    command = "ablate --task mine.csv --general texts --out out"
    result = run(command)
    assert result.exit_code == 2 and "--resume goes on with it, --overwrite" in result.stderr

    def measured(task, out, *args, **options):
        raise ValueError(f"begins with {sorted(os.listdir(out))}")

    monkeypatch.setattr("ulmfit_fast.studies.ablation.run_ablation", measured)
    monkeypatch.setattr("ulmfit_fast.studies.tasks.own_task", lambda *args, **options: None)
    kept = "'ablation_other.csv', 'metrics.json'"
    assert f"'ablation_mine.csv', 'ablation_mine.json', {kept}" in run(f"{command} --resume").stderr
    assert f"['.lock', {kept}]" in run(f"{command} --overwrite").stderr


@pytest.mark.parametrize("keeps", ["run", "checkpoint_dir"])
@pytest.mark.parametrize(("texts", "out"), [("texts", "texts/new"), ("m/metrics.jsonl", "m")])
def test_a_training_in_python_does_not_read_what_it_writes(
    folder: Path, texts: str, out: str, keeps: str
) -> None:
    before = contents(folder)
    model = uf.ULMFiT(**SIZES, checkpoint_dir=out if keeps == "checkpoint_dir" else None)
    for given in (Path(texts), texts, [Path(texts)]):
        with pytest.raises(FileExistsError, match="choose a"):
            model.pretrain(given, run=Run(out) if keeps == "run" else None)
    assert contents(folder) == before


def test_inside_goes_by_what_directories_are(folder: Path) -> None:
    assert inside(Path("linked/a.csv"), Path("texts")) == Path("a.csv")
    assert inside(Path("texts/a/b"), folder) == Path("texts/a/b")
    assert inside(Path("texts"), Path("texts")) is None
    assert inside(Path("texts2"), Path("texts")) is None


def test_a_leading_tilde_is_the_home_directory_everywhere(
    folder: Path, model: uf.ULMFiT, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = folder / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    texts = home / "texts.csv"
    texts.write_text((folder / "mine.csv").read_text())
    model.save("~/saved")
    model.save_pretrained("~/hub")
    Ensemble([model]).save("~/both")
    assert uf.ULMFiT.load("~/saved", progress=False).labels == ["+", "-"]
    assert uf.ULMFiT.from_pretrained("~/hub", progress=False).labels == ["+", "-"]
    assert len(Ensemble.load("~/both", progress=False).models) == 1
    assert list(read_texts("~/texts.csv")) == list(read_texts([Path("~/texts.csv")])) == TEXTS
    TokenStore.build("~/ids", Path("~/texts.csv"), model.tokenizer, workers=1, progress=False)
    assert TokenStore.is_store("~/ids") and len(TokenStore("~/ids")) == len(TEXTS)
    trained = uf.ULMFiT(**SIZES, checkpoint_dir="~/kept")
    trained.pretrain("~/texts.csv", epochs=1, batch_size=4, bptt=10, run=Run("~/run"))
    # What an exported program is has tests of its own.
    with monkeypatch.context() as patch:
        patch.setattr("torch.export.export", lambda *args, **options: None)
        patch.setattr("torch.export.save", lambda program, file, **options: Path(file).touch())
        export_classifier(model, "~/classifier.pt2")
    write_fastai(
        LanguageModel(AWDLSTMConfig(11, emb_size=4, hidden_size=6)), Vocab(["a", "b"]), "~/lm.pth"
    )
    assert read_fastai("~/lm.pth", "~/lm.pkl")[1].vocab.words[9:] == ("a", "b")
    own = Tokenizer.train(TEXTS, min_freq=1).to_huggingface()
    own.save(str(home / "tokenizer.json"))
    Tokenizer.from_huggingface("~/tokenizer.json")
    (home / "wiki.txt").write_text(" = A = \n \n a b\n")
    assert len(list(read_wikitext("~/wiki.txt"))) == 1
    (home / "train.csv").write_text('"1","a","b"\n')
    assert len(list(read_ag_news("~"))) == 1
    for name in ("neg", "pos"):
        (home / "train" / name).mkdir(parents=True)
        (home / "train" / name / "1_1.txt").write_text("a")
    assert len(list(read_imdb("~", "train"))) == 2
    for command in (
        "predict --model ~/saved --text ~/texts.csv --out=~/answers.csv",
        "explain --model=~/saved --text=~/texts.csv --out ~/page.html",
        "find-lr --model ~/saved --text ~/texts.csv --out ~/lr.png --steps 12 --batch-size 2",
        "convert --tokenizer word --weights ~/lm.pth --vocab ~/lm.pkl --out ~/converted",
        "tokenize --text ~/texts.csv --tokenizer ~/tokenizer.json --out ~/more --workers 1",
    ):
        result = run(command)
        assert result.exit_code == 0, result.output
    made = {"saved", "hub", "both", "ids", "kept", "run", "classifier.pt2", "lm.pth", "lm.pkl"}
    made |= {"answers.csv", "page.html", "lr.png", "converted", "more"}
    assert made <= set(os.listdir(home)) and "~" not in os.listdir(folder)
