"""Numbers as the report writes them."""

from __future__ import annotations

import math
from typing import Any


def in_bytes(size: float) -> str:
    """Bytes in the largest unit that leaves at least one before the point: 1.23 MB."""
    value, unit = float(size), 0
    units = ("B", "kB", "MB", "GB", "TB", "PB")
    while value >= 999.5 and unit + 1 < len(units):
        value, unit = value / 1000, unit + 1
    return f"{value:.0f} B" if unit == 0 else f"{value:.3g} {units[unit]}"


def whole(number: float) -> str:
    """A whole number with separators: 1,234,567."""
    return f"{number:,.0f}"


def significant(number: float | None, digits: int = 3) -> str:
    """A number with so many significant digits, without an exponent where it is readable; – for None."""
    if number is None:
        return "–"
    if number == 0:
        return "0"
    if not math.isfinite(number):
        return str(number)
    if 1e-4 <= abs(number) < 1e6:
        decimals = max(0, digits - 1 - math.floor(math.log10(abs(number))))
        return f"{number:,.{decimals}f}"
    return f"{number:.{digits - 1}e}"


def fixed(number: float | None, decimals: int = 2) -> str:
    """A number with so many decimals; – for None."""
    return "–" if number is None else f"{number:,.{decimals}f}"


def percent(share: float) -> str:
    """A share of 1 as a percentage: 12.3 %."""
    return f"{100 * share:.1f} %" if share >= 0.001 or share == 0 else "< 0.1 %"


def plural(count: int, one: str, many: str | None = None) -> str:
    """A count with its noun: 1 row, 2 rows."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


FILTERS: dict[str, Any] = {
    "in_bytes": in_bytes,
    "whole": whole,
    "significant": significant,
    "fixed": fixed,
    "percent": percent,
    "plural": plural,
}
