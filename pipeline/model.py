"""The model inside an archive: the codec where values are guaranteed, the bundle where latents are kept."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property

import pyarrow as pa

from pipeline.bundle import BUNDLE_FILE, WEIGHTS_FILE, Bundle
from pipeline.codec import Codec
from pipeline.codec.codec import CODEC_FILE, CODER_FILE
from pipeline.columns import Column
from pipeline.columns.numeric import NumericColumn
from pipeline.columns.vector import VectorColumn
from pipeline.errors import ArchiveError, ModelError
from pipeline.part_layout import PartShape
from pipeline.plan import Plan
from pipeline.rows import RowTransform
from pipeline.storage import Location

MODEL_FOLDER = "_model"


@dataclass(frozen=True)
class ArchiveModel:
    """What decodes an archive.

    Attributes:
        files: The files of `_model/`.
        plan: The archive's plan.
        schema: The dataset's schema.
        device: Torch device of the VAE.
    """

    files: Mapping[str, bytes]
    plan: Plan
    schema: pa.Schema
    device: str = "cpu"

    @classmethod
    def of(cls, bundle: Bundle, codec: Mapping[str, bytes], plan: Plan, device: str = "cpu") -> ArchiveModel:
        """The part of a model and the codec that an archive needs."""
        files = {**(bundle.files() if plan.latents else {}), **codec}
        return cls(files, plan, bundle.rows.schema, device)

    @cached_property
    def bundle(self) -> Bundle:
        """The model that made the latents.

        Raises:
            ModelError: If it is damaged or not the one that the plan names.
        """
        bundle = Bundle.from_files(self.files, MODEL_FOLDER, self.device)
        if bundle.fingerprint != self.plan.bundle:
            raise ModelError(f"{MODEL_FOLDER} is not the model that wrote the archive")
        return bundle

    @cached_property
    def codec(self) -> Codec:
        """What codes the corrections.

        Raises:
            ModelError: If it is damaged or not the one that the plan names.
        """
        files = {name: data for name, data in self.files.items() if name in (CODEC_FILE, CODER_FILE)}
        if codec_fingerprint(files) != self.plan.codec:
            raise ModelError(f"{MODEL_FOLDER}/{CODEC_FILE} is damaged or not the codec that wrote the archive")
        return Codec.from_files(files, self.schema)

    @property
    def rows(self) -> RowTransform:
        """The columns, on the grids that decide what decoding gives."""
        return self.codec.rows if self.plan.guaranteed else self.bundle.rows

    @property
    def bounds(self) -> dict[str, float]:
        """Largest absolute error of every modelled column in its own unit; 0 = exact. Only with a codec."""
        return {column.name: bound_of(column) for column in self.codec.rows.modelled}

    @property
    def shape(self) -> PartShape:
        """Which columns the parts have."""
        latent_dim = self.bundle.latent_dim if self.plan.latents else 0
        if self.plan.guaranteed:
            return PartShape.of_codec(self.codec, latent_dim)
        rows = self.bundle.rows
        modelled = tuple(column.name for column in rows.modelled)
        return PartShape(tuple(rows.passthrough), modelled, latent_dim=latent_dim)

    @property
    def decodes_by_network(self) -> bool:
        """Whether decoding takes a network: the coder's, or the VAE's where nothing else says what the rows were."""
        return CODER_FILE in self.files or not self.plan.guaranteed

    @property
    def encodes_by_network(self) -> bool:
        """Whether encoding takes a network."""
        return CODER_FILE in self.files or self.plan.latents

    def loaded(self) -> ArchiveModel:
        """Itself, with everything read that the archive needs: not by two threads at once, later.

        Raises:
            ModelError: If it is damaged or not the one that the plan names.
        """
        _ = self.rows, self.bundle if self.plan.latents else None
        return self

    def save(self, archive: Location) -> None:
        """Writes `_model/`."""
        for name, data in self.files.items():
            archive.join(MODEL_FOLDER, name).write_bytes(data)

    @classmethod
    def load(cls, archive: Location, plan: Plan, schema: pa.Schema, device: str = "cpu") -> ArchiveModel:
        """Reads `_model/` and checks that it is the one that the plan names.

        Raises:
            ArchiveError: If it is damaged or another one.
        """
        folder, files = archive.join(MODEL_FOLDER), {}
        needed = [CODEC_FILE] * plan.guaranteed + [BUNDLE_FILE, WEIGHTS_FILE] * plan.latents
        for name in [*needed, CODER_FILE]:
            try:
                files[name] = folder.join(name).read_bytes()
            except FileNotFoundError as error:
                if name in needed:
                    raise ArchiveError(f"{folder}/{name} is missing; restore it or encode again") from error
            except OSError as error:
                raise ArchiveError(f"{folder}/{name} cannot be read: {error}; restore it") from error
        try:
            return cls(files, plan, schema, device).loaded()
        except ModelError as error:
            raise ArchiveError(f"{archive}: {error}; restore it or encode again") from error


def bound_of(column: Column) -> float:
    """The absolute error bound of a column of the coding transform, in the column's own unit."""
    if not isinstance(column, NumericColumn | VectorColumn) or column.bound is None:
        return 0.0
    if pa.types.is_decimal(column.field.type):
        return float(Decimal(column.bound).scaleb(-column.field.type.scale))
    return float(column.bound)


def codec_fingerprint(files: Mapping[str, bytes]) -> str:
    """SHA-256 over a codec's files."""
    digest = hashlib.sha256()
    for name, data in sorted(files.items()):
        digest.update(f"{name} {len(data)}\n".encode())
        digest.update(data)
    return digest.hexdigest()
