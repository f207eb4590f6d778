"""The report of a job as one JSON document: what ``GetReport`` gives as ``json``.

``report.py`` draws the same document as HTML; nothing is in the one that is not in
the other, except pictures.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np
import pydantic

from acclimate_service.domain.job import Job, JobKind
from acclimate_service.training.auto import Outcome
from acclimate_service.training.diagnosis import Finding
from acclimate_service.worker.evaluate import Floats, VerifySet
from acclimate_service.worker.judgement import Compared
from acclimate_service.worker.publish import libraries
from acclimate_service.worker.result import Result
from acclimate_service.worker.story import Story
from acclimate_service.worker.suspects import SHOWN as SUSPECTS_SHOWN
from acclimate_service.worker.suspects import Screened

Json = dict[str, pydantic.JsonValue]

FLIPS_SHOWN = 60  # images a set and direction
COPIES_SHOWN = 100


def document(job: Job, story: Story, result: Result, summary: Json) -> Json:
    """Everything that was decided and measured, and what it was decided on."""
    judged, candidate = result.judged, result.candidate
    draft = job.draft
    # A first version learns the source itself.
    learned = "target" if draft.kind is JobKind.ADAPT else "source"
    return {
        "format": 1,
        "job": {
            "name": str(job.name),
            "kind": draft.kind.value,
            "model": str(draft.model),
            "incumbent": None if draft.incumbent is None else str(draft.incumbent),
            "source": None if draft.source is None else str(draft.source),
            "target": None if draft.target is None else str(draft.target),
            "attempt": story.lease.attempt,
            "created_at": job.created_at.isoformat(),
            "started_at": None if job.started_at is None else job.started_at.isoformat(),
            "spec": draft.spec.model_dump(mode="json"),
        },
        "state": result.state.value,
        "verdict": None if judged.verdict is None else judged.verdict.to_json(),
        "architecture": str(candidate.architecture),
        "preprocessing": candidate.preprocessing.model_dump(mode="json"),
        "labels": list(candidate.labels),
        "sets": [
            _compared(role, compared)
            for role, compared in [
                *([] if judged.target is None else [(learned, judged.target)]),
                *(("source" if c.verify.name == str(draft.source) else "earlier", c)
                  for c in judged.known),
            ]
        ],
        "screening": None if result.screened is None else result.screened.to_json(),
        "label_suspects": _suspects(result.screened),
        "near_copies": {
            "images": len(result.near_copies),
            "listed": [one.to_json() for one in result.near_copies[:COPIES_SHOWN]],
        },
        "engine": None if result.outcome is None else _engine(result.outcome),
        "files": {
            "artifacts": candidate.artifacts.model_dump(mode="json"),
            "parity": candidate.parity,
            "cost": [{"bytes": f.bytes, "milliseconds": f.milliseconds} for f in judged.files],
        },
        "variants": [tried.to_json() for tried in result.variants],
        "digests": dict(result.digests),
        "seconds": summary["seconds"],
        "peak_memory_mib": summary["peak_memory_mib"],
        "libraries": dict(libraries()),
    }  # fmt: skip


def _suspects(screened: Screened | None) -> list[pydantic.JsonValue]:
    if screened is None:
        return []
    parts = (screened.train, screened.select, screened.verify)
    return [one.to_json() for part in parts for one in part.suspects[:SUSPECTS_SHOWN]]


def _compared(role: str, compared: Compared) -> Json:
    verify = compared.verify
    shown: Json = {"role": role, **compared.summary()}
    shown["confusion_after"] = _confusion(verify, compared.candidate)
    if compared.incumbent is not None:
        shown["confusion_before"] = _confusion(verify, compared.incumbent)
        before = compared.incumbent.argmax(axis=1) == verify.labels
        after = compared.candidate.argmax(axis=1) == verify.labels
        shown["lost"] = _flips(compared, np.flatnonzero(before & ~after))
        shown["gained"] = _flips(compared, np.flatnonzero(~before & after))
    return shown


def _confusion(verify: VerifySet, probabilities: Floats) -> list[pydantic.JsonValue]:
    """How many images of which label got which answer: [label, answer, images], none of 0.

    A thousand labels make a million cells, of which no more are filled than there are images.
    """
    cells = np.stack([verify.labels, probabilities.argmax(axis=1)], axis=1)
    found, counts = np.unique(cells, axis=0, return_counts=True)
    rows: list[Any] = np.column_stack([found, counts]).tolist()
    return rows


def _flips(compared: Compared, places: Any) -> list[pydantic.JsonValue]:
    """The images whose answer changed sides, the most confident change first."""
    assert compared.incumbent is not None
    ranked = sorted(places.tolist(), key=lambda i: -float(compared.candidate[i].max()))
    return [
        {
            "id": compared.verify.examples[i].id,
            "blob": compared.verify.examples[i].blob,
            "label": int(compared.verify.labels[i]),
            "before": int(compared.incumbent[i].argmax()),
            "after": int(compared.candidate[i].argmax()),
            "confidence": _finite(float(compared.candidate[i].max())),
        }
        for i in ranked[:FLIPS_SHOWN]
    ]


def _finite(number: float) -> float | None:
    """What JSON can hold of it: a candidate that answers NaN is rejected, and reported."""
    return number if math.isfinite(number) else None


def _engine(outcome: Outcome) -> Json:
    """Every trial with its learning curve, its line of blends and its named failures."""
    return {
        "chosen": outcome.chosen,
        "reason": outcome.reason,
        "trials": [
            {
                "candidate": trial.candidate.summary(),
                "blend": trial.blend.summary(),
                "findings": [_finding(finding) for finding in trial.findings],
            }
            for trial in outcome.trials
        ],
    }


def _finding(finding: Finding) -> Json:
    return {**asdict(finding), "failure": finding.failure.value}
