"""The command `find-lr`: a learning rate for a model and its texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from ulmfit_fast.cli.app import (
    BatchSize,
    ClassWeight,
    Device,
    Model,
    Overwrite,
    Seed,
    TableOptions,
    TextFiles,
    WeightColumn,
    check_out_file,
    class_weight_of,
    flat,
    say,
    say_next,
    typer,
)

__all__ = ["find_lr"]


@flat
def find_lr(
    *,
    model: Model,
    text: TextFiles,
    out: Annotated[Path, typer.Option("--out", help="Picture of the curve, .png or .svg.")],
    overwrite: Overwrite = False,
    label_column: Annotated[
        str | None,
        typer.Option(
            "--label-column", "--labels", help="Column of labels: the rate of a new classifier."
        ),
    ] = None,
    class_weight: ClassWeight = None,
    weight_column: WeightColumn = None,
    batch_size: BatchSize = 64,
    bptt: Annotated[int, typer.Option("--bptt", help="Tokens of a step.")] = 70,
    gradual_unfreezing: Annotated[
        int, typer.Option("--gradual-unfreezing", help="1 trains a classifier's head alone.")
    ] = 0,
    steps: Annotated[int, typer.Option("--steps", help="Steps at most.")] = 100,
    seed: Seed = 0,
    table: TableOptions,
    device: Device = None,
) -> None:
    """Find a learning rate for a language model, or for a classifier on its encoder.

    A copy of the model trains with a rate that grows until the loss runs away.
    """
    import torch

    from ulmfit_fast.data.reading.corpus import read_texts
    from ulmfit_fast.nn import AWDLSTMConfig, LanguageModel, TextClassifier
    from ulmfit_fast.system.seeds import own_generators
    from ulmfit_fast.training import lr_finder
    from ulmfit_fast.training.stages import TrainingSettings, build_classifier
    from ulmfit_fast.ulmfit.estimator import ULMFiT
    from ulmfit_fast.ulmfit.labelled import classes_of, labelled_texts, with_weights

    class_weights = class_weight_of(class_weight)
    if label_column is None and not (class_weights is None and weight_column is None):
        raise ValueError("there are weights of a classifier's texts; name its --label-column")
    check_out_file(out, [model, *text], overwrite=overwrite)
    settings = TrainingSettings(
        batch_size=batch_size, bptt=bptt, gradual_unfreezing=gradual_unfreezing
    )
    learner = ULMFiT.load(model, device=device)
    if learner.tokenizer is None or learner.language_model is None:
        raise ValueError(f"the model in {model} has no language model, expected one; pre-train it")
    trained: LanguageModel | TextClassifier = learner.language_model
    classes, weights = None, None
    if label_column is None:
        corpus = list(read_texts(text, **table.arguments()))
    else:
        read = labelled_texts(
            text, None, None, weight_column, label_column=label_column, **table.arguments()
        )
        names = classes_of(read[1])
        corpus, labels, weights = with_weights(read[0], read[1], class_weights, read[2])
        indices = [names.index(label) for label in labels]
        classes = torch.tensor(indices, dtype=torch.int64, device="cpu")
        own = learner.language_model.config
        config = AWDLSTMConfig.classifier(
            own.vocab_size,
            emb_size=own.emb_size,
            hidden_size=own.hidden_size,
            num_layers=own.num_layers,
            **learner.settings.classifier_dropout,
        ).scaled(learner.settings.drop_mult)
        with own_generators(seed):
            trained = build_classifier(learner.language_model, config, len(names), settings)
        trained = trained.to(learner.device)
    documents = learner.tokenizer.encode_batch(corpus)
    result = lr_finder.find_lr(
        trained, documents, settings, labels=classes, weights=weights, steps=steps, seed=seed
    )
    result.plot(out)
    for name in ("valley", "steep", "minimum"):
        typer.echo(f"{name} {getattr(result.suggestions, name):.2e}")
    rate = f"{result.suggestions.valley:.2e}"
    say(
        f"take --lr {rate}, half-way along the longest fall of the loss; the curve of "
        f"{len(result.lrs)} steps is in {out}"
    )
    files: list[object] = [part for path in text for part in ("--text", path)]
    files += table.options()
    if label_column is None:
        say_next("fine-tune", "--model", model, *files, "--lr", rate, "--out", f"{model}-tuned")
    else:
        files += ["--label-column", label_column]
        out = Path(f"{model}-classifier")
        say_next("fit-classifier", "--model", model, *files, "--lr", rate, "--out", out)
