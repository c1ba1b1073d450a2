"""What can go wrong among blocks, streams, graphs and processes, and nowhere but on a GPU."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from comparison import run, tensors
from rehearsal import DEVICE, FORMS, REHEARSAL, rehearsed, sized
from rounding import errors

import ulmfit_fast as uf
from ulmfit_fast.kernels import lstm_operator, tiles
from ulmfit_fast.kernels.launch import LaunchRefused, raise_failed

ROOT = Path(__file__).parents[2]
DTYPE = torch.float16 if REHEARSAL else torch.bfloat16
STEPS, BATCH_SIZE, WIDTH, HIDDEN = sized((20, 64, 400, 1152), (2, 3, 5, 17))
forms = pytest.mark.parametrize("form", FORMS)


def layer(form="triton-persistent", hidden=HIDDEN, **settings):
    torch.manual_seed(1)
    settings = {"weight_p": 0.5, "gate_p": (0.1, 0.0, 0.1, 0.0), **settings}
    return uf.LSTM(WIDTH, hidden, device=DEVICE, dtype=DTYPE, backend=form, **settings)


def inputs(batch_size=BATCH_SIZE):
    torch.manual_seed(2)
    x = torch.randn(STEPS, batch_size, WIDTH).to(DEVICE, DTYPE)
    return x.requires_grad_()


def results(lstm, x, seed=3):
    """Return outputs and gradients."""
    output, (h, c) = lstm(x, seed=seed)
    loss = output.float().square().sum() + h.float().sum() + c.float().sum()
    grads = torch.autograd.grad(loss, [x, *lstm.parameters()])
    # Without the graph, which would tie a later call to the stream of this one.
    return [output.detach(), h.detach(), c.detach(), *grads]


def assert_equal(got, expected):
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


@rehearsed
@pytest.mark.parametrize("hidden", sized([1152, 400], [17]))
def test_repeated_runs_give_the_same_bits(hidden):
    lstm, x = layer(hidden=hidden), inputs()
    expected = results(lstm, x)
    if not REHEARSAL:
        noise, load = torch.cuda.Stream(), torch.ones(2048, 2048, device=DEVICE, dtype=DTYPE)
        torch.cuda.synchronize()
    for number in range(sized(1000, 2)):
        if not REHEARSAL:
            # A second stream takes multiprocessors away, few or all of them, and at odd moments.
            with torch.cuda.stream(noise):
                torch.cuda._sleep(1000 * (number * 7919 % 97))
                some = load[: 128 + number * 389 % 1920]
                for _ in range(4):
                    torch.mm(some, load)
        assert_equal(results(lstm, x), expected)
    raise_failed(wait=True)


# Two layers at H = 400 with 16 rows have room on a device together; at H = 1152 one waits.
LOOP = """
import torch
import ulmfit_fast as uf
from ulmfit_fast.kernels.launch import raise_failed

hidden, batch_size, device = {size}
torch.manual_seed(1)
dtype = torch.bfloat16 if device == "cuda" else torch.float16
lstms = [uf.LSTM(hidden, hidden, weight_p=0.5, device=device, dtype=dtype,
                 backend="triton-persistent") for _ in range(2)]
x = torch.randn(20, batch_size, hidden, device=device, dtype=dtype)
streams = [torch.cuda.Stream() if device == "cuda" else None for _ in lstms]

def results(lstm):
    output, _ = lstm(x, seed=3)
    loss = output.float().square().sum()
    return [output, *torch.autograd.grad(loss, lstm.parameters())]

expected = [results(lstm) for lstm in lstms]
torch.cuda.synchronize() if device == "cuda" else None
for _ in range({repeats}):
    got = []
    for lstm, stream in zip(lstms, streams):
        # Of None it does nothing.
        with torch.cuda.stream(stream):
            got.append(results(lstm))
    torch.cuda.synchronize() if device == "cuda" else None
    for parts in zip(got, expected):
        assert all(torch.equal(a, b) for a, b in zip(*parts))
