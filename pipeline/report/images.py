"""Images of a vector column as pixels, and as PNG in data URIs."""

from __future__ import annotations

import base64
import io

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.columns.lists import read_rows
from pipeline.columns.vector import VectorColumn
from pipeline.rows import RowTransform

Pixels = npt.NDArray[np.uint8]
_CHANNELS = (1, 3, 4)
_MOST_PIXELS = 1 << 16
_GREY = 0.5


def image_column(rows: RowTransform) -> VectorColumn | None:
    """The first column of images that can be drawn: 1, 3 or 4 channels, no more than 2^16 pixels."""
    for column in rows.modelled:
        if isinstance(column, VectorColumn) and column.shape is not None:
            height, width, channels = image_shape(column)
            if channels in _CHANNELS and height * width <= _MOST_PIXELS:
                return column
    return None


def image_shape(column: VectorColumn) -> tuple[int, int, int]:
    """Height, width and channels of a column of images."""
    assert column.shape is not None
    height, width, *rest = column.shape
    return height, width, rest[0] if rest else 1


def pixels(column: VectorColumn, values: pa.Array) -> Pixels:
    """Images as bytes, shape (rows, H, W, C): the column's fitted range is black to white, null is grey.

    Args:
        column: The column.
        values: Its values.
    """
    rows = read_rows(values)
    low, high = float(column.grid.low), float(column.grid.high)
    with np.errstate(invalid="ignore"):
        data = np.clip((rows.data.astype(np.float64) - low) / ((high - low) or 1.0), 0.0, 1.0)
    data[np.isnan(data)] = _GREY
    if rows.states is not None:
        data[rows.states != 0] = _GREY
    return np.rint(data * 255).astype(np.uint8).reshape(len(data), *image_shape(column))


def to_uri(column: VectorColumn, encoded: str) -> str:
    """A PNG in a data URI.

    Args:
        column: The column of images.
        encoded: Base64 of the bytes of one image of `pixels`.
    """
    from PIL import Image

    shape = image_shape(column)
    image = np.frombuffer(base64.b64decode(encoded), np.uint8).reshape(shape)
    sink = io.BytesIO()
    Image.fromarray(image[:, :, 0] if shape[2] == 1 else image).save(sink, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(sink.getvalue()).decode()}"
