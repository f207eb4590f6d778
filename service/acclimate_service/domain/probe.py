"""A linear probe on pooled features that is asked only about images it was not fitted to.

Notation used for shapes: N images, F features, D directions kept, C labels.

Ridge regression to one-hot labels in at most 256 principal directions, in five folds.
A squared loss, because a wrong label pulls at it no more than a right one: a logistic
probe would bend to fit the very images it is to be a witness against.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

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
_SHARPENED_ON = 4096  # images that tell how sharp it must be
_SCORES_AT_ONCE = 4 * 2**20  # images times labels


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
    """Five probes, each asked about the fold that it was not fitted to.

    ``agreement`` is the share of images that have their label as the likeliest, out of
    fold. What is said of images comes in blocks: of a hundred thousand images and a
    thousand labels, all at once would fill a memory.
    """

    classes: int
    penalty: float
    sharpness: float
    agreement: float
    points: Array  # [N, D]
    folds: tuple[tuple[Ints, _Weights], ...]  # the images of each, and the probe of all others

    @classmethod
    def cross_fitted(
        cls,
        points: Array,
        labels: Ints,
        *,
        classes: int,
        step: Callable[[], object] = lambda: None,
    ) -> Probe:
        """Fit to *points* [N, D] with *labels* [N]; the penalty that agrees best, out of fold.

        *step* is called between blocks.
        """
        folds = tuple(
            (outside, _fit(points[inside], labels[inside], classes))
            for inside, outside in _folds(labels)
        )
        agreed = np.zeros(len(_PENALTIES), np.int64)
        for outside, weights in folds:
            for block in _blocks(outside, classes):
                step()
                turned = weights.turned(points[block])
                for row, penalty in enumerate(_PENALTIES):
                    likeliest = weights.scores(turned, penalty).argmax(axis=1)
                    agreed[row] += (likeliest == labels[block]).sum()
        best = len(agreed) - 1 - int(agreed[::-1].argmax())  # of equals the strongest penalty
        probe = cls(
            classes=classes,
            penalty=_PENALTIES[best],
            sharpness=1.0,
            agreement=float(agreed[best] / max(1, len(labels))),
            points=points,
            folds=folds,
        )
        return replace(probe, sharpness=probe._sharpest(labels))

    def out_of_fold(self) -> Iterator[tuple[Ints, Array]]:
        """Images it was fitted to, by place [B], and their probabilities [B, C], in blocks."""
        for outside, weights in self.folds:
            yield from self._said(weights, self.points, outside)

    def elsewhere(self, points: Array, labels: Ints, others: Array) -> Iterator[tuple[Ints, Array]]:
        """The same of *others* [M, D], by one probe fitted to all of *points* [N, D]."""
        weights = _fit(points, labels, self.classes)
        yield from self._said(weights, others, np.arange(len(others)))

    def _said(self, weights: _Weights, points: Array, places: Ints) -> Iterator[tuple[Ints, Array]]:
        for block in _blocks(places, self.classes):
            scores = weights.scores(weights.turned(points[block]), self.penalty)
            yield block, softmax(scores * self.sharpness)

    def _sharpest(self, labels: Ints) -> float:
        """The sharpness at which labels are likeliest, out of fold, by some of the images."""
        likely, asked = np.zeros(len(_SHARPNESS)), max(1, -(-len(labels) // _SHARPENED_ON))
        for outside, weights in self.folds:
            for block in _blocks(outside[::asked], self.classes):
                scores = weights.scores(weights.turned(self.points[block]), self.penalty)
                own = np.arange(len(block)), labels[block]
                likely += [
                    np.log(softmax(scores * sharp)[own] + 1e-12).sum() for sharp in _SHARPNESS
                ]
        return float(_SHARPNESS[int(np.argmax(likely))])


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

    def turned(self, points: Array) -> Array:
        """Points [B, D] along the Gram matrix's own directions."""
        return points @ self.vectors

    def scores(self, turned: Array, penalty: float) -> Array:
        """[B, C] of what :meth:`turned` gives."""
        return self.mean + turned @ (self.target / (self.values + penalty)[:, None])


def _fit(points: Array, labels: Ints, classes: int) -> _Weights:
    values, vectors = np.linalg.eigh(points.T @ points)
    mean = (np.bincount(labels, minlength=classes) / max(1, len(labels))).astype(np.float32)
    # points.T @ (one_hot(labels) - mean), without the [N, C] of it.
    sums = np.zeros((classes, points.shape[1]), np.float32)
    np.add.at(sums, labels, points)
    target = vectors.T @ (sums.T - np.outer(points.sum(axis=0), mean))
    return _Weights(mean=mean, values=values.clip(min=0), vectors=vectors, target=target)


def _blocks(places: Ints, classes: int) -> Iterator[Ints]:
    """Runs of them whose scores fill no more than a bounded memory."""
    rows = max(64, _SCORES_AT_ONCE // classes)
    return (places[start : start + rows] for start in range(0, len(places), rows))


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
