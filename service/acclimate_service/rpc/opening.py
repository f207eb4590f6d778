"""From a version in the store to sessions of its verified bytes."""

from __future__ import annotations

import structlog

from acclimate_service.domain.model import ModelVersion, Parts, Precision
from acclimate_service.inference.classifier import Classifier
from acclimate_service.inference.execution import Execution
from acclimate_service.inference.memory import session_bytes
from acclimate_service.inference.residents import Footprint, Loaded
from acclimate_service.inference.trunks import Tailed, Trunks
from acclimate_service.store import Store


class Opening:
    """Opens versions as *execution* says, in *precision* where that was accepted of them.

    Any thread may ask.
    """

    def __init__(self, store: Store, *, execution: Execution, precision: Precision) -> None:
        self._store = store
        self._execution = execution
        self._precision: Precision = precision
        self._trunks = Trunks()

    def footprint(self, version: ModelVersion) -> Footprint:
        """About how much memory it takes, and what of that it would share with others."""
        parts, execution = self._parts(version), self._execution
        if parts is None:
            size = version.manifest.artifacts.served_bytes(self._precision)
            return Footprint(own=session_bytes(size, execution))
        return Footprint(
            own=session_bytes(parts.tail_bytes, execution, shares=True),
            trunk=parts.trunk,
            trunk_bytes=session_bytes(parts.trunk_bytes, execution),
        )

    def open(self, version: ModelVersion) -> Loaded[ModelVersion]:
        """Make sessions of the version's bytes: one, or a tail's on a trunk that may be there.

        Raises:
            ServiceError: the bytes are gone, damaged, or do not load.
        """
        precision, digest = version.manifest.artifacts.served_as(self._precision)
        parts = self._parts(version)
        classifier = (
            self._whole(version, precision, digest)
            if parts is None
            else self._tailed(version, parts, digest)
        )
        structlog.get_logger(__name__).info(
            "version loaded",
            version=str(version.name),
            variant=precision,
            sha256=digest,
            **({} if parts is None else {"trunk": parts.trunk}),
            **({} if precision == self._precision else {"asked_for": self._precision}),
        )
        return Loaded(classifier=classifier, details=version)

    def _parts(self, version: ModelVersion) -> Parts | None:
        """The two parts to open in its place, if what is preferred is the file they are of."""
        artifacts = version.manifest.artifacts
        precision, _ = artifacts.served_as(self._precision)
        return artifacts.parts if precision == "fp32" else None

    def _whole(self, version: ModelVersion, precision: Precision, digest: str) -> Classifier:
        return Classifier.open(
            self._store.blobs.get(digest),
            digest=digest,
            labels=len(version.manifest.labels),
            size=version.manifest.preprocessing.size,
            execution=self._execution,
            precision=precision,
            compared=True,
        )

    def _tailed(self, version: ModelVersion, parts: Parts, digest: str) -> Classifier:
        read, size = self._store.blobs.get, version.manifest.preprocessing.size
        trunk = self._trunks.get(parts.trunk, read, size=size, execution=self._execution)
        labels = len(version.manifest.labels)
        return Tailed.on(trunk, read(parts.tail), digest=None, labels=labels, whole=digest)
