"""Which form of the kernels runs a layer, with which tiles, or why none can.

Plain arithmetic on sizes and on what a device has: nothing here runs on the device.
"""

from typing import NamedTuple

import torch

__all__ = [
    "BackwardTile",
    "PersistentTile",
    "Plan",
    "StepTile",
    "choose",
]

_HALF = (torch.bfloat16, torch.float16)
# Beside the tiles a kernel keeps some scratch for reductions and layout changes.
_SCRATCH = 2048
# A block of the forward has 16 units, 64 columns with their gates; of the backward 16 units in a
# piece of the weight that is 128 columns wide.
_UNITS, _COLUMNS, _K_PARTS = 16, 128, 8
# Input tiles ahead of their products, by bytes of an element: with one more, registers spill.
_IN_FLIGHT_FORWARD, _IN_FLIGHT_BACKWARD = {2: 3, 4: 2}, {2: 3, 4: 1}


class StepTile(NamedTuple):
    """Tiles of a stepwise kernel: rows of the batch, hidden units, depth of a product's step."""

    rows: int
    units: int
    block_k: int
    warps: int
    stages: int


class PersistentTile(NamedTuple):
    """Tiles of the persistent forward.

    Attributes:
        rows: rows of the batch in a block.
        units: hidden units in a block, four columns each.
        block_k: depth of a K-tile.
        stages: K-tiles of both operands on chip, all but one copied ahead of their products.
        warps: warps of a block.
        groups: groups of rows in one launch.
        k_parts: ranges into which the H columns fall, as many blocks sharing their units; 1 unless
            asked for.
    """

    rows: int
    units: int
    block_k: int
    stages: int
    warps: int
    groups: int
    k_parts: int = 1

    def depth(self, hidden_size):
        """Return how many of the H columns, in whole K-tiles, a block multiplies."""
        return -(-hidden_size // (self.k_parts * self.block_k)) * self.block_k


class BackwardTile(NamedTuple):
    """Tiles of the persistent backward.

    Attributes:
        rows: rows of the batch in a block.
        k_parts: ranges into which the 4H gate columns fall.
        columns: width of a range of the H columns.
        block_k: depth of a K-tile.
        stages: K-tiles of both operands on chip, all but one copied ahead of their products.
        grouped: whether a block waits for those alone that it depends on.
        warps: warps of a block.
        groups: groups of rows in one launch.
    """

    rows: int
    k_parts: int
    columns: int
    block_k: int
    stages: int
    grouped: bool
    warps: int
    groups: int

    def depth(self, hidden_size):
        """Return how many of the 4H gate columns, of whole slices, a block multiplies."""
        return 4 * -(-hidden_size // self.columns) * self.columns // self.k_parts


class Plan(NamedTuple):
    """How a layer's call runs.

    Attributes:
        form: "persistent" or "stepwise"; None when neither can.
        reason: why this form; why not, when form is None.
        forward: `PersistentTile` or None; so is backward.
        backward: `BackwardTile` or None.
        forward_step: `StepTile`; so is backward_step.
        backward_step: see forward_step.
    """

    form: str | None
    reason: str
    forward: PersistentTile | None = None
    backward: BackwardTile | None = None
    forward_step: StepTile | None = None
    backward_step: StepTile | None = None


def choose(
    device, *, batch_size, hidden_size, dtype, precision="ieee", form=None, has_lengths=False
):
    """Choose form and tiles.

    Args:
        device: `device.Device`.
        batch_size: B.
        hidden_size: H.
        dtype: compute dtype of the layer.
        precision: of float32 products, "tf32" or "ieee".
        form: "persistent", "stepwise", or None for the better one that can run.
        has_lengths: whether rows end before T; the tiles differ, the form does not.

    Returns:
        A `Plan`; its form is None when none, or not the one asked for, can run.
    """
    why = _why_none(device, batch_size, hidden_size, dtype)
    if why:
        return Plan(None, why)
    size = dtype.itemsize
    steps = _step_tiles(device, batch_size, hidden_size, size)
    if form == "stepwise":
        return Plan("stepwise", "asked for by name", None, None, *steps)
    why = _why_not_persistent(device, batch_size, hidden_size, dtype, precision)
    if why is None:
        if device.kind == "interpreter":
            forward, backward = _interpreter_tiles(batch_size, hidden_size)
        else:
            forward = _forward_tile(device, batch_size, hidden_size, size, has_lengths)
            backward = _backward_tile(device, batch_size, hidden_size, size)
        if not (forward.resident and backward.resident and forward.in_flight):
            why = (
                f"{device.shared_memory} bytes of shared memory a block hold no tile of the weight"
            )
    if why is None and form is None:
        why = _why_not_preferred(forward, backward, hidden_size, size)
    if why is None and (form or device.kind != "interpreter"):
        kept = f"{forward.resident} of {-(-hidden_size // forward.block_k)} weight tiles on chip"
        return Plan("persistent", kept, forward, backward, *steps)
    if form == "persistent":
        return Plan(None, why)
    why = why or "the interpreter's default"
    return Plan("stepwise", why, None, None, *steps)


def _why_none(device, batch_size, hidden_size, dtype):
    if dtype not in (*_HALF, torch.float32):
        name = str(dtype).removeprefix("torch.")
        return f"the kernels take float32, bfloat16 and float16, not {name}"
    if device.kind == "interpreter" and dtype == torch.bfloat16:
        return "Triton's interpreter forms no products of bfloat16; use float16 or float32 there"
    if device.kind == "cuda" and device.capability < (7, 5):
        return "the kernels need compute capability 7.5, this device has {}.{}".format(
            *device.capability
        )
    if dtype == torch.bfloat16 and device.kind == "cuda" and device.capability < (8, 0):
        return "bfloat16 needs compute capability 8.0, this device has {}.{}".format(
            *device.capability
        )
    if 4 * hidden_size * max(batch_size, hidden_size) >= 2**31:
        return (
            f"B = {batch_size} and H = {hidden_size} put a step's gates, or the weight, past 2**31 "
            "elements, more than the kernels index"
        )
    return None


def _why_not_persistent(device, batch_size, hidden_size, dtype, precision):
    if device.kind == "hip":
        return "a grid barrier is not safe on this kind of device"
    if device.kind == "interpreter":
        # One program after the other: a barrier among several would wait for ever.
        return (
            None if hidden_size <= 128 else "the interpreter runs one block, of at most 128 units"
        )
    if device.capability < (8, 0):
        return "the persistent form needs compute capability 8.0"
    if dtype == torch.float32 and precision == "ieee":
        return "float32 without tf32 has no tensor cores"
    needed = max(-(-hidden_size // _UNITS), _K_PARTS * -(-hidden_size // _COLUMNS))
    if needed > device.multiprocessors:
        return (
            f"H = {hidden_size} needs {needed} blocks at once, the device has "
            f"{device.multiprocessors} multiprocessors"
        )
    return None


def _why_not_preferred(forward, backward, hidden_size, size):
    """Say why the persistent form, which can run, is not the better one."""
    for tile in (forward, backward):
        tiles = tile.depth(hidden_size) // tile.block_k
        # What streams takes registers as well; in float32, or with next to nothing on chip, they
        # spill, and the stepwise form streams no more than that.
        if tile.resident < tiles and (size == 4 or 5 * tile.resident < tiles):
            return f"only {tile.resident} of {tiles} weight tiles fit on chip"
    return None


def _step_tiles(device, batch_size, hidden_size, size):
    rows = _rows(batch_size, 64)
    # Two to four stages of both operands, whatever a block may hold.
    stages = 4 if size == 2 and device.shared_memory >= 100_000 else 2
    depth = 64 if size == 2 else 32
    if device.kind == "interpreter":
        stages = 1
    forward = StepTile(rows, _UNITS, depth, 4, stages)
    backward = StepTile(rows, _UNITS, 2 * depth, 4, stages)
    return forward, backward


def _rows(batch_size, most):
    rows = 16
    while rows < batch_size and rows < most:
        rows *= 2
    return rows


def _row_groups(device, batch_size, slices):
    """Return rows of a block and groups of a launch: the fewest rows with all groups at once."""
    # From 64 rows on, Triton uses tcgen05 on sm_100, with an accumulator of its own for each of
    # the products in a chain: more than there is tensor memory.
    most = 32 if device.capability[0] == 10 else 128
    rows = 16
    while rows < most and -(-batch_size // rows) * slices > device.multiprocessors:
        rows *= 2
    return rows, max(1, min(-(-batch_size // rows), device.multiprocessors // slices))


def _residency(
    shared_memory, weight_tile, input_tile, k_tiles, most_in_flight, most_streaming=2, least=0
):
    """Return how many weight tiles stay on chip, and how many input tiles fit beside them."""
    room = shared_memory - _SCRATCH
    beside = max(least, 2 * input_tile)
    resident = min(k_tiles, max(0, room - beside) // weight_tile)
    if resident < k_tiles:
        # The streamed tiles pass through shared memory as well, and beside them nothing is reused.
        room -= input_tile + 2 * weight_tile
        resident = max(0, room - beside) // weight_tile
        most_in_flight = min(most_streaming, most_in_flight)
    left = room - resident * weight_tile
    return resident, max(0, min(most_in_flight, k_tiles, left // input_tile))


def _narrow(hidden_size, size):
    """Say whether rows of H elements of 2 bytes are no multiple of 16, so that loads are narrow."""
    return size == 2 and hidden_size % 8 != 0


def _forward_tile(device, batch_size, hidden_size, size, has_lengths):
    slices = -(-hidden_size // _UNITS)
    rows, groups = _row_groups(device, batch_size, slices)
    depth = 64 if size == 2 else 32
    if _narrow(hidden_size, size) and device.capability < (9, 0):
        depth //= 2
    resident, in_flight = _residency(
        device.shared_memory,
        depth * 4 * _UNITS * size,
        rows * depth * size,
        -(-hidden_size // depth),
        # What rows of different lengths need takes the registers of one of them.
        _IN_FLIGHT_FORWARD[size] - has_lengths,
    )
    # Sixteen rows a warp: with more warps two of them would compute the same rows.
    warps = max(4, rows // 16)
    return PersistentTile(rows, _UNITS, depth, resident, in_flight, warps, groups)


def _backward_tile(device, batch_size, hidden_size, size):
    slices = -(-hidden_size // _COLUMNS)
    rows, groups = _row_groups(device, batch_size, slices * _K_PARTS)
    # Half the forward's depth: masking a deeper tile takes more registers than there are.
    depth = 32 if size == 2 else 16
    most_in_flight = _IN_FLIGHT_BACKWARD[size]
    if device.capability[0] == 10:
        most_in_flight = 1
    elif _narrow(hidden_size, size):
        # Narrow loads take more registers for their addresses.
        depth, most_in_flight = depth if rows > 64 else depth // 2, 2
    resident, in_flight = _residency(
        device.shared_memory,
        depth * _COLUMNS * size,
        rows * depth * size,
        4 * slices * _COLUMNS // _K_PARTS // depth,
        most_in_flight,
        most_streaming=1 if rows > 64 else 2,
        # Above 64 rows the partial sums change their layout there, all at once.
        least=4 * rows * _COLUMNS if rows > 64 else 0,
    )
    warps = max(4, rows // 16)
    return BackwardTile(rows, _K_PARTS, _COLUMNS, depth, resident, in_flight, False, warps, groups)


def _interpreter_tiles(batch_size, hidden_size):
    """One block of all units, and several K-tiles; groups of rows run one after the other."""
    units = _rows(hidden_size, 128)
    groups = -(-batch_size // 16)
    depth = 16
    forward_tiles = -(-hidden_size // depth)
    backward_tiles = 4 * units // depth
    forward = PersistentTile(16, units, depth, max(1, forward_tiles - 1), 2, 4, groups)
    backward = BackwardTile(16, 1, units, depth, max(1, backward_tiles - 1), 3, False, 4, groups)
    return forward, backward
