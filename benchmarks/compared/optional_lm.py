"""The language model, optimiser and regularisers of fastai itself, where it is installed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from benchmarks.compared.lm_plain import ADAM, ALPHA, BETA, CLIP
from benchmarks.compared.optional import load
from ulmfit_fast.nn import AWDLSTMConfig

_FIELDS = {
    "emb_sz": "emb_size",
    "n_hid": "hidden_size",
    "n_layers": "num_layers",
    "pad_token": "pad_id",
    "output_p": "output_p",
    "hidden_p": "hidden_p",
    "input_p": "input_p",
    "embed_p": "embed_p",
    "weight_p": "weight_p",
    "tie_weights": "tie_weights",
    "out_bias": "out_bias",
}


def fastai_step(
    config: AWDLSTMConfig, ours: Mapping[str, Tensor], device: str, dtype: torch.dtype
) -> tuple[Callable[[Tensor, Tensor], Tensor], dict[str, nn.Parameter]]:
    """Return fastai's training step and its parameters under our names.

    Its Learner is left out, whose callbacks would add their own cost to every step.

    Args:
        config: sizes and dropouts.
        ours: the values of our model's parameters.
        device: where it runs.
        dtype: of autocast, or float32 for none.

    Raises:
        ImportError: if fastai is not installed, or cannot be imported.
    """
    models = load("fastai", "fastai.text.models")
    losses = load("fastai", "fastai.losses")
    optimizers = load("fastai", "fastai.optimizer")
    values = {name: getattr(config, field) for name, field in _FIELDS.items()}
    model = models.get_language_model(
        models.AWD_LSTM, config.vocab_size, config={**values, "bidir": False}
    )
    model.to(device).train()
    named = _by_name(model)
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(ours[name])
    model.reset()
    criterion = losses.CrossEntropyLossFlat()
    half = dtype in (torch.float16, torch.bfloat16)
    optimizer = optimizers.Adam(
        list(model.parameters()),
        lr=ADAM["lr"],
        mom=ADAM["betas"][0],
        sqr_mom=ADAM["betas"][1],
        eps=ADAM["eps"],
        wd=ADAM["weight_decay"],
    )
    scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16, init_scale=2.0**10)

    def step(inputs: Tensor, targets: Tensor) -> Tensor:
        optimizer.zero_grad()
        with torch.autocast(device, dtype if half else torch.bfloat16, enabled=half):
            logits, raw, dropped = model(inputs.t())
            # The flattened loss wants contiguous targets.
            loss = criterion(logits, targets.t().contiguous())
            loss = loss + ALPHA * dropped.float().pow(2).mean()
            loss = loss + BETA * (raw[:, 1:] - raw[:, :-1]).float().pow(2).mean()
        scaler.scale(loss).backward()
        if scaler.is_enabled():
            inverse = 1.0 / scaler.get_scale()
            for parameter in model.parameters():
                parameter.grad.mul_(inverse)
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        return loss.detach()

    return step, named


def _by_name(model: nn.Module) -> dict[str, nn.Parameter]:
    encoder, decoder = model[0], model[1]
    named = {
        "encoder.encoder.weight": encoder.encoder.weight,
        "decoder.bias": decoder.decoder.bias,
    }
    for index, rnn in enumerate(encoder.rnns):
        prefix = f"encoder.rnns.{index}."
        named[f"{prefix}weight_hh_l0"] = rnn.weight_hh_l0_raw
        for name, parameter in rnn.module.named_parameters():
            named[prefix + name] = parameter
    return named
