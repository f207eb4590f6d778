"""Crowds: thousands of open streams, and of sockets that say nothing or stop in the middle."""

from __future__ import annotations

import contextlib
import multiprocessing
import resource
import select
import socket
import time
from collections.abc import Iterator, Sequence
from functools import partial
from multiprocessing.connection import Connection as Pipe
from typing import Any, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.chaos.colours import MODEL, ask_once, matches, percentile, serve_colours
from tests.chaos.row import Row, Tally
from tests.chaos.world import Plan, World, place

PARTS = ("streams", "silent", "half-open")
HEALTH_SECONDS = 0.1
SLOW = "health slower by 100 ms at p99"
REAPED_SECONDS = 15.0
CHANNELS = 50
# The client's preface and empty SETTINGS (RFC 9113, 3.4 and 6.5): a connection that then says
# no more, not even to a ping.
HALF_OPEN = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"


def crowd(
    plan: Plan, *, streams: int = 10_000, sockets: int = 4_000, parts: Sequence[str] = PARTS
) -> Iterator[Row]:
    """So many streams, and then so many sockets, on one server; beside it one without a crowd."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 2 * sockets + 1000)), hard))
    with (
        place("sqlite", "crowd") as (home, _),
        World(home) as world,
        place("sqlite", "calm") as (calm, _),
        World(calm) as control,
    ):
        serve_colours(world, versions=1)
        for one in (world, control):
            one.service.serve.start()
            one.service.client().close()
        with Health(crowded=world, calm=control) as health:
            for part in parts:
                if part == "streams":
                    yield _streams(world, health, streams)
                else:
                    said = HALF_OPEN if part == "half-open" else b""
                    yield _sockets(world, health, part.replace("-", " "), said, sockets)
                plan.say(f"crowd: {part}")


class Health:
    """How long health checks take, of the server with the crowd and of one without.

    Both are asked, so that what this machine's other work costs is in both: a check that is
    slow only beside a crowd is the server's fault. None waits for the one before: of a
    server that stands still for seconds, all that were sent meanwhile are slow, not one.
    """

    def __init__(self, *, crowded: World, calm: World) -> None:
        self._targets = (crowded.service.target, calm.service.target)
        self._seconds: tuple[list[float], list[float]] = ([], [])
        self._open: list[Any] = []  # calls, whose type is made at run time too

    def __enter__(self) -> Self:
        self._stack = contextlib.ExitStack()
        self._channels = [
            self._stack.enter_context(grpc.insecure_channel(target)) for target in self._targets
        ]
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def begin(self) -> None:
        """Forget what was measured so far."""
        for seconds in self._seconds:
            seconds.clear()

    def ask(self) -> None:
        """Send each a check."""
        for channel, seconds in zip(self._channels, self._seconds, strict=True):
            call = _stub(channel).Check.future(health_pb2.HealthCheckRequest(), timeout=30)
            call.add_done_callback(partial(_note, seconds, time.monotonic()))
            self._open.append(call)

    def slow(self) -> bool:
        """Whether the crowd costs a check more than is allowed, once all are answered.

        Raises:
            grpc.RpcError: one was not.
        """
        while self._open:
            self._open.pop().result()
        crowded, calm = (percentile(seconds, 0.99) for seconds in self._seconds)
        return crowded - calm > HEALTH_SECONDS

    def measured(self) -> dict[str, float]:
        """The slowest but one in a hundred, beside the crowd and without it."""
        crowded, calm = (percentile(seconds, 0.99) * 1000 for seconds in self._seconds)
        return {"ms health p99": crowded, "ms health p99 of a server without a crowd": calm}


def _note(seconds: list[float], began: float, _answered: object) -> None:
    seconds.append(time.monotonic() - began)


def _streams(world: World, health: Health, count: int) -> Row:
    """Streams of a process of their own; meanwhile health is asked, and a prediction."""
    tally = Tally(SLOW, "unexpected refusals", "predictions lost")
    health.begin()
    ours, theirs = multiprocessing.Pipe()
    crowd = multiprocessing.get_context("spawn").Process(
        target=_hold_streams, args=(world.service.target, count, theirs), daemon=True
    )
    crowd.start()
    while not ours.poll():
        health.ask()
        time.sleep(0.02)
    held, refused, unexpected = ours.recv()
    for _ in range(100):
        health.ask()
        time.sleep(0.02)
    with grpc.insecure_channel(world.service.target) as channel:
        found = ask_once(channel)
        tally.note("predictions lost", wrong=found is None or not matches(found))
    crowd.kill()
    crowd.join()
    tally.note(SLOW, wrong=health.slow())
    tally["unexpected refusals"] = unexpected
    return Row(
        scenario="crowd: streams",
        did="streams opened at once and held, while health and a prediction are asked",
        times=count,
        broken=tally,
        measured={"held": held, "refused by name": refused, **health.measured()},
    )


def _hold_streams(target: str, count: int, told: Pipe) -> None:
    """Open health watches and keep those that are let in; in a process that is killed."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.insecure_channel(target, options) for _ in range(CHANNELS)]
    request = health_pb2.HealthCheckRequest(service=f"models/{MODEL}")
    calls = [_stub(channels[i % CHANNELS]).Watch(request) for i in range(count)]
    held = refused = unexpected = 0
    for call in calls:
        try:
            next(call)
            held += 1
        except grpc.RpcError as error:
            named = error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            refused, unexpected = refused + named, unexpected + (not named)
    told.send((held, refused, unexpected))
    time.sleep(600)


def _sockets(world: World, health: Health, kind: str, said: bytes, count: int) -> Row:
    tally = Tally(SLOW, f"not closed within {REAPED_SECONDS:g} s")
    host, port = world.service.target.split(":")
    health.begin()
    with contextlib.ExitStack() as stack:
        waiting = {}
        for _ in range(count):
            one = stack.enter_context(socket.create_connection((host, int(port)), timeout=10))
            one.sendall(said)
            one.setblocking(False)
            waiting[one.fileno()] = (one, time.monotonic())
        opened = time.monotonic()
        poll = select.poll()
        for descriptor in waiting:
            poll.register(descriptor, select.POLLIN | select.POLLHUP)
        longest, late = 0.0, 0
        while waiting and time.monotonic() < opened + 2 * REAPED_SECONDS:
            health.ask()
            time.sleep(0.02)
            for descriptor, _ in poll.poll(0):
                one, since = waiting[descriptor]
                if _is_closed(one):
                    poll.unregister(descriptor)
                    took = time.monotonic() - since
                    longest, late = max(longest, took), late + (took > REAPED_SECONDS)
                    del waiting[descriptor]
    tally.note(SLOW, wrong=health.slow())
    tally[f"not closed within {REAPED_SECONDS:g} s"] = late + len(waiting)
    return Row(
        scenario=f"crowd: {kind} sockets",
        did="connections that stay as they are until the server closes them",
        times=count,
        broken=tally,
        measured={"s until the last was closed": longest, **health.measured()},
    )


def _is_closed(one: socket.socket) -> bool:
    """Read what came; whether that was the end."""
    try:
        while True:
            if not one.recv(65536):
                return True
    except BlockingIOError:
        return False
    except OSError:
        return True


def _stub(channel: grpc.Channel) -> Any:  # its methods are made at run time, unknown to the types
    return health_pb2_grpc.HealthStub(channel)
