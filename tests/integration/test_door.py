"""The door of a real process: what it refuses to start with, TLS, and what it never tells."""

from __future__ import annotations

import json
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.integration.certificates import Authority
from tests.integration.rpc_server import fresh_store, running
from typer.testing import CliRunner

from acclimate import TLS, Client, Example
from acclimate.cli import app
from acclimate.errors import NotAllowed, Overloaded, Unavailable
from acclimate_service.config import ServeSettings
from acclimate_service.domain.access import TokenDraft, principal_of
from acclimate_service.domain.errors import OpenDoor, TLSUnusable
from acclimate_service.rpc.certificates import Renewal, TLSFiles
from acclimate_service.rpc.rates import USUAL, Rates
from acclimate_service.rpc.server import Limits
from acclimate_service.serve import admission, check_door

OPEN = "0.0.0.0"  # noqa: S104  what must not be listened on by accident


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("authority"))


def settings(**values: Any) -> ServeSettings:
    return ServeSettings(**values)


def files(authority: Authority, name: str = "server") -> dict[str, Path]:
    certificate, key = authority.issue(name)
    return {"server_certificate": certificate, "server_key": key}


# ── what it starts with ──────────────────────────────────────────────────────


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_on_loopback_nobody_is_asked(host: str) -> None:
    assert check_door(settings(host=host)) is None
    assert not settings(host=host).asks_for_tokens


@pytest.mark.parametrize("host", [OPEN, "::", "192.0.2.7", "example.org"])
def test_an_open_door_needs_to_be_asked_for(host: str) -> None:
    with pytest.raises(OpenDoor, match="ACCLIMATE_INSECURE"):
        check_door(settings(host=host))
    assert check_door(settings(host=host, insecure=True)) is None


def test_beyond_loopback_tls_alone_and_tokens_alone_are_not_enough(authority: Authority) -> None:
    tls = files(authority)
    assert check_door(settings(host=OPEN, **tls)) is not None
    assert settings(host=OPEN, **tls).asks_for_tokens
    with pytest.raises(OpenDoor, match="tokens"):
        check_door(settings(host=OPEN, auth=False, **tls))
    with pytest.raises(OpenDoor, match="TLS"):
        check_door(settings(host=OPEN, auth=True))


def test_with_tls_tokens_are_asked_for_on_loopback_too(authority: Authority) -> None:
    tls = files(authority)
    assert settings(**tls).asks_for_tokens
    assert not settings(**tls, auth=False).asks_for_tokens


def test_rates_hold_wherever_callers_are_told_apart_unless_they_are_set(
    authority: Authority,
) -> None:
    tls = files(authority)
    for shared in (settings(**tls), settings(host=OPEN, insecure=True), settings(auth=True)):
        assert admission(shared).rates == USUAL
    assert admission(settings()).rates == Rates()
    off = settings(**tls, requests_per_second=0, upload_mib_per_second=0)
    assert admission(off).rates == Rates()
    chosen = settings(requests_per_second=7, upload_mib_per_second=2)
    assert admission(chosen).rates == Rates(requests=7, upload_bytes=2 * 2**20)


def test_half_of_tls_is_refused(authority: Authority) -> None:
    tls = files(authority)
    for half in (
        {"server_certificate": tls["server_certificate"]},
        {"server_key": tls["server_key"]},
        {"client_ca": authority.pem},
    ):
        with pytest.raises(TLSUnusable, match="ACCLIMATE_SERVER_CERTIFICATE"):
            check_door(settings(**half))


def test_files_that_cannot_be_used_are_named(authority: Authority, tmp_path: Path) -> None:
    certificate, key = authority.issue("good")
    _, other_key = authority.issue("other")
    expired, expired_key = authority.issue("expired", days=0)
    encrypted, text = tmp_path / "encrypted.key", tmp_path / "text.pem"
    subprocess.run(
        ["openssl", "ec", "-in", key, "-aes128", "-passout", "pass:x", "-out", encrypted],
        check=True,
        capture_output=True,
    )
    text.write_text("this is no certificate")
    time.sleep(1.1)  # until what is valid for 0 days has ended
    for given, named in (
        (TLSFiles(certificate=tmp_path / "absent.pem", key=key), "absent.pem.*No such file"),
        (TLSFiles(certificate=certificate, key=other_key), "other.key is not the key of"),
        (TLSFiles(certificate=expired, key=expired_key), "expired.pem.*expired"),
        (TLSFiles(certificate=certificate, key=encrypted), "encrypted.key is encrypted"),
        (TLSFiles(certificate=text, key=key), "text.pem"),
        (TLSFiles(certificate=certificate, key=key, client_ca=text), "text.pem"),
        (TLSFiles(certificate=certificate, key=key, client_ca=certificate), "no certificate of an"),
    ):
        with pytest.raises(TLSUnusable, match=named):
            Renewal(given)


