"""The model folder ("bundle"): fitted columns, network weights, and where they came from.

```
MODEL/bundle.json            schema, columns, error bounds, training history, fingerprint; written last
MODEL/weights.safetensors    the VAE: weights, feature layout and network configuration
MODEL/codec-….json …         the codec for these bounds, one for each thing that an archive may keep
MODEL/_train/                checkpoints of a training run that has not finished
```
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.columns.kinds import pickled_column
from pipeline.errors import ModelError, ParvaeError
from pipeline.promise import Errors
from pipeline.rows import RowTransform
from pipeline.storage import Location
from vae_model.description import Description

if TYPE_CHECKING:
    from vae_model.layout import FeatureLayout
    from vae_model.network import VAE

FORMAT = "parvae-model"
VERSION = 1
BUNDLE_FILE = "bundle.json"
WEIGHTS_FILE = "weights.safetensors"
CHECKPOINTS_FOLDER = "_train"
_MOST_SCHEMA_BYTES, _PIECE = 1 << 28, 1 << 16
_PIECE_BYTES = 8 << 20
_ROWS_ON_CPU, _ROWS_ON_GPU = 1024, 65_536
_NARROW_ROWS_ON_CPU = 4096
_BYTES_ON_CPU, _BYTES_ON_GPU = 1 << 20, 64 << 20


@dataclass(frozen=True)
class Bundle:
    """A fitted model: what turns rows into latents and back.

    Attributes:
        rows: The fitted columns.
        weights: The bytes of `weights.safetensors`.
        training: Configuration and history of the training run, for people to read.
        device: Torch device that the network runs on.
        errors: The error bounds that the model was trained for.
    """

    rows: RowTransform
    weights: bytes
    training: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    errors: Errors = field(default_factory=Errors)

    @cached_property
    def vae(self) -> VAE:
        """The network, in evaluation mode, on `device`.

        Raises:
            ModelError: If the weights are damaged or belong to other columns.
        """
        from vae_model.weights import from_bytes

        try:
            vae = from_bytes(self.weights)
        except ValueError as error:
            raise ModelError(f"{WEIGHTS_FILE} cannot be read: {error}; copy the model again") from error
        self._check_layout(vae.layout)
        return vae.eval().to(self.device)

    @cached_property
    def description(self) -> Description:
        """What the weights say of themselves.

        Raises:
            ModelError: If they are damaged or belong to other columns.
        """
        try:
            found = Description.from_bytes(self.weights)
        except ValueError as error:
            raise ModelError(f"{WEIGHTS_FILE} cannot be read: {error}; copy the model again") from error
        self._check_layout(found.layout)
        return found

    def _check_layout(self, layout: FeatureLayout) -> None:
        if layout != self.rows.layout():
            raise ModelError(f"{WEIGHTS_FILE} and {BUNDLE_FILE} describe different columns; copy the model again")

    @property
    def network_rows(self) -> int:
        """Rows that go through the network at once: what fits a core's cache, or fills a GPU.

        For a GPU, no more than 64 MiB of symbols, of which some wait in memory, but no fewer rows than on a CPU.
        """
        return _ROWS_ON_CPU if self.device == "cpu" else self._fitting(_BYTES_ON_GPU, _ROWS_ON_GPU)

    @property
    def encoder_rows(self) -> int:
        """Rows that go through the encoder alone at once, whose outputs are few: on a CPU more, if rows are narrow."""
        return self._fitting(_BYTES_ON_CPU, _NARROW_ROWS_ON_CPU) if self.device == "cpu" else self.network_rows

    def _fitting(self, size: int, most: int) -> int:
        """Rows whose symbols take so many bytes, within limits."""
        return min(most, max(_ROWS_ON_CPU, size // (8 * self.description.layout.n_symbols)))

    @property
    def piece_rows(self) -> int:
        """Rows whose symbols take about 8 MiB, but no fewer than go through the encoder at once."""
        fitting = _PIECE_BYTES // (8 * self.description.layout.n_symbols)
        return max(1, fitting // self.encoder_rows) * self.encoder_rows

    @property
    def latent_dim(self) -> int:
        """Number of latents."""
        return self.description.config.latent_dim

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over schema, fitted columns, error bounds and weights."""
        # as it is read back from a file: Arrow forgets the names that Parquet gives to the parts of a map
        schema = schema_from_text(schema_to_text(self.rows.schema.remove_metadata()))
        digest = hashlib.sha256(schema.serialize().to_pybytes())
        digest.update(json.dumps([self.rows.to_json(), self.errors.to_json()], sort_keys=True).encode())
        digest.update(self.weights)
        return digest.hexdigest()

    def to_latents(self, bins_bd: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Encodes symbols: the posterior mean, rounded to the latent grid; shape (rows, Z)."""
        import torch

        if not len(bins_bd):
            return np.empty((0, self.latent_dim), np.float32)
        with torch.inference_mode():
            chunks = (torch.from_numpy(bins_bd[rows]) for rows in _slices(len(bins_bd), self.encoder_rows))
            mu_BZ = torch.cat([self.vae.encode_mean(chunk_BD.to(self.device)) for chunk_BD in chunks])
            return np.asarray(self.vae.round_latents(mu_BZ).float().cpu().numpy())

    def network_slices(self, rows: int) -> Iterator[slice]:
        """Cuts a number of rows into slices of `network_rows` each."""
        return _slices(rows, self.network_rows)

    def to_posterior(self, bins_bd: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Encodes symbols: means and log-variances of the posterior, not rounded; each of shape (rows, Z)."""
        import torch

        shape = (len(bins_bd), self.latent_dim)
        mean, logvar = np.empty(shape, np.float32), np.empty(shape, np.float32)
        with torch.inference_mode():
            for rows in _slices(len(bins_bd), self.encoder_rows):
                posterior = self.vae.encode(torch.from_numpy(bins_bd[rows]).to(self.device))
                mean[rows] = posterior.mu_BZ.float().cpu().numpy()
                logvar[rows] = posterior.logvar_BZ.float().cpu().numpy()
        return mean, logvar

    def to_bins(self, latents_bz: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        """Decodes latents to the most plausible symbols; shape (rows, D)."""
        import torch

        out = np.empty((len(latents_bz), self.vae.layout.n_symbols), np.int64)
        with torch.inference_mode():
            for rows in self.network_slices(len(latents_bz)):
                chunk_BZ = torch.tensor(latents_bz[rows], device=self.device)
                out[rows] = self.vae.reconstruct(chunk_BZ).cpu().numpy()
        return out

    def files(self) -> dict[str, bytes]:
        """The files of the model folder."""
        description = {
            "format": FORMAT,
            "version": VERSION,
            "fingerprint": self.fingerprint,
            "schema": schema_to_text(self.rows.schema),
            "columns": self.rows.to_json(),
            "errors": self.errors.to_json(),
            "training": dict(self.training),
        }
        text = json.dumps(description, separators=(",", ":"), allow_nan=False)
        return {WEIGHTS_FILE: self.weights, BUNDLE_FILE: text.encode()}

    @classmethod
    def from_files(cls, files: Mapping[str, bytes], where: str, device: str = "cpu") -> Bundle:
        """Rebuilds a bundle from `files()`.

        Raises:
            ModelError: If a file is damaged, or of a version this library does not know.
        """
        try:
            description = json.loads(files[BUNDLE_FILE])
            if not isinstance(description, dict) or description["format"] != FORMAT:
                raise ModelError(f"{where}/{BUNDLE_FILE} is no parvae model")
            if description["version"] > VERSION:
                raise ModelError(
                    f"{where} is a model of format version {description['version']}, this library reads up to "
                    f"{VERSION}; upgrade parvae"
                )
            schema = schema_from_text(description["schema"])
            rows = RowTransform.from_json(schema, description["columns"])
            errors = Errors.from_json(description["errors"])
            bundle = cls(rows, files[WEIGHTS_FILE], dict(description["training"]), device, errors)
            expected = description["fingerprint"]
        except ModelError:
            raise
        except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            raise ModelError(f"{where}/{BUNDLE_FILE} is damaged ({error!r}); copy the model again") from error
        except ParvaeError as error:
            raise ModelError(f"{where}/{BUNDLE_FILE} is damaged: {error}; copy the model again") from error
        if bundle.fingerprint != expected:
            raise ModelError(f"{where}: the fingerprint does not match its files; copy the model again")
        return bundle

    def save(self, folder: Location) -> None:
        """Writes the model folder, `bundle.json` last."""
        for name, data in self.files().items():
            folder.join(name).write_bytes(data)

    @classmethod
    def load(cls, folder: Location, device: str = "cpu") -> Bundle:
        """Reads a model folder.

        Raises:
            ModelError: If there is none, training has not finished, or it is damaged.
        """
        if not folder.exists():
            raise ModelError(f"the model {folder} does not exist; `parvae train DATA --model {folder}` makes one")
        if not folder.join(BUNDLE_FILE).exists():
            raise ModelError(
                f"{folder} holds no {BUNDLE_FILE}: training has not finished there, or it is no model folder; "
                "run the same `parvae train` again to continue"
            )
        files = {name: folder.join(name).read_bytes() for name in _present(folder)}
        return cls.from_files(files, str(folder), device)


def _present(folder: Location) -> list[str]:
    if not folder.join(WEIGHTS_FILE).exists():
        raise ModelError(f"{folder} lacks {WEIGHTS_FILE}; copy the model again")
    return [BUNDLE_FILE, WEIGHTS_FILE]


def schema_to_text(schema: pa.Schema) -> str:
    """An Arrow schema as base64 text of its IPC form under zstd."""
    return base64.b64encode(pa.compress(schema.serialize(), "zstd", asbytes=True)).decode()


def schema_from_text(text: str) -> pa.Schema:
    """The schema of `schema_to_text`.

    Raises:
        ParvaeError: If the text is no schema.
    """
    try:
        packed = pa.py_buffer(base64.b64decode(text, validate=True))
        with pa.CompressedInputStream(pa.BufferReader(packed), "zstd") as stream:
            # piece by piece: where a read fails, Arrow never frees the memory that it asked for
            data = bytearray()
            while (piece := stream.read(_PIECE)) and len(data) <= _MOST_SCHEMA_BYTES:
                data += piece
        schema = pa.ipc.read_schema(pa.py_buffer(data))
    except (ValueError, TypeError, LookupError, AttributeError, pa.ArrowException, OSError) as error:
        raise ParvaeError(f"a stored schema cannot be read: {error}") from error
    pickled = pickled_column(schema)
    if pickled is not None:
        raise ParvaeError(f"a stored schema has pickled Python objects in column {pickled!r}, which are never read")
    return schema


def _slices(rows: int, size: int) -> Iterator[slice]:
    return (slice(start, min(rows, start + size)) for start in range(0, rows, size))
