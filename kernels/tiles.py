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
# piece of the weight that is 128 columns wide. Where that makes more blocks than the device runs at
# once, both have twice the units.
_UNITS, _COLUMNS = (16, 32), 128
# K-tiles of both operands on chip: with more the copies' latency is covered several times.
_STAGES = 4
# Rows of a block have no more than these, and a launch no more groups of them.
_MOST_ROWS, _MOST_GROUPS = 128, 65_535
# Beside a weight on chip: bytes of a row of K-tiles, how many at once, and warps. More would spill.
_ON_CHIP = {"depth": 128, "stages": 2, "warps": 4}
# Bytes that L2 brings into a multiprocessor in a cycle. With the weight on chip a product waits for
# the tensor cores instead, and is predicted to win where these are fewer than `_ENOUGH`: see "What
# compiled code predicts" in README.md, which tells of no other device.
_L2_BYTES, _ENOUGH = {(9, 0): 64}, 30
# Bytes that the threads of so many warps copy at once.
_COPY = {warps: warps * 32 * 16 for warps in (4, 8)}


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
        resident: whether all of the weight is on chip, and stages K-tiles of h are loaded at once.
    """

    rows: int
    units: int
    block_k: int
    stages: int
    warps: int
    groups: int
    k_parts: int = 1
    resident: bool = False

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
        resident: as in `PersistentTile`.
    """

    rows: int
    k_parts: int
    columns: int
    block_k: int
    stages: int
    grouped: bool
    warps: int
    groups: int
    resident: bool = False

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

    def tiles(self):
        """Say the product's tiles in words, rows by columns by depth."""
        if self.form == "persistent":
            forward, backward, columns = self.forward, self.backward, self.backward.columns
            which = "resident tiles" if forward.resident else "pipelined tiles"
        else:
            forward, backward = self.forward_step, self.backward_step
            columns, which = backward.units, "tiles"
        return (
            f"{which} of {forward.rows} x {4 * forward.units} x {forward.block_k} forwards and "
            f"{backward.rows} x {columns} x {backward.block_k} backwards"
        )


