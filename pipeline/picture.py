"""Images of a vector column as one PNG file: a grid of them, row by row."""

from __future__ import annotations

import io
import math

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.columns.lists import read_rows
from pipeline.columns.vector import VectorColumn
from pipeline.errors import ConfigError, OutputError
from pipeline.rows import RowTransform
from pipeline.storage import Location

MOST_IMAGES = 100
"""Images of a grid, at most."""
_GAP = 1
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def image_column(rows: RowTransform, what: str = "--grid") -> VectorColumn:
    """The first column of images; checks that they can be drawn.

    Raises:
        ConfigError: If there is none, its images have 2 or more than 4 channels, or Pillow is missing.
    """
    for column in rows.modelled:
        if isinstance(column, VectorColumn) and column.shape is not None:
            if _channels(column) not in _MODES:
                raise ConfigError(f"{what}: images of {column.name!r} have {_channels(column)} channels, not 1, 3 or 4")
            try:
                import PIL.Image  # noqa: F401
            except ImportError as error:
                raise ConfigError(f"{what} needs Pillow; pip install 'parvae[images]'") from error
            return column
    raise ConfigError(f"{what}: the model has no column of images (a vector column with a shape)")


def check_picture(grid: Location, out: Location, overwrite: bool) -> None:
    """Refuses a picture among the samples, and one that is there already.

    Raises:
        OutputError: Saying what to do.
    """
    if f"{grid.uri}/".startswith(f"{out.uri}/"):
        raise OutputError(f"--grid {grid} lies in --out {out}, which is for Parquet files; choose another place")
    if grid.exists() and (not grid.is_file() or not overwrite):
        raise OutputError(f"--grid {grid} is there already; choose another name, or give --overwrite")


def write_grid(column: VectorColumn, values: pa.Array, out: Location, across: int | None = None) -> int:
    """Writes images side by side and below each other.

    The column's fitted range is black to white; an image that is null is grey.

    Args:
        column: The column of images.
        values: Its values.
        out: PNG file to write.
        across: Images a line; None: as many as there are lines.

    Returns:
        How many images there are in it: at most `MOST_IMAGES`.
    """
    from PIL import Image

    picture = _tiled(_pixels(column, values.slice(0, MOST_IMAGES)), across)
    sink = io.BytesIO()
    Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture).save(sink, "PNG")
    out.write_bytes(sink.getvalue())
    return min(len(values), MOST_IMAGES)


def _channels(column: VectorColumn) -> int:
    assert column.shape is not None
    return column.shape[2] if len(column.shape) == 3 else 1


def _pixels(column: VectorColumn, values: pa.Array) -> npt.NDArray[np.uint8]:
    """Images of shape (rows, H, W, channels)."""
    assert column.shape is not None
    rows = read_rows(values)
    low, high = float(column.grid.low), float(column.grid.high)
    data = np.clip((rows.data.astype(np.float64) - low) / ((high - low) or 1.0), 0.0, 1.0)
    if rows.states is not None:
        data[rows.states != 0] = 0.5
    height, width = column.shape[:2]
    return np.rint(data * 255).astype(np.uint8).reshape(len(data), height, width, _channels(column))


def _tiled(images: npt.NDArray[np.uint8], across: int | None) -> npt.NDArray[np.uint8]:
    """Images beside and below each other, a thin line between them."""
    count, height, width, channels = images.shape
    across = across or max(1, math.ceil(math.sqrt(count)))
    down = max(1, -(-count // across))
    shape = (down * (height + _GAP) + _GAP, across * (width + _GAP) + _GAP, channels)
    picture = np.full(shape, 128, np.uint8)
    for number, image in enumerate(images):
        top = number // across * (height + _GAP) + _GAP
        left = number % across * (width + _GAP) + _GAP
        picture[top : top + height, left : left + width] = image
    return picture
