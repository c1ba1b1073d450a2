"""The row of a result: what ran, on what, how fast; and the CSV that holds rows."""

from __future__ import annotations

import csv
import re
import types
import typing
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from ulmfit_fast.system.files import file_in_place

Record = TypeVar("Record")
RESULTS = Path(__file__).parents[1] / "results"


@dataclass(frozen=True)
class Row:
    """One implementation at one shape; the order of the fields is that of the CSV.

    None stands for what was not measured; a row whose check failed has no times.

    Attributes:
        question: the benchmark that the row answers, such as "layer".
        implementation: what ran.
        launched: "eager", or "graph" for a replayed CUDA graph.
        passes: "forward", "training" for forward and backward, or the part of a step.
        input_size: E.
        hidden_size: H.
        batch_size: B.
        steps: T.
        vocab_size: V, 0 where there is none.
        dtype: compute dtype.
        weight_p: weight-drop.
        gate_p: dropout of the activated gates.
        error: largest difference from the truth, as a share of the truth's largest value.
        right: whether the error is within the tolerance.
        median_us: median time of one call, microseconds.
        p10_us: tenth percentile.
        p90_us: ninetieth percentile.
        baseline: the implementation of this group that `times_as_fast` refers to.
        times_as_fast: the baseline's median over this one's, from the same run.
        floor_us: the least time that this device's measured ceilings allow.
        achieved: floor_us over median_us.
        peak_bytes: memory of one call at its highest, above what was there before.
        saved_bytes: what the forward keeps for the backward, parameters and input apart.
        tokens_per_second: B T over the median.
        mask_bits_per_second: keep-bits drawn over the median.
        repeats: samples behind the median.
        device: name of the processor or the GPU.
        cores: CPU cores of the machine.
        threads: threads PyTorch uses on the CPU.
        driver: of the GPU.
        torch: version, so are triton, cudnn and python.
        triton: see torch.
        cudnn: see torch.
        python: see torch.
        commit: of this repository.
        dirty: whether tracked files differed from that commit.
    """

    question: str
    implementation: str
    launched: str
    passes: str
    input_size: int
    hidden_size: int
    batch_size: int
    steps: int
    vocab_size: int
    dtype: str
    weight_p: float
    gate_p: float
    error: float | None
    right: bool
    median_us: float | None
    p10_us: float | None
    p90_us: float | None
    baseline: str
    times_as_fast: float | None
    floor_us: float | None
    achieved: float | None
    peak_bytes: int | None
    saved_bytes: int | None
    tokens_per_second: float | None
    mask_bits_per_second: float | None
    repeats: int
    device: str
    cores: int
    threads: int
    driver: str
    torch: str
    triton: str
    cudnn: str
    python: str
    commit: str
    dirty: bool


def read_rows(path: Path) -> list[Row]:
    """Read the rows of a CSV file."""
    return read_records(path, Row)


def read_records(path: Path, kind: type[Record]) -> list[Record]:
    """Read rows of any kind from a CSV file.

    Args:
        path: the file.
        kind: a dataclass whose fields are the columns.
    """
    kinds = typing.get_type_hints(kind)
    with path.open(encoding="utf-8", newline="") as file:
        return [
            kind(**{name: _parse(text, kinds[name]) for name, text in line.items()})
            for line in csv.DictReader(file)
        ]


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows to a CSV file, which is complete or as it was before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_records(path, [field.name for field in fields(Row)], map(asdict, rows))


def write_records(path: Path, names: list[str], records: Iterable[dict[str, Any]]) -> None:
    """Write records of any kind to a CSV file, which is complete or as it was before.

    Args:
        path: the file; its folder is there.
        names: of the columns, in their order.
        records: values by name.
    """
    with (
        file_in_place(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)


def file_name(kind: str, device: str) -> str:
    """Return the name of a device's file.

    >>> file_name("cuda", "NVIDIA H200 (MIG 1g)")
    'cuda_nvidia_h200_mig_1g.csv'
    """
    return f"{kind}_{re.sub('[^a-z0-9]+', '_', device.lower()).strip('_')}.csv"


def _parse(text: str, kind: object) -> object:
    if isinstance(kind, types.UnionType):
        if text == "":
            return None
        kind = next(k for k in typing.get_args(kind) if k is not type(None))
    if kind is bool:
        return text == "True"
    assert callable(kind)
    return kind(text)
