"""Dates, times, timestamps and durations, as the integers that Arrow counts them in.

Unit and time zone belong to the Arrow type and are restored with it. The grid is one of integers, and what
`numeric` says of numbers holds here. date64 is in milliseconds but must be whole days: it is counted in days,
and whatever is no whole day is stored exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pipeline.columns.numeric import NumericColumn


@dataclass(frozen=True)
class TemporalColumn(NumericColumn):
    """A fitted column of dates, times, timestamps or durations.

    Bounds count in the type's unit, for date64 in days.
    """

    kind: ClassVar[str] = "temporal"
