"""How a job ends: its summary, its report, and one transaction."""

from __future__ import annotations

import datetime as dt
import json
import resource

import pydantic

from acclimate_service.domain.job import Failure, Job, JobState
from acclimate_service.domain.model import Manifest
from acclimate_service.domain.names import AliasName, VersionName
from acclimate_service.store import NewVersion
from acclimate_service.worker.document import document
from acclimate_service.worker.publish import manifest
from acclimate_service.worker.report import render
from acclimate_service.worker.result import Result
from acclimate_service.worker.story import Story


def conclude(job: Job, story: Story, result: Result) -> None:
    """Write the report, then everything else in one transaction.

    Raises:
        LeaseLost: the job is no longer ours; nothing was written.
    """
    created_at = dt.datetime.now(dt.UTC)
    blobs, verdict = story.store.blobs, result.judged.verdict
    whole = None
    if verdict is not None:
        told_in_full = json.dumps(verdict.to_json(), allow_nan=False).encode()
        whole = story.patiently(lambda: blobs.put(told_in_full))

    def manifest_as(name: VersionName) -> Manifest:
        outcome = result.outcome
        return manifest(
            result.candidate,
            name=name,
            parent=result.parent,
            job=job.name,
            origin=result.origin,
            created_at=created_at,
            stages_trained=() if outcome is None else outcome.trial.candidate.stages,
            strategy="" if outcome is None else outcome.trial.candidate.strategy,
            blend=1.0 if outcome is None else outcome.trial.blend.alpha,
            seed=job.draft.spec.seed,
            domains=dict(result.digests),
            verdict=verdict,
            whole=whole,
        )

    summary = _summary(job, story, result)
    succeeded = result.state is JobState.SUCCEEDED
    if not succeeded:  # what a forced version would be made of
        unnamed = VersionName(job.draft.model.model, "0")
        summary["manifest"] = manifest_as(unnamed).model_dump(mode="json")
    version = NewVersion(parent=result.parent, origin=result.origin, manifest=manifest_as)
    told = document(job, story, result, summary)
    promote_to = job.draft.spec.promote_to
    story.patiently(
        lambda: story.store.jobs.finish(
            story.lease,
            state=result.state,
            summary=summary,
            report_html=blobs.put(render(told, read=blobs.get).encode()),
            report_json=blobs.put(json.dumps(told, indent=1, allow_nan=False).encode()),
            version=version if succeeded else None,
            promote=AliasName(job.draft.model.model, promote_to) if promote_to else None,
        )
    )


def fail(story: Story, failure: Failure) -> None:
    """End a job that cannot be done.

    Raises:
        LeaseLost: the job is no longer ours; nothing was written.
    """
    story.close()
    story.patiently(
        lambda: story.store.jobs.finish(
            story.lease,
            state=JobState.FAILED,
            summary={"seconds": dict(story.seconds)},
            failure=failure,
        )
    )


def _summary(job: Job, story: Story, result: Result) -> dict[str, pydantic.JsonValue]:
    """What `GetAdaptationJob` shows: accuracies, choice, verdict, cost."""
    story.close()
    judged, outcome = result.judged, result.outcome
    by_name = {c.verify.name: c.summary() for c in judged.known}
    source = by_name.pop(str(job.draft.source), None)
    summary: dict[str, pydantic.JsonValue] = {
        "target": None if judged.target is None else judged.target.summary(),
        "source": source,
        "earlier": list(by_name.values()),
        "seconds": dict(story.seconds),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    if result.screened is not None:
        summary["screening"] = result.screened.to_json()
    if judged.verdict is not None:
        brief = judged.verdict.brief()
        summary["verdict"] = {key: value for key, value in brief.items() if key != "measurements"}
    if result.variants:
        summary["variants"] = [tried.summary() for tried in result.variants]
    if outcome is not None:
        summary["choice"] = {
            "strategy": outcome.trial.candidate.strategy,
            "stages": list(outcome.trial.candidate.stages),
            "blend": outcome.trial.blend.alpha,
            "reason": outcome.reason,
        }
        summary["findings"] = [str(f) for trial in outcome.trials for f in trial.findings]
    return summary
