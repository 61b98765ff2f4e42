# SPDX-License-Identifier: Apache-2.0
"""Samples, percentiles, aims, the table and the JSON file. Pure but for `write`."""

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Aim:
    """What a number should be: at most so many times its floor, so much above it, or so much."""

    ratio: float | None = None  # p50 : floor
    ratio_p95: float | None = None  # p95 : the floor's p50
    above: float | None = None  # p50 - floor
    most: float | None = None  # p50

    def __str__(self) -> str:
        parts = []
        if self.ratio is not None:
            parts.append(f"p50 <= {self.ratio:g}x")
        if self.ratio_p95 is not None:
            parts.append(f"p95 <= {self.ratio_p95:g}x")
        if self.above is not None:
            parts.append(f"<= floor + {self.above:g}")
        if self.most is not None:
            parts.append(f"<= {self.most:g}")
        return ", ".join(parts)

    def is_met(self, p50: float, p95: float, floor: float | None) -> bool:
        """Raises ValueError for an aim against a floor that there is not."""
        if floor is None:
            if (self.ratio, self.ratio_p95, self.above) != (None, None, None):
                raise ValueError("an aim against a floor, and no floor")
            floor = 0.0
        return (
            (self.ratio is None or p50 <= self.ratio * floor)
            and (self.ratio_p95 is None or p95 <= self.ratio_p95 * floor)
            and (self.above is None or p50 <= floor + self.above)
            and (self.most is None or p50 <= self.most)
        )


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
    met: bool | None = None  # None: there is no aim
    note: str = ""


@dataclass(frozen=True, slots=True)
class NotMeasured:
    bench: str
    why: str


class CannotMeasureError(Exception):
    """The bench has nothing to measure here; says why."""


def percentile(samples: Sequence[float], share: float) -> float:
    """The sample at that rank (nearest; no value between two samples is made up)."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def summarize(
    name: str,
    unit: str,
    samples: Sequence[float],
    *,
    floor: Sequence[float] = (),
    aim: Aim | None = None,
    note: str = "",
) -> Result:
    p50, p95 = statistics.median(samples), percentile(samples, 0.95)
    floor_p50 = statistics.median(floor) if floor else None
    return Result(
        name,
        unit,
        len(samples),
        round(p50, 2),
        round(p95, 2),
        None if floor_p50 is None else round(floor_p50, 2),
        round(p50 / floor_p50, 2) if floor_p50 else None,
        "" if aim is None else str(aim),
        None if aim is None else aim.is_met(p50, p95, floor_p50),
        note,
    )


def interleaved(
    n: int, ours: Callable[[], float], floor: Callable[[], float]
) -> tuple[list[float], list[float]]:
    """Ours and the floor in turn, so that a machine whose speed drifts is equally unkind to both."""
    pairs = [(ours(), floor()) for _ in range(n)]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def render(results: Sequence[Result]) -> str:
    header = ("what", "unit", "n", "p50", "p95", "floor", "ratio", "aim", "met", "note")
    rows: list[tuple[str, ...]] = [header]
    for item in results:
        met = {True: "yes", False: "NO", None: None}[item.met]
        row = (
            item.name, item.unit, item.n, item.p50, item.p95, item.floor, item.ratio, item.aim or None, met, item.note,
        )  # fmt: skip
        rows.append(tuple("-" if cell is None else str(cell) for cell in row))
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return "\n".join(lines)


def write(
    path: Path,
    about: dict[str, object],
    results: Sequence[Result],
    not_measured: Sequence[NotMeasured] = (),
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {
        **about,
        "results": [asdict(item) for item in results],
        "not_measured": [asdict(item) for item in not_measured],
    }
    path.write_text(json.dumps(document, indent=2) + "\n")
