"""Crowds: thousands of open streams, and of sockets that say nothing or stop in the middle."""

from __future__ import annotations

import contextlib
import multiprocessing
import resource
import select
import socket
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection as Pipe
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.chaos.colours import MODEL, ask_once, matches, percentile, serve_colours
from tests.chaos.row import Row, Tally
from tests.chaos.world import Plan, World, place

HEALTH_SECONDS = 0.1
REAPED_SECONDS = 15.0
CHANNELS = 50
# The client's preface and empty SETTINGS (RFC 9113, 3.4 and 6.5): a connection that then says
# no more, not even to a ping.
HALF_OPEN = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"


def crowd(plan: Plan, *, streams: int = 10_000, sockets: int = 4_000) -> Iterator[Row]:
    """So many streams, and then so many sockets, on one server."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 2 * sockets + 1000)), hard))
    with place("sqlite", "crowd") as (home, _), World(home) as world:
        serve_colours(world, versions=1)
        world.service.serve.start()
        world.service.client().close()
        yield _streams(world, streams)
        plan.say(f"{streams} streams")
        for kind, said in (("silent", b""), ("half open", HALF_OPEN)):
            yield _sockets(world, kind, said, sockets)
            plan.say(f"{sockets} sockets, {kind}")


def _streams(world: World, count: int) -> Row:
    """Streams of a process of their own; meanwhile health is asked, and a prediction."""
    tally = Tally("health slower than 100 ms at p99", "unexpected refusals", "predictions lost")
    ours, theirs = multiprocessing.Pipe()
    crowd = multiprocessing.get_context("spawn").Process(
        target=_hold_streams, args=(world.service.target, count, theirs), daemon=True
    )
    crowd.start()
    seconds: list[float] = []
    with grpc.insecure_channel(world.service.target) as channel:
        while not ours.poll():
            seconds.append(_health(channel))
            time.sleep(0.02)
        held, refused, unexpected = ours.recv()
        for _ in range(100):
            seconds.append(_health(channel))
            time.sleep(0.02)
        found = ask_once(channel)
        tally.note("predictions lost", wrong=found is None or not matches(found))
    crowd.kill()
    crowd.join()
    p99 = percentile(seconds, 0.99)
    tally.note("health slower than 100 ms at p99", wrong=p99 > HEALTH_SECONDS)
    tally["unexpected refusals"] = unexpected
    return Row(
        scenario="crowd: streams",
        did="streams opened at once and held, while health and a prediction are asked",
        times=count,
        broken=tally,
        measured={"held": held, "refused by name": refused, "ms health p99": p99 * 1000},
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


def _sockets(world: World, kind: str, said: bytes, count: int) -> Row:
    tally = Tally("health slower than 100 ms at p99", f"not closed within {REAPED_SECONDS:g} s")
    host, port = world.service.target.split(":")
    seconds: list[float] = []
    with contextlib.ExitStack() as stack:
        channel = stack.enter_context(grpc.insecure_channel(world.service.target))
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
            seconds.append(_health(channel))
            for descriptor, _ in poll.poll(20):
                one, since = waiting[descriptor]
                if _is_closed(one):
                    poll.unregister(descriptor)
                    took = time.monotonic() - since
                    longest, late = max(longest, took), late + (took > REAPED_SECONDS)
                    del waiting[descriptor]
    p99 = percentile(seconds, 0.99)
    tally.note("health slower than 100 ms at p99", wrong=p99 > HEALTH_SECONDS)
    tally[f"not closed within {REAPED_SECONDS:g} s"] = late + len(waiting)
    return Row(
        scenario=f"crowd: {kind} sockets",
        did="connections that stay as they are until the server closes them",
        times=count,
        broken=tally,
        measured={"s until the last was closed": longest, "ms health p99": p99 * 1000},
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


def _health(channel: grpc.Channel) -> float:
    """Seconds that one check took."""
    began = time.monotonic()
    _stub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
    return time.monotonic() - began


def _stub(channel: grpc.Channel) -> Any:  # its methods are made at run time, unknown to the types
    return health_pb2_grpc.HealthStub(channel)
