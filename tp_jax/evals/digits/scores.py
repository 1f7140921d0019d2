"""Scores of generated digits: a Fréchet distance and the share of right classes.

Axes: N images of 8×8 pixels, D features.
"""

import dataclasses
from typing import Any

import numpy as np

from tp_jax.data.held_out import Part
from tp_jax.evals.adm.metrics import Moments, frechet_distance, moments

# Principal components of the pixels. 20 of 64 have 90 % of the variance of the digits, and a
# covariance of 20 features needs no more than the 180 digits that a tenth of the data are.
COMPONENTS = 20
# The classifier: a support vector machine with a Gaussian kernel.
REGULARISATION = 10.0
# Parts of the cross-validation, if no digits are held out to test the classifier on.
FOLDS = 5


@dataclasses.dataclass(frozen=True)
class Scores:
    """The scores of generated digits.

    Attributes:
      frechet_distance: between the features of the images and of the reference; smaller is better.
      frechet_distance_of_training: the same for the training digits instead of the images, which
        says what distance two samples of real digits have; None if the reference is all digits.
      accuracy: share of images whose class, as the classifier sees it, is the one asked for.
      classifier_accuracy: of the classifier on digits that it wasn't trained on: the held-out ones,
        or by cross-validation if none are held out.
      images, reference_images: numbers of images.
      reference: "held-out digits", or "all digits" if training held out none.
      features: what the features are, with their parameters.
      classifier: what the classifier is, with its parameters.
    """

    frechet_distance: float
    frechet_distance_of_training: float | None
    accuracy: float
    classifier_accuracy: float
    images: int
    reference_images: int
    reference: str
    features: dict[str, Any]
    classifier: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Judge:
    """Scores images with features and a classifier that the training digits determine.

    Attributes:
      pca: scikit-learn's PCA, fitted on the training digits.
      classifier: scikit-learn's SVC, fitted on them.
      reference: moments of the features of the reference digits.
      fixed: the fields of `Scores` that don't depend on the images.
    """

    pca: Any
    classifier: Any
    reference: Moments
    fixed: dict[str, Any]

    def score(self, images: np.ndarray, labels: np.ndarray) -> Scores:
        """Score images, uint8 [N, 8, 8, 1], of which classes `labels` [N] were asked for."""
        pixels = _pixels(images)
        return Scores(
            frechet_distance=_distance(moments(self.pca.transform(pixels)), self.reference),
            accuracy=float((self.classifier.predict(pixels) == labels).mean()),
            images=len(images),
            **self.fixed,
        )


def make_judge(training: Part, held_out: Part | None) -> Judge:
    """Fit the features and the classifier.

    Args:
      training: the digits that training reads.
      held_out: those that it doesn't; None if it reads all.
    """
    from sklearn.decomposition import PCA
    from sklearn.model_selection import cross_val_score
    from sklearn.svm import SVC

    pixels, labels = _read(training)
    pca = PCA(COMPONENTS, svd_solver="full").fit(pixels)
    classifier = SVC(C=REGULARISATION, kernel="rbf", gamma="scale").fit(pixels, labels)
    features = {
        "kind": "principal components of the pixels in 0 … 1",
        "components": COMPONENTS,
        "fitted_on": len(pixels),
        "explained_variance": float(pca.explained_variance_ratio_.sum()),
    }
    machine = {
        "kind": "support vector machine of the pixels in 0 … 1, Gaussian kernel",
        "C": REGULARISATION,
        "gamma": "scale",
        "fitted_on": len(pixels),
    }
    of_training = moments(pca.transform(pixels))
    if held_out is None:
        reference, distance = of_training, None
        accuracy = cross_val_score(classifier, pixels, labels, cv=FOLDS).mean()
        machine["tested_by"] = f"cross-validation in {FOLDS} parts"
    else:
        others, their_labels = _read(held_out)
        reference = moments(pca.transform(others))
        distance = _distance(of_training, reference)
        accuracy = classifier.score(others, their_labels)
        machine["tested_by"] = "the held-out digits"
    fixed = {
        "frechet_distance_of_training": distance,
        "classifier_accuracy": float(accuracy),
        "reference_images": reference.count,
        "reference": "all digits" if held_out is None else "held-out digits",
        "features": features,
        "classifier": machine,
    }
    return Judge(pca, classifier, reference, fixed)


def _read(part: Part) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels [N, 64] of digits, float64 in 0 … 1, and their labels [N]."""
    records = [part[index] for index in range(len(part))]
    images = np.stack([record["image"] for record in records])
    return _pixels(images), np.array([record["label"] for record in records])


def _pixels(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1) / 255


def _distance(a: Moments, b: Moments) -> float:
    return frechet_distance(a.mean, a.covariance(), b.mean, b.covariance())
