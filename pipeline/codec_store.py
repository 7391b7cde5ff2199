"""Fitted codecs as files: in a model folder, and on their way between processes."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.codec.codec import CODEC_FILE, CODER_FILE
from pipeline.errors import ModelError
from pipeline.model import codec_fingerprint
from pipeline.plan import minified
from pipeline.storage import Location

CODECS_FILE = "codecs.json"
"""In a model folder: keep → fingerprint and expected sizes of the codec for it."""


@dataclass(frozen=True)
class StoredCodec:
    """A fitted codec.

    Attributes:
        files: Its files.
        sizes: Column → method → bytes expected for all rows of the dataset it was fitted to.
        latent_bytes: Bytes expected of the latent column.
        rows: Rows of that dataset.
        sample_rows: Rows it was fitted to.
        seconds: Seconds that fitting took.
        effort: How hard was looked.
    """

    files: Mapping[str, bytes]
    sizes: Mapping[str, Mapping[str, float]]
    latent_bytes: float
    rows: int
    sample_rows: int
    seconds: float
    effort: str

    @property
    def fingerprint(self) -> str:
        """SHA-256 over its files."""
        return codec_fingerprint(self.files)

    @property
    def model_bytes(self) -> int:
        """Bytes of the networks' weights."""
        return len(self.files.get(CODER_FILE, b""))

    def figures(self) -> dict[str, Any]:
        """Everything but the files, JSON-serializable."""
        return {name: value for name, value in vars(self).items() if name != "files"}

    def to_json(self) -> dict[str, Any]:
        """Everything, JSON-serializable."""
        files = {name: base64.b64encode(data).decode() for name, data in self.files.items()}
        return {**self.figures(), "files": files}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> StoredCodec:
        """Rebuilds a codec from `to_json`'s result."""
        files = {name: base64.b64decode(text) for name, text in data["files"].items()}
        return cls(**{**data, "files": files})


def save_codecs(model: Location, codecs: Mapping[str, StoredCodec]) -> None:
    """Writes codecs into a model folder, by what archives are to keep."""
    for keep, codec in codecs.items():
        for name, data in codec.files.items():
            model.join(_file(name, keep)).write_bytes(data)
    entries = {keep: {"fingerprint": codec.fingerprint, **codec.figures()} for keep, codec in codecs.items()}
    model.join(CODECS_FILE).write_bytes(minified(entries))


def remove_codecs(model: Location) -> None:
    """Removes the codecs of a model folder."""
    for keep in ("both", "corrections"):
        for name in (CODEC_FILE, CODER_FILE):
            model.join(_file(name, keep)).remove()
    model.join(CODECS_FILE).remove()


def load_codec(model: Location, keep: str) -> StoredCodec | None:
    """Reads a codec of a model folder, None if it has none for what is to be kept.

    Raises:
        ModelError: If it is damaged.
    """
    if not model.join(CODECS_FILE).exists():
        return None
    try:
        entry = model.join(CODECS_FILE).read_json().get(keep)
        if entry is None:
            return None
        fingerprint = entry.pop("fingerprint")
        found = {name: model.join(_file(name, keep)) for name in (CODEC_FILE, CODER_FILE)}
        files = {name: place.read_bytes() for name, place in found.items() if place.exists()}
        codec = StoredCodec(files=files, **entry)
        if codec.fingerprint != fingerprint:
            raise ValueError(f"{_file(CODEC_FILE, keep)} fails its checksum")
        return codec
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"the codec in {model} is damaged ({error!r}); copy the model again") from error


def _file(name: str, keep: str) -> str:
    stem, dot, suffix = name.partition(".")
    return f"{stem}-{keep}{dot}{suffix}"
