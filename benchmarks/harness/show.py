"""Rows as text, for the terminal and for documents."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.harness.rows import Row


def duration(us: float) -> str:
    """Write microseconds in the unit that suits them.

    >>> duration(12.3), duration(45_600.0), duration(1_234_000.0)
    ('12.3 us', '45.6 ms', '1.234 s')
    """
    if us < 1000:
        return f"{us:.1f} us"
    if us < 1e6:
        return f"{us / 1000:.1f} ms"
    return f"{us / 1e6:.3f} s"


def size(count: int) -> str:
    """Write bytes.

    >>> size(10_616_832)
    '10.6 MB'
    """
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def dropouts(row: Row) -> str:
    """Write which dropouts are on."""
    names = (("weight_p", row.weight_p), ("gate_p", row.gate_p))
    return " ".join(f"{name}={p:g}" for name, p in names if p) or "p=0"


def line(row: Row) -> str:
    """Write one row under the line that names its shape.

    A row whose check failed has WRONG where its time would be.
    """
    head = (
        f"  {row.implementation:38} {row.launched:5} {row.passes:11} {row.dtype:8} "
        f"{dropouts(row):22}"
    )
    if not row.right:
        return f"{head} WRONG by {row.error:.2e}, not timed"
    parts = []
    if row.median_us is not None:
        assert row.p10_us is not None and row.p90_us is not None
        spread = (row.p90_us - row.p10_us) / row.median_us
        parts.append(f"{duration(row.median_us):>10} ({spread:4.0%} spread)")
    if row.times_as_fast is not None:
        parts.append(f"{row.times_as_fast:5.2f}x")
    if row.error is not None:
        parts.append(f"error {row.error:.0e}")
    if row.achieved is not None:
        parts.append(f"{row.achieved:4.0%} of the floor's speed")
    if row.tokens_per_second is not None:
        parts.append(f"{row.tokens_per_second:,.0f} tokens/s")
    if row.mask_bits_per_second is not None:
        parts.append(f"{row.mask_bits_per_second / 1e6:,.0f} M bits/s")
    if row.peak_bytes is not None:
        parts.append(f"peak {size(row.peak_bytes)}")
    if row.saved_bytes is not None:
        parts.append(f"saved {size(row.saved_bytes)}")
    return f"{head} {', '.join(parts)}"


def table(head: Sequence[str], lines: Sequence[Sequence[str]], left: int = 1) -> str:
    """Write a Markdown table whose columns are aligned, the first ones to the left."""
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]

    def written(cells: Sequence[str]) -> str:
        padded = [
            c.ljust(w) if i < left else c.rjust(w)
            for i, (c, w) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = [":" + "-" * (w - 1) if i < left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([written(head), written(rule), *map(written, lines)])
