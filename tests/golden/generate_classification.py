#!/usr/bin/env python3
"""Writes classification.json beside this script: scikit-learn's figures of predictions that are drawn here.

README.md says what is in the file.
"""

import json
import warnings
from pathlib import Path

import numpy as np
import sklearn
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    confusion_matrix,
    precision_recall_fscore_support,
    roc_auc_score,
)


def drawn(classes, images, right, seed, truths=None, guesses=None):
    """Labels and predictions: of `truths`, a share of `right` of them predicted, the others any of `guesses`."""
    rng = np.random.default_rng(seed)
    labels = np.arange(classes)
    truth = rng.choice(labels if truths is None else truths, images)
    guess = rng.choice(labels if guesses is None else guesses, images)
    return classes, truth, np.where(rng.random(images) < right, truth, guess)


def uneven(images, seed):
    """Classes with shares of 0.9, 0.07 and 0.03, of which the rarest is never predicted."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(3, images, p=[0.9, 0.07, 0.03])
    return 3, truth, np.where(truth == 2, 0, np.where(rng.random(images) < 0.8, truth, 1 - np.minimum(truth, 1)))


CASES = {
    "two classes": drawn(2, 57, 0.7, 1),
    "ten classes": drawn(10, 503, 0.6, 2),
    "a rare class that is never predicted": uneven(400, 3),
    "classes without images, some of them predicted": drawn(8, 120, 0.5, 4, truths=[1, 2, 5], guesses=[0, 2, 7]),
    "one class, always right": (1, np.zeros(5, int), np.zeros(5, int)),
    "images of one class of two, never right": (2, np.zeros(5, int), np.ones(5, int)),
    "a hundred classes": drawn(100, 3000, 0.3, 5),
    "one image": (3, np.array([2]), np.array([1])),
}


def ranked(images, share, levels, seed):
    """Scores of two classes that overlap, of which a few are equal where there are few `levels`."""
    rng = np.random.default_rng(seed)
    truth = rng.random(images) < share
    return truth, np.round(rng.normal(size=images) + truth, levels)


RANKINGS = {
    "scores without ties": ranked(200, 0.5, 12, 6),
    "scores with ties": ranked(300, 0.2, 1, 7),
    "a rare second class": ranked(500, 0.01, 3, 8),
    "all scores equal": (np.arange(9) % 3 == 0, np.zeros(9)),
    "the wrong way round": (np.arange(20) < 5, np.arange(20.0)),
}


def ranking(name, truth, scores):
    return {
        "name": name,
        "truth": truth.tolist(),
        "scores": scores.tolist(),
        "auroc": float(roc_auc_score(truth, scores)),
        "average_precision": float(average_precision_score(truth, scores)),
    }


def case(name, classes, truth, predicted):
    labels = sorted(set(truth) | set(predicted))
    precision, recall, f1, support = precision_recall_fscore_support(truth, predicted, zero_division=0)
    means = {
        average: precision_recall_fscore_support(truth, predicted, average=average, zero_division=0)[:3]
        for average in ["macro", "weighted"]
    }
    return {
        "name": name,
        "classes": classes,
        "truth": truth.tolist(),
        "predicted": predicted.tolist(),
        "confusion": confusion_matrix(truth, predicted, labels=range(classes)).tolist() if classes <= 10 else None,
        "labels": [int(label) for label in labels],
        "precision": precision.tolist(),
        "recall": recall.tolist(),
        "f1": f1.tolist(),
        "support": [int(count) for count in support],
        "macro": list(means["macro"]),
        "weighted": list(means["weighted"]),
        "accuracy": accuracy_score(truth, predicted),
        "balanced_accuracy": balanced_accuracy_score(truth, predicted),
    }


def main():
    # Of classes without images, which is what some cases are about.
    warnings.filterwarnings("ignore")
    cases = [case(name, *drawn) for name, drawn in CASES.items()]
    text = ",\n".join(json.dumps(case) for case in cases)
    versions = json.dumps({"scikit-learn": sklearn.__version__, "numpy": np.__version__})
    file = Path(__file__).with_name("classification.json")
    rankings = ",\n".join(json.dumps(ranking(name, *drawn)) for name, drawn in RANKINGS.items())
    file.write_text(f'{{"versions": {versions}, "cases": [\n{text}\n], "rankings": [\n{rankings}\n]}}\n')


if __name__ == "__main__":
    main()
