"""The report: one HTML page that says what an archive holds, what it costs, and how far it is off."""

from __future__ import annotations

import base64
import datetime
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata, resources
from typing import Any

import jinja2
from markupsafe import Markup

from pipeline.archive import Archive
from pipeline.dataset import Dataset
from pipeline.model import ArchiveModel
from pipeline.report import sections
from pipeline.report.collect import Details
from pipeline.report.formats import FILTERS
from pipeline.report.generated import generated
from pipeline.report.options import ReportOptions
from pipeline.report.sizes import sizes

_FOLDER = "templates"


@dataclass(frozen=True)
class Subject:
    """What the report is about.

    Attributes:
        dataset: The dataset.
        archive: The archive.
        model: The archive's model.
        figures: The figures of `evaluate`.
        details: What its workers collected.
        values: Values that were compared.
        kl_nats: Mean KL of each latent; nothing where none are kept.
    """

    dataset: Dataset
    archive: Archive
    model: ArchiveModel
    figures: Mapping[str, Any]
    details: Details
    values: int
    kl_nats: list[float]


def write_report(options: ReportOptions, subject: Subject) -> None:
    """Draws the page and publishes it whole.

    Args:
        options: What is asked for.
        subject: What it is about.
    """
    options.out.write_bytes(render(options, subject).encode())


def render(options: ReportOptions, subject: Subject) -> str:
    """The page."""
    archive, figures, details, model = subject.archive, subject.figures, subject.details, subject.model
    context = {
        "name": subject.dataset.location.name,
        "data": str(subject.dataset.location),
        "archive": str(archive.location),
        "figures": figures,
        "values": subject.values,
        "schema": archive.schema,
        "files": len(subject.dataset.files),
        "version": metadata.version("parvae"),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "sizes": sizes(subject.dataset, model, figures, options.peers),
        "errors": sections.errors(figures),
        "rates": sections.rates(model, figures, details),
        "training": sections.training(model),
        "divergence": sections.divergence(subject.kl_nats),
        "map": sections.latent_map(model, details, subject.kl_nats, options.label),
        "generated": generated(archive, details) if model.plan.latents else {"missing": sections.NO_LATENTS},
        "worst": sections.worst(model, figures, details),
        "pictures": sections.pictures(model, details),
    }
    return _environment().get_template("report.html").render(context)


def _environment() -> jinja2.Environment:
    """Templates with escaping on: names and values of columns are anybody's text."""
    folder = resources.files("pipeline.report").joinpath(_FOLDER)
    texts = {item.name: item.read_text() for item in folder.iterdir() if item.is_file()}
    environment = jinja2.Environment(
        loader=jinja2.DictLoader(texts),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS)
    script = texts["theme.js"]
    environment.globals["include_text"] = lambda name: Markup(texts[name])
    environment.globals["script_hash"] = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment
