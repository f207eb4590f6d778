"""Other Python servers of the same protocol, each in an environment of its own.

    ./run bench serving --peers

makes the environments from ``requirements/kserve.txt`` and ``requirements/mlserver.txt``.
Each serves the same file with the same threading as ours; the calls are moved off the
event loop by hand, which neither does by itself ("as written" is KServe without that).
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
from benchmarks import standing
from benchmarks.load import call

ROOT = Path(__file__).resolve().parent.parent
OIP = "/inference.GRPCInferenceService/ModelInfer"
START_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A server by its name, its environment, and the script that starts it there."""

    name: str
    environment: str
    script: str
    arguments: tuple[str, ...] = ()


PEERS = (
    Peer(name="KServe", environment="kserve", script="peer_kserve.py", arguments=("--threads",)),
    Peer(name="KServe, as written", environment="kserve", script="peer_kserve.py"),
    Peer(name="MLServer", environment="mlserver", script="peer_mlserver.py"),
)


@dataclass(frozen=True, kw_only=True)
class Running:
    """A peer that has answered, ``seconds`` after it was started."""

    pid: int
    port: int
    seconds: float


@contextlib.contextmanager
def serving(peer: Peer, onnx: bytes, request: bytes) -> Iterator[Running]:
    """Run *peer* with the file *onnx* until the block ends; *request* tells when it is ready.

    Raises:
        RuntimeError: its environment is missing, or it does not answer.
    """
    python = ROOT / ".cache" / peer.environment / "bin" / "python"
    if not python.exists():
        raise RuntimeError(f"there is no {python}; start this with ./run bench serving --peers")
    with tempfile.TemporaryDirectory(prefix=f"{peer.environment}-") as folder:
        file, log = Path(folder, "model.onnx"), Path(folder, "log")
        file.write_bytes(onnx)
        port = _free_port()
        began = time.perf_counter()
        with log.open("wb") as output:
            process = subprocess.Popen(
                [python, ROOT / "benchmarks" / peer.script, standing.MODEL, file, str(port),
                 str(_free_port()), *peer.arguments],
                cwd=folder, stdout=output, stderr=output,
                env={name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
            )  # fmt: skip
        try:
            while not _answers(port, request):
                if process.poll() is not None or time.perf_counter() - began > START_SECONDS:
                    raise RuntimeError(f"{peer.name} does not answer: {log.read_text()[-3000:]}")
                time.sleep(0.02)
            yield Running(pid=process.pid, port=port, seconds=time.perf_counter() - began)
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answers(port: int, request: bytes) -> bool:
    try:
        call(port, OIP, request)
    except grpc.RpcError:
        return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
