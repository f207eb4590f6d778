"""Every method against everyone who must not call it, and against those who may."""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import queue
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
import sqlalchemy as sa
from google.protobuf.message import Message
from tests.integration.certificates import Authority
from tests.integration.rpc_server import (
    Service,
    claim,
    classifier,
    fresh_store,
    model,
    opening,
    plain,
    running,
    version,
)
from tests.unit.rpc.methods import Method, methods

from acclimate.v1 import adaptation_pb2, inference_pb2
from acclimate_service.domain.access import AccessRole, TokenDraft, principal_of
from acclimate_service.domain.examples import Role
from acclimate_service.domain.job import EventKind, JobDraft, JobKind, JobSpec
from acclimate_service.domain.names import AliasName, DomainName, ModelName, TokenName
from acclimate_service.rpc import brake
from acclimate_service.rpc.certificates import Renewal, TLSFiles
from acclimate_service.rpc.rights import RIGHTS, Right
from acclimate_service.rpc.server import Admission, Limits
from acclimate_service.store import Store, schema

METHODS = methods()
CODES = grpc.StatusCode
REFUSED = {CODES.UNAUTHENTICATED, CODES.PERMISSION_DENIED}
MINE, FOREIGN = "mine-shop", "foreign-shop"  # the ids of one tenant's and of another's things


@dataclasses.dataclass(frozen=True, kw_only=True)
class House:
    """A server that asks for client certificates and tokens, and what two tenants have in it."""

    service: Service
    authority: Authority
    stranger: Authority
    client: tuple[Any, Any]
    jobs: dict[str, str]  # tenant → one of its jobs

    @property
    def store(self) -> Store:
        return self.service.store

    def channel(self, credentials: grpc.ChannelCredentials | None) -> grpc.Channel:
        target = f"127.0.0.1:{self.service.port}"
        return (
            grpc.insecure_channel(target)
            if credentials is None
            else grpc.secure_channel(target, credentials)
        )

    def token(
        self, *roles: AccessRole, lifetime: dt.timedelta | None = None, tenant: str = ""
    ) -> str:
        limits = [f"{tenant.split('-', maxsplit=1)[0]}-*"] if tenant else []
        principal = principal_of("someone", roles=roles, models=limits, domains=limits)
        draft = TokenDraft(principal=principal, lifetime=lifetime)
        return self.store.tokens.create(draft, by="a test").secret

    def learn(self) -> None:
        """Have the server read the tokens now rather than half a second later."""
        self.service.run(self.service.server.keyring.catch_up)

    def request(self, method: Method, tenant: str) -> bytes:
        """A request in which every name is *tenant*'s."""
        right = RIGHTS[method.name]
        message = method.request()
        plain = "inference." in method.name
        for field in right.models:
            bare = plain or field.endswith("_id")
            fill(message, field, tenant if bare else f"models/{tenant}/versions/1")
        for field in right.domains:
            fill(message, field, tenant if field.endswith("_id") else f"domains/{tenant}")
        for field in right.jobs:
            fill(message, field, self.jobs[tenant])
        return message.SerializeToString()


def fill(message: Message, path: str, text: str) -> None:
    *above, last = path.split(".")
    setattr(functools.reduce(getattr, above, message), last, text)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("house")
    authority = Authority.make(folder / "ours")
    stranger = Authority.make(folder / "theirs")
    certificate, key = authority.issue("server")
    client = authority.issue("client")
    files = TLSFiles(certificate=certificate, key=key, client_ca=authority.pem)
    store = fresh_store(folder)
    jobs = {}
    for tenant in (MINE, FOREIGN):
        store.domains.create(DomainName(tenant), ("red", "green", "blue"))
        made = version(
            store, name := model(store, tenant, source=f"domains/{tenant}"), classifier()
        )
        store.registry.set_alias(AliasName(tenant, "production"), made)
        jobs[tenant] = str(store.registry.get_version(made).job)
        assert str(name) == f"models/{tenant}"
    target: Callable[[int], grpc.Channel] = lambda port: grpc.secure_channel(  # noqa: E731
        f"127.0.0.1:{port}", authority.trust(client)
    )
    with (
        pytest.MonkeyPatch.context() as patch,
        running(
            store,
            Limits(poll_seconds=0.05),
            admission=Admission(tokens=True),
            tls=Renewal(files).credentials(),
            channel=target,
        ) as service,
    ):
        patch.setattr(brake, "LONGEST", 0.0)  # hundreds of refusals follow from one address
        yield House(
            service=service, authority=authority, stranger=stranger, client=client, jobs=jobs
        )
    store.close()


