"""The parts of a language model's training step, each with its own forward and backward."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.compared import lm_ours, lm_plain
from benchmarks.compared.lm_plain import ALPHA, BETA, Problem
from ulmfit_fast.functional import dropout
from ulmfit_fast.functional.cross_entropy import linear_cross_entropy
from ulmfit_fast.nn import LanguageModel
from ulmfit_fast.nn.dropout import embed
from ulmfit_fast.system.seeds import draw_seed

PARTS = ("embedding", "layers", "decoder", "optimizer")
Part = Callable[[int], object]


def plain_parts(asked: Problem, dtype: torch.dtype) -> dict[str, Part]:
    """Return the parts of the step as it is written today."""
    model = lm_plain.PlainLanguageModel(asked.config)
    model.load(asked.start)
    model.to(asked.device)
    step = lm_plain.PlainStep(model, dtype)
    encoder = model.encoder
    inputs, targets = (ids.t() for ids in asked.batches()[0])
    size = (asked.batch_size, asked.steps, asked.config.emb_size)
    x, grad = _leaf(size, asked.device), torch.randn(size).to(asked.device)

    def embedding(turn: int) -> None:
        with step.autocast():
            y = encoder.embed(inputs)
        torch.autograd.grad(y, encoder.embedding.weight, grad.to(y.dtype))

    def layers(turn: int) -> None:
        with step.autocast():
            y, _ = encoder.stack(x, None)
        torch.autograd.grad(y, [x, *encoder.rnns.parameters()], grad.to(y.dtype))

    def decoder(turn: int) -> None:
        with step.autocast():
            loss = model.loss(x, targets)
        torch.autograd.grad(loss, [x, *model.decoder.parameters()])

    _give_gradients(model)

    def optimizer(turn: int) -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), lm_plain.CLIP, foreach=False)
        step.optimizer.step()

    return dict(zip(PARTS, (embedding, layers, decoder, optimizer), strict=True))


def our_parts(asked: Problem, dtype: torch.dtype) -> dict[str, Part]:
    """Return the parts of our step."""
    model = LanguageModel(asked.config)
    model.load_state_dict(asked.start)
    model.to(asked.device).train()
    encoder, config = model.encoder, asked.config
    inputs, targets = asked.batches()[0]
    size = (asked.steps, asked.batch_size, asked.config.emb_size)
    x, grad = _leaf(size, asked.device), torch.randn(size).to(asked.device)

    def embedding(turn: int) -> None:
        with lm_ours.autocast(asked.device, dtype):
            y = embed(encoder.encoder, inputs, config.embed_p, locked_p=config.input_p)
        torch.autograd.grad(y, encoder.encoder.weight, grad.to(y.dtype))

    def layers(turn: int) -> None:
        y: Tensor = x
        with lm_ours.autocast(asked.device, dtype):
            for index, rnn in enumerate(encoder.rnns):
                y = encoder.hidden_dropout(y) if index else y
                y, _ = rnn(y)
        torch.autograd.grad(y, [x, *encoder.rnns.parameters()], grad.to(y.dtype))

    def decoder(turn: int) -> None:
        with lm_ours.autocast(asked.device, dtype):
            dropped, square, difference = dropout.dropout_and_regularisers(
                x, draw_seed(), config.output_p
            )
            flat, bias = dropped.flatten(0, 1), model.decoder.bias
            loss = linear_cross_entropy(flat, model.decoder.weight, bias, targets.flatten())
            loss = loss + ALPHA * square + BETA * difference
        torch.autograd.grad(loss, [x, *model.decoder.parameters()])

    _give_gradients(model)
    stepped = lm_ours.make_optimizer(model)

    def optimizer(turn: int) -> None:
        lm_ours.update(model, stepped)

    return dict(zip(PARTS, (embedding, layers, decoder, optimizer), strict=True))


def _leaf(size: tuple[int, ...], device: str) -> Tensor:
    return torch.randn(size).to(device).requires_grad_()


def _give_gradients(model: torch.nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
