"""Error bounds as a user writes them: `0`, `0.5`, `0.01r`, `none`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Annotated

import pydantic

EXPECTED = "0 (exact), a number of at least 0 in the column's unit, such as 0.5 or 0.01r (times its range), or none"
"""What an error bound may be, for messages."""

_NUMBER = re.compile(r"\+?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_LARGEST = math.nextafter(math.inf, 0)


@dataclass(frozen=True)
class Bound:
    """The largest absolute difference that a decoded value may have; `str` gives its text back.

    Attributes:
        value: A finite number of at least 0, or None: nothing is promised.
        relative: True if `value` counts in the column's range of values, False if in its unit.
    """

    value: int | float | None
    relative: bool = False

    @classmethod
    def parse(cls, value: object) -> Bound:
        """Reads a bound: text, a number, or a bound already.

        Raises:
            ValueError: Saying what was expected.
        """
        if isinstance(value, Bound):
            return value
        if value == "none":
            return cls(None)
        number = _number(value)
        if number is None:
            raise ValueError(f"{value!r} is no error bound: expected {EXPECTED}")
        return cls(number, number > 0 and isinstance(value, str) and value.strip().endswith("r"))

    def __str__(self) -> str:
        if self.value is None:
            return "none"
        return f"{self.value!r}{'r' * self.relative}"

    @property
    def exact(self) -> bool:
        """True for 0: every value comes back bit for bit."""
        return self.value == 0

    def absolute(self, low: int | float, high: int | float) -> int | float:
        """The bound in the unit of a column whose values lie in [low, high].

        Raises:
            ValueError: If nothing is promised.
        """
        if self.value is None:
            raise ValueError("the bound 'none' is no number")
        if not self.relative:
            return self.value
        # in halves where the range of the values is too large for a float
        return min(self.value * (high - low), self.value * (high / 2 - low / 2) * 2, _LARGEST)


def _number(value: object) -> int | float | None:
    """A finite number of at least 0, or None if the value says no such number."""
    if isinstance(value, str):
        text = value.strip().removesuffix("r")
        if not _NUMBER.fullmatch(text):
            return None
        value = int(text) if text.isdigit() else float(text)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _LARGEST:
        return None
    return 0 if value == 0 else value


ErrorBound = Annotated[Bound, pydantic.PlainValidator(Bound.parse), pydantic.PlainSerializer(str, return_type=str)]
"""A bound as configurations hold it: its text in YAML and JSON."""
