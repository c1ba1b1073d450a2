"""All questions, in the order in which they are asked: the goals' rows first."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks import (
    bench_alternatives,
    bench_classifier_step,
    bench_decoder,
    bench_dropout_cost,
    bench_first_step,
    bench_layer,
    bench_layer_bfloat16,
    bench_lm_step,
    bench_masks,
    bench_memory,
    bench_predict,
    bench_scaling,
    bench_tokenize,
)
from benchmarks.rows import Row
from benchmarks.settings import Settings

QUESTIONS: dict[str, Callable[[Settings], list[Row]]] = {
    "lm_step": bench_lm_step.run,
    "layer": bench_layer.run,
    "decoder": bench_decoder.run,
    "dropout_cost": bench_dropout_cost.run,
    "memory": bench_memory.run,
    "classifier_step": bench_classifier_step.run,
    "masks": bench_masks.run,
    "scaling": bench_scaling.run,
    "first_step": bench_first_step.run,
    "tokenize": bench_tokenize.run,
    "predict": bench_predict.run,
}
# Asked by name only.
ON_REQUEST: dict[str, Callable[[Settings], list[Row]]] = {
    "alternatives": bench_alternatives.run,
    "layer_bfloat16": bench_layer_bfloat16.run,
    "int8_accuracy": bench_predict.run_accuracy,
}
