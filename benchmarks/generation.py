"""Are classifiers that never saw a real row as good as those that did? Rows are made up, and compared with real ones.

usage: python -m benchmarks.generation DATA.parquet --label COL --out FILE.json [--positive VALUE] [--drop COL]
       [--seeds N] [--set KEY=VALUE] [--no-catboost]

For each seed, 80 % of the rows train a model (the label is a column like any other), which makes up as many rows: with
latents from N(0, I), and from a density fitted to the training rows' latents. Classifiers trained on the real rows and
on those made up are tested on the real 20 %. Beside them stand the training rows through encoder and decoder, x ~
p(x|z) with z ~ q(z|x): what a perfect prior would reach. What is done is kept in FILE.json, and not done again.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import f1_score

from pipeline.bundle import Bundle
from pipeline.config import TrainConfig, load_config, parse_setting
from pipeline.generate import RowGenerator, modelled_schema, to_arrays, to_drawn_bins
from pipeline.latent_prior import LatentPrior, NormalPrior, fit_aggregate
from pipeline.likeness import compare
from pipeline.local import fit_table
from pipeline.stored_latents import with_posterior_noise

LOG = logging.getLogger("benchmarks.generation")
TRAINING_SHARE = 0.8
SOURCES = ("real", "normal", "aggregate", "autoencoded")
Figures = dict[str, Any]


def main() -> None:
    """Measures what FILE.json lacks, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--label", required=True)
    parser.add_argument("--positive", help="value of the label that binary F1 is of (default: the rarest)")
    parser.add_argument("--drop", action="append", default=[], metavar="COL")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    parser.add_argument("--no-catboost", action="store_true", help="scikit-learn's gradient boosting alone")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    settings = dict(parse_setting(text) for text in options.settings)
    table = pq.read_table(options.data).drop_columns(options.drop).unify_dictionaries()
    kept = Kept(options.out, about(options, settings))
    for seed in range(options.seeds):
        config = load_config("", "--set", {**settings, "seed": seed})
        measure(table, options, config, kept)
        print(summary(kept.figures), flush=True)
    options.out.with_suffix(".md").write_text(summary(kept.figures) + "\n")


def about(options: argparse.Namespace, settings: Figures) -> Figures:
    """What figures depend on."""
    classifiers = ["hgb"] if options.no_catboost else ["catboost", "hgb"]
    return {"data": options.data.name, "label": options.label, "settings": settings, "classifiers": classifiers}


class Kept:
    """Figures of a file, by name; written after each.

    Args:
        path: The JSON file.
        about: What they are figures of: a file about something else is refused.
    """

    def __init__(self, path: Path, about: Figures) -> None:
        found = json.loads(path.read_text()) if path.exists() else {"about": about, "figures": {}}
        if found["about"] != about:
            raise SystemExit(f"{path} is about {found['about']}; choose another file")
        self._path, self._content = path, found

    @property
    def figures(self) -> dict[str, Figures]:
        """Everything measured so far."""
        return dict(self._content["figures"])

    def once(self, name: str, work: Callable[[], Figures]) -> None:
        """Measures what is not there yet."""
        if name not in self._content["figures"]:
            LOG.info("%s", name)
            self._content["figures"][name] = work()
            spool = self._path.with_suffix(".tmp")
            spool.write_text(json.dumps(self._content, indent=1))
            os.replace(spool, self._path)


def measure(table: pa.Table, options: argparse.Namespace, config: TrainConfig, kept: Kept) -> None:
    """Measures one seed: split, model, samples, classifiers."""
    seed = config.seed
    names = [f"{seed} {source}" for source in SOURCES]
    if all(name in kept.figures for name in names):
        return
    order = np.random.default_rng(seed).permutation(table.num_rows)
    count = int(TRAINING_SHARE * table.num_rows)
    training, test = (table.take(pa.array(np.sort(part))) for part in (order[:count], order[count:]))
    judge = Judge(training, test, options, seed)
    kept.once(names[0], lambda: {**judge(training), **held_out_likeness(training, test)})
    bundle = fit_table(training, config, threads=1, listen=lambda figures: LOG.info("%s", brief(figures)))
    for source, made in samples(bundle, training, seed):
        kept.once(f"{seed} {source}", lambda made=made: {**judge(made), **likeness(training, made)})  # type: ignore[misc]


def brief(figures: Figures) -> str:
    """An epoch in a line."""
    return f"epoch {figures['epoch'] + 1} of {figures['epochs']}: -ELBO {figures['minus_elbo_bits']:.2f} bits a row"


def samples(bundle: Bundle, training: pa.Table, seed: int) -> Iterator[tuple[str, pa.Table]]:
    """As many rows as the training table has, from every prior."""
    import torch

    bins = np.concatenate([bundle.rows.from_batch(batch)[0] for batch in training.to_batches(65_536)])
    latents, active = bundle.to_latents(bins), bundle.vae.latent_active_Z.numpy()
    steps = bundle.vae.latent_step_Z.numpy().astype(np.float64)
    if not (steps > 0).any():
        latents = with_posterior_noise(bundle, latents, seed)
    yield "normal", drawn(bundle, NormalPrior(active), seed, len(bins))
    yield "aggregate", drawn(bundle, fit_aggregate(latents, active, steps, seed), seed, len(bins))
    arrays = to_arrays(bundle.rows, to_drawn_bins(bundle, latents, torch.Generator().manual_seed(seed)))
    schema = modelled_schema(bundle.rows)
    yield "autoencoded", pa.table([arrays[name] for name in schema.names], schema=schema)


