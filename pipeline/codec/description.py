"""A codec as JSON: the coding transform without what only networks need, and what codes each column."""

from __future__ import annotations

import base64
import dataclasses
import json
import lzma
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from pipeline.codec.general import from_xz, to_xz
from pipeline.columns import Column, column_from_json
from pipeline.columns.numeric import NumericColumn
from pipeline.columns.vector import VectorColumn
from pipeline.rows import RowTransform

FORMAT, VERSION = "parvae-codec", 1
_LONG, _MOST_BYTES = 512, 1 << 28
_CODED, _ENCODING = "coded", "encoding"
_DEFAULTS: Mapping[str, Any] = {"states": ["VALUE"], "knee": None, "shape": None}
_SCALAR: Mapping[str, Any] = {"centre": 0, "scale": 1.0}
_VECTOR: Mapping[str, Any] = {"centre": [0.0], "scale": [1.0]}


def bare(rows: RowTransform) -> RowTransform:
    """The same transform with nothing standardized: networks that code see symbols, never features."""
    return RowTransform(rows.schema, tuple(_bare(column) for column in rows.columns))


def to_text(rows: RowTransform, coded: Mapping[str, str], encodings: Mapping[str, str]) -> bytes:
    """A bare coding transform and the methods of its columns as minified JSON; of copied columns the names."""
    columns = []
    for column in rows.modelled:
        item = column.to_json()
        defaults = _defaults(item)
        item = {key: value for key, value in item.items() if key not in defaults or value != defaults[key]}
        item = _packed({"name": column.name, _CODED: coded[column.name], **item})
        if column.name in encodings:
            item[_ENCODING] = encodings[column.name]
        columns.append(item)
    description = {"format": FORMAT, "version": VERSION, "copied": rows.passthrough, "columns": columns}
    return json.dumps(description, separators=(",", ":"), allow_nan=False).encode()


def from_text(text: bytes, schema: pa.Schema) -> tuple[RowTransform, dict[str, str], dict[str, str]]:
    """The inverse of `to_text`.

    Args:
        text: The JSON.
        schema: The schema of the dataset.

    Raises:
        ValueError: If it describes no codec, or one of another version (or LookupError, TypeError, …).
    """
    description = json.loads(text)
    if description["format"] != FORMAT or description["version"] != VERSION:
        raise ValueError(f"format version {description['version']} is unknown; upgrade parvae")
    items = {item["name"]: _unpacked(item) for item in description["columns"]}
    copied = {name: {"kind": "passthrough"} for name in description["copied"]}
    if sorted([*(item["name"] for item in description["columns"]), *description["copied"]]) != sorted(schema.names):
        raise ValueError("the columns are not those of the schema")
    all_items = [(field, {**items, **copied}[field.name]) for field in schema]
    columns = [column_from_json(field, {**_defaults(item), **item}) for field, item in all_items]
    coded = {name: str(item[_CODED]) for name, item in items.items()}
    encodings = {name: str(item[_ENCODING]) for name, item in items.items() if _ENCODING in item}
    return RowTransform(schema, tuple(columns)), coded, encodings


def _packed(item: dict[str, Any]) -> dict[str, Any]:
    """A column's JSON with a long vocabulary as its size, a colon, and base85 of its JSON under xz."""
    text = json.dumps(item.get("categories"), separators=(",", ":"), allow_nan=False).encode()
    if len(text) < _LONG:
        return item
    return {**item, "categories": f"{len(text)}:{base64.b85encode(to_xz(text)).decode()}"}


def _unpacked(item: dict[str, Any]) -> dict[str, Any]:
    packed = item.get("categories")
    if not isinstance(packed, str):
        return item
    size, text = packed.split(":", 1)
    if not 0 <= int(size) <= _MOST_BYTES:
        raise ValueError(f"a vocabulary of {size} bytes is too large")
    try:
        return {**item, "categories": json.loads(from_xz(base64.b85decode(text), int(size)))}
    except lzma.LZMAError as error:
        raise ValueError(f"a vocabulary is damaged: {error}") from error


def _bare(column: Column) -> Column:
    if isinstance(column, NumericColumn):
        return dataclasses.replace(column, centre=0, scale=1.0, knee=None)
    if isinstance(column, VectorColumn):
        return dataclasses.replace(column, centre=(0.0,), scale=(1.0,))
    return column


def _defaults(item: Mapping[str, Any]) -> dict[str, Any]:
    """What is left out of a column's JSON."""
    place = _VECTOR if item["kind"] == "vector" else _SCALAR
    return {**_DEFAULTS, **place}
