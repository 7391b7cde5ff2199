"""What `encode` is asked for, checked before any work, and the plan that it comes to."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from pipeline.blocks import coded_block_rows
from pipeline.bounds import Bound
from pipeline.bundle import Bundle
from pipeline.cluster import Cluster
from pipeline.codec_store import StoredCodec, load_codec
from pipeline.dataset import UNIT_BYTES, Dataset, open_dataset
from pipeline.errors import ConfigError
from pipeline.fit_codec import fit_codecs
from pipeline.locate import check_output
from pipeline.plan import Plan, fingerprint, free_name
from pipeline.promise import BALANCED, EFFORTS, Promise, decide
from pipeline.storage import Location

LOG = logging.getLogger(__name__)

FAIL, QUARANTINE = "fail", "quarantine"
ON_ERROR = (FAIL, QUARANTINE)


@dataclass(frozen=True)
class EncodeOptions:
    """What `encode` is asked for.

    Attributes:
        keep: "both", "corrections" or "latents"; None: both, or latents where nothing is promised.
        error: The bound of the columns without one of their own; None: that of the model.
        effort: "fast", "balanced" or "small"; None: that of the model, balanced for other bounds than the model's.
        seed: Seed of the sample on which coders are chosen, and of their training.
        on_error: "fail", or "quarantine": files that cannot be read are left out, and listed.
    """

    keep: str | None = None
    error: Bound | None = None
    effort: str | None = None
    seed: int = 0
    on_error: str = FAIL

    def __post_init__(self) -> None:
        if self.effort is not None and self.effort not in EFFORTS:
            raise ConfigError(f"effort {self.effort!r}: expected {', '.join(EFFORTS)}")
        if self.on_error not in ON_ERROR:
            raise ConfigError(f"on_error {self.on_error!r}: expected {', '.join(ON_ERROR)}")


@dataclass(frozen=True)
class Request:
    """A checked request: what is encoded, with what, and what is promised.

    Attributes:
        dataset: The dataset.
        bundle: The model.
        model: The model's folder.
        promise: What the archive is to be.
        options: What was asked for.
    """

    dataset: Dataset
    bundle: Bundle
    model: Location
    promise: Promise
    options: EncodeOptions

    @property
    def fingerprint(self) -> str:
        """Identifies what was asked for, whatever the dataset: the same request adds to its archive."""
        promise = [self.promise.keep, self.promise.errors.to_json(), self.options.effort, self.options.seed]
        return fingerprint([self.bundle.fingerprint, *promise])

    def codec(self, cluster: Cluster) -> StoredCodec:
        """The codec: the model's own if it is for these bounds, otherwise one that is fitted now."""
        stored = load_codec(self.model, self.promise.keep)
        same = self.promise.errors == self.bundle.errors and stored is not None
        keep, effort, seed = self.promise.keep, self.options.effort, self.options.seed
        if stored is not None and same and effort in (None, stored.effort):
            return stored
        found = fit_codecs(self.dataset, self.bundle, self.promise.errors, [keep], effort or BALANCED, seed, cluster)
        return found[keep]

    def plan(self, codec: StoredCodec | None) -> Plan:
        """Decides how the dataset is encoded.

        Args:
            codec: The codec; None where only latents are kept.
        """
        names, promise = self.dataset.schema.names, self.promise
        return Plan(
            keep=promise.keep,
            error=str(promise.errors.default),
            columns={name: str(bound) for name, bound in promise.errors.columns.items()},
            effort="" if codec is None else codec.effort,
            request=self.fingerprint,
            bundle=self.bundle.fingerprint,
            codec=None if codec is None else codec.fingerprint,
            unit_bytes=UNIT_BYTES,
            block_rows=coded_block_rows(self.dataset) if promise.guaranteed else self.dataset.block_rows,
            latent_column=free_name("latent", names),
            corrections_column=free_name("corrections", names),
        )


def check_request(data: Location, model: Location, out: Location, options: EncodeOptions) -> Request:
    """Checks what `encode` is asked for, before any work.

    Raises:
        InputError: Naming what is wrong.
    """
    check_output(out, "--out", {"DATA": data, "--model": model})
    bundle = Bundle.load(model)
    dataset = open_dataset(data, leave_out=bundle.rows.schema if options.on_error == QUARANTINE else None)
    for path, reason in dataset.unreadable.items():
        LOG.warning("%s is left out: %s", path, reason)
    bundle.rows.check_schema(dataset.schema, f"DATA {data}")
    promise = decide(bundle.rows, bundle.errors, options.keep, options.error)
    return Request(dataset, bundle, model, promise, options)