def drawn(bundle: Bundle, prior: LatentPrior, seed: int, rows: int) -> pa.Table:
    """Rows that a model makes up."""
    return pa.Table.from_batches(RowGenerator(bundle, prior, seed).batches(range(rows))).unify_dictionaries()


class Judge:
    """Trains classifiers on rows and tests them on real ones.

    Args:
        training: The real training rows: their categories are those that classifiers know.
        test: The real rows to test on.
        options: The label, the value of it that binary F1 is of, which classifiers.
        seed: Seed of the classifiers.
    """

    def __init__(self, training: pa.Table, test: pa.Table, options: argparse.Namespace, seed: int) -> None:
        frame, label = training.to_pandas(), options.label
        self._classifiers = {"hgb": self._boosting}
        if not options.no_catboost:
            self._classifiers["catboost"] = self._catboost
        self._label, self._seed = label, seed
        self._categories = {
            name: pd.CategoricalDtype(sorted(set(as_text(frame[name]))))
            for name in frame
            if not pd.api.types.is_numeric_dtype(frame[name]) or name == label
        }
        counts = as_text(frame[label]).value_counts()
        self._positive = counts.index[-1] if options.positive is None else options.positive
        self._test = self._split(test)

    def __call__(self, rows: pa.Table) -> Figures:
        """F1 of the classifiers, binary and macro."""
        x, y = self._split(rows)
        x_test, y_test = self._test
        figures: Figures = {}
        for name, classify in self._classifiers.items():
            found = classify(x, y, x_test)
            figures[f"{name} F1"] = float(f1_score(y_test == self._positive, found == self._positive))
            figures[f"{name} macro F1"] = float(f1_score(y_test, found, average="macro"))
        return figures

    def _split(self, rows: pa.Table) -> tuple[pd.DataFrame, npt.NDArray[np.object_]]:
        frame = rows.to_pandas()
        labels = as_text(frame.pop(self._label)).to_numpy(object)
        for name, kind in self._categories.items():
            if name != self._label:
                frame[name] = as_text(frame[name]).astype(kind)
        return frame, labels

    def _boosting(self, x: pd.DataFrame, y: Any, x_test: pd.DataFrame) -> Any:
        model = HistGradientBoostingClassifier(categorical_features="from_dtype", random_state=self._seed)
        return model.fit(x, y).predict(x_test)

    def _catboost(self, x: pd.DataFrame, y: Any, x_test: pd.DataFrame) -> Any:
        from catboost import CatBoostClassifier

        texts = [name for name in self._categories if name != self._label]
        known, asked = (part.astype(dict.fromkeys(texts, str)) for part in (x, x_test))
        model = CatBoostClassifier(
            iterations=300, random_seed=self._seed, cat_features=texts, verbose=False, thread_count=1,
            allow_writing_files=False,
        )  # fmt: skip
        return model.fit(known, y).predict(asked).reshape(-1)


def as_text(values: pd.Series) -> pd.Series:
    """Values as text, missing ones too."""
    return values.astype(object).where(values.notna(), "missing").astype(str)


def likeness(training: pa.Table, made: pa.Table) -> Figures:
    """Distances of columns and differences of associations between real rows and rows made up."""
    found = compare(training, made)
    distances = {column.column: column.distance for column in found.columns}
    return {"columns": found.mean_distance, "pairs": found.mean_difference, "distances": distances}


def held_out_likeness(training: pa.Table, test: pa.Table) -> Figures:
    """The same between two halves of the truth: what chance alone makes of it."""
    return likeness(training, test)


def summary(figures: dict[str, Figures]) -> str:
    """The figures as Markdown: means and standard deviations over seeds."""
    measures = [name for name in next(iter(figures.values())) if name.endswith("F1")]
    rows = []
    for source in SOURCES:
        found = [value for name, value in figures.items() if name.split()[1] == source]
        if found:
            row: Figures = {"rows": source, "seeds": len(found)}
            for measure in (*measures, "columns", "pairs"):
                values = [value[measure] for value in found]
                row[measure] = f"{np.mean(values):.4f} ± {np.std(values):.4f}"
            rows.append(row)
    names = sorted({name for value in figures.values() for name in value["distances"]})
    distances = [
        {
            "column": name,
            **{
                source: f"{np.mean(found):.4f}"
                for source in SOURCES
                if (found := [v["distances"][name] for key, v in figures.items() if key.split()[1] == source])
            },
        }
        for name in names
    ]
    return markdown(rows) + "\n\n" + markdown(distances)


def markdown(rows: list[Figures]) -> str:
    """Rows with the same keys as a Markdown table."""
    heads = list(rows[0])
    lines = [heads, ["---"] * len(heads), *([str(row[head]) for head in heads] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
