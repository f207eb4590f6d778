from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
import pytest
from google.protobuf import struct_pb2

from acclimate.v1 import adaptation_pb2, inference_pb2, registry_pb2
from acclimate_service.domain.errors import InputMismatch, InvalidName, InvalidSpec, ServiceError
from acclimate_service.domain.examples import Role
from acclimate_service.domain.guard import GuardPolicy
from acclimate_service.domain.job import EventKind, JobKind, JobSpec, JobState, Phase
from acclimate_service.domain.model import (
    Architecture,
    Decoding,
    Model,
    Origin,
    Preprocessing,
    WeightsSource,
)
from acclimate_service.domain.names import ModelName
from acclimate_service.rpc import convert, convert_jobs, convert_predictions


def draft(**changes: object) -> registry_pb2.RegisterModelRequest.Draft:
    given: dict[str, object] = {
        "model_id": "digits",
        "architecture": registry_pb2.Architecture(library="timm", name="resnet18"),
        "weights": registry_pb2.WeightsSource(kind=registry_pb2.WeightsSource.KIND_HUB),
    }
    return registry_pb2.RegisterModelRequest.Draft(**{**given, **changes})  # type: ignore[arg-type]


def source(kind: int, reference: str = "") -> registry_pb2.WeightsSource:
    """Weights from anywhere: an open enum takes any number."""
    return registry_pb2.WeightsSource(kind=kind, reference=reference)  # type: ignore[arg-type]


def test_a_registration_is_read_field_by_field() -> None:
    found = convert.registration(
        draft(
            labels=["cat", "dog"],
            source_domain="domains/studio",
            promote_to="production",
            preprocessing=registry_pb2.Preprocessing(size=160),
        )
    )
    assert found.model == ModelName("digits")
    assert found.preprocessing is not None
    assert (found.preprocessing.size, found.preprocessing.crop) == (160, 0.875)
    assert found.promote_to == "production"


@pytest.mark.parametrize(
    ("asked", "labels", "decoding"),
    [
        (registry_pb2.DECODING_UNSPECIFIED, [], "scaled"),
        (registry_pb2.DECODING_UNSPECIFIED, ["cat", "dog"], "full"),
        (registry_pb2.DECODING_SCALED, ["cat", "dog"], "scaled"),
        (registry_pb2.DECODING_FULL, [], "full"),
    ],
)
def test_jpegs_are_decoded_scaled_for_what_is_trained_here_unless_it_is_asked_otherwise(
    asked: registry_pb2.Decoding.ValueType, labels: list[str], decoding: Decoding
) -> None:
    given = registry_pb2.Preprocessing(size=160)
    found = convert.registration(draft(decoding=asked, labels=labels, preprocessing=given))
    assert found.decoding == decoding
    assert found.preprocessing == Preprocessing(size=160, decoding=decoding)
    assert convert.registration(draft(decoding=asked, labels=labels)).decoding == decoding


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"decoding": 3}, InvalidSpec),
        ({"model_id": "../etc"}, InvalidName),
        ({"model_id": ""}, InvalidName),
        ({"architecture": registry_pb2.Architecture(library="keras", name="x")}, InvalidSpec),
        ({"architecture": registry_pb2.Architecture(library="timm", name="a/b")}, InvalidSpec),
        ({"weights": registry_pb2.WeightsSource()}, InvalidSpec),
        ({"weights": source(99)}, InvalidSpec),
        ({"weights": source(1, "../../etc")}, InvalidSpec),
        ({"weights": source(3)}, InvalidSpec),
        ({"labels": ["only one"]}, InvalidSpec),
        ({"labels": ["a", "a"]}, InvalidSpec),
        ({"promote_to": "production"}, InvalidSpec),
        ({"source_domain": "studio"}, InvalidName),
        ({"preprocessing": registry_pb2.Preprocessing(size=7)}, InvalidSpec),
        ({"preprocessing": registry_pb2.Preprocessing(size=64, mean=[0.5])}, InvalidSpec),
        ({"preprocessing": registry_pb2.Preprocessing(size=64, crop=float("nan"))}, InvalidSpec),
        ({"preprocessing": registry_pb2.Preprocessing(size=64, std=[0, 0, 0])}, InvalidSpec),
        ({"preprocessing": registry_pb2.Preprocessing(size=64, mean=[np.inf] * 3)}, InvalidSpec),
        ({"request_id": "a\nb"}, InvalidSpec),
    ],
)
def test_a_registration_that_makes_no_sense_is_refused(
    changes: dict[str, object], error: type[ServiceError]
) -> None:
    with pytest.raises(error):
        convert.registration(draft(**changes))


