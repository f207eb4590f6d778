"""Whether probabilities mean what they say: ECE and NLL, with bootstrap intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from acclimate_service.domain.evidence import Floats, Ints, Paired

Array = npt.NDArray[np.float64]

_BINS = 15
_RESAMPLES = 1000
_AT_ONCE = 4_000_000  # resampled images held in memory together
_FLOOR = 1e-7  # a float32 softmax rounds to 0 long before the model is that sure


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its two-sided 90 % bootstrap interval: each side is one-sided 95 %."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """ECE in [0, 1] and NLL in nats of both files, and how much the candidate's rose."""

    n: int
    ece_before: Estimate
    ece_after: Estimate
    ece_rise: Estimate
    nll_before: Estimate
    nll_after: Estimate
    nll_rise: Estimate


def losses(probabilities: Floats, labels: Ints) -> Array:
    """[N] the negative log likelihood of each image's label, in nats."""
    chosen = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return -np.log(np.clip(chosen, _FLOOR, 1.0))


def expected_calibration_error(probabilities: Floats, labels: Ints) -> float:
    """ECE over 15 equal bins of confidence.

    The mean over images of |accuracy - confidence| of their bin. Guo, Pleiss,
    Sun and Weinberger, ICML 2017, equation (3). It is never negative, so on few
    images it is biased upwards: compare files on the same images only.
    """
    if not len(labels):
        return 0.0
    gaps = _gaps(probabilities, labels)
    return float(np.abs(gaps.sum(axis=0)).sum() / len(labels))


def calibration(pairs: Paired, *, seed: int = 0) -> Calibration | None:
    """Compare both files on the images whose class both know; None if there are none.

    Images are resampled in pairs, 1,000 times, from a generator seeded with *seed*.
    """
    known = pairs.labels < pairs.incumbent.shape[1]
    labels = pairs.labels[known]
    n = len(labels)
    if not n:
        return None
    before, after = pairs.incumbent[known], pairs.candidate[known]
    gaps = np.concatenate([_gaps(before, labels), _gaps(after, labels)], axis=1)  # [N, 2 bins]
    nll = np.stack([losses(before, labels), losses(after, labels)], axis=1)  # [N, 2]
    columns = np.concatenate([gaps, nll], axis=1)

    point = _read(np.ones((1, n)) @ columns / n)
    generator = np.random.default_rng(seed)
    rows = max(1, _AT_ONCE // n)
    drawn = []
    for start in range(0, _RESAMPLES, rows):
        count = min(rows, _RESAMPLES - start)
        images = generator.integers(n, size=(count, n)) + n * np.arange(count)[:, None]
        weights = np.bincount(images.ravel(), minlength=count * n).reshape(count, n)
        drawn.append(_read(weights @ columns / n))
    sample = np.concatenate(drawn)
    low, high = np.quantile(sample, [0.05, 0.95], axis=0)
    estimates = [
        Estimate(value=float(v), low=float(a), high=float(b))
        for v, a, b in zip(point[0], low, high, strict=True)
    ]
    return Calibration(
        n=n,
        ece_before=estimates[0],
        ece_after=estimates[1],
        ece_rise=estimates[2],
        nll_before=estimates[3],
        nll_after=estimates[4],
        nll_rise=estimates[5],
    )


def _gaps(probabilities: Floats, labels: Ints) -> Array:
    """[N, bins] right (0 or 1) minus confidence, in the column of the image's bin."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * _BINS).astype(np.int64), _BINS - 1)
    gaps = np.zeros((len(labels), _BINS))
    gaps[np.arange(len(labels)), bins] = right - confidence
    return gaps


def _read(means: Array) -> Array:
    """[M, 6] ECE before, after, rise; NLL likewise, from column means [M, 2 bins + 2]."""
    before = np.abs(means[:, :_BINS]).sum(axis=1)
    after = np.abs(means[:, _BINS : 2 * _BINS]).sum(axis=1)
    nll_before, nll_after = means[:, -2], means[:, -1]
    return np.stack(
        [before, after, after - before, nll_before, nll_after, nll_after - nll_before], axis=1
    )
