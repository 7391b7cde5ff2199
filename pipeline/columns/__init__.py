"""Columns: reversible transforms between Arrow values and the integer symbols that a model sees.

`ColumnStats` gathers what fitting needs in one pass; `fit_column` gives a fitted `Column`, whose
`from_values` and `to_values` are inverse up to its grid (`base` states the contract); `to_json` and
`column_from_json` store it.
"""

from pipeline.columns.arrays import as_array, with_dictionary
from pipeline.columns.base import Column, State, Symbols
from pipeline.columns.bound import Bound, ErrorBound
from pipeline.columns.infer import BOUNDED_KINDS, KINDS, check_options, column_from_json, explain, fit_column
from pipeline.columns.kinds import possible_kinds
from pipeline.columns.options import ColumnOptions
from pipeline.columns.stats import ColumnStats

__all__ = [
    "BOUNDED_KINDS",
    "KINDS",
    "Bound",
    "Column",
    "ColumnOptions",
    "ColumnStats",
    "ErrorBound",
    "State",
    "Symbols",
    "as_array",
    "check_options",
    "column_from_json",
    "explain",
    "fit_column",
    "possible_kinds",
    "with_dictionary",
]
