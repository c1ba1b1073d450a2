"""What a listening device hears of a step, a capture and a layer; prints all of it as JSON.

Run as `python scenarios.py DIRECTORY`, where the library is: it must be there before torch is.
"""

import functools
import json
import sys
import warnings

import listening

listener = listening.connect(sys.argv[1])

import torch  # noqa: E402

import ulmfit_fast as uf  # noqa: E402
from ulmfit_fast import backend  # noqa: E402
from ulmfit_fast.functional import dropout  # noqa: E402
from ulmfit_fast.nn import AWDLSTMConfig, LanguageModel  # noqa: E402
from ulmfit_fast.optim import NTASGD  # noqa: E402
from ulmfit_fast.training import lm_step  # noqa: E402
from ulmfit_fast.training.lm_step import LanguageModelStep  # noqa: E402
from ulmfit_fast.training.objective import Objective  # noqa: E402
from ulmfit_fast.training.precision import Precision  # noqa: E402
from ulmfit_fast.training.readings import LossReadings  # noqa: E402

# Not the current one, which is the first.
DEVICE = "cuda:1"
# An odd batch, so that a view of a batch of texts begins at no multiple of 16 bytes.
STEPS, BATCH_SIZE, WORDS, WIDTH = 4, 3, 50, 64
DROPOUTS = ("embed_p", "input_p", "weight_p", "hidden_p", "output_p")
# As PyTorch's cudnn/RNN.cpp has it.
NOT_IN_ONE = (
    "RNN module weights are not part of single contiguous chunk of memory. This means they need "
    "to be compacted at every call, possibly greatly increasing memory usage. To compact weights "
    "again call flatten_parameters()."
)
heard = {}


def hear(name, function, *args, **settings):
    """Run something, and put down what was heard of it and what it raised."""
    before, error = len(listener.events), None
    try:
        function(*args, **settings)
    except Exception as caught:
        error = f"{type(caught).__name__}: {caught}"
    current = [listener.stream(device)[1] for device in range(2)]
    events = [dict(event) for event in listener.events[before:]]
    heard[name] = {"events": events, "error": error, "streams": current}
    listener.reset()


def make_step(
    dropouts=DROPOUTS, p=0.5, layers=2, optimizer=torch.optim.Adam, device=DEVICE, **options
):
    config = {name: p if name in dropouts else 0.0 for name in DROPOUTS}
    sizes = {"emb_size": WIDTH, "hidden_size": WIDTH, "num_layers": layers}
    config = AWDLSTMConfig.language_model(WORDS, **sizes, **config)
    model = LanguageModel(config, device=device).train()
    optimizer = optimizer(model.parameters(), lr=options.pop("lr", 1e-3), fused=True)
    objective = Objective(clip=0.25, precision=Precision(torch.bfloat16))
    return LanguageModelStep(model, optimizer, objective=objective, **options)


def batch(device=DEVICE):
    ids = torch.randint(2, WORDS, (STEPS + 1, BATCH_SIZE), device=device)
    return ids[:-1], ids[1:]


def warm(step, device=DEVICE):
    for _ in range(3):
        step(*batch(device))
    return step


def read_losses(step):
    readings = LossReadings()
    list(readings.add(step(*batch()), [1e-3], 1))


def load_own_state(step):
    step.optimizer.load_state_dict(step.optimizer.state_dict())


def inference(model, tokens):
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
        return model(tokens)


def capture(body):
    lm_step.record(body, torch.device(DEVICE))


def fail():
    raise ValueError("made up")


LAYER_STEPS, LAYER_BATCH, LAYER_IN, LAYER_HIDDEN = 3, 20, 24, 256


def layer(p=0.5, seed=3, stream=None, **settings):
    settings = {"backend": "triton-persistent", **settings}
    lstm = uf.LSTM(
        LAYER_IN, LAYER_HIDDEN, weight_p=p, gate_p=p, device=DEVICE, dtype=torch.bfloat16,
        **settings,
    )  # fmt: skip
    x = torch.randn(LAYER_STEPS, LAYER_BATCH, LAYER_IN, device=DEVICE, dtype=torch.bfloat16)
    with torch.cuda.stream(stream):
        lstm(x.requires_grad_(), seed=seed)[0].sum().backward()


