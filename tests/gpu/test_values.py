"""The kernels at real sizes against the float64 reference, no further than twice PyTorch's own."""

import pytest
import torch
from comparison import NAMES, bounds, run, tensors, uninterleave
from rehearsal import DEVICE, FORMS, REHEARSAL, TF32_SHARE, rehearsed, sized
from rounding import errors

import ulmfit_fast as uf
from ulmfit_fast import rng
from ulmfit_fast.kernels import weight_drop
from ulmfit_fast.kernels.launch import DropArguments

forms = pytest.mark.parametrize("form", FORMS)
directions = pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "reverse"])
HALF = [torch.float16] if REHEARSAL else [torch.bfloat16, torch.float16]
# Each is a compilation of four kernels, so sizes, dtypes and directions are paired, not crossed.
CASES = sized(
    [
        ((70, 64, 400, 1152), torch.bfloat16, False),
        ((70, 64, 400, 1152), torch.bfloat16, True),
        ((70, 64, 400, 1152), torch.float16, False),
        ((70, 128, 1152, 1152), torch.bfloat16, False),
        ((70, 20, 400, 1150), torch.bfloat16, True),
        ((70, 128, 1152, 400), torch.bfloat16, False),
        ((70, 64, 1152, 400), torch.float16, True),
    ],
    [((2, 3, 5, 17), torch.float16, reverse) for reverse in (False, True)],
)
STEPS, BATCH_SIZE, WIDTH, HIDDEN = sized((7, 64, 400, 1152), (2, 3, 5, 17))


def assert_as_near_as_torch(form, inputs, share=2, **settings):
    """PyTorch's own LSTM cannot mask gates: its error without them is the yardstick with them."""
    truth = run("reference", inputs, wide=True, **settings)
    ours = errors(run(form, inputs, **settings), truth)
    plain = {**settings, "gate_p": 0.0, "lengths": None}
    theirs = errors(run("torch", inputs, **plain), run("reference", inputs, wide=True, **plain))
    reach = bounds(inputs, **settings)
    for name, our, their, bound in zip(NAMES, ours, theirs, reach, strict=True):
        assert our <= max(share * their, bound), (
            f"{name}: {our:.2e}, torch {their:.2e}, {bound:.2e}"
        )


@rehearsed
@forms
@pytest.mark.parametrize(("size", "dtype", "reverse"), CASES, ids=str)
def test_half_precision(form, size, dtype, reverse):
    inputs = tensors(*size, dtype, device=DEVICE)
    assert_as_near_as_torch(form, inputs, weight_p=0.5, seed=2**62 + 5, reverse=reverse)


@rehearsed
@forms
@pytest.mark.parametrize("legacy_switch", [False, True], ids=["fp32_precision", "allow_tf32"])
@pytest.mark.parametrize("tf32", [False, True], ids=["ieee", "tf32"])
def test_float32(form, tf32, legacy_switch, monkeypatch):
    if not tf32 and form == "triton-persistent" and not REHEARSAL:
        pytest.skip("float32 without tf32 has no persistent form")
    if legacy_switch:
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", tf32)
    else:
        precision = "tf32" if tf32 else "ieee"
        monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", precision)
    inputs = tensors(STEPS, BATCH_SIZE, WIDTH, HIDDEN, torch.float32, device=DEVICE)
    share = TF32_SHARE if tf32 and not REHEARSAL else 2
    assert_as_near_as_torch(form, inputs, share, weight_p=0.5, seed=3)


@rehearsed
@forms
@pytest.mark.parametrize(
    ("hidden", "reverse"),
    sized(
        [
            (1152, False),
            (1152, True),
            (1150, False),
            (400, True),
            (100, False),
            (48, True),
            (17, False),
            (16, True),
        ],
        [(16, False), (17, True)],
    ),
)
def test_all_masks(form, hidden, reverse):
    inputs = tensors(STEPS, BATCH_SIZE, WIDTH, hidden, HALF[0], device=DEVICE)
    masks = {"weight_p": (0.2, 0.5, 0.0, 1.0), "gate_p": (0.1, 0.0, 0.2, 0.1)}
    assert_as_near_as_torch(form, inputs, **masks, seed=4, reverse=reverse, layer=2)


