"""Dates, times, timestamps and durations, as the integers that Arrow counts them in.

Unit and time zone belong to the Arrow type and are restored with it. The grid is one of integers; what
`numeric` says of numbers holds here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pipeline.columns.numeric import NumericColumn


@dataclass(frozen=True)
class TemporalColumn(NumericColumn):
    """A fitted column of dates, times, timestamps or durations; bounds count in the type's unit."""

    kind: ClassVar[str] = "temporal"
