"""Classifiers of scikit-learn on labelled rows: in memory, or streaming where the rows outgrow it."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pipeline.labelled import Matrix, Split

Classifier = Literal["logistic", "boosting"]
PASSES = 5
"""Passes over the rows that the streaming logistic regression makes."""


def fit(name: Classifier, matrix: Matrix, split: Split | None, classes: int, seed: int, memory: int) -> dict[str, Any]:
    """Trains a classifier and scores it on the test rows.

    Args:
        name: Logistic regression (L2, on standardized features) or gradient boosting of histograms.
        matrix: The rows.
        split: The same rows in memory; None: they are streamed. Logistic regression then takes stochastic gradient
            steps, boosting a uniform sample of the training rows that fits in `memory`.
        classes: How many classes there are.
        seed: Seed of the classifier.
        memory: Bytes that a matrix may take.

    Returns:
        `accuracy`, `macro_f1`, `auroc` (one against the rest, averaged over the classes that the test rows have; None
        where that is one), and numbers of training and test rows.
    """
    if split is not None:
        model = _new(name, seed).fit(split.x_train, split.y_train)
        return score(split.y_test, _probabilities(model, split.x_test, classes), len(split.y_train))
    model, rows = _streamed(name, matrix, classes, seed, memory)
    truth, found = [], []
    for block in matrix.blocks():
        if block.test.any():
            truth.append(block.y[block.test])
            found.append(_probabilities(model, block.x[block.test], classes))
    return score(np.concatenate(truth), np.concatenate(found), rows)


def score(truth: npt.NDArray[np.int64], probabilities: npt.NDArray[np.floating], training_rows: int) -> dict[str, Any]:
    """Accuracy, macro-F1 over the classes of the test rows, and AUROC."""
    from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

    guess, present = probabilities.argmax(1), np.unique(truth)
    areas = [roc_auc_score(truth == number, probabilities[:, number]) for number in present if len(present) > 1]
    if probabilities.shape[1] == 2:
        areas = areas[-1:]
    return {
        "accuracy": float(accuracy_score(truth, guess)),
        "macro_f1": float(f1_score(truth, guess, labels=present, average="macro", zero_division=0)),
        "auroc": float(np.mean(areas)) if areas else None,
        "train_rows": training_rows,
        "test_rows": len(truth),
    }


def _new(name: Classifier, seed: int) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if name == "boosting":
        return HistGradientBoostingClassifier(random_state=seed)
    return _Quiet(make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)))


class _Quiet:
    """A classifier that stops at its iterations without a warning: the last step is as good as the one before."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def fit(self, x: Any, y: Any) -> Any:
        from sklearn.exceptions import ConvergenceWarning

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return self._model.fit(x, y)


def _streamed(name: Classifier, matrix: Matrix, classes: int, seed: int, memory: int) -> tuple[Any, int]:
    """A classifier trained on streamed rows, and how many it saw."""
    if name == "boosting":
        x, y = matrix.sample(max(1000, memory // (8 * matrix.width)), seed)
        return _new(name, seed).fit(x, y), len(y)
    from sklearn.linear_model import SGDClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    scaler, rows = StandardScaler(), 0
    for block in matrix.blocks():
        if not block.test.all():
            scaler.partial_fit(block.x[~block.test])
            rows += int((~block.test).sum())
    model = SGDClassifier(loss="log_loss", average=True, random_state=seed)
    rng = np.random.default_rng([seed, 2])
    for _ in range(PASSES):
        for block in matrix.blocks():
            order = rng.permutation(np.flatnonzero(~block.test))
            if len(order):
                model.partial_fit(scaler.transform(block.x[order]), block.y[order], classes=np.arange(classes))
    return make_pipeline(scaler, model), rows


def _probabilities(model: Any, x: npt.NDArray[np.float32], classes: int) -> npt.NDArray[np.float64]:
    """Probabilities of all classes, of shape (rows, classes); 0 for those that training rows did not have."""
    whole = np.zeros((len(x), classes))
    whole[:, model.classes_] = model.predict_proba(x)
    return whole
