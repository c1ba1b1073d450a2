"""All questions, in the order in which they are asked: the goals' rows first."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.harness.rows import Row
from benchmarks.harness.settings import Settings
from benchmarks.questions import (
    alternatives,
    classifier_step,
    decoder,
    dropout_cost,
    first_step,
    generate,
    layer,
    lm_step,
    masks,
    memory,
    predict,
    scaling,
    tokenize,
)

QUESTIONS: dict[str, Callable[[Settings], list[Row]]] = {
    "lm_step": lm_step.run,
    "layer": layer.run,
    "decoder": decoder.run,
    "dropout_cost": dropout_cost.run,
    "memory": memory.run,
    "classifier_step": classifier_step.run,
    "masks": masks.run,
    "scaling": scaling.run,
    "first_step": first_step.run,
    "tokenize": tokenize.run,
    "predict": predict.run,
    "generate": generate.run,
}
# Asked by name only.
ON_REQUEST: dict[str, Callable[[Settings], list[Row]]] = {
    "alternatives": alternatives.run,
    "layer_bfloat16": layer.run_bfloat16,
    "lm_sizes": lm_step.run_sizes,
    "int8_accuracy": predict.run_accuracy,
}
