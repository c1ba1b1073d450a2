"""What can go wrong among blocks, streams, graphs and processes, and nowhere but on a GPU."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from comparison import run, tensors
from rehearsal import DEVICE, FORMS, REHEARSAL, rehearsed, sized

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
    return [output, h, c, *torch.autograd.grad(loss, [x, *lstm.parameters()])]


def assert_equal(got, expected):
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


@rehearsed
@pytest.mark.parametrize("hidden", sized([1152, 400], [17]))
def test_repeated_runs_give_the_same_bits(hidden):
    lstm, x = layer(hidden=hidden), inputs()
    expected = results(lstm, x)
    noise = None if REHEARSAL else torch.cuda.Stream()
    for number in range(sized(1000, 2)):
        if noise is not None:
            # A second stream takes multiprocessors away, and at odd moments.
            with torch.cuda.stream(noise):
                torch.cuda._sleep(1000 * (number * 7919 % 97))
                square = torch.ones(256 + number % 512, 512, device=DEVICE)
                square @ square.t()
        assert_equal(results(lstm, x), expected)
    raise_failed(wait=True)


def run_in_process(code, seconds):
    """Run code in a process of its own, which may hang."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, timeout=seconds, capture_output=True, text=True)


LOOP = """
import torch
import ulmfit_fast as uf
from ulmfit_fast.kernels.launch import raise_failed
torch.manual_seed(1)
lstms = [uf.LSTM(400, 1152, weight_p=0.5, device="cuda", dtype=torch.bfloat16,
                 backend="triton-persistent") for _ in range(2)]
x = torch.randn(20, 64, 400, device="cuda", dtype=torch.bfloat16)
streams = [torch.cuda.Stream() for _ in lstms]
expected = [lstm(x, seed=3)[0] for lstm in lstms]
torch.cuda.synchronize()
for _ in range({repeats}):
    got = []
    for lstm, stream in zip(lstms, streams):
        with torch.cuda.stream(stream):
            got.append(lstm(x, seed=3)[0])
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(got, expected))
raise_failed(wait=True)
print("done")
"""


@pytest.mark.gpu
def test_two_streams_at_once():
    result = run_in_process(LOOP.format(repeats=200), 120)
    assert result.stdout.strip() == "done", result.stderr


@pytest.mark.gpu
def test_two_processes_on_one_gpu():
    command = [sys.executable, "-c", LOOP.format(repeats=200)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, cwd=ROOT, **pipes) for _ in range(2)]
    try:
        for process in processes:
            out, err = process.communicate(timeout=150)
            assert out.strip() == "done", err
    finally:
        for process in processes:
            process.kill()


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


@rehearsed
@forms
def test_compiled_whole(form):
    lstm, x = layer(form), inputs()
    seed = torch.tensor(3, device=DEVICE)

    def model(x, seed):
        return lstm(x.tanh(), seed=seed)[0].relu()

    compiled = torch.compile(model, fullgraph=True, backend=sized("inductor", "aot_eager"))
    torch.testing.assert_close(compiled(x, seed), model(x, seed), atol=1e-2, rtol=1e-2)


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
    assert (ours - truth).abs().max() < 0.05 * truth.max()
    if not REHEARSAL:
        assert truth[-20:].mean() < truth[:20].mean() - 0.5


@rehearsed
@forms
def test_sanitize(form):
    """Small enough for compute-sanitizer; see `make sanitize`."""
    small = tensors(2, 17, 8, sized(48, 17), DTYPE, device=DEVICE)
    got = run(form, small, weight_p=0.5, gate_p=0.1, seed=1)
    assert all(part.isfinite().all() for part in got)
