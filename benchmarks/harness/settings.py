"""How a run is made: on which device, at which sizes, with how many samples."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import torch

from benchmarks.harness import machine
from benchmarks.harness.rows import Row

T = TypeVar("T")


@dataclass
class Settings:
    """Settings of a run, and what it has to say besides its rows.

    Attributes:
        device: "cpu" or "cuda", where the tensors are.
        gpu: ask the questions of a GPU; on a CPU that is the dry run, with the kernels in Triton's
            interpreter and CUDA's own measures replaced.
        tiny: shapes of a few units, to run the code and measure nothing.
        repeats: samples of each time.
        share: compile what this worker is to compile, and time nothing; see `warm`.
        end: no group begins after this time of `time.perf_counter`.
        notes: what was left out, and why.
        measured: what the device was found to do at most; see `roofline.ceilings`.
        say: takes each line of the report.
        keep: takes each row as it is made.
    """

    device: str = "cpu"
    gpu: bool = False
    tiny: bool = False
    repeats: int = 7
    share: Any = None
    end: float = float("inf")
    notes: list[str] = field(default_factory=list)
    measured: dict[str, Any] = field(default_factory=dict)
    say: Callable[[str], object] = print
    keep: Callable[[Row], object] = lambda row: None

    @classmethod
    def of(cls, device: str | None = None, **values: Any) -> Settings:
        """Make the settings of a device; by default the GPU where there is one."""
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if device == "cuda":
            values = {"gpu": True, "repeats": 20, **values}
        return cls(device=device, **values)

    @property
    def cuda(self) -> bool:
        """Whether the tensors are on a GPU."""
        return self.device == "cuda"

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in: bfloat16 on a GPU, float32 on a CPU.

        Triton's interpreter multiplies the bits of bfloat16; a dry run takes float16.
        """
        if not self.gpu:
            return torch.float32
        return torch.bfloat16 if self.cuda else torch.float16

    @cached_property
    def facts(self) -> dict[str, Any]:
        """The machine's fields of a row."""
        return machine.facts(self.device)

    def sized(self, cpu: T, gpu: T, tiny: T) -> T:
        """Return what belongs to this run."""
        return tiny if self.tiny else gpu if self.gpu else cpu

    def over(self, what: str) -> bool:
        """Say whether the time is up; what is left out is noted."""
        if time.perf_counter() < self.end:
            return False
        self.note(f"{what}: left out, the time was up")
        return True

    def note(self, text: str) -> None:
        """Keep a remark for the end of the report."""
        if text not in self.notes:
            self.notes.append(text)

    def row(self, **values: Any) -> Row:
        """Make and keep a row; fields that are not given are empty."""
        empty: dict[str, Any] = {
            "launched": "eager",
            "input_size": 0,
            "hidden_size": 0,
            "batch_size": 0,
            "steps": 0,
            "vocab_size": 0,
            "weight_p": 0.0,
            "gate_p": 0.0,
            "error": None,
            "right": True,
            "median_us": None,
            "p10_us": None,
            "p90_us": None,
            "baseline": "",
            "times_as_fast": None,
            "floor_us": None,
            "achieved": None,
            "peak_bytes": None,
            "saved_bytes": None,
            "tokens_per_second": None,
            "mask_bits_per_second": None,
            "repeats": 0,
        }
        row = Row(**{**empty, **self.facts, **values})
        self.keep(row)
        return row