raise_failed(wait=True)
print("done")
"""
SIZES = sized([(1152, 64, "cuda"), (400, 16, "cuda")], [(17, 3, "cpu")])
sizes = pytest.mark.parametrize("size", SIZES, ids=str)


def run_together(size, count):
    """Run the loop in processes of its own, since it may hang; each has to print done."""
    command = [sys.executable, "-c", LOOP.format(size=size, repeats=sized(300, 1))]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, cwd=ROOT, **pipes) for _ in range(count)]
    try:
        for process in processes:
            out, err = process.communicate(timeout=180)
            assert out.strip() == "done", err
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@rehearsed
@sizes
def test_two_streams_at_once(size):
    run_together(size, 1)


# The rehearsal of one process is that of the program of both.
@pytest.mark.gpu
@sizes
def test_two_processes_on_one_gpu(size):
    run_together(size, 2)


@pytest.mark.gpu
def test_a_launch_that_cannot_be_resident_is_refused_or_goes_stepwise(monkeypatch):
    real = tiles.choose

    def too_many(*args, **settings):
        plan = real(*args, **settings)
        if plan.form != "persistent":
            return plan
        # More groups of rows in one launch than the device has multiprocessors for.
        forward = plan.forward._replace(rows=16, groups=64, warps=4)
        backward = plan.backward._replace(rows=16, groups=64, warps=4)
        return plan._replace(forward=forward, backward=backward)

    x = inputs(batch_size=512)
    expected = results(layer("triton-stepwise"), x)
    monkeypatch.setattr(lstm_operator.tiles, "choose", too_many)
    with pytest.raises(LaunchRefused):
        layer("triton-persistent")(x, seed=3)
    assert_equal(results(layer("triton"), x), expected)


@pytest.mark.gpu
@forms
def test_a_captured_graph_replays_with_new_masks(form):
    lstm, x = layer(form), inputs()
    seed = torch.tensor(3, device=DEVICE)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            results(lstm, x, seed)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = results(lstm, x, seed)
    for value in (3, 4, 5, 3):
        seed.fill_(value)
        graph.replay()
        torch.cuda.synchronize()
        assert_equal(captured, results(lstm, x, value))


# The compiler has advice of its own for the user, on TF32 for one.
@pytest.mark.filterwarnings("default")
@rehearsed
@forms
def test_compiled_whole(form):
    lstm, x = layer(form), inputs()
    seed = torch.tensor(3, device=DEVICE)

    def model(x, seed):
        return lstm(x.tanh(), seed=seed)[0].relu()

    compiled = torch.compile(model, fullgraph=True, backend=sized("inductor", "aot_eager"))
    both = []
    for function in (compiled, model):
        output = function(x, seed)
        loss = output.float().square().sum()
        both.append([output.detach(), *torch.autograd.grad(loss, [x, *lstm.parameters()])])
    assert max(errors(*both)) < 2e-2


@rehearsed
def test_a_copy_does_the_same():
    lstm, x = layer(), inputs()
    assert_equal(results(copy.deepcopy(lstm), x), results(lstm, x))


@rehearsed
def test_checkpointing_draws_the_same_masks_again():
    lstm, x = layer(), inputs()
    grads = []
    for again in (False, True):
        torch.manual_seed(9)
        if again:
            output, _ = torch.utils.checkpoint.checkpoint(lstm, x, use_reentrant=False)
        else:
            output, _ = lstm(x)
        grads.append(torch.autograd.grad(output.float().square().sum(), [x, *lstm.parameters()]))
    assert_equal(*grads)


@rehearsed
def test_two_hundred_steps_of_a_language_model_follow_the_reference():
    """Text with structure: each token is one of two successors of the token before it."""
    vocab, width, hidden = sized((500, 128, 256), (20, 8, 17))
    torch.manual_seed(4)
    successors = torch.randint(vocab, (vocab, 2))
    text = [0]
    for bit in torch.randint(2, (sized(200, 4) * 161,)).tolist():
        text.append(int(successors[text[-1], bit]))
    text = torch.tensor(text, device=DEVICE)
    curves = []
    for backend in ("triton", "reference"):
        torch.manual_seed(5)
        embedding = torch.nn.Embedding(vocab, width)
        lstm = uf.LSTM(width, hidden, weight_p=0.2, gate_p=(0, 0, 0.1, 0), backend=backend)
        decoder = torch.nn.Linear(hidden, vocab)
        model = torch.nn.ModuleList([embedding, lstm, decoder]).to(DEVICE)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        losses = []
        for step in range(sized(200, 3)):
            chunk = text[step * 160 : step * 160 + sized(161, 25)]
            rows = (len(chunk) - 1) // 8
            ids = chunk[: rows * 8].view(8, rows).t()
            targets = chunk[1 : rows * 8 + 1].view(8, rows).t()
            logits = decoder(lstm(embedding(ids), seed=step)[0])
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        curves.append(torch.tensor(losses))
    ours, truth = curves
    # Relative noise of 2^-11 on every input moves this curve by 5e-4.
    assert (ours - truth).abs().max() < 0.01 * truth.max()
    if not REHEARSAL:
        assert truth[-20:].mean() < truth[:20].mean() - 0.5


@rehearsed
@forms
def test_sanitize(form):
    """Small enough for compute-sanitizer; see `make sanitize`."""
    small = tensors(2, 17, 8, sized(48, 17), DTYPE, device=DEVICE)
    got = run(form, small, weight_p=0.5, gate_p=0.1, seed=1)
    assert all(part.isfinite().all() for part in got)
