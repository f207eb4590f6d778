"""Every method that changes something leaves its line: who, what, why and from where."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.integration.rpc_server import (
    Service,
    chain_of,
    claim,
    classifier,
    commit,
    fresh_store,
    items,
    model,
    opening,
    picture,
    running,
    version,
)
from tests.unit.rpc.methods import methods

from acclimate.oip import grpc_service_pb2, grpc_service_pb2_grpc
from acclimate.v1 import (
    access_pb2,
    access_pb2_grpc,
    adaptation_pb2,
    adaptation_pb2_grpc,
    registry_pb2,
    registry_pb2_grpc,
    rollout_pb2,
    rollout_pb2_grpc,
)
from acclimate_service.domain.access import TokenDraft, principal_of
from acclimate_service.domain.job import JobDraft, JobKind, JobSpec, JobState
from acclimate_service.domain.model import Origin
from acclimate_service.domain.names import AliasName, DomainName, JobName, ModelName
from acclimate_service.rpc.rights import RIGHTS
from acclimate_service.rpc.server import Admission, Limits
from acclimate_service.store import AuditEntry

WHY = "as the test says"


class Acts:
    """One successful call of each method that changes something."""

    def __init__(self, service: Service, token: str) -> None:
        bearer = [("authorization", f"Bearer {token}")]
        self.options: dict[str, Any] = {"timeout": 30, "metadata": bearer}
        self.store = service.store
        self.adaptation = adaptation_pb2_grpc.AdaptationServiceStub(service.channel)
        self.registry = registry_pb2_grpc.RegistryServiceStub(service.channel)
        self.access = access_pb2_grpc.AccessServiceStub(service.channel)
        self.rollouts = rollout_pb2_grpc.RolloutServiceStub(service.channel)
        self.oip = grpc_service_pb2_grpc.GRPCInferenceServiceStub(service.channel)
        self.store.domains.create(DomainName("site"), ("red", "green", "blue"))
        self.model = model(self.store, "m", source="domains/site")
        self.first = version(self.store, self.model, classifier(1))
        self.second = version(self.store, self.model, classifier(2))

    def create_domain(self) -> str:
        request = adaptation_pb2.CreateDomainRequest(domain_id="new", labels=["a", "b"])
        return self.adaptation.CreateDomain(request, **self.options).name

    def delete_domain(self) -> str:
        name = str(self.store.domains.create(DomainName("stray"), ("red", "green")).name)
        request = adaptation_pb2.DeleteDomainRequest(name=name, reason=WHY)
        self.adaptation.DeleteDomain(request, **self.options)
        return name

    def delete_labeled_batch(self) -> str:
        self.store.domains.create(DomainName("hasty"), ("red", "green"))
        name = self.upload_batch("domains/hasty")
        request = adaptation_pb2.DeleteLabeledBatchRequest(name=name, reason=WHY)
        self.adaptation.DeleteLabeledBatch(request, **self.options)
        return name

    def delete_model(self) -> str:
        name = str(model(self.store, "mistyped"))
        request = registry_pb2.DeleteModelRequest(name=name, reason=WHY)
        self.registry.DeleteModel(request, **self.options)
        return name

    def upload_batch(self, domain: str = "domains/site") -> str:
        seed = len(self.store.audit.list().items)  # another image each time
        example = adaptation_pb2.Example(image=picture(seed), label="red")
        begin = opening(domain, f"r{seed}")
        sent = [begin, *items([example]), commit(1, chain_of([example]))]
        answers = list(self.adaptation.UploadBatch(iter(sent), **self.options))
        return answers[-1].committed.name

    def create_adaptation_job(self) -> str:
        self.upload_batch()
        self.store.registry.set_alias(AliasName("m", "production"), self.first)
        request = adaptation_pb2.CreateAdaptationJobRequest(
            model=str(self.model), domain="domains/site"
        )
        return self.adaptation.CreateAdaptationJob(request, **self.options).name

    def cancel_adaptation_job(self) -> str:
        draft = self.register_draft()
        job = str(self.store.jobs.enqueue(draft, request_id="").name)
        request = adaptation_pb2.CancelAdaptationJobRequest(name=job, reason=WHY)
        return self.adaptation.CancelAdaptationJob(request, **self.options).name

    def register_model(self) -> str:
        part = registry_pb2.RegisterModelRequest
        draft = part.Draft(
            model_id="fresh",
            architecture=registry_pb2.Architecture(library="timm", name="resnet18"),
            weights=registry_pb2.WeightsSource(kind=registry_pb2.WeightsSource.KIND_HUB),
        )
        sent = [part(draft=draft), part(commit=part.Commit())]
        return self.registry.RegisterModel(iter(sent), **self.options).model.name

    def set_model_guard(self) -> str:
        request = registry_pb2.SetModelGuardRequest(
            name=str(self.model), preset="strict", reason=WHY
        )
        return self.registry.SetModelGuard(request, **self.options).name

    def delete_model_version(self) -> str:
        name = str(version(self.store, self.model, classifier(3)))
        request = registry_pb2.DeleteModelVersionRequest(name=name, reason=WHY)
        self.registry.DeleteModelVersion(request, **self.options)
        return name

    def force_model_version(self) -> str:
        manifest = self.store.registry.get_version(self.first).manifest
        queued = self.store.jobs.enqueue(self.register_draft(), request_id="")
        job, lease = claim(self.store, queued.name)
        refused = manifest.model_copy(update={"job": str(job.name), "origin": Origin.ACCEPTED})
        summary = {"manifest": refused.model_dump(mode="json")}
        self.store.jobs.finish(lease, state=JobState.REJECTED, summary=summary)
        request = registry_pb2.ForceModelVersionRequest(job=str(job.name), reason=WHY)
        return self.registry.ForceModelVersion(request, **self.options).name

    def set_alias(self) -> str:
        request = registry_pb2.SetAliasRequest(
            name=f"{self.model}/aliases/canary", version=str(self.first), reason=WHY
        )
        return self.registry.SetAlias(request, **self.options).name

    def rollback_alias(self) -> str:
        for made in (self.first, self.second):
            self.store.registry.set_alias(AliasName("m", "back"), made)
        name = f"{self.model}/aliases/back"
        request = registry_pb2.RollbackAliasRequest(name=name, reason=WHY)
        return self.registry.RollbackAlias(request, **self.options).name

    def delete_alias(self) -> str:
        self.store.registry.set_alias(AliasName("m", "gone"), self.first)
        name = f"{self.model}/aliases/gone"
        self.registry.DeleteAlias(
            registry_pb2.DeleteAliasRequest(name=name, reason=WHY), **self.options
        )
        return name

    def start_rollout(self) -> str:
        alias = AliasName("m", f"tried{len(self.store.audit.list().items)}")
        self.store.registry.set_alias(alias, self.first)
        request = rollout_pb2.StartRolloutRequest(
            alias=str(alias),
            candidate=str(self.second),
            mode=rollout_pb2.Rollout.MODE_SHADOW,
            share=0.5,
            reason=WHY,
        )
        return self.rollouts.StartRollout(request, **self.options).name

    def stop_rollout(self) -> str:
        request = rollout_pb2.StopRolloutRequest(name=self.start_rollout(), reason=WHY)
        return self.rollouts.StopRollout(request, **self.options).name

    def repository_model_load(self) -> str:
        request = grpc_service_pb2.RepositoryModelLoadRequest(model_name="m")
        self.oip.RepositoryModelLoad(request, **self.options)
        return "m"

    def repository_model_unload(self) -> str:
        request = grpc_service_pb2.RepositoryModelUnloadRequest(model_name="m")
        self.oip.RepositoryModelUnload(request, **self.options)
        return "m"

    def create_token(self) -> str:
        request = access_pb2.CreateTokenRequest(
            principal="camera", roles=[access_pb2.ACCESS_ROLE_UPLOAD]
        )
        return self.access.CreateToken(request, **self.options).token.name

    def rotate_token(self) -> str:
        self.create_token()
        request = access_pb2.RotateTokenRequest(principal="camera")
        return self.access.RotateToken(request, **self.options).token.name

    def revoke_token(self) -> str:
        request = access_pb2.RevokeTokenRequest(name=self.create_token())
        return self.access.RevokeToken(request, **self.options).name

    def register_draft(self) -> JobDraft:
        return JobDraft(
            kind=JobKind.REGISTER,
            model=ModelName("m"),
            source=None,
            target=None,
            incumbent=None,
            spec=JobSpec(),
        )


CHANGES = sorted(
    method.name.rpartition("/")[2] for method in methods() if RIGHTS[method.name].changes
)


@pytest.fixture(scope="module")
def acts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Acts]:
    folder: Path = tmp_path_factory.mktemp("audit")
    store = fresh_store(folder)
    principal = principal_of("ada", roles=["admin"], models=(), domains=())
    token = store.tokens.create(TokenDraft(principal=principal), by="a test").secret
    limits = Limits(poll_seconds=0.05)
    with running(store, limits, admission=Admission(tokens=True)) as service:
        yield Acts(service, token)
    store.close()


def newest(acts: Acts, after: int) -> list[AuditEntry]:
    return [entry for entry in acts.store.audit.list().items if entry.number > after]


@pytest.mark.parametrize("method", CHANGES)
def test_a_change_leaves_its_line(acts: Acts, method: str) -> None:
    # A new method gets its act above.
    act: Callable[[], str] = getattr(acts, re.sub(r"(?<!^)(?=[A-Z])", "_", method).lower())
    subject = act()
    mine = [line for line in acts.store.audit.list().items if line.action == method]
    assert mine[0].subject == subject
    assert (mine[0].who, mine[0].origin.split(":")[1]) == ("ada", "127.0.0.1")
    asked = next(each.request for each in methods() if each.name.endswith(f"/{method}"))
    if "reason" in asked.DESCRIPTOR.fields_by_name:
        assert WHY in mine[0].why


def test_a_change_that_is_refused_leaves_none(acts: Acts) -> None:
    before = acts.store.audit.list().items[0].number
    request = registry_pb2.SetAliasRequest(
        name="models/m/aliases/x", version="models/m/versions/999"
    )
    with pytest.raises(grpc.RpcError):
        acts.registry.SetAlias(request, **acts.options)
    assert newest(acts, before) == []


def test_a_reason_that_would_forge_a_line_is_refused(acts: Acts) -> None:
    request = registry_pb2.DeleteAliasRequest(name="models/m/aliases/x", reason="a\nroot: b")
    with pytest.raises(grpc.RpcError) as refused:
        acts.registry.DeleteAlias(request, **acts.options)
    failed: Any = refused.value
    assert failed.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_what_a_worker_changes_is_noted_as_its_jobs(acts: Acts) -> None:
    made = version(acts.store, acts.model, classifier(9))
    job = acts.store.registry.get_version(made).job
    assert isinstance(job, JobName)
    line = next(line for line in acts.store.audit.list().items if line.subject == str(made))
    assert (line.who, line.action) == (str(job), "new version")