def outcome(
    channel: grpc.Channel, method: Method, request: bytes, token: str | None
) -> tuple[grpc.StatusCode, bytes]:
    """The code, and all that was said: the answers, or the status with its details."""
    metadata = [] if token is None else [("authorization", f"Bearer {token}")]
    seconds = 1.0 if method.name.endswith("Health/Watch") else 20.0
    try:
        answers = method.call(channel, [request], metadata=metadata, timeout=seconds)
    except grpc.RpcError as error:
        failed: Any = error
        told = b"".join(
            value for _, value in failed.trailing_metadata() if isinstance(value, bytes)
        )
        return failed.code(), failed.details().encode() + told
    return CODES.OK, b"".join(answers)


def contents(store: Store) -> dict[str, list[Any]]:
    """Every row of the store, the audit log's aside."""
    with store.database.engine.connect() as connection:
        return {
            table.name: sorted(map(repr, connection.execute(sa.select(table)).all()))
            for table in schema.metadata.sorted_tables
            if table is not schema.audit
        }


def closed() -> list[Method]:
    return [method for method in METHODS if not RIGHTS[method.name].open]


@pytest.mark.parametrize("shown", ["none", "wrong", "not a token", "expired", "revoked"])
def test_whoever_shows_no_good_token_is_let_in_nowhere(house: House, shown: str) -> None:
    good = house.token(AccessRole.ADMIN)
    revoked = house.token(AccessRole.ADMIN)
    page = house.store.tokens.list(1000)
    name = next(token.id for token in page.items if token.matches(revoked))
    house.store.tokens.revoke(TokenName(name))
    token = {
        "none": None,
        "wrong": good[:-4] + ("aaaa" if good[-4:] != "aaaa" else "bbbb"),
        "not a token": "letmein",
        "expired": house.token(AccessRole.ADMIN, lifetime=dt.timedelta(microseconds=1)),
        "revoked": revoked,
    }[shown]
    house.learn()
    before = contents(house.store)
    for method in closed():
        code, _ = outcome(house.service.channel, method, house.request(method, MINE), token)
        assert code is CODES.UNAUTHENTICATED, method.name
    assert contents(house.store) == before


def test_nobody_is_told_a_name_without_a_token(house: House) -> None:
    for method in METHODS:
        if RIGHTS[method.name].open:
            _, said = outcome(house.service.channel, method, b"", None)
            assert MINE.encode() not in said, method.name


@pytest.mark.parametrize("role", sorted(set(AccessRole) - {AccessRole.ADMIN}))
def test_a_role_that_a_method_does_not_name_is_refused(house: House, role: AccessRole) -> None:
    token = house.token(role)
    house.learn()
    before = contents(house.store)
    for method in closed():
        if role in RIGHTS[method.name].roles:
            continue
        code, _ = outcome(house.service.channel, method, house.request(method, MINE), token)
        assert code is CODES.PERMISSION_DENIED, method.name
    assert contents(house.store) == before


def test_what_is_another_tenants_is_out_of_reach_and_not_told_of(house: House) -> None:
    token = house.token(*AccessRole, tenant=MINE)
    house.learn()
    before = contents(house.store)
    for method in closed():
        right = RIGHTS[method.name]
        request = house.request(method, FOREIGN)
        code, said = outcome(house.service.channel, method, request, token)
        if right.unlimited or right.models or right.domains:
            assert code is CODES.PERMISSION_DENIED, method.name
        elif right.jobs:
            assert code is CODES.NOT_FOUND, method.name
        # Whatever was not refused must not tell of the other one's things: asked for
        # nothing by name, it answers with what the caller may see.
        code, said = outcome(house.service.channel, method, b"", token)
        assert FOREIGN.encode() not in said, method.name
    assert contents(house.store) == before


def test_lists_hold_what_is_in_reach(house: House) -> None:
    token = house.token(*AccessRole, tenant=MINE)
    house.learn()
    for short in ("ListModels", "ListDomains", "ListAdaptationJobs", "RepositoryIndex"):
        method = next(each for each in METHODS if each.name.endswith(f"/{short}"))
        code, said = outcome(house.service.channel, method, b"", token)
        assert code is CODES.OK
        assert MINE.encode() in said


