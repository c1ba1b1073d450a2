"""What the persistent kernels can be launched with instead of what tiles.py chooses.

Each alternative is a hypothesis about speed. `compile_gate` compiles all of them, and puts what
compiled code shows of them into its report; on a GPU they are held against float64 and timed:

    python -m benchmarks.report --device cuda --only alternatives
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from ulmfit_fast.kernels import backward_persistent, forward_persistent, tiles  # noqa: TID251

__all__ = ["ALTERNATIVES", "Alternative"]

# What moves the borders between blocks: in the interpreter there is one, which waits for no other.
_BORDERS = {"columns", "k_parts"}
_KERNELS = {"forward": forward_persistent, "backward": backward_persistent}


@dataclass(frozen=True)
class Alternative:
    """One other way to launch a persistent kernel.

    Attributes:
        name: what is different, in words.
        kernel: "forward" or "backward".
        tile: fields of its tile that are different.
        constants: constants it is compiled for that are different.
        hidden: H of the layer that it is tried on.
        batch: B of that layer.
    """

    name: str
    kernel: str
    tile: Mapping[str, Any] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    hidden: int = 1152
    batch: int = 64

    @property
    def many_blocks(self) -> bool:
        """Whether it needs blocks that run at the same time."""
        return bool(_BORDERS & set(self.tile))

    def of(self, chosen: Any, hidden: int) -> Any:
        """Return the tile in place of the chosen one, for a layer of `hidden` units."""
        tile = chosen._replace(**self.tile)
        # No more can stay on chip than there are.
        return tile._replace(resident=min(tile.resident, tile.depth(hidden) // tile.block_k))

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Have layers launch their kernel this way."""
        choose, module = tiles.choose, _KERNELS[self.kernel]
        launch = module.launch

        def chosen(*args: Any, **sizes: Any) -> Any:
            plan = choose(*args, **sizes)
            tile = getattr(plan, self.kernel)
            return (
                plan
                if tile is None
                else plan._replace(**{self.kernel: self.of(tile, sizes["hidden_size"])})
            )

        def launched(kernel: Any, grid: Any, args: Any, constants: Any, *rest: Any, **more: Any):
            return launch(kernel, grid, args, {**constants, **self.constants}, *rest, **more)

        with (
            mock.patch.object(tiles, "choose", chosen),
            mock.patch.object(module, "launch", launched),
        ):
            yield


def _ahead(kernel: str, count: int) -> Alternative:
    operand = "h" if kernel == "forward" else "gradients"
    name = f"{count} tile{'s' * (count > 1)} of {operand} ahead"
    return Alternative(name, kernel, {"in_flight": count})


ALTERNATIVES = (
    *(_ahead("forward", count) for count in (1, 2, 6, 9)),
    Alternative("K tiles of 32", "forward", {"block_k": 32, "resident": 36, "in_flight": 6}),
    Alternative("K tiles of 128", "forward", {"block_k": 128, "resident": 9, "in_flight": 2}),
    Alternative(
        "K tiles of 128, 1 ahead", "forward", {"block_k": 128, "resident": 9, "in_flight": 1}
    ),
    Alternative("8 warps", "forward", {"warps": 8}),
    Alternative("half the weight streamed", "forward", {"resident": 9, "in_flight": 2}),
    Alternative("polls by atomics", "forward", constants={"INLINE_POLL": False}),
    # The units are those that are chosen on a GPU; the interpreter's one block has all of them.
    Alternative("2 K ranges", "forward", {"k_parts": 2, "units": 16, "resident": 9}),
    Alternative("4 K ranges", "forward", {"k_parts": 4, "units": 16, "block_k": 32, "resident": 9}),
    Alternative("64 rows, two launches", "forward", {"rows": 64, "warps": 4}, batch=128),
    *(
        Alternative(
            f"{rows} rows a block", "forward", {"rows": rows, "groups": 64 // rows}, hidden=400
        )
        for rows in (32, 64)
    ),
    *(_ahead("backward", count) for count in (1, 2, 6)),
    Alternative("K tiles of 64", "backward", {"block_k": 64, "resident": 9, "in_flight": 2}),
    Alternative("8 warps", "backward", {"warps": 8}),
    Alternative("meetings of those that depend", "backward", {"grouped": True}),
    Alternative("polls by atomics", "backward", constants={"INLINE_POLL": False}),
    Alternative(
        "4 K ranges", "backward", {"k_parts": 4, "columns": 64, "block_k": 64, "resident": 18}
    ),
    Alternative(
        "2 K ranges",
        "backward",
        {"k_parts": 2, "columns": 32, "block_k": 128, "resident": 18, "in_flight": 2},
    ),
    Alternative(
        "1 K range",
        "backward",
        {"k_parts": 1, "columns": 16, "block_k": 256, "resident": 18, "in_flight": 1},
    ),
    Alternative("64 rows, two launches", "backward", {"rows": 64, "warps": 4}, batch=128),
    *(
        Alternative(
            f"{rows} rows a block", "backward", {"rows": rows, "groups": 64 // rows}, hidden=400
        )
        for rows in (32, 64)
    ),
)