def test_a_renewed_certificate_is_given_out_and_a_broken_one_is_not(authority: Authority) -> None:
    certificate, key = authority.issue("renewed")
    renewal = Renewal(TLSFiles(certificate=certificate, key=key))
    assert renewal.renewed() is None
    before = certificate.read_bytes()
    authority.issue("renewed")
    assert certificate.read_bytes() != before
    assert renewal.renewed() is not None
    assert renewal.renewed() is None
    certificate.write_bytes(before)  # no longer its key's
    assert renewal.renewed() is None
    authority.issue("renewed")
    assert renewal.renewed() is not None


# ── a real process ───────────────────────────────────────────────────────────


class House:
    """A server process with TLS, its store, and its log."""

    def __init__(self, folder: Path, authority: Authority, **more: object) -> None:
        self.home = folder / "home"
        self.home.mkdir()
        self.authority = authority
        self.certificate, self.key = authority.issue("house")
        self.log = folder / "log"
        self.metrics_port = more.get("metrics_port")
        self._environment = os.environ | {
            "ACCLIMATE_HOME": str(self.home),
            "ACCLIMATE_PORT": "0",
            "ACCLIMATE_SERVER_CERTIFICATE": str(self.certificate),
            "ACCLIMATE_SERVER_KEY": str(self.key),
            **{f"ACCLIMATE_{name.upper()}": str(value) for name, value in more.items()},
        }

    def token(self, name: str, *roles: str, **limits: Any) -> str:
        store = fresh_store(self.home)
        principal = principal_of(
            name, roles=roles, models=limits.get("models", ()), domains=limits.get("domains", ())
        )
        certificate = limits.get("certificate", "")
        draft = TokenDraft(principal=principal, certificate=certificate)
        minted = store.tokens.create(draft, by="a test")
        store.close()
        return minted.secret

    @contextmanager
    def open(self) -> Iterator[None]:
        with self.log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "acclimate_service.serve"],
                env=self._environment,
                stdout=output,
                stderr=output,
            )
        try:
            until = time.monotonic() + 60
            while not (self.home / "serve.port").is_file():
                assert process.poll() is None, self.log.read_text()
                assert time.monotonic() < until
                time.sleep(0.05)
            yield
        finally:
            process.terminate()
            process.wait(30)

    @property
    def target(self) -> str:
        return f"127.0.0.1:{(self.home / 'serve.port').read_text().strip()}"

    def client(self, token: str | None = None, shown: tuple[Path, Path] | None = None) -> Client:
        certificate, key = shown or (None, None)
        tls = TLS(ca=self.authority.pem, certificate=certificate, key=key)
        return Client(self.target, token=token, tls=tls, retries=0)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def scrape(url: str, context: ssl.SSLContext, token: str = "") -> tuple[int, str]:
    request = urllib.request.Request(url)  # noqa: S310  ours
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, context=context, timeout=10) as answer:  # noqa: S310
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.fixture(scope="module")
def house(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A server with TLS, tokens and metrics, for those that need no other settings."""
    house = House(tmp_path_factory.mktemp("house"), authority, metrics_port=free_port())
    with house.open():
        yield house


def test_tokens_count_within_seconds_and_no_secret_is_ever_told(
    authority: Authority, house: House
) -> None:
    root = house.token("root", "admin")
    time.sleep(1.5)  # the promise is "within seconds"
    url = f"https://127.0.0.1:{house.metrics_port}/metrics"
    trust = ssl.create_default_context(cafile=str(authority.pem))
    with house.client(root) as admin, house.client() as nobody:
        assert nobody.health()
        with pytest.raises(NotAllowed) as refused:
            list(nobody.models())
        assert refused.value.reason == "UNAUTHENTICATED"
        token, camera = admin.create_token("camera", ["upload"], domains=["night-*"])
        with house.client(camera) as uploader:
            uploader.create_domain("night-1", ["a", "b"])
            with pytest.raises(NotAllowed):
                uploader.create_domain("day-1", ["a", "b"])
            assert [found.name for found in uploader.domains()] == ["domains/night-1"]
            _, rotated = admin.rotate_token("camera")  # without an overlap
            with pytest.raises(NotAllowed, match="revoked"):
                list(uploader.domains())
        with house.client(rotated) as uploader:
            list(uploader.domains())
            for live in admin.tokens():
                if live.principal == "camera" and live.revoked_at is None:
                    admin.revoke_token(live.name)
            with pytest.raises(NotAllowed, match="revoked"):
                list(uploader.domains())
        lines = list(admin.audit(subject="domains/night-1"))
        assert [(line.who, line.action) for line in lines] == [("camera", "CreateDomain")]
        assert scrape(url, trust)[0] == 401
        status, told = scrape(url, trust, root)
        assert (status, "acclimate_rpc_total" in told) == (200, True)
        everything = told + repr(list(admin.tokens())) + repr(list(admin.audit()))
    assert token.name in everything
    everything += house.log.read_text()
    kept = b"".join(path.read_bytes() for path in house.home.rglob("*") if path.is_file())
    for secret in (root, camera, rotated):
        random = secret[len("acclimate_") + 16 + 1 :]
        assert random not in everything
        assert random.encode() not in kept


def test_the_command_line_shows_tokens_and_the_audit_log(
    authority: Authority, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = house.token("clerk", "admin")
    time.sleep(1.5)
    monkeypatch.setenv("ACCLIMATE_SERVER", house.target)
    monkeypatch.setenv("ACCLIMATE_TLS_CA", str(authority.pem))
    monkeypatch.setenv("ACCLIMATE_TOKEN", secret)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words: str) -> str:
        result = CliRunner().invoke(app, list(words))
        assert result.exit_code == 0, result.output
        return result.output

    made = json.loads(run("tokens", "create", "line-1", "--role", "upload", "--json"))
    assert made["token"]["roles"] == ["upload"]
    rotated = run("tokens", "rotate", "line-1", "--overlap", "1d")
    assert "acclimate_" in rotated
    run("tokens", "revoke", made["token"]["name"])
    listed = run("tokens", "list", "--all")
    assert re.search(r"line-1 +upload +all +all +secret +revoked", listed)
    told = run("audit", "--who", "clerk", "--since", "1h")
    assert "clerk: RevokeToken " + made["token"]["name"] in told
    assert made["secret"] not in listed + told
    assert CliRunner().invoke(app, ["audit", "--since", "soon"]).exit_code == 2


def test_a_client_certificate_stands_for_its_principal(
    authority: Authority, tmp_path: Path
) -> None:
    house = House(tmp_path, authority, client_ca=authority.pem)
    known = authority.issue("camera-7", uri="spiffe://plant/camera-7")
    unknown = authority.issue("camera-8")
    house.token("camera", "upload", certificate="CN:camera-7")
    with house.open():
        with house.client(shown=known) as client:
            client.create_domain("line", ["a", "b"])
            with pytest.raises(NotAllowed) as refused:
                client.rollback("shop")
            assert refused.value.reason == "PERMISSION_DENIED"
        with house.client(shown=unknown) as client, pytest.raises(NotAllowed):
            list(client.domains())
        with house.client() as client, pytest.raises(Unavailable):
            list(client.domains())


def test_a_certificate_is_renewed_without_a_restart(authority: Authority, house: House) -> None:
    def serial() -> str:
        port = int((house.home / "serve.port").read_text())
        context = ssl.create_default_context(cafile=str(authority.pem))
        context.set_alpn_protocols(["h2"])
        with (
            socket.create_connection(("127.0.0.1", port), timeout=10) as raw,
            context.wrap_socket(raw, server_hostname="localhost") as wrapped,
        ):
            return str((wrapped.getpeercert() or {})["serialNumber"])

    first = serial()
    authority.issue("house")
    assert serial() != first


def test_no_port_speaks_an_old_version_or_a_weak_cipher(authority: Authority, house: House) -> None:
    assert isinstance(house.metrics_port, int)
    for port in (int(house.target.rpartition(":")[2]), house.metrics_port):
        for newest, ciphers, spoken in (
            (ssl.TLSVersion.TLSv1_1, "ALL", False),
            (ssl.TLSVersion.TLSv1_2, "ECDHE+AES128+SHA256:ECDHE+AES256+SHA384:!AESGCM", False),
            (ssl.TLSVersion.TLSv1_2, "AES256-GCM-SHA384", False),  # no forward secrecy
            (ssl.TLSVersion.TLSv1_2, "ECDHE+AESGCM", True),
            (ssl.TLSVersion.TLSv1_3, "ECDHE+AESGCM", True),
        ):
            context = ssl.create_default_context(cafile=str(authority.pem))
            context.set_alpn_protocols(["h2"])
            context.set_ciphers(f"{ciphers}:@SECLEVEL=0")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of the old versions
                context.minimum_version = ssl.TLSVersion.TLSv1
                context.maximum_version = newest
            with socket.create_connection(("127.0.0.1", port), timeout=10) as raw:
                try:
                    context.wrap_socket(raw, server_hostname="localhost").close()
                    answered = True
                except OSError:
                    answered = False
            assert answered is spoken, (port, newest, ciphers)


def test_who_sends_too_much_is_told_when_to_go_on_and_keeps_nobody_else_from_an_answer(
    authority: Authority, tmp_path: Path
) -> None:
    house = House(tmp_path, authority, requests_per_second=2)
    token, other = house.token("ada", "predict"), house.token("bob", "predict")
    flooding, refused = threading.Event(), list[Overloaded]()
    flooding.set()
    with house.open(), house.client(token) as ada, house.client(other) as bob:

        def flood() -> None:
            while flooding.is_set():
                try:
                    ada.models()
                except Overloaded as error:
                    refused.append(error)

        with ThreadPoolExecutor(8) as crowd:
            ended = [crowd.submit(flood) for _ in range(8)]
            while len(refused) < 200:
                assert not any(each.done() for each in ended)
                list(bob.models())  # two at once, and then two a second
                time.sleep(0.5)
            flooding.clear()
        assert {error.reason for error in refused} == {"RATE_EXCEEDED"}
        assert all(0 < (error.retry_after or 0) <= 1 for error in refused)
        assert ada.health()


def test_a_database_password_is_never_told(tmp_path: Path) -> None:
    password = "hunter2-0f9d1c"
    url = f"postgresql+psycopg://ada:{password}@127.0.0.1:{free_port()}/absent"
    for module in ("serve", "tokens"):
        environment = os.environ | {
            "ACCLIMATE_HOME": str(tmp_path),
            "ACCLIMATE_PORT": "0",
            "ACCLIMATE_DATABASE_URL": url,
        }
        done = subprocess.run(
            [sys.executable, "-m", f"acclimate_service.{module}"],
            env=environment,
            input="{}",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode != 0, module
        assert password not in done.stdout + done.stderr
        assert done.stdout + done.stderr
    told = repr(ServeSettings(database_url=url))
    assert password not in told
    assert "home" in told


def test_the_first_token_is_made_beside_the_store(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "acclimate", "tokens", "create", "root", "--role", "admin"]
    done = subprocess.run(
        [*command, "--local", "--home", str(tmp_path / "home"), "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    answer = json.loads(done.stdout)
    assert re.fullmatch(r"acclimate_[a-z2-7]{16}_[\w-]{43}", answer["secret"])
    store = fresh_store(tmp_path / "home")
    (token,) = store.tokens.list().items
    assert token.matches(answer["secret"])
    (entry,) = store.audit.list().items
    assert (entry.action, entry.origin) == ("CreateToken", "cli")
    store.close()


def refused(target: str, tls: TLS) -> Unavailable:
    """What a client that is given these files is told, and told at once."""
    example = Example(image=b"x", label="a")
    with Client(target, tls=tls, patience=1000) as client, pytest.raises(Unavailable) as told:
        client.upload("night", [example])
    assert told.value.reason == "TLS_REFUSED"
    return told.value


def test_a_client_is_told_what_is_wrong_with_tls_and_not_that_nobody_answers(
    authority: Authority, house: House, tmp_path: Path
) -> None:
    other = Authority.make(tmp_path)
    assert "ACCLIMATE_TLS_CA" in str(refused(house.target, TLS(ca=other.pem)))
    misnamed = TLS(ca=authority.pem, name="elsewhere.example")
    assert "ACCLIMATE_TLS_NAME" in str(refused(house.target, misnamed))


def test_a_client_with_tls_is_told_that_a_server_has_none(
    authority: Authority, tmp_path: Path
) -> None:
    store = fresh_store(tmp_path)
    with running(store, Limits()) as plain:
        assert "plain text" in str(refused(f"127.0.0.1:{plain.port}", TLS(ca=authority.pem)))
    store.close()


def test_a_file_that_is_not_what_it_is_given_for_is_refused_by_name(authority: Authority) -> None:
    # gRPC ends the process for a certificate without a key.
    certificate, key = authority.issue("camera")
    _, another = authority.issue("gate")
    for tls, told in (
        (TLS(certificate=certificate), "both or none"),
        (TLS(ca=key), f"{key} holds no certificate"),
        (TLS(certificate=certificate, key=another), "key values mismatch"),
        (TLS(certificate=certificate, key=authority.pem), str(authority.pem)),
    ):
        with pytest.raises(ValueError, match=re.escape(told)):
            Client("127.0.0.1:1", tls=tls)