def test_a_foreign_job_is_answered_as_one_that_does_not_exist(house: House) -> None:
    token = house.token(*AccessRole, tenant=MINE)
    house.learn()
    method = next(each for each in METHODS if each.name.endswith("/GetAdaptationJob"))
    foreign = house.jobs[FOREIGN]
    absent = foreign[:-6] + ("000000" if foreign[-6:] != "000000" else "000001")
    said = []
    for name in (foreign, absent):
        request = method.request(name=name).SerializeToString()
        code, text = outcome(house.service.channel, method, request, token)
        said.append((code, text.replace(name.encode(), b"?")))
    assert said[0] == said[1]


@pytest.mark.parametrize("size", [1, 1000])
def test_no_page_and_no_forged_page_token_tells_of_another_tenant(house: House, size: int) -> None:
    token = house.token(*AccessRole, tenant=MINE)
    house.learn()
    forged = ["", "0", "1", "9" * 18, "e", FOREIGN, f"{FOREIGN}/x", f"domains/{FOREIGN}"]
    forged += [house.jobs[FOREIGN], house.jobs[FOREIGN].partition("/")[2]]
    tried = 0
    for method in closed():
        if "page_token" not in method.request.DESCRIPTOR.fields_by_name:
            continue
        for start in forged:
            message = method.request.FromString(house.request(method, MINE))
            fill(message, "page_token", start)
            message.page_size = size  # type: ignore[attr-defined]
            code, said = outcome(house.service.channel, method, message.SerializeToString(), token)
            assert code in REFUSED | {CODES.OK, CODES.INVALID_ARGUMENT}, (method.name, start)
            assert FOREIGN.encode() not in said.replace(start.encode() or b"?", b""), method.name
            tried += code is CODES.OK
    assert tried > 20


DISGUISED = (
    f"models/{MINE}/../{FOREIGN}",
    f"models/{MINE}/versions/../../{FOREIGN}/versions/1",
    f"models/{FOREIGN}\n",
    f"models/{FOREIGN}/",
    f" models/{FOREIGN}",
    f"MODELS/{FOREIGN}",
    f"//models/{FOREIGN}",
    f"models/{MINE}%2f..%2f{FOREIGN}",
    f"models/{MINE}\0/{FOREIGN}",
    f"domains/{FOREIGN}/batches/1",
    f"models/{FOREIGN}/aliases/production",
    FOREIGN.upper(),
)


def test_no_disguise_of_a_name_reaches_another_tenant(house: House) -> None:
    token = house.token(*AccessRole, tenant=MINE)
    house.learn()
    before = contents(house.store)
    for method in closed():
        right = RIGHTS[method.name]
        for field in (*right.models, *right.domains):
            for name in DISGUISED:
                message = method.request.FromString(house.request(method, MINE))
                fill(message, field, name)
                code, said = outcome(
                    house.service.channel, method, message.SerializeToString(), token
                )
                refused = {CODES.PERMISSION_DENIED, CODES.INVALID_ARGUMENT, CODES.NOT_FOUND}
                assert code in refused, (method.name, field, name, code, said)
    assert contents(house.store) == before


def test_a_stream_that_turns_to_another_tenant_is_ended_there(house: House) -> None:
    token = house.token(*AccessRole, tenant=MINE)
    house.learn()
    turned = 0
    for method in METHODS:
        right = RIGHTS[method.name]
        if not method.streams_in or not (right.models or right.domains):
            continue
        requests = [house.request(method, MINE), house.request(method, FOREIGN)]
        with pytest.raises(grpc.RpcError) as refused:
            method.call(
                house.service.channel,
                requests,
                metadata=[("authorization", f"Bearer {token}")],
                timeout=20.0,
            )
        failed: Any = refused.value
        # A handler may have refused the first message for what it lacks.
        assert failed.code() in {CODES.PERMISSION_DENIED, CODES.INVALID_ARGUMENT}, method.name
        turned += failed.code() is CODES.PERMISSION_DENIED
    assert turned >= 2


def test_another_tenants_request_id_opens_nothing_and_tells_nothing(house: House) -> None:
    store, secret = house.store, "r-of-the-other"
    batch = store.domains.begin_batch(DomainName(FOREIGN), Role.TRAIN, request_id=secret)
    job = store.jobs.enqueue(register(FOREIGN), request_id=secret)
    token = house.token(*AccessRole, tenant=MINE)
    house.learn()
    upload = opening(f"domains/{MINE}", secret).SerializeToString()
    create = adaptation_pb2.CreateAdaptationJobRequest(
        model=f"models/{MINE}", domain=f"domains/{MINE}", request_id=secret
    ).SerializeToString()
    before = contents(store)
    for short, request in (("UploadBatch", upload), ("CreateAdaptationJob", create)):
        method = next(each for each in METHODS if each.name.endswith(f"/{short}"))
        code, said = outcome(house.service.channel, method, request, token)
        assert code is CODES.ALREADY_EXISTS, short
        assert FOREIGN.encode() not in said
        assert batch.name.batch.encode() not in said
        assert str(job.name).encode() not in said
    assert contents(store) == before


