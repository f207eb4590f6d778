"""An ONNX file as onnxruntime sessions, made from bytes whose digest was checked.

On a CPU one session is enough. On a GPU there is one for each size of batch: onnxruntime's
convolutions keep the plan for the last shape alone, and make another whenever a batch of
another size comes by (measured on an EfficientNet-Lite0: 200 ms instead of 2).
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Self

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from acclimate_service.domain.errors import (
    BlobCorrupt,
    Overloaded,
    ProviderUnavailable,
    ServiceError,
    VersionUnloadable,
)
from acclimate_service.inference.execution import Execution
from acclimate_service.inference.processor import EXACT_PRODUCTS, this_one_overflows

INPUT = "images"
OUTPUTS = ("probabilities", "logits", "embeddings")

_PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
# What onnxruntime raises for a model that it cannot read, build or run: its exceptions
# share no base of their own.
FAILURES = (
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
# How onnxruntime, CUDA and its libraries say that memory ran out: there is no type for it.
_OUT_OF_MEMORY = re.compile(
    r"out of memory|Failed to allocate memory|bad_alloc|ALLOC_FAILED"
    r"|Available memory of \d+ is smaller than requested",
    re.IGNORECASE,
)
MEMORY_SETTINGS = "ACCLIMATE_RESIDENT_MIB, ACCLIMATE_GPU_MEMORY_SHARE"


class Sessions:
    """The sessions of one file. Each may be run from any number of threads at once."""

    def __init__(self, by_size: Mapping[int, ort.InferenceSession]) -> None:
        self._by_size = by_size

    @classmethod
    def open(
        cls, onnx: bytes, *, digest: str | None, execution: Execution, shares: bool = False
    ) -> Self:
        """Sessions of a file's bytes, whose sha256 (hex) must be *digest*; None if it is known.

        Always from bytes: by path, onnxruntime follows a file's external data to wherever
        it points. The digest comes first, since onnxruntime loads many damaged files without
        an error. With *shares* their working memory on a CPU is one pool with all others' that
        share: many small sessions would each keep their own.

        Raises:
            BlobCorrupt: the bytes are others.
            Overloaded: there is not enough memory for it.
            ProviderUnavailable: onnxruntime has fallen back from the provider asked for.
            VersionUnloadable: it is not a model.
        """
        if digest is not None and (found := hashlib.sha256(onnx).hexdigest()) != digest:
            raise BlobCorrupt(digest, found)
        sizes = execution.sizes or (0,)
        return cls({size: _session(onnx, execution, shares) for size in sizes})

    def of(self, images: int) -> ort.InferenceSession:
        """The session for a batch of so many images, which on a GPU is one of its sizes."""
        return self._by_size[images if len(self._by_size) > 1 else next(iter(self._by_size))]

    @property
    def inputs(self) -> Sequence[Any]:
        """What the graph takes, as onnxruntime tells it."""
        inputs: Sequence[Any] = next(iter(self._by_size.values())).get_inputs()
        return inputs

    @property
    def outputs(self) -> Sequence[Any]:
        """What the graph answers with, as onnxruntime tells it."""
        outputs: Sequence[Any] = next(iter(self._by_size.values())).get_outputs()
        return outputs


def _session(onnx: bytes, execution: Execution, shares: bool) -> ort.InferenceSession:
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
    except (*FAILURES, MemoryError) as error:
        raise unloadable("the version is no model that can be loaded", error) from error
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


def unloadable(what: str, error: BaseException) -> ServiceError:
    """What to raise where a session was not made or not warmed, for *error*.

    Memory that ran out is nobody's fault: with less beside it, the same version may load.
    """
    if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(str(error)):
        return Overloaded(f"the memory that a session may take ({MEMORY_SETTINGS})", retry_after=30)
    return VersionUnloadable(f"{what}: {error}")


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
    if execution.most_bytes:
        # Taken as it is asked for: by default onnxruntime doubles, and would take what is over.
        ways |= {"gpu_mem_limit": execution.most_bytes}
        ways |= {"arena_extend_strategy": "kSameAsRequested"}
    cuda = (_PROVIDERS["cuda"], ways)
    if execution.provider == "cuda":
        return [cuda, cpu]
    return [(_PROVIDERS["tensorrt"], {"device_id": execution.device}), cuda, cpu]


def hold_input_to_contract(sessions: Sessions, *, size: int) -> None:
    """See that a graph takes images, any number of them.

    Raises:
        VersionUnloadable: it does not.
    """
    inputs = {value.name: (value.type, list(value.shape)) for value in sessions.inputs}
    kind, shape = inputs.get(INPUT, ("", []))
    if len(inputs) != 1 or kind != "tensor(uint8)" or shape[1:] != [size, size, 3]:
        raise VersionUnloadable(
            f"the version takes {inputs}, not {INPUT}: uint8 [N, {size}, {size}, 3]"
        )
    if isinstance(shape[0], int):
        raise VersionUnloadable(f"the version takes batches of {shape[0]} only")


def hold_outputs_to_contract(sessions: Sessions, *, labels: int) -> None:
    """See that a graph answers with all of ``OUTPUTS``.

    Raises:
        VersionUnloadable: it does not.
    """
    outputs = {value.name: (value.type, list(value.shape)) for value in sessions.outputs}
    missing = [name for name in OUTPUTS if outputs.get(name, ("",))[0] != "tensor(float)"]
    if missing:
        raise VersionUnloadable(f"the version does not answer with {missing} as float32")
    for name in ("probabilities", "logits"):
        width = outputs[name][1][-1]
        if isinstance(width, int) and width != labels:
            raise VersionUnloadable(f"the version has {width} {name}, not one for {labels} labels")
