"""The Arrow types that columns are tested on, and Hypothesis strategies for arrays of them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from decimal import Decimal, localcontext
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from pipeline.columns import ColumnOptions
from tests.small import INTEGER_TYPES

EXAMPLES = int(os.environ.get("PARVAE_EXAMPLES", "6"))
"""Examples a test and type; PARVAE_EXAMPLES=300 searches for bugs."""

QUICK = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES <= 6,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@dataclass(frozen=True)
class Case:
    """A type under test, with the options that model it."""

    type: pa.DataType
    options: ColumnOptions = field(default_factory=ColumnOptions)
    label: str = ""

    def __str__(self) -> str:
        return self.label or str(self.type)

    @property
    def field(self) -> pa.Field:
        return pa.field("c", self.type, metadata={"k": "v"})


def _case(data_type: pa.DataType, label: str = "", **options: Any) -> Case:
    return Case(data_type, ColumnOptions(**options), label)


INTEGERS = [_case(t) for t in INTEGER_TYPES]
FLOATS = [_case(t) for t in (pa.float16(), pa.float32(), pa.float64())]
FLOATS.append(_case(pa.float64(), "double standard", scaling="standard"))
DECIMALS = [
    _case(t, kind="numeric")
    for t in (pa.decimal32(7, 2), pa.decimal64(18, 4), pa.decimal128(12, 2), pa.decimal128(5, -2))
]
DECIMALS.append(_case(pa.decimal128(38, 10), "wide decimal128", kind="numeric"))
TEMPORALS = [
    _case(t)
    for t in (
        pa.date32(),
        pa.date64(),
        pa.time32("s"),
        pa.time32("ms"),
        pa.time64("us"),
        pa.time64("ns"),
        pa.timestamp("s"),
        pa.timestamp("ms", "UTC"),
        pa.timestamp("us", "Europe/Berlin"),
        pa.timestamp("ns"),
        pa.duration("s"),
        pa.duration("ns"),
    )
]
BOOLEANS = [_case(pa.bool_())]
TEXTS = [
    _case(t, f"{t}"[:60], kind="categorical")
    for t in (
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int8(), pa.string()),
        pa.dictionary(pa.uint16(), pa.large_string(), ordered=True),
        pa.dictionary(pa.int32(), pa.string_view()),
        pa.dictionary(pa.uint64(), pa.int16()),
        pa.dictionary(pa.int64(), pa.uint64(), ordered=True),
    )
]
TEXTS.append(_case(pa.string(), "string, vocabulary of 2", kind="categorical", max_categories=2))
TEXTS += [_case(t, f"{t} categories", kind="categorical") for t in (pa.int8(), pa.int64(), pa.uint32(), pa.uint64())]
VECTORS = [
    _case(pa.list_(pa.int8(), 3)),
    _case(pa.list_(pa.uint8(), 6), "image", shape=(2, 3)),
    _case(pa.list_(pa.float32(), 2)),
    _case(pa.list_(pa.field("element", pa.float64()), 4), "float64 elements"),
    _case(pa.list_(pa.field("element", pa.float32(), nullable=False), 1), "float32 not null"),
    _case(pa.list_(pa.uint64(), 2)),
    _case(pa.list_(pa.float16(), 2)),
    _case(pa.fixed_shape_tensor(pa.float32(), [2, 2]), "tensor float32"),
    _case(
        pa.fixed_shape_tensor(pa.int16(), [2, 3], dim_names=["H", "W"], permutation=[1, 0]),
        "tensor int16",
        shape=(2, 3),
    ),
]
SEQUENCES = [_case(t, f"{t} sequence", kind="sequence") for t in (pa.string(), pa.large_string(), pa.string_view())]
SEQUENCES.append(_case(pa.string(), "words", kind="sequence", tokens="words"))
SEQUENCES.append(
    _case(pa.string(), "short sequence", kind="sequence", tokens="brackets", max_length=2, max_categories=3)
)
OTHERS = [
    _case(t, f"{t}"[:60])
    for t in (
        pa.binary(),
        pa.binary(4),
        pa.null(),
        pa.list_(pa.int8()),
        pa.list_(pa.string(), 2),
        pa.struct([("a", pa.int8())]),
        pa.map_(pa.string(), pa.int8()),
        pa.decimal256(40, 2),
        pa.dictionary(pa.int8(), pa.float64()),
        pa.month_day_nano_interval(),
    )
]
NUMBERS = INTEGERS + FLOATS + DECIMALS + TEMPORALS
MODELLED = NUMBERS + BOOLEANS + TEXTS + VECTORS + SEQUENCES


@st.composite
def arrays(draw: st.DrawFn, data_type: pa.DataType, max_size: int = 16, nulls: bool = True) -> pa.Array:
    """An array of a type: often sliced, with repeated values, extremes, nulls over garbage."""
    size = draw(st.integers(0, max_size))
    before, after = draw(st.sampled_from([(0, 0), (0, 0), (3, 0), (1, 9)]))
    total = before + size + after
    mask = None
    if nulls and draw(st.booleans()):
        mask = np.array(draw(st.lists(st.booleans(), min_size=total, max_size=total)), dtype=bool)
    return draw(_whole(data_type, total, mask)).slice(before, size)


def _whole(data_type: pa.DataType, size: int, mask: np.ndarray | None) -> st.SearchStrategy[pa.Array]:
    types = pa.types
    if isinstance(data_type, pa.FixedShapeTensorType):
        return _whole(data_type.storage_type, size, mask).map(
            lambda storage: pa.ExtensionArray.from_storage(data_type, storage)
        )
    if types.is_fixed_size_list(data_type):
        return _lists(data_type, size, mask)
    if types.is_dictionary(data_type):
        return _dictionaries(data_type, size, mask)
    if types.is_boolean(data_type):
        return _repeating(st.booleans(), size).map(lambda v: pa.array(v, pa.bool_(), mask=mask))
    if types.is_integer(data_type) or types.is_floating(data_type) or types.is_temporal(data_type):
        return _numbers(data_type, size).map(lambda v: _from_numpy(v, data_type, mask))
    if types.is_decimal(data_type):
        return _decimals(data_type, size, mask)
    return _repeating(_text(), size).map(lambda v: _masked(v, data_type, mask))


def _masked(values: list[Any], data_type: pa.DataType, mask: np.ndarray | None) -> pa.Array:
    hidden = [False] * len(values) if mask is None else mask
    return pa.array([None if m else v for v, m in zip(values, hidden, strict=True)], data_type)


def _text() -> st.SearchStrategy[str]:
    alphabet = st.characters(codec="utf-8")
    return st.one_of(st.sampled_from(["", "a", "b", "é\0", " [a]b"]), st.text(alphabet, max_size=5))


def _repeating(values: st.SearchStrategy[Any], size: int) -> st.SearchStrategy[list[Any]]:
    """Lists in which values repeat, or not."""
    pool = st.lists(values, min_size=1, max_size=4).flatmap(
        lambda p: st.lists(st.sampled_from(p), min_size=size, max_size=size)
    )
    return st.one_of(pool, st.lists(values, min_size=size, max_size=size))


def _range(data_type: pa.DataType) -> tuple[int, int]:
    types = pa.types
    if types.is_time(data_type):
        return 0, 86400 * {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[data_type.unit] - 1
    width = data_type.bit_width
    if types.is_unsigned_integer(data_type):
        return 0, 2**width - 1
    return -(2 ** (width - 1)), 2 ** (width - 1) - 1


def _numbers(data_type: pa.DataType, size: int) -> st.SearchStrategy[np.ndarray]:
    width = data_type.bit_width
    if pa.types.is_floating(data_type):
        info = np.finfo(f"float{width}")
        extremes = [float(info.max), float(info.min), float(info.tiny), float(info.smallest_subnormal)]
        extremes += [0.0, -0.0, float("inf"), float("-inf"), float("nan")]
        number: st.SearchStrategy[Any] = st.one_of(
            st.floats(width=width), st.sampled_from(extremes), st.floats(-8, 8, width=width)
        )
        # as bit patterns, so that a NaN keeps its payload
        pattern = st.one_of(
            number.map(lambda v: int(np.array(v, f"float{width}").view(f"uint{width}"))),
            st.integers(0, 2**width - 1),
        )
        return _repeating(pattern, size).map(lambda v: np.array(v, dtype=f"uint{width}").view(f"float{width}"))
    low, high = _range(data_type)
    number = st.one_of(st.integers(low, high), st.sampled_from([low, high, 0]), st.integers(max(low, -5), min(high, 5)))
    dtype = f"{'u' if low == 0 and not pa.types.is_temporal(data_type) else ''}int{width}"
    if pa.types.is_date64(data_type):
        day = 86_400_000
        number = st.integers(-(10**11) // day, 10**11 // day).map(lambda v: v * day)
    return _repeating(number, size).map(lambda v: np.array(v, dtype=dtype))


def _from_numpy(values: np.ndarray, data_type: pa.DataType, mask: np.ndarray | None) -> pa.Array:
    """Nulls lie over the values, so that garbage is under them."""
    validity = None if mask is None else pa.array(~mask).buffers()[1]
    return pa.Array.from_buffers(data_type, len(values), [validity, pa.py_buffer(values.tobytes())])


def _decimals(data_type: pa.DataType, size: int, mask: np.ndarray | None) -> st.SearchStrategy[pa.Array]:
    limit = 10**data_type.precision - 1
    number = st.one_of(
        st.integers(-limit, limit),
        st.integers(-200, 200),
        st.sampled_from([limit, -limit, min(limit, 2**63)]),
    )

    def build(values: list[int]) -> pa.Array:
        with localcontext(prec=80):
            scaled = [Decimal(v).scaleb(-data_type.scale) for v in values]
        return _masked(scaled, data_type, mask)

    return _repeating(number, size).map(build)


def _dictionaries(data_type: pa.DataType, size: int, mask: np.ndarray | None) -> st.SearchStrategy[pa.Array]:
    """Dictionaries with unused entries and a null among them, which makes its rows null."""

    @st.composite
    def build(draw: st.DrawFn) -> pa.Array:
        entries = draw(_whole(data_type.value_type, draw(st.integers(1, 5)), None)).to_pylist()
        entries = list(dict.fromkeys(entries)) + ([None] if draw(st.booleans()) else [])
        codes = draw(st.lists(st.integers(0, len(entries) - 1), min_size=size, max_size=size))
        return pa.DictionaryArray.from_arrays(
            pa.array(np.array(codes, dtype=np.int64), data_type.index_type, mask=mask),
            pa.array(entries, data_type.value_type),
            ordered=data_type.ordered,
        )

    return build()


def _lists(data_type: pa.DataType, size: int, mask: np.ndarray | None) -> st.SearchStrategy[pa.Array]:
    @st.composite
    def build(draw: st.DrawFn) -> pa.Array:
        count = size * data_type.list_size
        element_mask = None
        if data_type.value_field.nullable and draw(st.integers(0, 3)) == 0:
            element_mask = np.array(draw(st.lists(st.booleans(), min_size=count, max_size=count)), dtype=bool)
        child = draw(_whole(data_type.value_type, count, element_mask))
        return pa.FixedSizeListArray.from_arrays(child, type=data_type, mask=None if mask is None else pa.array(mask))

    return build()