@pytest.mark.parametrize("way", ["plaintext", "wrong authority", "no client certificate"])
def test_without_the_right_certificates_nothing_is_answered(house: House, way: str) -> None:
    token = house.token(AccessRole.ADMIN)
    house.learn()
    credentials = {
        "plaintext": None,
        "wrong authority": house.stranger.trust(house.client),
        "no client certificate": house.authority.trust(),
    }[way]
    before = contents(house.store)
    with house.channel(credentials) as channel:
        for method in METHODS:
            code, _ = outcome(channel, method, house.request(method, MINE), token)
            assert code is CODES.UNAVAILABLE, method.name
    assert contents(house.store) == before


def test_a_client_certificate_of_another_authority_is_refused(house: House) -> None:
    theirs = house.stranger.issue("client")
    ours = house.authority.pem.read_bytes()
    credentials = grpc.ssl_channel_credentials(ours, theirs[1].read_bytes(), theirs[0].read_bytes())
    with house.channel(credentials) as channel:
        code, _ = outcome(channel, METHODS[0], b"", house.token(AccessRole.ADMIN))
    assert code is CODES.UNAVAILABLE


def test_whoever_has_a_role_and_the_reach_is_let_in_everywhere_it_says(house: House) -> None:
    tokens = {role: house.token(role, tenant=MINE) for role in AccessRole}
    everything = house.token(AccessRole.ADMIN)
    house.learn()
    tried = 0
    for method in METHODS:
        right: Right = RIGHTS[method.name]
        for role in right.roles or {AccessRole.PREDICT}:
            token = everything if right.unlimited else tokens[role]
            code, said = outcome(house.service.channel, method, house.request(method, MINE), token)
            assert code not in REFUSED | {CODES.INTERNAL, CODES.UNKNOWN, CODES.UNAVAILABLE}, (
                method.name,
                role,
                said,
            )
            tried += 1
    assert tried > len(METHODS)


def test_a_stream_ends_with_the_token_that_opened_it(house: House) -> None:
    store, job = house.store, house.store.jobs.enqueue(register(MINE), request_id="").name
    _, lease = claim(store, job)
    secret = house.token(*AccessRole)
    house.learn()
    bearer = (("authorization", f"Bearer {secret}"),)
    messages: queue.Queue[inference_pb2.PredictRequest] = queue.Queue()
    asked = inference_pb2.PredictRequest(model=f"models/{MINE}", images=[plain((250, 0, 0))])
    messages.put(asked)
    predicting = house.service.inference.PredictStream(
        iter(messages.get, None), metadata=bearer, timeout=60
    )
    watching = house.service.adaptation.WatchAdaptationJob(
        adaptation_pb2.WatchAdaptationJobRequest(name=str(job)), metadata=bearer, timeout=60
    )
    next(predicting)
    for _ in store.jobs.events(job):
        next(watching)
    (name,) = (t.id for t in store.tokens.list(1000).items if t.matches(secret))
    store.tokens.revoke(TokenName(name))
    house.learn()
    messages.put(asked)
    store.jobs.event(lease, EventKind.WARNING, None, "something to tell")
    for stream in (predicting, watching):
        with pytest.raises(grpc.RpcError) as refused:
            list(stream)
        failed: Any = refused.value
        assert failed.code() is CODES.UNAUTHENTICATED


def register(tenant: str) -> JobDraft:
    return JobDraft(
        kind=JobKind.REGISTER,
        model=ModelName(tenant),
        source=None,
        target=None,
        incumbent=None,
        spec=JobSpec(),
    )


def test_refused_callers_stand_in_the_audit_log_once_a_kind(house: House) -> None:
    method = next(each for each in METHODS if each.name.endswith("/DeleteAlias"))
    for _ in range(30):
        outcome(house.service.channel, method, house.request(method, MINE), None)
    house.service.run(house.service.server._door.denials.flush)
    lines = [
        entry
        for entry in house.store.audit.list(page_size=1000).items
        if entry.action == "DeleteAlias" and entry.who == "nobody known"
    ]
    assert len(lines) == 1
    assert lines[0].why == "refused: UNAUTHENTICATED"
    assert "127.0.0.1" in lines[0].origin
