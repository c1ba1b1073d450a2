"""Reads of compiled code what its loop does at each turn: instructions, waits and loads."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

_SASS = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?(\S[^;]*?)\s*;", re.MULTILINE)
_SASS_BACK = re.compile(r"^BRA\b.*\b0x([0-9a-f]+)$")
_AMD = re.compile(r"^(?:(\.L\w+):|\t([a-z]\w+)(?:\s+(\.L\w+))?)", re.MULTILINE)
_PRODUCTS = re.compile(r"HGMMA|HMMA|UTC\w*MMA|v_mfma")
_BARRIERS = re.compile(r"BAR\.|s_barrier")
# Waits of a warp for what runs beside it: products of a warp group, copies, barriers in memory.
_WAITS = re.compile(r"WARPGROUP\.DEPBAR|DEPBAR|SYNCS\.PHASECHK|s_waitcnt")
_SPECIAL = re.compile(r"MUFU|v_(?:exp|rcp)_")
_BYTES = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}


@dataclass(frozen=True)
class Loop:
    """The outermost loop that has matrix products: a time step, or some K tiles of one.

    Attributes:
        code: instructions of the whole kernel.
        instructions: of them, in the loop; 0 where no loop has products, and so are the next four.
        barriers: that all warps of a block meet at.
        waits: for products, copies or barriers in memory.
        special: of the unit for exponentials and quotients.
        loaded: bytes that a thread asks of global memory at each turn, loops within apart, and with
            products in one of them what is copied to shared memory as well.
        loaded_outside: bytes that it asks of global memory before and after the loop, without those
            that go to shared memory: they are turns that were moved out of it.
        products: matrix instructions of the loop by name.
        inner: instructions of a loop within it that has the products, or 0.
        copied: bytes that a thread copies to shared memory at each turn of that one.
        through_l1: copies to shared memory, in the whole kernel, that L1 may serve.
    """

    code: int
    instructions: int = 0
    barriers: int = 0
    waits: int = 0
    special: int = 0
    loaded: int = 0
    loaded_outside: int = 0
    products: dict[str, int] = field(default_factory=dict)
    inner: int = 0
    copied: int = 0
    through_l1: int = 0


def read_sass(sass: str) -> Loop:
    r"""Find the loop in a listing of an NVIDIA device's code.

    >>> lines = ["LDG.E.128 R4, [R2] ;", "HMMA.16816.F32 R8, R4, R6, R8 ;", "BAR.SYNC 0x0 ;"]
    >>> lines += ["@P0 BRA 0x10 ;", "EXIT ;"]
    >>> sass = "\n".join(f"  /*{16 * n:04x}*/  {line}" for n, line in enumerate(lines))
    >>> loop = read_sass(sass)  # it begins at the product: the load is before it
    >>> (loop.code, loop.instructions, loop.barriers, loop.loaded_outside, loop.products)
    (5, 3, 1, 16, {'HMMA.16816.F32': 1})

    Args:
        sass: what `cuobjdump -sass` prints.
    """
    code = [(int(m[1], 16), m[2]) for m in _SASS.finditer(sass)]
    position = {address: n for n, (address, _) in enumerate(code)}
    loops = []
    for n, (_, text) in enumerate(code):
        target = _SASS_BACK.match(text)
        if target and (start := position.get(int(target[1], 16), n)) < n:
            loops.append((start, n + 1))
    return _loop([text.split()[0] for _, text in code], loops)


def read_amd(assembly: str) -> Loop:
    """Find the loop in the assembly of an AMD device; its loads are not counted.

    Args:
        assembly: what Triton kept of the compilation.
    """
    names: list[str] = []
    labels: dict[str, int] = {}
    loops = []
    for label, name, target in _AMD.findall(assembly):
        if label:
            labels[label] = len(names)
            continue
        names.append(name)
        if name.startswith("s_cbranch") and target in labels:
            loops.append((labels[target], len(names)))
    return _loop(names, loops)


def _loop(names: Sequence[str], loops: Sequence[tuple[int, int]]) -> Loop:
    with_products = [
        (stop - start, start, stop)
        for start, stop in loops
        if any(map(_PRODUCTS.match, names[start:stop]))
    ]
    if not with_products:
        return Loop(len(names), loaded_outside=sum(map(_loaded, names)))
    _, start, stop = max(with_products)
    turn = names[start:stop]
    inner = [(a, b) for a, b in loops if start <= a and b <= stop and (a, b) != (start, stop)]
    once = [names[n] for n in range(start, stop) if not any(a <= n < b for a, b in inner)]
    within = max(
        (names[a:b] for a, b in inner if any(map(_PRODUCTS.match, names[a:b]))), key=len, default=[]
    )
    if within:
        once = _without_copies(once)
    outside = _without_copies([*names[:start], *names[stop:]])

    def count(pattern: re.Pattern[str]) -> int:
        return sum(bool(pattern.match(name)) for name in turn)

    return Loop(
        len(names),
        len(turn),
        count(_BARRIERS),
        count(_WAITS),
        count(_SPECIAL),
        sum(map(_loaded, once)),
        sum(map(_loaded, outside)),
        dict(Counter(filter(_PRODUCTS.match, turn))),
        len(within),
        sum(_loaded(name) for name in within if name.startswith("LDGSTS")),
        sum(name.startswith("LDGSTS") and "BYPASS" not in name for name in names),
    )


def _without_copies(names: Sequence[str]) -> list[str]:
    return [name for name in names if not name.startswith("LDGSTS")]


def _loaded(name: str) -> int:
    """Return the bytes of an NVIDIA load from global memory, 0 for any other instruction."""
    kind, *modifiers = name.split(".")
    if kind not in ("LDG", "LDGSTS"):
        return 0
    return next((_BYTES[m] for m in modifiers if m in _BYTES), 4)
