"""The networks of a codec: one row coder for scalar columns, one element coder a wide vector column.

`Networks` is what `Codec` knows as its model. In a cell the streams of the row coder have the role 16 and those of
the element coders the role 17; `coder.safetensors` holds every network's weights and, as JSON in its metadata, what
the networks see and code.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from pipeline.codec.elements import ElementCoder, Levels
from pipeline.codec.guide import Guide, latent_indices
from pipeline.codec.model import Bins, Latents
from pipeline.codec.rowcoder import RowCoder
from pipeline.codec.sections import FIRST_MODEL_ROLE, Key, Sections
from pipeline.rows import RowTransform

ROW_ROLE, ELEMENT_ROLE = FIRST_MODEL_ROLE, FIRST_MODEL_ROLE + 1
STREAMS_A_COLUMN = 8


@dataclass(frozen=True)
class Place:
    """Where a column's symbols stand in `bins_BD`.

    Attributes:
        state: Its state symbol, or -1.
        first: Its first value symbol.
        stop: One past its last value symbol.
    """

    state: int
    first: int
    stop: int


def places(rows: RowTransform) -> dict[str, Place]:
    """Where the symbols of every modelled column stand."""
    found: dict[str, Place] = {}
    position = 0
    for column in rows.modelled:
        spans = column.spans()
        has_state = spans[0].role == "state"
        width = sum(span.width for span in spans)
        found[column.name] = Place(position if has_state else -1, position + has_state, position + width)
        position += width
    return found


@dataclass(frozen=True)
class Networks:
    """The fitted networks of a codec.

    Attributes:
        places: Where each column's symbols stand.
        rows: The row coder, or None.
        elements: Column name → its element coder.
        latent_steps: Grid steps of the latents that the row coder sees, 0 for those it does not; None without.
        guide: What tells element coders of the latents; None without.
    """

    places: Mapping[str, Place]
    rows: RowCoder | None
    elements: Mapping[str, ElementCoder]
    latent_steps: npt.NDArray[np.float32] | None = None
    guide: Guide | None = None

    def encode(self, bins_BD: Bins, latents_BZ: Latents | None) -> dict[Key, bytes]:
        """Codes the symbols of its columns; see `model.ModelCoder`."""
        sections: dict[Key, bytes] = {}
        if self.rows is not None:
            streams = self.rows.encode(bins_BD, self._told_apart(bins_BD), self._latents(latents_BZ))
            sections |= {(ROW_ROLE, number): data for number, data in streams.items() if data}
        for index, (name, coder) in enumerate(self.elements.items()):
            there = bins_BD[:, coder.first] >= 0
            guides = self._guides(name, coder, latents_BZ, there)
            for number, data in coder.encode(bins_BD[there, coder.first : coder.stop], guides).items():
                if data:
                    sections[ELEMENT_ROLE, STREAMS_A_COLUMN * index + number] = data
        return sections

    def decode(self, sections: Sections, bins_BD: Bins, latents_BZ: Latents | None, columns: Collection[str]) -> None:
        """Fills the symbols of its columns; see `model.ModelCoder`."""
        wanted = {symbol for name in columns for symbol in self._row_symbols(name)}
        if self.rows is not None and wanted:
            streams = {number: sections[role, number] for role, number in sections if role == ROW_ROLE}
            self.rows.decode(streams, bins_BD, self._latents(latents_BZ), wanted)
        for index, (name, coder) in enumerate(self.elements.items()):
            if name not in columns:
                continue
            streams = {
                number % STREAMS_A_COLUMN: sections[role, number]
                for role, number in sections
                if role == ELEMENT_ROLE and number // STREAMS_A_COLUMN == index
            }
            there = bins_BD[:, coder.first] != -1
            if self.places[name].state >= 0:
                there &= bins_BD[:, self.places[name].state] == 0
            bins_BD[:, coder.first : coder.stop] = -1
            guides = self._guides(name, coder, latents_BZ, there)
            bins_BD[there, coder.first : coder.stop] = coder.decode(streams, int(there.sum()), guides)

    def needs(self, columns: Collection[str]) -> set[str]:
        """All columns from which `columns` are decoded."""
        if self.rows is None:
            return set(columns)
        order = [rule.symbol for rule in self.rows.symbols]
        own = [order.index(symbol) for name in columns for symbol in self._row_symbols(name)]
        last = len(order) if own and self.rows.previous else max(own, default=-1) + 1
        before = set(order[:last])
        return set(columns) | {name for name in self.places if before & set(self._row_symbols(name))}

    def to_bytes(self) -> bytes:
        """The bytes of `coder.safetensors`."""
        arrays: dict[str, npt.NDArray[Any]] = {}
        description: dict[str, Any] = {"elements": {}}
        if self.rows is not None:
            arrays |= {f"rows.{name}": array for name, array in self.rows.network.to_arrays().items()}
            description["rows"] = self.rows.to_json()
        if self.latent_steps is not None:
            arrays["latent_steps"] = self.latent_steps
        if self.guide is not None:
            arrays["guide"] = np.frombuffer(self.guide.packed, np.uint8)
            arrays["guide_steps"] = self.guide.steps
        for index, (name, coder) in enumerate(self.elements.items()):
            arrays |= {f"{index}.{key}": array for key, array in coder.network.to_arrays().items()}
            description["elements"][name] = coder.to_json()
        text = json.dumps(description, separators=(",", ":"))
        data: bytes = safetensors.numpy.save(arrays, {"coder": text})
        return data

    @classmethod
    def from_bytes(cls, data: bytes, rows: RowTransform, coded: Mapping[str, str]) -> Networks:
        """Rebuilds the networks; see `model.LoadModel`.

        Raises:
            ValueError: If they are damaged or belong to other columns (or LookupError, TypeError).
        """
        del coded
        try:
            arrays = safetensors.numpy.load(data)
            size = int.from_bytes(data[:8], "little")
            description = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["coder"])
        except safetensors.SafetensorError as error:
            raise ValueError(f"the weights cannot be read: {error}") from error
        found = places(rows)
        row_coder = None
        if "rows" in description:
            row_coder = RowCoder.from_json(description["rows"], _part(arrays, "rows"))
        elements = {
            name: ElementCoder.from_json(item, _part(arrays, str(index)))
            for index, (name, item) in enumerate(description["elements"].items())
        }
        guide = None
        if "guide" in arrays:
            guide = Guide.from_bytes(arrays["guide"].tobytes(), arrays["guide_steps"])
        networks = cls(found, row_coder, elements, arrays.get("latent_steps"), guide)
        networks._check(rows)
        return networks

    def _check(self, rows: RowTransform) -> None:
        count = max((place.stop for place in self.places.values()), default=0)
        sizes = [span.bins for column in rows.modelled for span in column.spans() for _ in range(span.width)]
        for rule in self.rows.symbols if self.rows is not None else ():
            if not (0 <= rule.symbol < count and -1 <= rule.gate < count) or rule.bins < sizes[rule.symbol]:
                raise ValueError(f"the row coder codes symbol {rule.symbol}, which the columns do not have")
        for name, coder in self.elements.items():
            place = self.places[name]
            if (coder.first, coder.stop) != (place.first, place.stop) or coder.bins != sizes[place.first]:
                raise ValueError(f"the element coder of column {name!r} belongs to another column")
            if coder.guided and (self.guide is None or name not in self.guide.columns):
                raise ValueError(f"the element coder of column {name!r} lacks what tells it of the latents")
        if self.rows is not None and self.rows.latents:
            steps = self.latent_steps
            if steps is None or int((steps > 0).sum()) != self.rows.latents or not np.isfinite(steps).all():
                raise ValueError("the row coder's latents are not those that are described")

    def _row_symbols(self, name: str) -> list[int]:
        """The symbols of a column that the row coder has."""
        place = self.places[name]
        state = [place.state] if place.state >= 0 else []
        return state if name in self.elements else [*state, *range(place.first, place.stop)]

    def _told_apart(self, bins: Bins) -> npt.NDArray[np.bool_]:
        """Where the decoder is told beforehand that there is no value: no state symbol says so."""
        absent = np.zeros(bins.shape, np.bool_)
        for place in self.places.values():
            if place.state < 0:
                absent[:, place.first : place.stop] = bins[:, place.first : place.stop] < 0
            else:
                unseen = bins[:, place.state] < 0
                if unseen.any():
                    absent[:, place.first : place.stop] = bins[:, place.first : place.stop] < 0
        return absent

    def _latents(self, latents: Latents | None) -> Bins | None:
        """Latents in steps of their grid, those that the row coder sees."""
        if self.latent_steps is None or latents is None:
            return None
        return latent_indices(latents, self.latent_steps)[:, self.latent_steps > 0]

    def _guides(
        self, name: str, coder: ElementCoder, latents: Latents | None, there: npt.NDArray[np.bool_]
    ) -> Levels | None:
        """What the latents say of a column's elements, if its coder listens."""
        if not coder.guided:
            return None
        if self.guide is None or latents is None:
            raise ValueError(f"column {name!r} needs the stored latents")
        return self.guide.levels(latents[there], name)


def _part(arrays: Mapping[str, npt.NDArray[Any]], prefix: str) -> dict[str, npt.NDArray[Any]]:
    return {name.split(".", 1)[1]: array for name, array in arrays.items() if name.startswith(f"{prefix}.")}