def long_text(steps):
    """One row of so many steps through all that walks over them."""
    seed = torch.zeros((), dtype=torch.int64, device=DEVICE)
    weight = torch.randn(WORDS, 4, device=DEVICE).requires_grad_()
    tokens = torch.randint(2, WORDS, (steps, 1), device=DEVICE)
    x = dropout.embed_dropped(weight, tokens, seed, 0.5, seed, 0.5)
    x = dropout.locked_dropout(x, seed, 0.5)
    dropped, square, difference = dropout.dropout_and_regularisers(x, seed, 0.5)
    (dropped.sum() + square + difference).backward()


def cudnn():
    """PyTorch's own LSTM on a dropped weight; what it computes is made up, its warning is not."""

    def lstm(x, state, *_):
        if not all(part.is_contiguous() for part in state):
            raise RuntimeError("rnn: hx is not contiguous")
        warnings.warn(NOT_IN_ONE, UserWarning, stacklevel=1)
        return torch.zeros_like(x).sum(2, keepdim=True) + state[0], *state

    real, torch.lstm = torch.lstm, lstm
    try:
        with warnings.catch_warnings(), backend.use("torch"):
            warnings.simplefilter("error")
            lstm = uf.LSTM(LAYER_IN, LAYER_HIDDEN, weight_p=0.5, device=DEVICE)
            # One state for all rows.
            state = torch.zeros(1, 1, LAYER_HIDDEN, device=DEVICE).expand(1, LAYER_BATCH, -1)
            lstm(torch.randn(LAYER_STEPS, LAYER_BATCH, LAYER_IN, device=DEVICE), (state, state))
    finally:
        torch.lstm = real


def main():
    with listener, backend.use("triton"):
        hear("layer", layer)
        hear("layer on a stream", layer, stream=torch.cuda.Stream(DEVICE))
        # Thresholds that are multiples of 16, that are not, of the highest bit, and 1.
        for p in (0.2, 0.25, 1.0, 2.0**-32):
            hear(f"layer with p = {p}", layer, p=p)
        hear("layer with its weights on chip", layer, backend="triton-resident")
        seeds = torch.zeros(2, dtype=torch.int64, device=DEVICE)
        for index in range(2):
            hear(f"layer with seed {index}", layer, seed=seeds[index])
        hear("long text", long_text, 1_000_000)
        for name in ("eager", "reference"):
            hear(f"{name} layer with a seed", layer, seed=seeds[0], backend=name)
        hear("layers with a seed", layer, seed=seeds[0], num_layers=2, dropout=0.5)
        hear("first steps", warm, step := make_step())
        hear("step", step, *batch())
        hear("step with a reading", read_losses, step)
        hear("first steps of three layers", warm, step := make_step(layers=3))
        hear("step of three layers", step, *batch())
        for p, lr in ((0.2, 1e-2), (0.25, 1.0)):
            hear(f"steps with p = {p}", warm, make_step(p=p, lr=lr))
        for count in (5, 4, 2, 0):
            step = make_step(DROPOUTS[:count], capture=True)
            hear(f"first steps with {count}", warm, step)
            hear(f"capture with {count}", step, *batch())
            hear(f"replay with {count}", step, *batch())
        hear("another state", load_own_state, step)
        hear("steps of another state", warm, step)
        hear("capture of another state", step, *batch())
        sgd = make_step(optimizer=functools.partial(torch.optim.SGD, momentum=0.9), capture=True)
        hear("first steps of SGD", warm, sgd)
        hear("capture of SGD", sgd, *batch())
        # There have been captures on the second device before.
        other = make_step(device="cuda:0", capture=True)
        hear("first steps on the first device", warm, other, "cuda:0")
        hear("capture on the first device", other, *batch("cuda:0"))
        hear("capture of NTASGD", make_step, optimizer=NTASGD, capture=True)
        model, (tokens, _) = step.model.eval(), batch()
        hear("cudnn", cudnn)
        hear("inference", inference, model, tokens)
        hear("capture of inference", capture, lambda: inference(model, tokens))
        hear("a body that fails", capture, fail)
        hear("a capture that fails", capture, lambda: torch.zeros(1).to(DEVICE))
    for name in ("eager", "torch", "reference"):
        with listener, backend.use(name):
            hear(f"first steps in {name}", warm, step := make_step(capture=True))
            hear(f"capture in {name}", step, *batch())
    json.dump(heard, sys.stdout)


main()