def test_a_model_without_preprocessing_leaves_the_field_unset() -> None:
    model = Model(
        name=ModelName("digits"),
        architecture=Architecture(library="timm", name="resnet18"),
        weights=WeightsSource(kind="HUB"),
        labels=(),
        preprocessing=None,
        source_domain=None,
        created_at=dt.datetime(2026, 11, 1, tzinfo=dt.UTC),
        decoding="scaled",
    )
    message = convert.model(model)
    assert message.decoding == registry_pb2.DECODING_SCALED
    assert not message.HasField("preprocessing")
    assert message.create_time.ToDatetime(tzinfo=dt.UTC) == model.created_at


def test_every_enum_of_the_domain_has_its_number_and_back() -> None:
    assert set(convert._ORIGIN_OUT) == set(Origin)
    assert set(convert_jobs._ROLES.values()) == set(Role)
    assert set(convert_jobs._STATES.values()) == set(JobState)
    assert set(convert_jobs._KINDS_OUT) == set(JobKind)
    assert set(convert_jobs._PHASES_OUT) == {None, *Phase}
    assert set(convert_jobs._EVENTS_OUT) == {None, *EventKind}
    tables: list[tuple[dict[Any, Any], Any]] = [
        (convert_jobs._STATES_OUT, adaptation_pb2.AdaptationJob.State),
        (convert_jobs._KINDS_OUT, adaptation_pb2.AdaptationJob.Kind),
        (convert_jobs._PHASES_OUT, adaptation_pb2.AdaptationJob.Phase),
        (convert_jobs._EVENTS_OUT, adaptation_pb2.JobEvent.Kind),
    ]
    for table, enum in tables:
        assert len(set(table.values())) == len(table)
        for key, number in table.items():
            if key is not None:
                assert enum.Name(number).endswith(f"_{key.value}")


def asked(message: adaptation_pb2.AdaptationSpec, policy: GuardPolicy | None = None) -> JobSpec:
    """The spec of a request, for a model with this policy."""
    request = adaptation_pb2.CreateAdaptationJobRequest(
        model="models/m", domain="domains/d", spec=message
    )
    return convert_jobs.new_job(request).spec_under(policy)


def struct(values: dict[str, Any]) -> struct_pb2.Struct:
    made = struct_pb2.Struct()
    made.update(values)
    return made


def test_an_empty_spec_means_the_defaults() -> None:
    assert asked(adaptation_pb2.AdaptationSpec()) == JobSpec()


def test_a_job_takes_over_its_models_policy_and_differs_with_a_reason_of_its_own() -> None:
    policy = GuardPolicy(base="strict", source_margin=0.04, reason="old lenses")
    assert asked(adaptation_pb2.AdaptationSpec(), policy).guard == policy
    differs = {"class_minimum": 2, "reason": "rare classes"}
    under = asked(adaptation_pb2.AdaptationSpec(guard_overrides=struct(differs)), policy).guard
    assert (under.base, under.source_margin, under.class_minimum) == ("strict", 0.04, 2)
    assert under.reason == "old lenses; rare classes"
    preset = asked(adaptation_pb2.AdaptationSpec(guard_preset="balanced"), policy).guard
    assert preset == GuardPolicy()
    unexplained = adaptation_pb2.AdaptationSpec(guard_overrides=struct({"class_minimum": 2}))
    with pytest.raises(InvalidSpec, match="reason"):
        asked(unexplained, policy)


def test_a_repeated_request_is_known_though_the_models_policy_has_changed() -> None:
    request = adaptation_pb2.CreateAdaptationJobRequest(model="models/m", domain="domains/d")
    request.spec.guard_overrides.update({"class_minimum": 2, "reason": "rare classes"})
    new = convert_jobs.new_job(request)
    accepted = new.spec_under(GuardPolicy(base="strict"))
    assert new.asks_for(accepted)
    request.spec.guard_overrides.update({"class_minimum": 3})
    assert not convert_jobs.new_job(request).asks_for(accepted)
    request.spec.guard_overrides.update({"class_minimum": 2})
    request.spec.epochs = 3
    assert not convert_jobs.new_job(request).asks_for(accepted)


def test_a_variant_that_is_named_twice_is_asked_for_once() -> None:
    spec = asked(adaptation_pb2.AdaptationSpec(variants=["int8", "fp16", "int8"]))
    assert spec.variants == ("int8", "fp16")
    assert asked(convert_jobs.spec_out(spec)) == spec


@pytest.mark.parametrize("unknown", ["int4", "fp32", ""])
def test_an_unknown_variant_is_refused_by_name(unknown: str) -> None:
    with pytest.raises(InvalidSpec, match=r"spec\.variants"):
        asked(adaptation_pb2.AdaptationSpec(variants=[unknown]))


