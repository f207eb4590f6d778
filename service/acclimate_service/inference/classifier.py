"""One version as an onnxruntime session, made from bytes whose digest was checked.

Notation used for tensor shapes:

- N: images in a call
- S: the side of an image in pixels, ``Preprocessing.size``
- C: labels
- F: features of an embedding
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from acclimate_service.domain.errors import (
    BlobCorrupt,
    InputMismatch,
    ProviderUnavailable,
    VersionUnloadable,
)
from acclimate_service.domain.model import Precision
from acclimate_service.inference.processor import EXACT_PRODUCTS, this_one_overflows

INPUT = "images"
OUTPUTS = ("probabilities", "logits", "embeddings")

Provider = Literal["cpu", "cuda", "tensorrt"]
Pixels = NDArray[np.uint8]
Answers = dict[str, NDArray[np.float32]]

_PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
# What onnxruntime raises for a model that it cannot read, build or run: its exceptions
# share no base of their own.
_FAILURES = (
    ort_errors.EPFail,
    ort_errors.EngineError,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.ModelRequiresCompilation,
    ort_errors.NoModel,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    RuntimeError,
    ValueError,
)


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Where and how a session runs.

    ``threads`` is how many threads call one session at once, ``intra_op`` how many
    it uses within a call. ``chunk`` is how many images go through the graph together,
    0 for all of a call: one by one is fastest on a CPU (bigger batches leave its
    caches), needs the least memory, and makes an image's answer the same to the bit
    whatever came beside it.
    """

    provider: Provider = "cpu"
    device: int = 0
    threads: int = 1
    intra_op: int = 1
    chunk: int = 1

    @classmethod
    def for_throughput(cls, cores: int) -> Self:
        """On a CPU, the most images a second: a thread for each core, each on its own image."""
        return cls(threads=cores)

    @classmethod
    def for_latency(cls, cores: int) -> Self:
        """On a CPU, the soonest answer to one request at a time: all cores on one image."""
        return cls(intra_op=cores)

    @classmethod
    def for_gpu(cls, *, device: int = 0, tensorrt: bool = False) -> Self:
        """On a GPU: two threads, so that one copies while the other computes."""
        provider: Provider = "tensorrt" if tensorrt else "cuda"
        return cls(provider=provider, device=device, threads=2, chunk=0)


