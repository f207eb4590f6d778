"""The programs in Go and Java: generated, compiled and run with what Debian packages.

apt-get install golang-go golang-google-grpc-dev golang-google-protobuf-dev
    golang-github-golang-protobuf-1-5-dev protoc-gen-go-1-5 protoc-gen-go-grpc
apt-get install default-jdk-headless libgrpc-java libprotobuf-java libnetty-java
    libperfmark-java protobuf-compiler protobuf-compiler-grpc-java-plugin
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from tests.integration.rpc_server import Service, classifier, model, plain, promote, version

ROOT = Path(__file__).resolve().parents[2]
GO_PACKAGES = Path("/usr/share/gocode")  # where Debian keeps sources and jars
JARS = Path("/usr/share/java")
NEEDED = [
    *("grpc-api", "grpc-context", "grpc-core", "grpc-netty", "grpc-protobuf", "grpc-protobuf-lite"),
    *("grpc-stub", "protobuf", "guava", "perfmark-api", "jsr305", "geronimo-annotation-1.3-spec"),
    *(f"netty-{part}" for part in ("buffer", "codec", "codec-http", "codec-http2", "codec-socks")),
    *(f"netty-{part}" for part in ("common", "handler", "handler-proxy", "resolver", "transport")),
    "netty-transport-native-unix-common",
]
CLASSPATH = [JARS / f"{name}.jar" for name in NEEDED]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def has(*programs: str) -> bool:
    return all(shutil.which(program) for program in programs)


def run(
    words: list[object], environment: Mapping[str, str] | None = None, *, expected: int = 0
) -> str:
    """What a program printed."""
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [str(word) for word in words],
        cwd=ROOT,
        env=os.environ | {"PATH": programs} | dict(environment or {}),
        check=False,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == expected, done.stdout + done.stderr
    return done.stdout + done.stderr


def generate(language: str, folder: Path, environment: Mapping[str, str] | None = None) -> None:
    template = f"clients/{language}/buf.gen.yaml"
    words = ["buf", "generate", "--template", template, "-o", folder]
    run([*words, "--path", "protos/acclimate/v1"], environment)


def check(program: list[object], service: Service, folder: Path) -> None:
    """A stream of three images, of which one is none; and a server that is not there."""
    name = model(service.store, folder.name)
    promote(service, name, version(service.store, name, classifier(30)))
    green, none = folder / "green.png", folder / "none.png"
    green.write_bytes(plain((10, 240, 10)))
    none.write_text("nothing")
    here = {"ACCLIMATE_SERVER": f"127.0.0.1:{service.port}"}
    lines = run([*program, name.model, green, none, green], here).splitlines()
    best = f"{green} green 1.000 {name}/versions/1"
    assert (lines[0], lines[2]) == (best, best)
    assert lines[1].startswith(f"{none} BAD_IMAGE not a JPEG")
    nowhere = {"ACCLIMATE_SERVER": "127.0.0.1:1"}
    told = run([*program, name.model, green], nowhere, expected=1)
    assert ": " in told.splitlines()[-1]


@pytest.mark.skipif(
    not (has("go", "protoc-gen-go", "protoc-gen-go-grpc") and GO_PACKAGES.is_dir()),
    reason="needs Go, and gRPC for it as Debian packages it",
)
def test_the_go_program_streams_predictions(service: Service, tmp_path: Path) -> None:
    module = tmp_path / "src/example.com/you/acclimate"
    generate("go", module)
    (module / "predict").mkdir()
    shutil.copy(ROOT / "clients/go/main.go", module / "predict")
    built = tmp_path / "predict"
    words = ["go", "build", "-o", built, "example.com/you/acclimate/predict"]
    packages = f"{tmp_path}{os.pathsep}{GO_PACKAGES}"
    run(words, {"GO111MODULE": "off", "GOPATH": packages, "GOCACHE": str(tmp_path / "cache")})
    check([built], service, tmp_path)


@pytest.mark.skipif(
    not (has("javac", "java", "protoc", "grpc_java_plugin") and all(map(Path.is_file, CLASSPATH))),
    reason="needs a JDK, and gRPC for it as Debian packages it",
)
def test_the_java_program_streams_predictions(service: Service, tmp_path: Path) -> None:
    plugin = tmp_path / "protoc-gen-grpc-java"  # the name that others give it
    plugin.symlink_to(shutil.which("grpc_java_plugin") or "")
    sources = tmp_path / "sources"
    path = f"{Path(sys.executable).parent}{os.pathsep}{tmp_path}{os.pathsep}{os.environ['PATH']}"
    generate("java", sources, {"PATH": path})
    rpc = importlib.util.find_spec("google.rpc")  # Debian has no jar of these messages
    assert rpc is not None
    assert rpc.submodule_search_locations is not None
    common = Path(next(iter(rpc.submodule_search_locations))).parents[1]
    details = ("google/rpc/status.proto", "google/rpc/error_details.proto")
    run(["protoc", "-I", common, "-I", "/usr/include", f"--java_out={sources}", *details])
    classes, jars = tmp_path / "classes", os.pathsep.join(map(str, CLASSPATH))
    program = ROOT / "clients/java/Predict.java"  # and what it needs of the sources, not all
    run(["javac", "-nowarn", "-d", classes, "-cp", jars, "-sourcepath", sources, program])
    check(["java", "-cp", f"{classes}{os.pathsep}{jars}", "Predict"], service, tmp_path)
