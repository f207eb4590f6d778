"""A served model whose answers tell its version, and clients that hold replies to that."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc
import numpy as np
from tests.chaos.row import Tally
from tests.chaos.world import World
from tests.integration.rpc_server import ask, classifier, model, plain, version

from acclimate.v1 import inference_pb2, inference_pb2_grpc
from acclimate_service.domain.names import AliasName, VersionName

MODEL = "colours"
COLOUR = (200, 100, 50)
IMAGE = plain(COLOUR)


def gain_of(name: str) -> float:
    """What the version's logits are a multiple by: its number."""
    return float(name.rsplit("/", 1)[1])


def serve_colours(world: World, *, versions: int) -> list[VersionName]:
    """Versions 1, 2, … of a model, of which the first is in production."""
    owner = model(world.store, MODEL)
    made = [version(world.store, owner, classifier(number + 1)) for number in range(versions)]
    world.store.registry.set_alias(AliasName(MODEL, "production"), made[0])
    return made


def matches(answer: inference_pb2.PredictResponse) -> bool:
    """Whether the reply is what the version that it names says."""
    expected = [gain_of(answer.version) * value / 255 for value in COLOUR]
    return np.allclose(answer.predictions[0].logits, expected, atol=1e-3)


def ask_once(channel: grpc.Channel) -> inference_pb2.PredictResponse | None:
    """One reply; None if there is none."""
    request = ask(f"models/{MODEL}", IMAGE, logits=True)
    try:
        return inference_pb2_grpc.InferenceServiceStub(channel).Predict(request, timeout=30)
    except grpc.RpcError:
        return None


@dataclass
class Answers:
    """What clients were told; threads share it. Times are of ``time.monotonic``."""

    spans: list[tuple[float, float]] = field(default_factory=list)  # of the good: sent, answered
    tally: Tally = field(default_factory=lambda: Tally("failed", "of another version"))
    refused: list[tuple[float, grpc.StatusCode, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def good(self) -> int:
        """How many were answered."""
        return len(self.spans)

    @property
    def seconds(self) -> list[float]:
        """How long each answer took."""
        return [ended - began for began, ended in self.spans]


class Clients:
    """Threads that ask one after another, until the block ends. Several share a connection.

    Between two requests each rests for *rest* seconds.
    """

    def __init__(
        self,
        target: str,
        answers: Answers,
        *,
        threads: int,
        images: Sequence[bytes] = (IMAGE,),
        until_refused: bool = False,
        rest: float = 0.0,
    ) -> None:
        self._answers = answers
        self._request = ask(f"models/{MODEL}", *images, logits=True)
        self._until_refused = until_refused
        self._rest = rest
        self._stop = threading.Event()
        # Without the transparent retry: what the server refuses is to be seen.
        options = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
        self._channels = [
            grpc.insecure_channel(target, options) for _ in range(max(1, threads // 4))
        ]
        self._threads = [
            threading.Thread(target=self._ask, args=(self._channels[i % len(self._channels)],))
            for i in range(threads)
        ]

    def _ask(self, channel: grpc.Channel) -> None:
        predict = inference_pb2_grpc.InferenceServiceStub(channel).Predict
        answers = self._answers
        while not self._stop.wait(self._rest):
            began = time.monotonic()
            try:
                answer = predict(self._request, timeout=60)
            except grpc.RpcError as error:
                with answers.lock:
                    answers.refused.append((began, error.code(), error.details() or ""))
                if self._until_refused:
                    return
                continue
            with answers.lock:
                answers.spans.append((began, time.monotonic()))
                answers.tally.note("of another version", wrong=not matches(answer))

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(90)
        for channel in self._channels:
            channel.close()
        assert not any(thread.is_alive() for thread in self._threads), "a prediction hangs"


def percentile(values: Sequence[float], share: float) -> float:
    """Of *values*; 0 if there are none."""
    return float(np.quantile(values, share)) if values else 0.0