class Classifier:
    """A loaded version. ``run`` may be called from any number of threads at once.

    ``digest`` and ``precision`` tell which of the version's files it is.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        *,
        labels: int,
        size: int,
        execution: Execution,
        digest: str,
        precision: Precision = "fp32",
    ) -> None:
        self._session = session
        self.labels = labels
        self.size = size
        self.execution = execution
        self.digest = digest
        self.precision: Precision = precision

    @classmethod
    def open(
        cls,
        onnx: bytes,
        *,
        digest: str,
        labels: int,
        size: int,
        execution: Execution,
        precision: Precision = "fp32",
        compared: bool = False,
    ) -> Self:
        """Make a session of an ONNX file's bytes, and hold its graph to the contract.

        *compared* says that whoever read the bytes has held them against *digest*, as a
        blob store does; a second time would be a tenth of a swap's work.

        Raises:
            BlobCorrupt: the bytes do not have this sha256 (hex).
            ProviderUnavailable: onnxruntime has fallen back from the provider asked for.
            VersionUnloadable: it is not a model, or its inputs and outputs are others.
        """
        session = session_of(onnx, digest=None if compared else digest, execution=execution)
        hold_input_to_contract(session, size=size)
        hold_outputs_to_contract(session, labels=labels)
        return cls(
            session,
            labels=labels,
            size=size,
            execution=execution,
            digest=digest,
            precision=precision,
        )

    @property
    def first(self) -> object:
        """What an image goes through first: versions with the same may be run together."""
        return self

    def warm(self, batches: Sequence[int] = (1,)) -> None:
        """Run grey images in each batch size, so that no request meets a first time.

        Raises:
            VersionUnloadable: the graph fails, or its answers are no probabilities.
        """
        for batch in batches:
            images = self._grey(batch)
            try:
                answers = self.run(images, OUTPUTS)
            except _FAILURES as error:
                raise VersionUnloadable(f"the version fails on a batch of {batch}: {error}") from (
                    error
                )
            probabilities, logits, embeddings = (answers[name] for name in OUTPUTS)
            shapes = probabilities.shape, logits.shape, embeddings.shape[:1]
            wanted = (batch, self.labels), (batch, self.labels), (batch,)
            if shapes != wanted or embeddings.ndim != 2:
                raise VersionUnloadable(f"the version answers in shapes {shapes}, not {wanted}")
            if not all(np.isfinite(answer).all() for answer in answers.values()):
                raise VersionUnloadable("the version answers a grey image with NaN or infinity")
            if not np.allclose(probabilities.sum(axis=1), 1, atol=1e-3):
                raise VersionUnloadable("the version's probabilities do not sum to 1")
        if self.execution.provider != "cpu":
            # CUDA's libraries make handles for each run that is under way at once.
            with ThreadPoolExecutor(self.execution.threads) as pool:
                list(pool.map(self.run, [self._grey(max(batches))] * 2 * self.execution.threads))

    def _grey(self, batch: int) -> Pixels:
        return np.full((batch, self.size, self.size, 3), 127, np.uint8)

    def check(self, images: Pixels, outputs: Sequence[str]) -> None:
        """Hold a call to the contract before it costs anything.

        Raises:
            InputMismatch: *images* is not uint8 [N, S, S, 3] with N > 0, or an output is
                not one of ``OUTPUTS``.
        """
        shape = (self.size, self.size, 3)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != shape:
            raise InputMismatch(
                f"images are {images.dtype} {list(images.shape)}; this version takes uint8 "
                f"[N, {self.size}, {self.size}, 3]",
                dtype=images.dtype,
                shape=list(images.shape),
            )
        if not len(images):
            raise InputMismatch("there is no image in the batch", shape=list(images.shape))
        check_outputs(outputs)

    def run(self, images: Pixels, outputs: Sequence[str] = ("probabilities",)) -> Answers:
        """The named outputs for *images*, uint8 [N, S, S, 3]. Blocks; releases the GIL.

        ``probabilities`` and ``logits`` are [N, C], ``embeddings`` [N, F].

        Raises:
            InputMismatch: see ``check``.
        """
        self.check(images, outputs)
        names = list(outputs)
        images = np.ascontiguousarray(images)
        step = self.execution.chunk or len(images)
        chunks = [
            self._through(names, images[start : start + step])
            for start in range(0, len(images), step)
        ]
        if len(chunks) == 1:
            return dict(zip(names, chunks[0], strict=True))
        return {name: np.concatenate(parts) for name, *parts in zip(names, *chunks, strict=True)}

    def _through(self, names: list[str], images: Pixels) -> list[NDArray[np.float32]]:
        """The outputs for images that go through the graph together."""
        if self.execution.provider == "cpu":
            found: list[NDArray[np.float32]] = self._session.run(names, {INPUT: images})
            return found
        # Bound to the device: one copy in, the graph, one copy out, and none between.
        device = self.execution.device
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(INPUT, ort.OrtValue.ortvalue_from_numpy(images, "cuda", device))
        for name in names:
            binding.bind_output(name, "cuda", device)
        self._session.run_with_iobinding(binding)
        copied: list[NDArray[np.float32]] = binding.copy_outputs_to_cpu()
        return copied


def check_outputs(outputs: Sequence[str]) -> None:
    """Hold output names to the contract.

    Raises:
        InputMismatch: there is none, or one is not of ``OUTPUTS``.
    """
    unknown = [name for name in outputs if name not in OUTPUTS]
    if unknown or not outputs:
        raise InputMismatch(
            f"outputs {unknown or 'of no name'} do not exist; ask for some of {list(OUTPUTS)}",
            outputs=unknown,
        )


def session_of(
    onnx: bytes, *, digest: str | None, execution: Execution, shares: bool = False
) -> ort.InferenceSession:
    """A session of a file's bytes, whose sha256 (hex) must be *digest*; None if that is known.

    Always from bytes: by path, onnxruntime follows a file's external data to wherever
    it points. The digest comes first, since onnxruntime loads many damaged files without
    an error. With *shares* its working memory on a CPU is one pool with all others' that
    share: many small sessions would each keep their own.

    Raises:
        BlobCorrupt: the bytes are others.
        ProviderUnavailable: onnxruntime has fallen back from the provider asked for.
        VersionUnloadable: it is not a model.
    """
    if digest is not None and (found := hashlib.sha256(onnx).hexdigest()) != digest:
        raise BlobCorrupt(digest, found)
    if execution.provider != "cpu":
        # Finds CUDA's libraries where pip put them, also when torch is not there to.
        ort.preload_dlls()
        # It logs an error for each convolution that cuDNN's newer interface does not have,
        # and takes the older one's. What fails indeed is raised.
        ort.set_default_logger_severity(4)
    try:
        session = ort.InferenceSession(
            onnx, sess_options=_options(execution, shares), providers=_providers(execution)
        )
    except _FAILURES as error:
        raise VersionUnloadable(f"the version is no model that can be loaded: {error}") from error
    present = session.get_providers()
    if _PROVIDERS[execution.provider] not in present:
        raise ProviderUnavailable(
            f"{execution.provider} was asked for, but onnxruntime offers only {present}; install "
            "the GPU's libraries, or ask for the cpu",
            provider=execution.provider,
            present=present,
        )
    # onnxruntime keeps the file for a fallback to another provider, which is refused above:
    # without it a session takes half the memory.
    session.disable_fallback()
    session._model_bytes = None  # noqa: SLF001
    return session


@functools.cache
def _one_pool() -> None:
    """Have one pool of working memory in this process, for the sessions that ask for it."""
    kind = ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR
    where = ort.OrtMemoryInfo("Cpu", kind, 0, ort.OrtMemType.DEFAULT)
    # 1: grow by what is asked for, not to the next power of two. -1: onnxruntime's default.
    growth = {"arena_extend_strategy": 1, "initial_chunk_size_bytes": -1}
    limits = {"max_mem": 0, "max_dead_bytes_per_chunk": -1}
    ort.create_and_register_allocator(where, ort.OrtArenaCfg({**growth, **limits}))


def _options(execution: Execution, shares: bool) -> ort.SessionOptions:
    options = ort.SessionOptions()
    if shares:
        _one_pool()
        options.add_session_config_entry("session.use_env_allocators", "1")
        # Weights come and go with their version: not out of the pool.
        options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    options.intra_op_num_threads = execution.intra_op
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.use_deterministic_compute = True
    options.log_severity_level = 3  # errors; a fallback is told by an exception, not a log
    # The memory arena stays on: without it each thread's malloc keeps its own leftovers
    # (measured: 105 MB instead of 65 with two threads, and less of it comes back).
    options.enable_cpu_mem_arena = True
    if this_one_overflows():
        options.add_session_config_entry(EXACT_PRODUCTS, "1")
    return options


def _providers(execution: Execution) -> list[tuple[str, dict[str, Any]]]:
    """The provider asked for, and what it is documented to need behind it."""
    cpu: tuple[str, dict[str, Any]] = (_PROVIDERS["cpu"], {})
    if execution.provider == "cpu":
        return [cpu]
    # TF32 rounds products to 10 bits: other answers than those that were judged. And not
    # onnxruntime's search among all of cuDNN's convolutions, by their time in this moment:
    # it takes seconds for each size of batch, and finds others the next time.
    ways = {"device_id": execution.device, "use_tf32": 0, "cudnn_conv_algo_search": "HEURISTIC"}
    cuda = (_PROVIDERS["cuda"], ways)
    if execution.provider == "cuda":
        return [cuda, cpu]
    return [(_PROVIDERS["tensorrt"], {"device_id": execution.device}), cuda, cpu]


def hold_input_to_contract(session: ort.InferenceSession, *, size: int) -> None:
    """See that a graph takes images, any number of them.

    Raises:
        VersionUnloadable: it does not.
    """
    inputs = {value.name: (value.type, list(value.shape)) for value in session.get_inputs()}
    kind, shape = inputs.get(INPUT, ("", []))
    if len(inputs) != 1 or kind != "tensor(uint8)" or shape[1:] != [size, size, 3]:
        raise VersionUnloadable(
            f"the version takes {inputs}, not {INPUT}: uint8 [N, {size}, {size}, 3]"
        )
    if isinstance(shape[0], int):
        raise VersionUnloadable(f"the version takes batches of {shape[0]} only")


def hold_outputs_to_contract(session: ort.InferenceSession, *, labels: int) -> None:
    """See that a graph answers with all of ``OUTPUTS``.

    Raises:
        VersionUnloadable: it does not.
    """
    outputs = {value.name: (value.type, list(value.shape)) for value in session.get_outputs()}
    missing = [name for name in OUTPUTS if outputs.get(name, ("",))[0] != "tensor(float)"]
    if missing:
        raise VersionUnloadable(f"the version does not answer with {missing} as float32")
    for name in ("probabilities", "logits"):
        width = outputs[name][1][-1]
        if isinstance(width, int) and width != labels:
            raise VersionUnloadable(f"the version has {width} {name}, not one for {labels} labels")
