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
_BORDERS = {"columns", "k_parts", "units"}
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

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Have layers launch their kernel this way."""
        choose, module = tiles.choose, _KERNELS[self.kernel]
        launch = module.launch

        def chosen(*args: Any, **sizes: Any) -> Any:
            plan = choose(*args, **sizes)
            tile = getattr(plan, self.kernel)
            return (
                plan if tile is None else plan._replace(**{self.kernel: tile._replace(**self.tile)})
            )

        def launched(kernel: Any, grid: Any, args: Any, constants: Any, *rest: Any, **more: Any):
            return launch(kernel, grid, args, {**constants, **self.constants}, *rest, **more)

        with (
            mock.patch.object(tiles, "choose", chosen),
            mock.patch.object(module, "launch", launched),
        ):
            yield


def _with_stages(kernel: str, stages: int, **more: Any) -> Alternative:
    return Alternative(f"{stages} stages", kernel, {"stages": stages, **more})


def _with_rows(kernel: str, rows: int) -> Alternative:
    tile = {"rows": rows, "groups": 64 // rows}
    return Alternative(f"{rows} rows a block", kernel, tile, hidden=400)


# The units are those that are chosen on a GPU; the interpreter's one block has all of them.
ALTERNATIVES = (
    *(_with_stages("forward", stages) for stages in (2, 3, 5)),
    Alternative("K tiles of 64", "forward", {"block_k": 64, "stages": 8}),
    Alternative("4 warps", "forward", {"warps": 4}),
    Alternative("polls by atomics", "forward", constants={"INLINE_POLL": False}),
    Alternative("2 K ranges", "forward", {"k_parts": 2, "units": 16, "block_k": 64}),
    Alternative("4 K ranges", "forward", {"k_parts": 4, "units": 16, "block_k": 32}),
    Alternative("32 units", "forward", {"units": 32, "stages": 3}),
    Alternative("64 rows, two launches", "forward", {"rows": 64}, batch=128),
    *(_with_rows("forward", rows) for rows in (32, 64)),
    *(_with_stages("backward", stages) for stages in (2, 3, 6)),
    Alternative("4 warps", "backward", {"warps": 4}),
    Alternative("barriers of those that depend", "backward", {"grouped": True}),
    Alternative("polls by atomics", "backward", constants={"INLINE_POLL": False}),
    Alternative("4 K ranges", "backward", {"k_parts": 4}),
    Alternative("64 rows, two launches", "backward", {"rows": 64}, batch=128),
    *(_with_rows("backward", rows) for rows in (32, 64)),
)
