"""What the Open Inference Protocol tells about models: only domain → proto."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from acclimate.oip import grpc_service_pb2 as pb
from acclimate.oip import model_config_pb2 as config_pb
from acclimate_service.domain.model import ModelVersion
from acclimate_service.domain.names import VersionName
from acclimate_service.inference.handle import Handle
from acclimate_service.inference.sessions import INPUT, OUTPUTS
from acclimate_service.inference.statistics import Duration, VersionStatistics
from acclimate_service.rpc.convert_predictions import IMAGE_LIMIT
from acclimate_service.rpc.whereabouts import Whereabouts

PLATFORM: Final = "onnxruntime_onnx"
LABELS_PARAMETER: Final = "labels"  # one a line, in the order of the outputs' elements


def metadata(name: str, version: ModelVersion, versions: Sequence[str]) -> pb.ModelMetadataResponse:
    """Write what the model *name* takes and gives, with its *versions*."""
    size = version.manifest.preprocessing.size
    tensor = pb.ModelMetadataResponse.TensorMetadata
    return pb.ModelMetadataResponse(
        name=name,
        versions=versions,
        platform=PLATFORM,
        inputs=[tensor(name=INPUT, datatype="UINT8", shape=[-1, size, size, 3])],
        outputs=[
            tensor(name=output, datatype="FP32", shape=[-1, width])
            for output, width in _widths(version)
        ],
    )


def model_config(name: str, by: Handle[ModelVersion]) -> pb.ModelConfigResponse:
    """Write the configuration of what answers as *name*, as Triton would hold it."""
    version = by.details
    size = version.manifest.preprocessing.size
    config = config_pb.ModelConfig(
        name=name,
        platform=PLATFORM,
        backend="onnxruntime",
        max_batch_size=IMAGE_LIMIT,
        default_model_filename="model.onnx",
        input=[
            config_pb.ModelInput(
                name=INPUT,
                data_type=config_pb.TYPE_UINT8,
                format=config_pb.ModelInput.FORMAT_NHWC,
                dims=[size, size, 3],
            )
        ],
        output=[
            config_pb.ModelOutput(name=output, data_type=config_pb.TYPE_FP32, dims=[width])
            for output, width in _widths(version)
        ],
    )
    for key, value in (
        ("version", version.name.version),
        ("sha256", by.classifier.digest),
        ("variant", by.classifier.precision),
        (LABELS_PARAMETER, "\n".join(version.manifest.labels)),
    ):
        config.parameters[key].string_value = value
    return pb.ModelConfigResponse(config=config)


def _widths(version: ModelVersion) -> list[tuple[str, int]]:
    """Every output and how many numbers an image has in it; -1 if only the file knows."""
    labels = len(version.manifest.labels)
    return [(name, -1 if name == "embeddings" else labels) for name in OUTPUTS]


def index(versions: Iterable[VersionName], here: Whereabouts) -> pb.RepositoryIndexResponse:
    """Write the state of *versions* on this server."""
    models = []
    for name in versions:
        state, reason = here.of(name)
        models.append(
            pb.RepositoryIndexResponse.ModelIndex(
                name=name.model, version=name.version, state=state, reason=reason
            )
        )
    return pb.RepositoryIndexResponse(models=models)


def statistics(name: VersionName, counts: VersionStatistics) -> pb.ModelStatistics:
    """Write a version's counts, durations in nanoseconds."""
    return pb.ModelStatistics(
        name=name.model,
        version=name.version,
        last_inference=counts.last_inference,
        inference_count=counts.inferences,
        execution_count=counts.executions,
        inference_stats=pb.InferStatistics(
            success=_duration(counts.success),
            fail=_duration(counts.failure),
            queue=_duration(counts.queue),
            compute_input=_duration(counts.decode),
            compute_infer=_duration(counts.infer),
            compute_output=_duration(counts.encode),
        ),
        batch_stats=[
            pb.InferBatchStatistics(batch_size=size, compute_infer=_duration(duration))
            for size, duration in sorted(counts.runs.items())
        ],
    )


def _duration(value: Duration) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=value.count, ns=value.ns)
