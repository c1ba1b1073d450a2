"""The launches of the product that the compile gate compiles, and the devices they are for."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from triton.backends.compiler import GPUTarget

from benchmarks.compared.alternatives import ALTERNATIVES, Alternative
from benchmarks.compile.small import SMALL
from ulmfit_fast.kernels.device import Device  # noqa: TID251

DEVICES = {
    "sm_89": Device("cuda", (8, 9), 128, 101_376),
    # An L4: too few multiprocessors for blocks of 16 units.
    "sm_89 small": Device("cuda", (8, 9), 58, 101_376),
    "sm_80": Device("cuda", (8, 0), 108, 166_912),
    "sm_90": Device("cuda", (9, 0), 132, 232_448),
    "sm_100": Device("cuda", (10, 0), 148, 232_448),
    "gfx942": Device("hip", (0, 0), 304, 65_536),
}
TARGETS = {
    "sm_89": GPUTarget("cuda", 89, 32),
    "sm_89 small": GPUTarget("cuda", 89, 32),
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32}


class Mode(NamedTuple):
    """What a call asks of the kernels beside its sizes."""

    weight_p: float = 0.0
    gate_mask: int = 0
    padded: bool = False
    keep_cells: bool = True
    keep_gates: bool = True


# Dropout of weights and gates needs most registers; the others are compiled at one size only.
MODES = {
    "dropout": Mode(0.2, 1),
    "plain": Mode(),
    "weight-drop": Mode(0.2),
    "sequence": Mode(0.2, 2),
    "padded": Mode(0.2, 1, padded=True),
    "inference": Mode(keep_cells=False, keep_gates=False),
    "recompute": Mode(0.2, 1, keep_gates=False),
}
# The backward of the last of them computes the gates first, by the small kernel `activate`, and is
# then that of "dropout".
_FORWARD_ONLY = ("inference", "recompute")


class Variant(NamedTuple):
    """One launch of the product; its fields are its name. A small one's `hidden` is its width.

    The form is one that `tiles.choose` takes. With an alternative, what could be launched instead.
    """

    arch: str
    form: str
    kernel: str
    hidden: int
    batch: int
    dtype: str
    mode: str
    alternative: Alternative | None = None

    @property
    def persistent(self) -> bool:
        """Whether one launch does all steps."""
        return self.form in ("persistent", "resident")

    def __str__(self) -> str:
        sizes = f"H{self.hidden} B{self.batch}"
        name = f"{self.arch} {self.form} {self.kernel} {sizes} {self.dtype} {self.mode}"
        return f"{name}: {self.alternative.name}" if self.alternative else name


def variants() -> list[Variant]:
    """Return the whole matrix."""
    every = []
    sizes = itertools.product((1152, 1150, 400), (64, 128), DTYPES)
    for (hidden, batch, dtype), arch, kernel in itertools.product(
        sizes, DEVICES, ("forward", "backward")
    ):
        rest = (kernel, hidden, batch, dtype)
        modes = ("weight-drop", "dropout") if arch == "sm_90" else ("dropout",)
        if (arch, *rest[1:]) == ("sm_90", 1152, 64, "bf16"):
            modes = tuple(MODES)
        for mode in modes:
            if kernel == "backward" and mode in _FORWARD_ONLY:
                continue
            if arch.startswith("sm_89") and dtype == "fp16":
                continue
            if DEVICES[arch].kind == "cuda":
                every.append(Variant(arch, "persistent", *rest, mode))
            # Rows of the batch are a grid's business: B = 128 is the same kernel.
            if batch == 64 and arch != "sm_89 small":
                every.append(Variant(arch, "stepwise", *rest, mode))
    small = itertools.product(DEVICES, SMALL, DTYPES)
    every += [
        Variant(arch, "small", name, SMALL[name], 64, dtype, "dropout")
        for arch, name, dtype in small
        if arch != "sm_89 small"
    ]
    return every


def alternatives() -> list[Variant]:
    """Return what can be asked for on Hopper instead, with the dropout with which it is timed."""
    on_chip = [
        Variant("sm_90", "resident", kernel, hidden, batch, "bf16", "weight-drop")
        for hidden, batch in ((1152, 64), (1152, 128), (400, 64))
        for kernel in ("forward", "backward")
    ]
    return on_chip + [
        Variant("sm_90", "persistent", a.kernel, a.hidden, a.batch, "bf16", "weight-drop", a)
        for a in ALTERNATIVES
    ]


def selection() -> list[Variant]:
    """Return what a change is first tried on: H = 1152 in bfloat16, on sm_90 at both batch sizes.

    The small kernels have their own widths.
    """
    return [
        v
        for v in variants()
        if v.dtype == "bf16"
        and (v.hidden == 1152 or v.form == "small")
        and not v.arch.startswith("sm_89")
        and (v.batch == 64 or v.form == "persistent")
        and (v.mode == "dropout" or (v.mode == "weight-drop" and v.form == "persistent"))
    ]
