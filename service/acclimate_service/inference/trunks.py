"""Versions that share what lies under their cut: one trunk, and a tail for each.

A trunk is kept for as long as a tail on it is, and is known by the sha256 of its file: so
versions share one if, and only if, their trunks are equal to the bit.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from acclimate_service.domain.errors import VersionUnloadable
from acclimate_service.domain.model import ACTIVATIONS
from acclimate_service.inference.classifier import Answers, Classifier, Pixels
from acclimate_service.inference.execution import Execution
from acclimate_service.inference.sessions import (
    INPUT,
    Sessions,
    hold_input_to_contract,
    hold_outputs_to_contract,
)

# What a trunk gives for N images, [N, ...] float32: on the CPU an array, else on the device.
Activations = Any


class Trunk:
    """The shared session. ``run`` may be called from any number of threads at once."""

    def __init__(self, sessions: Sessions, *, size: int, execution: Execution) -> None:
        self._sessions = sessions
        self.size = size
        self.execution = execution
        (output,) = sessions.outputs
        self.shape = tuple(output.shape[1:])  # of one image's activations

    @classmethod
    def open(cls, onnx: bytes, *, digest: str, size: int, execution: Execution) -> Self:
        """Make a session of a trunk's bytes.

        Raises:
            BlobCorrupt: the bytes do not have this sha256 (hex).
            ProviderUnavailable: onnxruntime has fallen back from the provider asked for.
            VersionUnloadable: it is not a trunk for images of *size* pixels a side.
        """
        sessions = Sessions.open(onnx, digest=digest, execution=execution, shares=True)
        hold_input_to_contract(sessions, size=size)
        found = [(value.name, value.type) for value in sessions.outputs]
        if found != [(ACTIVATIONS, "tensor(float)")]:
            raise VersionUnloadable(f"the trunk gives {found}, not {ACTIVATIONS} as float32")
        return cls(sessions, size=size, execution=execution)

    def run(self, images: Pixels) -> Activations:
        """The activations of *images*, uint8 [N, S, S, 3]. Blocks; releases the GIL.

        On a GPU N is one of the execution's sizes.
        """
        session = self._sessions.of(len(images))
        if self.execution.provider == "cpu":
            return session.run([ACTIVATIONS], {INPUT: images})[0]
        device = self.execution.device
        binding = session.io_binding()
        binding.bind_ortvalue_input(INPUT, ort.OrtValue.ortvalue_from_numpy(images, "cuda", device))
        binding.bind_output(ACTIVATIONS, "cuda", device)
        session.run_with_iobinding(binding)
        return binding.get_outputs()[0]


class Tailed(Classifier):
    """A version as a tail on a trunk that others may use, too."""

    def __init__(self, sessions: Sessions, trunk: Trunk, *, labels: int, whole: str) -> None:
        super().__init__(
            sessions, labels=labels, size=trunk.size, execution=trunk.execution, digest=whole
        )
        self._on = trunk

    @classmethod
    def on(cls, trunk: Trunk, onnx: bytes, *, digest: str | None, labels: int, whole: str) -> Self:
        """Make a session of a tail's bytes; *whole* is the sha256 of the file it was cut from.

        *digest* is None where whoever read the bytes has compared it: a request may wait.

        Raises:
            BlobCorrupt: the bytes do not have this sha256 (hex).
            VersionUnloadable: it is no tail for *labels* labels on this trunk.
        """
        sessions = Sessions.open(onnx, digest=digest, execution=trunk.execution, shares=True)
        found = {v.name: (v.type, tuple(v.shape[1:])) for v in sessions.inputs}
        if found != {ACTIVATIONS: ("tensor(float)", trunk.shape)}:
            raise VersionUnloadable(f"the tail takes {found}, its trunk gives {trunk.shape}")
        hold_outputs_to_contract(sessions, labels=labels)
        return cls(sessions, trunk, labels=labels, whole=whole)

    @property
    def first(self) -> Trunk:
        """The trunk: versions with the same one may be run together."""
        return self._on

    def above(self, activations: Activations, rows: slice, names: Sequence[str]) -> Answers:
        """The named outputs for some *rows* of the trunk's activations.

        On a GPU they are as many as one of the execution's sizes.
        """
        found = (
            self._sessions.of(rows.stop - rows.start).run(
                list(names), {ACTIVATIONS: activations[rows]}
            )
            if self.execution.provider == "cpu"
            else self._on_device(activations, rows, names)
        )
        return dict(zip(names, found, strict=True))

    def _through(self, names: list[str], images: Pixels) -> list[NDArray[np.float32]]:
        answers = self.above(self._on.run(images), slice(0, len(images)), names)
        return list(answers.values())

    def _on_device(
        self, activations: Activations, rows: slice, names: Sequence[str]
    ) -> list[NDArray[np.float32]]:
        """Read the rows where they lie: nothing is copied but the answers."""
        device = self.execution.device
        width = np.dtype(np.float32).itemsize * int(np.prod(self._on.shape))
        session = self._sessions.of(rows.stop - rows.start)
        binding = session.io_binding()
        binding.bind_input(
            ACTIVATIONS,
            "cuda",
            device,
            np.float32,
            (rows.stop - rows.start, *self._on.shape),
            activations.data_ptr() + rows.start * width,
        )
        for name in names:
            binding.bind_output(name, "cuda", device)
        session.run_with_iobinding(binding)
        copied: list[NDArray[np.float32]] = binding.copy_outputs_to_cpu()
        return copied


class Trunks:
    """The trunks in use, each once. Any thread may ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: weakref.WeakValueDictionary[str, Trunk] = weakref.WeakValueDictionary()
        # By trunk, kept while a thread wants it: two must not make the same one.
        self._turns: weakref.WeakValueDictionary[str, threading.Lock] = (
            weakref.WeakValueDictionary()
        )

    def get(
        self, digest: str, read: Callable[[str], bytes], *, size: int, execution: Execution
    ) -> Trunk:
        """The trunk of this sha256 (hex), which *read* opens if nobody uses it now.

        Raises:
            ServiceError: as *read* and :meth:`Trunk.open`.
        """
        with self._lock:
            turn = self._turns.get(digest)
            if turn is None:
                turn = self._turns[digest] = threading.Lock()
        with turn:
            trunk = self._open.get(digest)
            if trunk is None:
                trunk = Trunk.open(read(digest), digest=digest, size=size, execution=execution)
                self._open[digest] = trunk
            return trunk

    def __len__(self) -> int:
        return len(self._open)