@rehearsed
@forms
@pytest.mark.parametrize(
    "masks",
    [
        {"gate_p": (0.1, 0.0, 0.2, 0.1), "gate_mask": "sequence"},
        {"weight_p": 0.5, "gate_p": (0.0, 1.0, 0.0, 0.5)},
        {"weight_p": 1.0},
    ],
    ids=["sequence", "no-forget-gate", "no-recurrence"],
)
def test_masks_at_their_limits(form, masks):
    inputs = tensors(STEPS, BATCH_SIZE, WIDTH, HIDDEN, HALF[0], device=DEVICE)
    assert_as_near_as_torch(form, inputs, **masks, seed=8)


@rehearsed
@forms
@directions
def test_rows_of_their_own_length(form, reverse):
    inputs = tensors(STEPS, BATCH_SIZE, WIDTH, HIDDEN, HALF[0], device=DEVICE)
    lengths = torch.arange(BATCH_SIZE, device=DEVICE) % (STEPS + 1)
    settings = {"weight_p": 0.5, "gate_p": 0.1, "seed": 5, "reverse": reverse}
    assert_as_near_as_torch(form, inputs, lengths=lengths, **settings)


@rehearsed
@pytest.mark.parametrize("size", sized([(1152, 256), (1152, 300), (400, 256)], [(17, 33)]), ids=str)
def test_batches_past_one_tile(size):
    hidden, batch_size = size
    inputs = tensors(STEPS, batch_size, WIDTH, hidden, HALF[0], device=DEVICE)
    assert_as_near_as_torch("triton-persistent", inputs, weight_p=0.5, seed=6)


@rehearsed
@forms
def test_gates_computed_again(form):
    inputs = tensors(STEPS, BATCH_SIZE, WIDTH, HIDDEN, HALF[0], device=DEVICE)
    settings = {"weight_p": 0.5, "seed": 7}
    truth = run("reference", inputs, wide=True, **settings)
    again, kept = (errors(run(form, inputs, keep=k, **settings), truth) for k in ("cells", None))
    assert all(a <= 2 * b + 1e-3 for a, b in zip(again, kept, strict=True))


@rehearsed
@pytest.mark.parametrize("seed", [0, 2**31, 2**32 - 1, 2**62 + 12345, 2**63 - 1])
def test_masks_are_those_of_the_cpu(seed):
    p = (0.2, 0.5, 0.0, 1.0)
    scale = torch.tensor([rng.keep_scale(value) for value in p]).repeat_interleave(HIDDEN)
    expected = rng.weight_keep(seed, HIDDEN, p, stream=3) * scale[:, None]
    ones = torch.ones(4 * HIDDEN, HIDDEN, device=DEVICE)
    drop = DropArguments.of(p)
    mixed = weight_drop.drop_weight(ones, drop, torch.tensor(seed, device=DEVICE), 3)
    assert torch.equal(uninterleave(mixed).cpu(), expected)


@rehearsed
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_autocast(dtype):
    lstm = uf.LSTM(WIDTH, HIDDEN, weight_p=0.5, device=DEVICE, backend="triton")
    x = torch.randn(STEPS, BATCH_SIZE, WIDTH, device=DEVICE)
    state = tuple(torch.randn(2, 1, BATCH_SIZE, HIDDEN, device=DEVICE))
    with torch.autocast(DEVICE, dtype=dtype):
        output, (h, c) = lstm(x, state)
    assert (output.dtype, h.dtype, c.dtype) == (dtype, dtype, torch.float32)
    output.float().square().mean().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in lstm.parameters())
