"""Compiles a kernel as its launch would, without a GPU, and reads what came out."""

from __future__ import annotations

import math
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from benchmarks.compile.loop import Loop, read_amd, read_sass
from ulmfit_fast.kernels import (  # noqa: TID251
    backward_persistent,
    backward_stepwise,
    cross_entropy,
    dropout,
    embedding,
    forward_persistent,
    forward_stepwise,
    recompute,
    regularisers,
    weight_drop,
)

_LAUNCHERS = (
    *(forward_stepwise, forward_persistent, backward_stepwise, backward_persistent),
    *(recompute, weight_drop),
    *(cross_entropy, dropout, embedding, regularisers),
)

_HMMA = {"16816": (16, 8, 16), "1688": (16, 8, 8), "1684": (16, 8, 4)}
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Launch:
    """One launch that did not happen: what Triton would have been given."""

    kernel: Any
    args: tuple
    constants: dict
    options: dict

    def key(self) -> str:
        """Equal for launches that share one compiled kernel, whatever their tensors' sizes."""
        kinds = [(getattr(a, "dtype", a), a is None) for a in self.args if not isinstance(a, int)]
        return repr((self.kernel.__name__, kinds, self.constants, self.options))


@dataclass
class Found:
    """What a compiled kernel uses.

    Attributes:
        shared: bytes of shared memory a block.
        registers: registers a thread.
        spilled: bytes of its stack, or, on AMD, spilled registers.
        local_accesses: instructions that touch that stack.
        products: matrix instructions by name, as often as they stand in the code.
        resident: tiles put in shared memory before the time loop.
        past_l1: bytes a thread loads past L1 in one step.
        tensor_memory: columns of it, on sm_100.
        loop: what the loop with the products does at each turn.
    """

    shared: int
    registers: int
    spilled: int
    local_accesses: int
    products: dict = field(default_factory=dict)
    resident: int = 0
    past_l1: int = 0
    tensor_memory: int = 0
    loop: Loop = field(default_factory=lambda: Loop(0))


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Have the launchers append to a list what they would launch; buffers may be meta tensors."""
    launches: list[Launch] = []

    def record(kernel, grid, args, constants, options, **refusals):
        launches.append(Launch(kernel, args, constants, options))

    with ExitStack() as stack:
        for module in _LAUNCHERS:
            stack.enter_context(mock.patch.object(module, "launch", record))
            if hasattr(module, "watch"):
                stack.enter_context(mock.patch.object(module, "watch"))
        yield launches


def compile_launch(launch: Launch, target: GPUTarget) -> Any:
    """Compile for a target with the types and the specialisation that Triton gives this launch."""
    kernel = launch.kernel
    backend = make_backend(target)
    bind: Callable = create_function_from_signature(kernel.signature, kernel.params, backend)
    keywords = {**launch.constants, **launch.options, "debug": False}
    bound, specialization, options = bind(*launch.args, **keywords)
    options, signature, constants, attributes = kernel._pack_args(
        backend, keywords, bound, specialization, options
    )
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=target, options=options.__dict__)


def work(products: dict, warps: int, shape: tuple[int, int, int]) -> float | None:
    """Return how often the code multiplies each pair of elements that a product needs.

    Args:
        products: matrix instructions and how often each stands in the code.
        warps: warps of a block.
        shape: rows, columns and depth of the product.

    Returns:
        1.0 where no two warps do the same; None for tcgen05, whose shape is not in its name.
    """
    done = 0
    for name, count in products.items():
        if name.startswith(("tcgen05", "UTC")):
            return None
        if plain := re.search(r"\d+x\d+x\d+", name):
            m, n, k = map(int, plain[0].split("x"))
        else:
            m, n, k = _HMMA[name.split(".")[1]]
        # A warp group of Hopper issues one instruction together.
        done += m * n * k * count * (warps // 4 if name.startswith("HGMMA") else warps)
    return done / math.prod(shape)


def read(compiled: Any) -> Found:
    """Read the listings of what `compile_launch` returned."""
    if "amdgcn" in compiled.asm:
        return _read_amd(compiled)
    usage, sass = _disassemble(compiled.asm["cubin"])
    if not re.search(r"REG:\d+", usage) or "EXIT" not in sass:
        # So Triton leaves a kernel whose accumulators do not fit in tensor memory.
        raise RuntimeError("the compiled kernel is nothing but a trap")
    numbers = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    ptx = compiled.asm["ptx"]
    names = re.findall(r"\s((?:HG|H)MMA\.[\w.]+)", sass) + re.findall(r"\btcgen05\.mma[\w.:]+", ptx)
    return Found(
        compiled.metadata.shared,
        numbers["REG"],
        numbers["STACK"] + numbers["LOCAL"],
        len(re.findall(r"\s(?:LDL|STL)\b", sass)),
        {name: names.count(name) for name in sorted(set(names))},
        _before_the_loop(compiled.asm["ttgir"]),
        _bytes_past_l1(ptx),
        getattr(compiled.metadata, "tmem_size", 0) or 0,
        read_sass(sass),
    )


def _disassemble(cubin: bytes) -> tuple[str, str]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(_TOOLS / "cuobjdump")]
        return tuple(
            subprocess.run(
                [*command, option, file.name], capture_output=True, text=True, check=True
            ).stdout
            for option in ("-res-usage", "-sass")
        )


def _before_the_loop(ttgir: str) -> int:
    """Count the tiles that are put in shared memory before a kernel's last loop, that of its steps.

    Those of a loop before it, which masks the weight, are indented deeper.
    """
    loops = list(re.finditer(r"^ {4}(?:%.* = )?scf\.for", ttgir, re.MULTILINE))
    before = ttgir[: loops[-1].start()] if loops else ""
    return len(re.findall(r"^ {4}%\S+ = ttg\.local_alloc %", before, re.MULTILINE))


def _bytes_past_l1(ptx: str) -> int:
    loads = re.findall(r"\bld\.global\.cg(?:\.v(\d))?\.b(\d+)", ptx)
    return sum(int(count or 1) * int(bits) // 8 for count, bits in loads)


def _read_amd(compiled: Any) -> Found:
    assembly = compiled.asm["amdgcn"]

    def number(name: str) -> int:
        return int(re.search(rf"\.{name}:\s+(\d+)", assembly)[1])

    names = re.findall(r"\bv_mfma_\w+", assembly)
    return Found(
        compiled.metadata.shared,
        number("vgpr_count"),
        number("vgpr_spill_count"),
        len(re.findall(r"\bscratch_(?:load|store)", assembly)),
        {name: names.count(name) for name in sorted(set(names))},
        loop=read_amd(assembly),
    )
