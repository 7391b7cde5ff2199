"""CoderShape: what a row coder sees and codes, and where its tables stand; to read it takes no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

INTERPOLATION = 16
"""An entry of an ordinal table is a sixteenth-weighted mean of its two neighbouring knots."""


@dataclass(frozen=True)
class CoderShape:
    """What a row coder sees and codes.

    Attributes:
        contexts: Alphabet size of each context; a context of -1 is absent.
        ordinal_contexts: Whether neighbouring values of a context are alike.
        digits: Alphabet size of each digit, in the order in which they are coded.
        ordinal_digits: Whether neighbouring values of a digit are alike.
        given: For each digit, the earlier digit whose value chooses its biases, or -1.
        hidden: H, the number of hidden units.
        knots: Knots of an ordinal table that has more than twice as many entries.

    Raises:
        ValueError: If the sizes contradict each other.
    """

    contexts: tuple[int, ...]
    ordinal_contexts: tuple[bool, ...]
    digits: tuple[int, ...]
    ordinal_digits: tuple[bool, ...]
    given: tuple[int, ...]
    hidden: int
    knots: int = 16

    def __post_init__(self) -> None:
        if len(self.contexts) != len(self.ordinal_contexts) or not (
            len(self.digits) == len(self.ordinal_digits) == len(self.given)
        ):
            raise ValueError("a coder's contexts and digits must each have all their attributes")
        if any(size < 1 or size > 1 << 16 for size in (*self.contexts, *self.digits)):
            raise ValueError("alphabets must have 1 to 65,536 values")
        if any(not -1 <= given < number for number, given in enumerate(self.given)):
            raise ValueError("a digit's biases may depend on an earlier digit only")
        if not (1 <= self.hidden <= 512 and 2 <= self.knots <= 256):
            raise ValueError(f"{self.hidden} hidden units and {self.knots} knots are out of range")

    def to_json(self) -> dict[str, Any]:
        """A JSON-serializable description."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> CoderShape:
        """Rebuilds a shape from `to_json`'s result."""
        lists = ("contexts", "ordinal_contexts", "digits", "ordinal_digits", "given")
        fields: dict[str, Any] = {name: tuple(data[name]) if name in lists else data[name] for name in data}
        return cls(**fields)


def knot_offsets(sizes: Sequence[int], ordinal: Sequence[bool], knots: int) -> list[int]:
    """The first knot row of each table, and the total at the end; a table's last row is for "absent".

    Args:
        sizes: Entries of each table.
        ordinal: Whether neighbouring entries of a table are alike.
        knots: Knots of an ordinal table that has more than twice as many entries.
    """
    offsets = [0]
    for size, smooth in zip(sizes, ordinal, strict=True):
        offsets.append(offsets[-1] + (knots if smooth and size > 2 * knots else size) + 1)
    return offsets
