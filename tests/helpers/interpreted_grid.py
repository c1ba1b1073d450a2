"""Runs the blocks of a grid at the same time in Triton's interpreter.

The interpreter runs a grid's blocks one after another, so blocks that wait for each other hang.
Here every block has a thread of its own, of which one runs at a time, and a seeded generator says
at each memory operation which one goes on. What it cannot show: operations take effect in the
order in which they ran, so a missing fence, or a weak ``sem``, goes unseen; and a block is one
thread, so ``tl.debug_barrier`` does nothing.
"""

import contextlib
import contextvars
import copy
import functools
import inspect
import math
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

# The interpreter's builder has more kinds of loads and stores, all of which end in these.
ATOMICS = ("create_atomic_rmw", "create_atomic_cas")
LOAD, STORE = "create_masked_load", "create_masked_store"
# How often the turn is drawn anew. Runs of operations let one block fall far behind the others,
# which shows a barrier that opens too early more often than a draw at every operation does.
DRAW = 0.3


@contextlib.contextmanager
def concurrent_blocks(
    seed: int, *, at_accesses: bool = True, limit: int = 100_000
) -> Iterator[list[int]]:
    """Makes every grid launched inside run its blocks concurrently; the seed fixes the order.

    Blocks may switch before and after every atomic operation and, with ``at_accesses``, every load
    and store. A launch fails after ``limit`` memory operations in which no block stored or ended. A
    block costs a thread: keep grids to a few hundred blocks.

    Yields:
        The numbers of the blocks that got the turns, in order, of all launches so far.
    """
    # Not at the top: without Triton, the tests' modules must be importable in order to be skipped.
    from triton.runtime import interpreter

    builder = interpreter.interpreter_builder
    turns = _Turns(builder, random.Random(seed), limit)
    launch = interpreter.GridExecutor.__call__

    def launch_together(executor: Any, *args: Any, **kwargs: Any) -> None:
        executor = copy.copy(executor)
        executor.fn = _Together(executor.fn, turns)
        launch(executor, *args, **kwargs)

    with contextlib.ExitStack() as stack:
        stack.enter_context(
            mock.patch.object(interpreter.GridExecutor, "__call__", launch_together)
        )
        for name in (*ATOMICS, LOAD, STORE):
            operation = turns.around(
                getattr(builder, name),
                switch=at_accesses or name in ATOMICS,
                progress=name == STORE,
            )
            stack.enter_context(mock.patch.object(builder, name, operation))
        yield turns.order


class _Together:
    """Stands in for a kernel: keeps the interpreter's calls, and at the last one runs them all."""

    def __init__(self, kernel: Callable[..., None], turns: "_Turns") -> None:
        functools.update_wrapper(self, kernel)
        # The interpreter inspects the kernel for its arguments and for its `tl`.
        self.__signature__ = inspect.signature(kernel)
        self.__globals__ = kernel.__globals__
        self.kernel, self.turns = kernel, turns
        self.blocks: list[_Block] = []

    def __call__(self, **args: Any) -> None:
        builder = self.turns.builder
        work = functools.partial(self.kernel, **args)
        self.blocks.append(_Block(len(self.blocks), builder.grid_idx, work))
        if len(self.blocks) == math.prod(builder.grid_dim):
            self.turns.run(self.blocks)


class _Block:
    def __init__(self, number: int, place: tuple[int, int, int], work: Callable[[], None]) -> None:
        self.number, self.place = number, place
        # NumPy's error state is in the context, which a thread does not inherit.
        self.work = functools.partial(contextvars.copy_context().run, work)
        self.turn = threading.Semaphore(0)


class _Stop(BaseException):
    """Ends a block. Not an Exception: the interpreter turns those into its own."""


class _Turns:
    """Hands the turn from block to block. Only the block whose turn it is touches the state."""

    def __init__(self, builder: Any, rng: random.Random, limit: int) -> None:
        self.builder, self.rng, self.limit = builder, rng, limit
        self.order: list[int] = []
        self.running: list[_Block] = []
        self.current: _Block | None = None
        self.idle = 0
        self.error: BaseException | None = None

    def run(self, blocks: list[_Block]) -> None:
        self.running, self.idle, self.error = list(blocks), 0, None
        # Daemons, so that a kernel which loops without touching memory does not outlive the tests.
        threads = [threading.Thread(target=self._body, args=(b,), daemon=True) for b in blocks]
        for thread in threads:
            thread.start()
        self._hand_on()
        try:
            for thread in threads:
                thread.join()
        except BaseException as error:  # Ctrl-C: the blocks stop at their next operation.
            self.error = error
            for thread in threads:
                thread.join()
        self.current = None
        if self.error is not None:
            raise self.error

    def _body(self, block: _Block) -> None:
        block.turn.acquire()
        try:
            if self.error is None:
                block.work()
        except _Stop:
            pass
        except BaseException as error:
            self.error = self.error or error
        self.idle = 0
        self.running.remove(block)
        if self.running:
            self._hand_on()

    def _hand_on(self) -> None:
        block = self.current
        if block not in self.running or self.rng.random() < DRAW:
            block = self.current = self.rng.choice(self.running)
        self.builder.set_grid_idx(*block.place)
        self.order.append(block.number)
        block.turn.release()

    def around(
        self, operation: Callable[..., Any], *, switch: bool, progress: bool
    ) -> Callable[..., Any]:
        """The operation, with the turn handed on before and after it."""

        def in_turn(*args: Any, **kwargs: Any) -> Any:
            self._pause(switch)
            result = operation(*args, **kwargs)
            self.idle = 0 if progress else self.idle + 1
            self._pause(switch)
            return result

        return in_turn

    def _pause(self, switch: bool) -> None:
        block = self.current
        if block is None:  # An operation of the launch itself, outside the blocks.
            return
        if self.idle > self.limit:
            self.error = self.error or RuntimeError(
                f"blocks wait for each other: {len(self.running)} still run, and in {self.limit} "
                "memory operations none of them stored or ended"
            )
        if switch and self.error is None:
            self._hand_on()
            block.turn.acquire()
        if self.error is not None:
            raise _Stop
