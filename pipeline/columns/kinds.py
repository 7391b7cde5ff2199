"""Which Arrow type may be modelled as which column kind."""

from __future__ import annotations

from typing import Literal

import pyarrow as pa

Family = Literal["integer", "float", "decimal", "temporal", "boolean", "text", "vector", "other"]

_KINDS: dict[Family, tuple[str, ...]] = {
    "integer": ("numeric", "categorical", "passthrough"),
    "float": ("numeric", "passthrough"),
    "decimal": ("numeric", "passthrough"),
    "temporal": ("temporal", "passthrough"),
    "boolean": ("boolean", "passthrough"),
    "text": ("categorical", "passthrough"),
    "vector": ("vector", "passthrough"),
    "other": ("passthrough",),
}

_PICKLED = "ray.data.arrow_pickled_object"


def pickled_column(schema: pa.Schema) -> str | None:
    """The first column that holds pickled Python objects, at any depth; None if none does.

    Ray registers an Arrow type whose values are unpickled, which runs whatever code they hold, as soon as somebody
    looks at them. Nothing that is read from a file may have it.
    """
    return next((field.name for field in schema if _is_pickled(field)), None)


def _is_pickled(field: pa.Field) -> bool:
    """Whether a field has the type, or would have it in a process that has loaded Ray."""
    return (field.metadata or {}).get(b"ARROW:extension:name") == _PICKLED.encode() or _holds_pickled(field.type)


def _holds_pickled(data_type: pa.DataType) -> bool:
    if isinstance(data_type, pa.BaseExtensionType):
        return data_type.extension_name == _PICKLED or _holds_pickled(data_type.storage_type)
    if pa.types.is_dictionary(data_type):
        return _holds_pickled(data_type.value_type)
    return any(_is_pickled(data_type.field(index)) for index in range(data_type.num_fields))


def family(data_type: pa.DataType) -> Family:
    """Says what a type is to the columns; `"other"` is whatever can only be passed through.

    `"text"` is every string type, and dictionaries of strings or integers.
    """
    types = pa.types
    if types.is_integer(data_type):
        return "integer"
    if types.is_floating(data_type):
        return "float"
    if is_decimal(data_type):
        return "decimal"
    if types.is_boolean(data_type):
        return "boolean"
    if types.is_temporal(data_type) and not types.is_interval(data_type):
        return "temporal"
    if is_string(data_type):
        return "text"
    if types.is_dictionary(data_type):
        value_type = data_type.value_type
        return "text" if is_string(value_type) or types.is_integer(value_type) else "other"
    if list_type(data_type) is not None:
        return "vector"
    return "other"


def possible_kinds(data_type: pa.DataType) -> tuple[str, ...]:
    """The kinds that a column of this type may be given, the natural one first."""
    possible = _KINDS[family(data_type)]
    return ("categorical", "sequence", "passthrough") if is_string(data_type) else possible


def is_string(data_type: pa.DataType) -> bool:
    """True for string, large_string and string_view."""
    types = pa.types
    return bool(types.is_string(data_type) or types.is_large_string(data_type) or types.is_string_view(data_type))


def is_decimal(data_type: pa.DataType) -> bool:
    """True for the decimals whose unscaled value can be an int64: 32, 64 and 128 bits wide."""
    types = pa.types
    return bool(types.is_decimal32(data_type) or types.is_decimal64(data_type) or types.is_decimal128(data_type))


def list_type(data_type: pa.DataType) -> pa.DataType | None:
    """The fixed-size list that stores a vector of numbers, or None if the type is not one."""
    storage = data_type.storage_type if isinstance(data_type, pa.FixedShapeTensorType) else data_type
    if not pa.types.is_fixed_size_list(storage) or storage.list_size < 1:
        return None
    element = storage.value_type
    return storage if pa.types.is_integer(element) or pa.types.is_floating(element) else None
