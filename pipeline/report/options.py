"""What `evaluate --report` is asked for, checked before any work."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec

import pyarrow as pa

from pipeline.archive import Archive
from pipeline.errors import ConfigError, OutputError
from pipeline.storage import Location

NEEDED = {"matplotlib": "matplotlib", "jinja2": "Jinja2", "PIL": "Pillow"}
"""What the report draws with: module → package."""
_MOST_LABELS = 8


@dataclass(frozen=True)
class ReportOptions:
    """What is asked for.

    Attributes:
        out: The file to write.
        label: Column that colours the latent map; None: a passthrough column with few values, if there is one.
        peers: Whether general tools are measured.
        overwrite: Whether a file that is there may be replaced.
    """

    out: Location
    label: str | None = None
    peers: bool = True
    overwrite: bool = False

    def check(self, data: Location, archive: Archive) -> None:
        """Refuses what cannot be written or drawn.

        Args:
            data: The dataset.
            archive: Its archive.

        Raises:
            ConfigError: A library is missing, or the label is no column of single values.
            OutputError: The file is there, is a folder, lies in the dataset or the archive, or cannot be written.
        """
        if missing := missing_libraries():
            raise ConfigError(f"--report needs {', '.join(missing)}; pip install 'parvae[report]'")
        _check_place(self.out, {"DATA": data, "ARCHIVE": archive.location}, self.overwrite)
        if self.label is not None:
            archive.check_columns([self.label], "--label")
            kind = archive.schema.field(self.label).type
            if not _is_label(kind):
                raise ConfigError(
                    f"--label {self.label!r} is {kind}; a label is one number, text, boolean or time a row"
                )

    def labels(self, archive: Archive) -> tuple[str, ...]:
        """The columns that may colour the latent map."""
        if self.label is not None:
            return (self.label,)
        passthrough = archive.model.rows.passthrough
        kinds = {name: archive.schema.field(name).type for name in passthrough}
        return tuple(name for name, kind in kinds.items() if _is_label(kind))[:_MOST_LABELS]


def missing_libraries() -> list[str]:
    """The packages that the report draws with and that are not installed."""
    return [package for module, package in NEEDED.items() if find_spec(module) is None]


def _check_place(out: Location, inputs: dict[str, Location], overwrite: bool) -> None:
    for name, source in inputs.items():
        if f"{out.uri}/".startswith(f"{source.uri}/"):
            raise OutputError(f"--report {out} lies in {name} {source}; choose a place outside of it")
    if out.exists() and not out.is_file():
        raise OutputError(f"--report {out} is a folder; name a file, such as {out.join('report.html')}")
    if out.exists() and not overwrite:
        raise OutputError(f"--report {out} is there already; choose another name, or give --overwrite")
    if out.is_local:
        place = os.path.dirname(out.path)
        while not os.path.lexists(place):
            place = os.path.dirname(place)
        if not os.path.isdir(place) or not os.access(place, os.W_OK | os.X_OK):
            raise OutputError(
                f"--report {out} cannot be written: {place} is no folder that may be written; choose another"
            )


def _is_label(kind: pa.DataType) -> bool:
    """Whether values of a type are single ones that can be told apart."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    odd = pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    return not (odd or pa.types.is_null(kind) or isinstance(kind, pa.BaseExtensionType))
