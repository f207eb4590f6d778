"""What the report says of variants."""

from __future__ import annotations

from tests.unit.worker import reports
from tests.unit.worker.reports import Document, picture

from acclimate_service.domain.evidence import FileFacts
from acclimate_service.domain.model import Variant
from acclimate_service.domain.verdict import Decision, Verdict
from acclimate_service.worker.report import render
from acclimate_service.worker.variants import TriedVariant

FP32 = FileFacts(bytes=13_800_000, milliseconds=14.2)
INT8 = FileFacts(bytes=3_900_000, milliseconds=7.1)


def tried(decision: Decision | None, *, problem: str = "") -> TriedVariant:
    if decision is None:
        return TriedVariant(precision="fp16", problem=problem)
    verdict = Verdict(
        decision=decision, checks=(), summary="four <images> lost", needed=None, measurements={}
    )
    kept = Variant(onnx="ab" * 32, onnx_bytes=INT8.bytes, agreement=0.987, verdict="fine")
    return TriedVariant(
        precision="int8",
        verdict=verdict,
        agreement=0.987,
        images=640,
        fp32=FP32,
        file=INT8,
        kept=kept if decision is Decision.ACCEPT else None,
    )


def page(*variants: TriedVariant) -> str:
    document: Document = reports.adapted()
    document["variants"] = [one.to_json() for one in variants]
    return render(document, read=picture)


def test_a_job_that_asked_for_none_says_nothing_of_variants() -> None:
    assert "Variants" not in page()


def test_an_accepted_variant_stands_beside_fp32_with_size_and_time() -> None:
    html = page(tried(Decision.ACCEPT))
    for told in ("98.7%", "640", "3.9 MB", "13.8 MB", "7.1 ms", "14.2 ms", "ab" * 32):
        assert told in html, told


def test_a_refused_variant_is_named_with_the_reason() -> None:
    html = page(tried(Decision.REJECT))
    assert "int8 variant refused, fp32 serves: four &lt;images&gt; lost" in html
    assert "ab" * 32 not in html


def test_a_variant_that_could_not_be_made_is_named_with_the_reason() -> None:
    html = page(tried(None, problem="this worker has no GPU"))
    assert "not made" in html
    assert "no fp16 variant: this worker has no GPU" in html
