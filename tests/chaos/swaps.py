"""Aliases that move under load, versions that rotted on disk, servers told to stop."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator

import grpc
from tests.chaos.colours import (
    MODEL,
    Answers,
    Clients,
    ask_once,
    matches,
    percentile,
    serve_colours,
)
from tests.chaos.row import Row, Tally
from tests.chaos.world import Plan, World, place
from tests.integration.rpc_server import plain

from acclimate import AcclimateError, Client
from acclimate_service.domain.names import VersionName
from acclimate_service.store.folder import FolderBlobs

VERSIONS = 4  # more than stay loaded, so that most moves load one
EXIT_SECONDS = 30.0
SURELY = 0.15  # seconds after which a request that was sent has been taken
BUSY = [plain((200, 100, 50), side=512)] * 16  # an answer that takes much longer than that


def swaps(plan: Plan, *, times: int = 1024, clients: int = 32) -> Iterator[Row]:
    """So many moves of an alias under so many clients."""
    answers = Answers()
    moves: list[float] = []
    rounds = plan.rounds(times)
    with place("sqlite", "swaps") as (home, _), World(home) as world:
        versions = serve_colours(world, versions=VERSIONS)
        world.service.serve.start()
        with (
            world.service.client() as client,
            Clients(world.service.target, answers, threads=clients),
        ):
            for number in rounds:
                began = time.monotonic()
                client.promote(MODEL, str(versions[number % VERSIONS]))
                moves.append(time.monotonic() - began)
                if number % 128 == 127:
                    plan.say(f"{number + 1} of {times} swaps, {answers.good} answers")
    answers.tally["failed"] = len(answers.refused)
    yield Row(
        scenario="swaps",
        did=f"an alias moved among {VERSIONS} versions under {clients} clients",
        times=rounds.done,
        broken=answers.tally,
        measured={
            "predictions": answers.good,
            "ms p50": percentile(answers.seconds, 0.5) * 1000,
            "ms p99": percentile(answers.seconds, 0.99) * 1000,
            "ms a move, p50": percentile(moves, 0.5) * 1000,
        },
    )


def terms(plan: Plan, *, times: int = 100, clients: int = 8) -> Iterator[Row]:
    """So many servers told to stop while they are busy."""
    drawn = random.Random(plan.seed)
    tally = Tally(
        "accepted requests lost",
        "exits late",
        "exits with an error",
        "other errors",
        "signals to an idle server",
    )
    good, finished, turned_away, cancelled, slowest = 0, 0, 0, 0, 0.0
    rounds = plan.rounds(times)
    with place("sqlite", "terms") as (home, _), World(home) as world:
        serve_colours(world, versions=1)
        for number in rounds:
            answers = Answers()
            world.service.serve.start()
            world.service.client().close()
            with Clients(
                world.service.target, answers, threads=clients, images=BUSY, until_refused=True
            ):
                time.sleep(drawn.uniform(0.3, 1.5))
                told = time.monotonic()
                code = world.service.serve.kill(signal.SIGTERM)
                took = time.monotonic() - told
            for began, status, why in answers.refused:
                tally.note("accepted requests lost", wrong=began < told - SURELY)
                # What is on its way at the very moment in which gRPC stops, gRPC cancels.
                cancelled += status is grpc.StatusCode.CANCELLED
                if status not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                    tally["other errors"] += 1
                    plan.say(f"sent {began - told:+.3f} s from the signal: {status}: {why}")
            tally.note("exits late", wrong=took > EXIT_SECONDS)
            tally.note("exits with an error", wrong=code != 0)
            good, turned_away = good + answers.good, turned_away + len(answers.refused)
            drained = sum(sent < told - SURELY and ended > told for sent, ended in answers.spans)
            tally.note("signals to an idle server", wrong=drained == 0)
            finished += drained
            slowest = max(slowest, took)
            plan.say(f"{number + 1} of {times} SIGTERMs: {drained} drained in {took:.1f} s")
    yield Row(
        scenario="terms",
        did=f"SIGTERM to a server with {clients} requests of {len(BUSY)} images in flight",
        times=rounds.done,
        broken=tally,
        measured={
            "answered": good,
            "of them in flight at the signal": finished,
            "turned away after the signal": turned_away,
            "of them with CANCELLED": cancelled,
            "s the slowest exit": slowest,
        },
    )


def artifacts(plan: Plan, *, times: int = 300) -> Iterator[Row]:
    """So many spoiled files of a version that is to go live."""
    drawn = random.Random(plan.seed)
    tally = Tally("spoiled versions served", "predictions lost", "refusals without a reason")
    reasons: dict[str, int] = {}
    rounds = plan.rounds(times)
    with place("sqlite", "artifacts") as (home, _), World(home) as world:
        first, second = serve_colours(world, versions=2)
        digest = world.store.registry.get_version(second).manifest.artifacts.onnx
        assert isinstance(world.store.blobs, FolderBlobs)
        file = world.store.blobs.path(digest)
        whole = file.read_bytes()
        world.service.serve.start()
        with (
            world.service.client() as client,
            grpc.insecure_channel(world.service.target) as channel,
        ):
            for number in rounds:
                file.write_bytes(_spoiled(whole, drawn, truncate=number % 2 == 0))
                refusal = _refusal(client, second)
                if refusal is None:
                    tally["spoiled versions served"] += 1
                else:
                    reasons[refusal] = reasons.get(refusal, 0) + 1
                tally.note("refusals without a reason", wrong=refusal == "")
                tally.note("predictions lost", wrong=not _answers(channel, first))
            file.write_bytes(whole)
            client.promote(MODEL, str(second))  # the same file, whole again: the control
            tally.note("predictions lost", wrong=not _answers(channel, second))
    yield Row(
        scenario="artifacts",
        did="a version's file truncated or one bit of it flipped, then promoted",
        times=rounds.done,
        broken=tally,
        measured={f"refused with {reason}": number for reason, number in reasons.items()},
    )


def _spoiled(content: bytes, drawn: random.Random, *, truncate: bool) -> bytes:
    if truncate:
        return content[: drawn.randrange(len(content))]
    at = drawn.randrange(len(content))
    return content[:at] + bytes([content[at] ^ (1 << drawn.randrange(8))]) + content[at + 1 :]


def _refusal(client: Client, version: VersionName) -> str | None:
    """The reason why the version does not go live; None if it does."""
    try:
        client.promote(MODEL, str(version))
    except AcclimateError as error:
        return error.reason
    return None


def _answers(channel: grpc.Channel, version: VersionName) -> bool:
    """Whether the model is answered for, by this version and correctly."""
    found = ask_once(channel)
    return found is not None and found.version == str(version) and matches(found)
