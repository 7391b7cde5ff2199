"""Many files of sensor readings: one network of devices, one file after the other in time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

DEVICES = 40
ROW_GROUP = 8192
SCHEMA = pa.schema(
    [
        pa.field("time", pa.timestamp("us"), nullable=False),
        pa.field("device", pa.dictionary(pa.int32(), pa.string())),
        ("temperature", pa.float32()),
        ("humidity", pa.float32()),
        ("pressure", pa.float32()),
        ("power", pa.float32()),
        ("events", pa.int64()),
        ("alarm", pa.bool_()),
    ]
)
_DAY = 86_400.0
_BEGIN = 1_760_000_000


def file_rows(files: int, rows: int, seed: int) -> list[int]:
    """How many rows each file has: about the same, and `rows` in all."""
    shares = np.random.default_rng([seed, files]).uniform(0.8, 1.2, files)
    ends = np.round(np.cumsum(shares) / shares.sum() * rows).astype(int)
    return [int(count) for count in np.diff(ends, prepend=0)]


def file_names(files: int) -> list[str]:
    """Their names, in order of time."""
    return [f"day={number // 10:04d}/sensors-{number:06d}.parquet" for number in range(files)]


def write_files(folder: Path, files: int, rows: int, seed: int) -> Iterator[Path]:
    """Writes the files that are not there yet, each drawn from a seed of its own."""
    counts = file_rows(files, rows, seed)
    for number, (name, count) in enumerate(zip(file_names(files), counts, strict=True)):
        path = folder / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            spool = path.with_suffix(".tmp")
            pq.write_table(
                readings(number, count, rows / files, seed),
                spool,
                row_group_size=ROW_GROUP,
                compression="zstd",
                use_dictionary=["device"],
            )
            spool.rename(path)
        yield path


def readings(number: int, rows: int, usual: float, seed: int) -> pa.Table:
    """The rows of one file: times that never come twice, readings that follow the hour, the device and each other.

    Args:
        number: The file's number.
        rows: Its rows.
        usual: Rows of a file on average; the span of time that a file covers does not depend on `rows`.
        seed: Seed of all files.
    """
    rng = np.random.default_rng([seed, number])
    span = usual * 1.5e6  # microseconds that a file covers, 1.5 seconds a row
    ticks = ((np.arange(rows) + 0.9 * rng.random(rows)) * (span / max(1, rows))).astype(np.int64)
    time = ticks + int(number * span) + _BEGIN * 1_000_000
    device = rng.integers(0, DEVICES, rows)
    hour = 2 * np.pi * (time / 1e6 % _DAY) / _DAY
    front = np.sin(time / 1e6 / (9.3 * _DAY))
    offset = np.random.default_rng(seed).normal(size=(2, DEVICES))[:, device]
    noise = rng.normal(size=(4, rows))
    temperature = 12 + 6 * front - 5 * np.cos(hour) + 1.5 * offset[0] + 0.3 * noise[0]
    humidity = np.clip(70 - 2.2 * (temperature - 12) + 4 * offset[1] + 1.5 * noise[1], 0, 100)
    pressure = 1013 + 8 * front + 0.4 * noise[2]
    power = 250 + 18 * np.abs(temperature - 18) + 30 * offset[0] + 5 * noise[3]
    events = rng.poisson(np.clip(power / 120, 0, 50))
    names = pa.array([f"device-{index:03d}" for index in range(DEVICES)])
    columns = [
        pa.array(time, pa.timestamp("us")),
        pa.DictionaryArray.from_arrays(pa.array(device.astype(np.int32)), names),
        _rounded(temperature, 2),
        _rounded(humidity, 1, missing=rng.random(rows) < 0.002),
        _rounded(pressure, 2),
        _rounded(power, 2),
        pa.array(events, pa.int64()),
        pa.array(temperature + 0.5 * noise[1] > 16),
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def _rounded(values: np.ndarray, digits: int, missing: np.ndarray | None = None) -> pa.Array:
    """Readings as a sensor gives them: decimals, in float32."""
    return pa.array(np.round(values, digits).astype(np.float32), mask=missing)