def choose(device, *, batch_size, hidden_size, dtype, precision="ieee", form=None):
    """Choose form and tiles.

    Args:
        device: `device.Device`.
        batch_size: B.
        hidden_size: H.
        dtype: compute dtype of the layer.
        precision: of float32 products, "tf32" or "ieee".
        form: "persistent", "stepwise", or None for the better one that can run; "resident" and
            "pipelined" are persistent with the weight on chip, or copied from L2 at each step.

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
    if why is not None and form is not None:
        return Plan(None, why)
    if why is None and form is None and device.kind == "interpreter":
        why = "the interpreter's default"
    if why is not None:
        return Plan("stepwise", why, None, None, *steps)
    if device.kind == "interpreter":
        tiles = _interpreter_tiles(batch_size, hidden_size)
        reason = "one block in the interpreter"
    else:
        units = _units(device, hidden_size)
        tiles = (
            _forward_tile(device, batch_size, hidden_size, size, units),
            _backward_tile(device, batch_size, hidden_size, size, units),
        )
        blocks = -(-hidden_size // units)
        reason = f"{blocks} blocks at once, the device has {device.multiprocessors} multiprocessors"
    enough = _L2_BYTES.get(device.capability, _ENOUGH) >= _ENOUGH
    if form == "resident" or (form != "pipelined" and not enough):
        on_chip = [_with_weight(tile, size) for tile in tiles]
        held = max(_held(tile, hidden_size, size) for tile in on_chip)
        if held <= device.shared_memory:
            tiles = on_chip
        elif form == "resident":
            why = f"the weight of H = {hidden_size} needs {held} bytes on chip, the device has "
            return Plan(None, f"{why}{device.shared_memory}")
    return Plan("persistent", reason, *tiles, *steps)


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
    groups = -(-batch_size // _rows(batch_size, 64))
    if groups > _MOST_GROUPS:
        return f"B = {batch_size} needs {groups} groups of rows, and a launch has {_MOST_GROUPS}"
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
    if _units(device, hidden_size) is None:
        blocks = _blocks(hidden_size, _UNITS[-1])
        return (
            f"H = {hidden_size} needs {blocks} blocks at once, the device has "
            f"{device.multiprocessors} multiprocessors"
        )
    rows, units = -(-batch_size // _MOST_ROWS) * _MOST_ROWS, -(-hidden_size // _COLUMNS) * _COLUMNS
    if 4 * rows * units >= 2**31:
        return (
            f"B = {batch_size} and H = {hidden_size}, in whole tiles, put a step's gates past "
            "2**31 elements"
        )
    return None


def _blocks(hidden_size, units):
    """Return how many blocks a launch of one group of rows has at most, either way."""
    return max(-(-hidden_size // units), _COLUMNS // units * -(-hidden_size // _COLUMNS))


def _units(device, hidden_size):
    """Return the units of a block, the fewest with which all blocks run at once, or None."""
    fitting = (n for n in _UNITS if _blocks(hidden_size, n) <= device.multiprocessors)
    return next(fitting, None)


def _step_tiles(device, batch_size, hidden_size, size):
    rows = _rows(batch_size, 64)
    # Two to four stages of both operands, whatever a block may hold.
    stages = 4 if size == 2 and device.shared_memory >= 100_000 else 2
    depth = 64 if size == 2 else 32
    if device.kind == "interpreter":
        stages = 1
    forward = StepTile(rows, _UNITS[0], depth, 4, stages)
    backward = StepTile(rows, _UNITS[0], 2 * depth, 4, stages)
    return forward, backward


def _rows(batch_size, most):
    rows = 16
    while rows < batch_size and rows < most:
        rows *= 2
    return rows


def _row_groups(device, batch_size, slices, units):
    """Return rows of a block and groups of a launch: the fewest rows with all groups at once."""
    rows = 16
    # More of both would spill.
    while rows * units < 2048 and -(-batch_size // rows) * slices > device.multiprocessors:
        rows *= 2
    return rows, max(1, min(-(-batch_size // rows), device.multiprocessors // slices))


def _k_tiles(device, rows, columns, deepest):
    """Return bytes of a row of a K-tile, halved until three tiles fit on chip, how many fit, warps.

    Two warps a scheduler: one has work where the other waits. But each thread copies 16 bytes or
    more of a tile of the input: smaller copies go through L1, and other blocks write past it.
    """
    room, depth = device.shared_memory - _SCRATCH, deepest
    while 3 * (rows + columns) * depth > room and rows * depth > _COPY[4]:
        depth //= 2
    stages = min(_STAGES, room // ((rows + columns) * depth))
    return depth, stages, 8 if rows * depth >= _COPY[8] else 4


def _forward_tile(device, batch_size, hidden_size, size, units):
    rows, groups = _row_groups(device, batch_size, -(-hidden_size // units), units)
    depth, stages, warps = _k_tiles(device, rows, 4 * units, 256)
    return PersistentTile(rows, units, depth // size, stages, warps, groups)


def _backward_tile(device, batch_size, hidden_size, size, units):
    k_parts = _COLUMNS // units
    rows, groups = _row_groups(device, batch_size, k_parts * -(-hidden_size // _COLUMNS), units)
    # A K range is a multiple of 64 gate columns, and no tile is a part of one.
    depth, stages, warps = _k_tiles(device, rows, _COLUMNS, 128)
    return BackwardTile(rows, k_parts, _COLUMNS, depth // size, stages, False, warps, groups)


def _with_weight(tile, size):
    """Return the tile with all of the weight on chip, whose K-tiles take the room of others."""
    depth = min(tile.block_k, _ON_CHIP["depth"] // size)
    stages, warps = _ON_CHIP["stages"], _ON_CHIP["warps"]
    return tile._replace(block_k=depth, stages=stages, warps=warps, resident=True)


def _held(tile, hidden_size, size):
    """Return the most shared memory that a block with its weight on chip may ask for."""
    columns = 4 * tile.units if isinstance(tile, PersistentTile) else tile.columns
    # Beside the weight, K-tiles of the input, and the product, which changes its layout.
    elements = tile.depth(hidden_size) * columns
    elements += tile.rows * (tile.stages * tile.block_k + columns)
    return elements * size


def _interpreter_tiles(batch_size, hidden_size):
    """One block of all units, and several K-tiles; groups of rows run one after the other."""
    units = _rows(hidden_size, 128)
    groups = -(-batch_size // 16)
    forward = PersistentTile(16, units, 16, 1, 4, groups)
    return forward, BackwardTile(16, 1, units, 16, 1, False, 4, groups)
