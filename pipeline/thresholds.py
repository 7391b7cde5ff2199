"""Thresholds of anomaly scores: by a quantile of the scores, or by labels. A row is anomalous above the threshold."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset import Dataset, read_unit
from pipeline.errors import ConfigError, DatasetError

Floats = npt.NDArray[np.float64]
WHOLE_FILES = 1 << 62
"""Bytes of a work unit that no file has: one unit a file."""
_BLOCK_ROWS = 65_536
_LEVELS, _BITS = 4, 16
_SIGN = np.uint64(1 << 63)


@dataclass(frozen=True)
class Labels:
    """A column of labels of two classes.

    Attributes:
        anomalous: Whether each row is of the anomalous class, in the dataset's order.
        anomaly: The anomalous class: true, the larger number, or the rarer of two texts.
    """

    anomalous: npt.NDArray[np.bool_]
    anomaly: Any


@dataclass(frozen=True)
class Verdict:
    """A threshold, and how scores do against labels.

    Attributes:
        threshold: Rows with a higher score are anomalous.
        figures: AUROC, average precision, and F1, precision and recall at the threshold.
    """

    threshold: float
    figures: dict[str, float]


def check_column(dataset: Dataset, name: str, what: str) -> None:
    """Refuses the name of a column that a dataset does not have.

    Raises:
        ConfigError: Naming the columns that there are.
    """
    if name not in dataset.schema.names:
        listed = ", ".join(map(repr, dataset.schema.names[:50]))
        raise ConfigError(f"{what} names the column {name!r}, {dataset.location} has {listed}")


def read_labels(dataset: Dataset, name: str, what: str) -> Labels:
    """Reads a column of labels: one byte a row is kept.

    Args:
        dataset: The dataset.
        name: The column: booleans, numbers or texts of two classes.
        what: Name of the argument, for messages.

    Raises:
        ConfigError: If there is no such column.
        DatasetError: If a label is null or NaN, or the classes are not two.
    """
    check_column(dataset, name, what)
    kind = dataset.schema.field(name).type
    classes: dict[Any, int] = {}
    codes: list[npt.NDArray[np.int8]] = []
    for unit in dataset.units(WHOLE_FILES):
        for batch in read_unit(dataset.root, unit, [name], _BLOCK_ROWS):
            values = _plain(batch.column(0), name, what)
            if values.null_count:
                raise DatasetError(
                    f"{what}: {dataset.root}/{unit.path} has rows without a label in column {name!r}; "
                    "leave them out, or label them",
                    unit.path,
                )
            encoded = values.dictionary_encode()
            found = [classes.setdefault(value, len(classes)) for value in encoded.dictionary.to_pylist()]
            if len(classes) > 2:
                listed = ", ".join(map(repr, [*classes][:3]))
                raise DatasetError(f"{what}: column {name!r} has more than two classes ({listed}, ...); expected two")
            codes.append(np.array(found, np.int8)[encoded.indices.to_numpy(zero_copy_only=False)])
    if len(classes) < 2:
        only = f"only the class {next(iter(classes))!r}" if classes else "no rows"
        raise DatasetError(f"{what}: column {name!r} has {only}; a threshold needs rows of two classes")
    joined = np.concatenate(codes)
    anomaly = max(classes) if not _is_text(kind) else min(classes, key=lambda c: np.count_nonzero(joined == classes[c]))
    return Labels(joined == classes[anomaly], anomaly)


def _plain(values: pa.Array, name: str, what: str) -> pa.Array:
    """Labels without dictionaries; NaN becomes null."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    kind = values.type
    if pa.types.is_floating(kind):
        return pc.if_else(pc.is_nan(values), pa.scalar(None, kind), values)
    if not (pa.types.is_boolean(kind) or pa.types.is_integer(kind) or _is_text(kind)):
        raise DatasetError(f"{what}: column {name!r} is {kind}; labels are booleans, numbers or texts")
    return values


def _is_text(kind: pa.DataType) -> bool:
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value))


def quantile(scores: Callable[[], Iterable[Floats]], rows: int, q: float) -> float:
    """The smallest score that at least a share q of the rows do not exceed: an exact order statistic.

    The scores are read four times, 16 bits of their order decided each time (radix selection), so that memory does
    not grow with them.

    Args:
        scores: Gives all scores, in pieces, each time it is called; finite.
        rows: How many there are, at least 1.
        q: The quantile, above 0 and below 1.
    """
    rank = min(rows, max(1, math.ceil(q * rows)))
    prefix = 0
    for level in range(_LEVELS):
        shift = np.uint64(_BITS * (_LEVELS - 1 - level))
        counts = np.zeros(1 << _BITS, np.int64)
        for piece in scores():
            keys = _keys(piece) >> shift
            if level:
                keys = keys[keys >> np.uint64(_BITS) == np.uint64(prefix)]
            counts += np.bincount((keys & np.uint64((1 << _BITS) - 1)).astype(np.int64), minlength=1 << _BITS)
        ends = np.cumsum(counts)
        digit = int(np.searchsorted(ends, rank))
        rank -= int(ends[digit] - counts[digit])
        prefix = prefix << _BITS | digit
    bits = np.array([prefix], np.uint64)
    bits = np.where(bits & _SIGN, bits ^ _SIGN, ~bits)
    return float(bits.view(np.float64)[0])


def _keys(values: Floats) -> npt.NDArray[np.uint64]:
    """Whole numbers in the order of finite floats."""
    bits = (np.ascontiguousarray(values, np.float64) + 0.0).view(np.uint64)  # + 0.0: no negative zeros
    return np.asarray(np.where(bits & _SIGN, ~bits, bits ^ _SIGN), np.uint64)


def best_f1(scores: Floats, labels: Labels) -> Verdict:
    """The threshold with the highest F1 of the anomalous class; of several, the one that flags the fewest rows.

    It lies in the middle between two neighbouring scores.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(labels.anomalous[order])
    last = np.append(ranked[1:] < ranked[:-1], True)  # of the rows with the same score
    flagged = np.arange(1, len(scores) + 1)
    f1 = np.where(last, 2 * hits / (flagged + hits[-1]), -1.0)
    cut = int(np.argmax(f1))
    low = ranked[cut + 1] if cut + 1 < len(ranked) else np.nextafter(ranked[cut], -np.inf)
    middle = low / 2 + ranked[cut] / 2
    figures = {
        "auroc": float(roc_auc_score(labels.anomalous, scores)),
        "average_precision": float(average_precision_score(labels.anomalous, scores)),
        "f1": float(f1[cut]),
        "precision": float(hits[cut] / flagged[cut]),
        "recall": float(hits[cut] / hits[-1]),
    }
    return Verdict(float(middle if low <= middle < ranked[cut] else low), figures)


def rechunked(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of exactly `rows`, the last one shorter."""
    waiting: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        waiting.append(batch)
        count += batch.num_rows
        if count >= rows:
            table = pa.Table.from_batches(waiting).unify_dictionaries()
            whole = count // rows * rows
            for start in range(0, whole, rows):
                yield _one(table.slice(start, rows))
            waiting, count = table.slice(whole).to_batches(), count - whole
    if count:
        yield _one(pa.Table.from_batches(waiting).unify_dictionaries())


def _one(table: pa.Table) -> pa.RecordBatch:
    return table.combine_chunks().to_batches()[0]
