"""Which column the bytes of a cell belong to."""

from __future__ import annotations

from bisect import bisect_right

from pipeline.codec.codec import Codec
from pipeline.codec.networks import ELEMENT_ROLE, ROW_ROLE, STREAMS_A_COLUMN, Networks
from pipeline.codec.sections import CHECKS, Key, unpack_cell


class Shares:
    """Bytes of cells by column: every section but the checksums codes one column alone.

    Args:
        codec: The codec that wrote the cells.
    """

    def __init__(self, codec: Codec) -> None:
        self._names = [column.name for column in codec.rows.modelled]
        self._networks = codec.model if isinstance(codec.model, Networks) else None
        self._owners: list[str] = []
        for column in codec.rows.modelled:
            self._owners += [column.name] * sum(span.width for span in column.spans())

    def __call__(self, cell: bytes) -> tuple[dict[str, int], int]:
        """Bytes by column.

        Args:
            cell: A cell of the codec.

        Returns:
            Column → bytes, for columns that have some; and the bytes of no column: directory and checksums.

        Raises:
            ValueError: If the cell is damaged (or LookupError).
        """
        sections = unpack_cell(cell)
        sizes: dict[str, int] = {}
        for key, body in sections.items():
            name = self._owner(key)
            if name is not None:
                sizes[name] = sizes.get(name, 0) + len(body)
        return sizes, len(cell) - sum(sizes.values())

    def _owner(self, key: Key) -> str | None:
        """The column that a section codes."""
        role, number = key
        if role == CHECKS:
            return None
        if self._networks is None or role not in (ROW_ROLE, ELEMENT_ROLE):
            return self._names[number]
        if role == ELEMENT_ROLE:
            return list(self._networks.elements)[number // STREAMS_A_COLUMN]
        coder = self._networks.rows
        assert coder is not None
        # streams 2·d are of digit d, 2·s + 1 the raw bits of symbol s
        symbol = number // 2 if number % 2 else bisect_right(coder.first_digit, number // 2) - 1
        return self._owners[coder.symbols[symbol].symbol]