def test_a_spec_survives_being_written_and_read() -> None:
    overrides = struct_pb2.Struct()
    overrides.update({"source_margin": 0.05, "first_minimum": 40, "reason": "a small camera"})
    message = adaptation_pb2.AdaptationSpec(
        strategy="head", epochs=3, seed=0, guard_preset="strict", guard_overrides=overrides
    )
    spec = asked(message)
    assert (spec.guard.base, spec.guard.source_margin) == ("strict", 0.05)
    assert asked(convert_jobs.spec_out(spec)) == spec


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 0},
        {"epochs": -1},
        {"budget_seconds": float("nan")},
        {"budget_seconds": float("inf")},
        {"batch_size": 0},
        {"seed": -1},
        {"views": 0},
        {"strategy": "a b"},
        {"strategy": "x\n"},
        {"promote_to": "Production"},
        {"guard_preset": "lenient"},
        {"guard_preset": "balanced\n"},
    ],
)
def test_a_spec_out_of_range_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ServiceError):
        asked(adaptation_pb2.AdaptationSpec(**changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "overrides",
    [
        {"source_margin": 2},
        {"no_such_limit": 1},
        {"base": "strict"},
        {"source_margin": 0.05},  # without a reason
        {"level": "high"},
    ],
)
def test_a_guard_override_that_makes_no_sense_is_refused(overrides: dict[str, Any]) -> None:
    with pytest.raises(InvalidSpec, match=r"guard_overrides|preset|reason"):
        asked(adaptation_pb2.AdaptationSpec(guard_overrides=struct(overrides)))


def test_a_request_names_images_or_a_tensor_never_both_or_neither() -> None:
    tensor = inference_pb2.Tensor(shape=[1, 2, 2, 3], pixels=bytes(12))
    for wrong in (
        inference_pb2.PredictRequest(model="models/m"),
        inference_pb2.PredictRequest(model="models/m", images=[b"x"], tensor=tensor),
    ):
        with pytest.raises(InvalidSpec, match="either images or tensor"):
            convert_predictions.question(wrong)


@pytest.mark.parametrize(
    ("shape", "count"),
    [
        ([1, 4, 4], 48),
        ([1, 4, 4, 1], 16),
        ([0, 4, 4, 3], 0),
        ([-1, 4, 4, 3], 48),
        ([1, 4, 4, 3], 47),
        ([2**62, 4, 4, 3], 48),
        ([], 0),
    ],
)
def test_a_tensor_of_another_shape_is_refused(shape: list[int], count: int) -> None:
    with pytest.raises(InputMismatch):
        convert_predictions.pixels(inference_pb2.Tensor(shape=shape, pixels=bytes(count)), 4)


def test_a_tensors_pixels_come_in_rows() -> None:
    pixels = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    tensor = inference_pb2.Tensor(shape=pixels.shape, pixels=pixels.tobytes())
    assert np.array_equal(convert_predictions.pixels(tensor, 4), pixels)


def test_a_tensor_of_floats_is_the_same_pixels() -> None:
    pixels = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    tensor = inference_pb2.Tensor(shape=pixels.shape, floats=pixels.astype("<f4").tobytes())
    found = convert_predictions.pixels(tensor, 4)
    assert found.dtype == np.uint8
    assert np.array_equal(found, pixels)


@pytest.mark.parametrize("value", [0.5, -1, 256, np.nan, np.inf])
def test_a_float_that_is_no_pixel_is_refused_and_not_rounded(value: float) -> None:
    floats = np.full((1, 4, 4, 3), 7, "<f4")
    floats[0, 3, 3, 2] = value
    tensor = inference_pb2.Tensor(shape=floats.shape, floats=floats.tobytes())
    with pytest.raises(InputMismatch, match="whole numbers"):
        convert_predictions.pixels(tensor, 4)


def test_a_tensor_holds_pixels_or_floats_and_as_many_as_its_shape_says() -> None:
    both = inference_pb2.Tensor(shape=[1, 4, 4, 3], pixels=bytes(48), floats=bytes(192))
    with pytest.raises(InvalidSpec, match="either pixels or floats"):
        convert_predictions.pixels(both, 4)
    for count in (48, 191, 193):
        wrong = inference_pb2.Tensor(shape=[1, 4, 4, 3], floats=bytes(count))
        with pytest.raises(InputMismatch, match="192 bytes of float32"):
            convert_predictions.pixels(wrong, 4)


@pytest.mark.parametrize("count", [1, 3, 7, 8, 20])
def test_the_best_are_those_of_a_whole_stable_sort(count: int) -> None:
    drawn = np.random.default_rng(5)
    # Few values, so that many are equal, also where the last place is given away.
    values = drawn.integers(0, 4, (50, 8)).astype(np.float32)
    whole = np.argsort(-values, axis=1, kind="stable")[:, :count]
    assert np.array_equal(np.array(convert_predictions.best(values, count)), whole)


def test_a_row_without_numbers_still_has_its_best() -> None:
    values = np.array([[np.nan, 1, 2], [3, np.nan, np.nan]], np.float32)
    assert [len(places) for places in convert_predictions.best(values, 2)] == [2, 2]
    assert convert_predictions.best(values, 2)[0].tolist() == [2, 1]
