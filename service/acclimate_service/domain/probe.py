"""A linear probe on pooled features that is asked only about images it was not fitted to.

Notation used for shapes: N images, F features, D directions kept, C labels.

Ridge regression to one-hot labels in at most 256 principal directions, in five folds.
A squared loss, because a wrong label pulls at it no more than a right one: a logistic
probe would bend to fit the very images it is to be a witness against.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Array = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

FOLDS = 5
_DIRECTIONS = 256
_BASIS_IMAGES = 4096  # that the directions are taken from
_BLOCK = 8192
_PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # in units of a mean image's squared length
_SHARPNESS = np.geomspace(1, 100, 40)  # of the softmax over least-squares scores


@dataclass(frozen=True, kw_only=True, eq=False)
class Space:
    """Directions in which features are compared: lengths removed, centred, mean length 1."""

    centre: Array  # [F]
    basis: Array  # [F, D]

    @classmethod
    def of(cls, features: Floats) -> Space:
        """The principal directions of *features* [N, F], N > 1."""
        some = np.linspace(0, len(features) - 1, min(len(features), _BASIS_IMAGES)).astype(int)
        rows = _unit(features[some])
        centre = rows.mean(axis=0)
        _, lengths, directions = np.linalg.svd(rows - centre, full_matrices=False)
        kept = min(_DIRECTIONS, int((lengths > 1e-4 * lengths[0]).sum()) or 1)
        scale = np.sqrt(len(rows) / max(float((lengths[:kept] ** 2).sum()), 1e-12))
        return cls(centre=centre, basis=(directions[:kept].T * scale).astype(np.float32))

    def project(self, features: Floats) -> Array:
        """[N, D] from [N, F]."""
        starts = range(0, len(features), _BLOCK)
        parts = [(_unit(features[s : s + _BLOCK]) - self.centre) @ self.basis for s in starts]
        return np.concatenate([np.zeros((0, self.basis.shape[1]), np.float32), *parts])


@dataclass(frozen=True, kw_only=True, eq=False)
class Probe:
    """What five probes said out of fold, and how to fit one to all for other images.

    ``probabilities`` [N, C] are of the images it was fitted to, each from the probe of
    the folds that it is not in. ``agreement`` is the share of them that have their
    label as the likeliest.
    """

    classes: int
    penalty: float
    sharpness: float
    probabilities: Array
    agreement: float

    @classmethod
    def cross_fitted(cls, points: Array, labels: Ints, *, classes: int) -> Probe:
        """Fit to *points* [N, D] with *labels* [N]; the penalty that agrees best, out of fold."""
        scores = np.zeros((len(_PENALTIES), len(labels), classes), np.float32)
        for inside, outside in _folds(labels):
            weights = _fit(points[inside], labels[inside], classes)
            for row, penalty in enumerate(_PENALTIES):
                scores[row, outside] = weights.scores(points[outside], penalty)
        agreed = (scores.argmax(axis=2) == labels).mean(axis=1)
        best = len(agreed) - 1 - int(agreed[::-1].argmax())  # of equals the strongest penalty
        chosen = scores[best]
        own = np.arange(len(labels))
        likely = [
            float(np.log(softmax(chosen * sharp)[own, labels] + 1e-12).mean())
            for sharp in _SHARPNESS
        ]
        sharpness = float(_SHARPNESS[int(np.argmax(likely))])
        return cls(
            classes=classes,
            penalty=_PENALTIES[best],
            sharpness=sharpness,
            probabilities=softmax(chosen * sharpness),
            agreement=float(agreed[best]),
        )

    def elsewhere(self, points: Array, labels: Ints, others: Array) -> Array:
        """[M, C] of *others* [M, D], by one probe fitted to all of *points* [N, D]."""
        weights = _fit(points, labels, self.classes)
        return softmax(weights.scores(others, self.penalty) * self.sharpness)


def softmax(logits: Floats) -> Array:
    """Probabilities [N, C] from logits [N, C]."""
    raised = np.exp((logits - logits.max(axis=1, keepdims=True)).astype(np.float32))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True), np.float32)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Weights:
    """A ridge regression before its penalty is chosen: the Gram matrix, taken apart."""

    mean: Array  # [C]
    values: Array  # [D]
    vectors: Array  # [D, D]
    target: Array  # [D, C]

    def scores(self, points: Array, penalty: float) -> Array:
        return self.mean + (points @ self.vectors) @ (
            self.target / (self.values + penalty)[:, None]
        )


def _fit(points: Array, labels: Ints, classes: int) -> _Weights:
    wanted = np.eye(classes, dtype=np.float32)[labels]
    mean = wanted.mean(axis=0)
    values, vectors = np.linalg.eigh(points.T @ points)
    target = vectors.T @ (points.T @ (wanted - mean))
    return _Weights(mean=mean, values=values.clip(min=0), vectors=vectors, target=target)


def _folds(labels: Ints) -> Iterator[tuple[Ints, Ints]]:
    """The images inside and outside of each fold's fit; every label is spread over all folds."""
    generator = np.random.default_rng(0)
    fold = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        own = generator.permutation(np.flatnonzero(labels == label))
        fold[own] = (np.arange(len(own)) + generator.integers(FOLDS)) % FOLDS
    for number in range(FOLDS):
        inside, outside = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        if len(inside) and len(outside):
            yield inside, outside


def _unit(features: Floats) -> Array:
    rows = features.astype(np.float32)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))
