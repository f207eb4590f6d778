from __future__ import annotations

import numpy as np
import pytest

from acclimate_service.domain.evidence import Evidence, FileFacts, Paired
from acclimate_service.domain.guard import judge
from acclimate_service.domain.model import Artifacts, Variant
from acclimate_service.domain.policy import GuardPolicy
from acclimate_service.domain.verdict import Decision, Verdict

FP32, INT8, WEIGHTS = ("a" * 64, "b" * 64, "c" * 64)


def files(**variants: str) -> Artifacts:
    return Artifacts(
        onnx=FP32,
        weights=WEIGHTS,
        onnx_bytes=100,
        weights_bytes=100,
        variants={
            name: Variant(onnx=digest, onnx_bytes=25, agreement=0.99, verdict="Accepted")
            for name, digest in variants.items()
        },
    )


def test_a_server_loads_the_variant_that_it_prefers_where_there_is_one() -> None:
    assert files(int8=INT8).served_as("int8") == ("int8", INT8)
    assert files(int8=INT8).served_as("fp32") == ("fp32", FP32)


def test_without_an_accepted_variant_fp32_serves() -> None:
    assert files().served_as("int8") == ("fp32", FP32)
    assert files(int8=INT8).served_as("fp16") == ("fp32", FP32)


def test_every_file_that_a_version_names_is_among_its_digests() -> None:
    assert set(files(int8=INT8, fp16="d" * 64).digests) == {FP32, INT8, WEIGHTS, "d" * 64}


def test_a_manifest_from_before_there_were_variants_is_still_read() -> None:
    old = files().model_dump(mode="json")
    del old["variants"]
    assert Artifacts.model_validate(old) == files()


def paired(name: str, lost: int, n: int = 500) -> Paired:
    """A file that is always right, beside one that loses some."""
    labels = np.arange(n) % 3
    before = np.full((n, 3), 0.01, np.float32)
    before[np.arange(n), labels] = 0.98
    after = before.copy()
    after[:lost] = np.roll(before[:lost], 1, axis=1)
    return Paired(name=name, labels=labels, incumbent=before, candidate=after)


def weighed(policy: str, *, lost: int, earlier: int = 0) -> Verdict:
    return judge(
        GuardPolicy.preset(policy),
        Evidence(
            source=paired("domains/studio", lost),
            target=None,
            earlier=(paired("domains/night", earlier),),
            looks=2,
            incumbent_file=FileFacts(bytes=100, milliseconds=10.0),
            candidate_file=FileFacts(bytes=25, milliseconds=5.0),
        ),
    )


@pytest.mark.parametrize("policy", ["balanced", "strict", "exploratory"])
def test_a_variant_that_loses_nothing_is_accepted_without_a_gain(policy: str) -> None:
    verdict = weighed(policy, lost=0)
    assert verdict.decision is Decision.ACCEPT, verdict.summary
    assert not any(check.name.startswith("target") for check in verdict.checks)


def test_a_variant_that_loses_on_the_source_is_not_accepted() -> None:
    assert weighed("balanced", lost=40).decision is Decision.REJECT


def test_a_variant_that_loses_on_the_domain_just_learnt_is_not_accepted() -> None:
    assert weighed("balanced", lost=0, earlier=40).decision is Decision.REJECT
