"""Load by h2load: gRPC requests from outside Python, every answer's size checked.

h2load reads neither gRPC's framing nor its status. So the request is framed here, and
what came back must be, to the byte, as many answers of the right size as requests were
sent: a refusal has no body.
"""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

HEADERS = ("content-type: application/grpc", "te: trailers")


@dataclass(frozen=True, kw_only=True)
class Call:
    """One method at one port, and the request that is repeated. ``answer`` is a real one.

    ``token`` is who asks, if the server wants to know.
    """

    port: int
    method: str  # /package.Service/Method
    request: bytes
    answer: bytes
    token: str = ""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What a run of h2load measured: requests a second, and each one's milliseconds, sorted."""

    rate: float
    milliseconds: NDArray[np.float64]

    def percentile(self, share: float) -> float:
        """The milliseconds within which *share* percent of the requests were answered."""
        return float(np.percentile(self.milliseconds, share))


def call(port: int, method: str, request: bytes, *, token: str = "") -> Call:
    """Try a request once, and keep the answer beside it."""
    shown = [("authorization", f"Bearer {token}")] if token else []
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options) as channel:
        multicallable: Any = channel.unary_unary(method)
        answer: bytes = multicallable(request, timeout=60, metadata=shown)
    return Call(port=port, method=method, request=request, answer=answer, token=token)


def h2load(to: Call, *, clients: int, requests: int, rate: float | None = None) -> Load:
    """Send *requests*, one at a time from each of so many *clients*, and wait for all.

    As fast as they are answered; or *rate* a second, evenly, over one connection and with
    as many under way at most (clients that pace themselves would all send at one moment).

    Raises:
        RuntimeError: h2load is not installed, or an answer is missing or of another size.
    """
    pace = ["-c", str(clients), "-m", "1"]
    if rate is not None:
        pace = ["-c", "1", "-m", str(clients), "--rps", str(max(round(rate), 1))]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        told = _h2load(to, "-n", str(requests), *pace, f"--log-file={log}")
        rows = np.loadtxt(log, dtype=np.int64, ndmin=2)
    received = re.search(r"\((\d+)\) data\s*$", told, re.MULTILINE)
    wanted = requests * (5 + len(to.answer))
    if received is None or int(received[1]) != wanted or len(rows) != requests:
        raise RuntimeError(f"not every answer came back whole ({wanted} bytes): {told}")
    seconds = float((rows[:, 0] + rows[:, 2]).max() - rows[:, 0].min()) / 1e6
    return Load(rate=requests / seconds, milliseconds=np.sort(rows[:, 2]) / 1000)


def flood(to: Call, *, clients: int, seconds: float) -> float:
    """Send without pause from each of so many *clients*; the replies a second, whatever they say.

    Raises:
        RuntimeError: h2load is not installed, or nothing came back.
    """
    told = _h2load(to, "-D", f"{seconds * 1000:.0f}ms", "-c", str(clients), "-m", "1")
    found = re.search(r"finished in \S+, ([\d.]+) req/s", told)
    if found is None or not float(found[1]):
        raise RuntimeError(f"nothing came back: {told}")
    return float(found[1])


def _h2load(to: Call, *arguments: str) -> str:
    """What h2load said of sending a call's request again and again."""
    program = shutil.which("h2load")
    if program is None:
        raise RuntimeError("h2load is not installed; on Debian it is in nghttp2-client")
    shown = (f"authorization: Bearer {to.token}",) if to.token else ()
    words = [word for header in (*HEADERS, *shown) for word in ("-H", header)]
    with tempfile.TemporaryDirectory() as folder:
        body = Path(folder, "body")
        body.write_bytes(struct.pack(">?I", False, len(to.request)) + to.request)
        ran = subprocess.run(
            [program, "-t", "1", *arguments, *words,
             "-d", str(body), f"http://127.0.0.1:{to.port}{to.method}"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    return ran.stdout
