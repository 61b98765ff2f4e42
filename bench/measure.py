# SPDX-License-Identifier: Apache-2.0
"""Samples, percentiles, the table and the JSON file."""

import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Result:
    """One line of the table. ``ratio`` is p50 against the floor's p50, both of the same run."""

    name: str
    unit: str
    n: int
    p50: float
    p95: float
    floor: float | None = None
    ratio: float | None = None
    aim: str = ""


def percentile(samples: list[float], share: float) -> float:
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def summarize(
    name: str, unit: str, samples: list[float], *, floor: list[float] | None = None, aim: str = ""
) -> Result:
    p50 = statistics.median(samples)
    floor_p50 = statistics.median(floor) if floor else None
    return Result(
        name,
        unit,
        len(samples),
        round(p50, 2),
        round(percentile(samples, 0.95), 2),
        None if floor_p50 is None else round(floor_p50, 2),
        None if floor_p50 is None else round(p50 / floor_p50, 2),
        aim,
    )


def interleaved(
    n: int, ours: Callable[[], float], floor: Callable[[], float]
) -> tuple[list[float], list[float]]:
    """Ours and the floor in turn, so that a machine whose speed drifts is equally unkind to both."""
    pairs = [(ours(), floor()) for _ in range(n)]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def render(results: list[Result]) -> str:
    header = ("what", "unit", "n", "p50", "p95", "floor", "ratio", "aim")
    rows: list[tuple[str, ...]] = [header]
    for item in results:
        row = (item.name, item.unit, item.n, item.p50, item.p95, item.floor, item.ratio, item.aim)
        rows.append(tuple("-" if cell is None else str(cell) for cell in row))
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return "\n".join(lines)


def write(path: Path, about: dict[str, object], results: list[Result]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**about, "results": [asdict(item) for item in results]}, indent=2) + "\n")
