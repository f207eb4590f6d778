"""Inputs that are bred towards code not reached yet: atheris over what parses them.

``./run fuzz`` throws from a seed, at a whole server. This one watches which lines and
branches of our own decoders and of the convert layer an input takes, and goes on from
those that took new ones. Each target runs in a process of its own, for so many seconds.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from google.protobuf.message import DecodeError, Message
from tests.fuzz import inputs

HANG_SECONDS: Final = 10  # of one input, on a busy machine
MEMORY_MIB: Final = 2048  # of the whole process, torch and what atheris notes included
SEEDS: Final = 200
FOUND: Final = Path(".cache/fuzz-found")
NO_ATHERIS: Final = 3  # the exit code where it is not installed


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is given inputs: ``make`` imports it and returns it; ``seed`` makes a first input.

    Every input must be taken, or refused with one of ``refusals``.
    """

    make: Callable[[], tuple[Callable[[bytes], object], tuple[type[Exception], ...]]]
    seed: Callable[[random.Random], bytes]


def images() -> tuple[Callable[[bytes], object], tuple[type[Exception], ...]]:
    """Decoding, at every scale that a file can be decoded at."""
    from acclimate_service.domain.errors import BadImage
    from acclimate_service.imaging import Limits, opened

    def decoded(content: bytes) -> None:
        picture = opened(content, Limits(pixels=250_000))
        for scale in (1, 2, 4, 8) if picture.scalable else (1,):
            picture.pixels(scale)

    return decoded, (BadImage,)


def weights() -> tuple[Callable[[bytes], object], tuple[type[Exception], ...]]:
    """Reading weights that somebody sent."""
    from acclimate_service.domain.errors import ServiceError
    from acclimate_service.training import weights_file

    return weights_file.read, (ServiceError,)


def requests() -> tuple[Callable[[bytes], object], tuple[type[Exception], ...]]:
    """The convert layer: the first byte says which of its functions reads the rest."""
    from acclimate_service.domain.errors import ServiceError

    readers = _readers()

    def read(content: bytes) -> None:
        kind, reads = readers[content[0] % len(readers) if content else 0]
        message = kind.FromString(content[1:])
        for one in reads:
            try:
                one(message)
            except ServiceError:  # of this one alone: the others are to read it too
                continue

    return read, (DecodeError,)


def names() -> tuple[Callable[[bytes], object], tuple[type[Exception], ...]]:
    """Every kind of resource name; what is taken must come back as it was."""
    from acclimate_service.domain import names as kinds
    from acclimate_service.domain.errors import InvalidName

    each = kinds._Name.__subclasses__()

    def parsed(content: bytes) -> None:
        text = content.decode(errors="surrogatepass" if content[:1] == b"s" else "replace")
        for kind in each:
            try:
                found = kind.parse(text)
            except InvalidName:
                continue
            assert str(found) == text

    return parsed, (UnicodeDecodeError,)


def _readers() -> list[tuple[type[Message], Sequence[Callable[[Any], object]]]]:
    """What is read from which message. In a fixed order: kept inputs name them by number."""
    from acclimate.oip import grpc_service_pb2 as oip
    from acclimate.v1 import access_pb2, adaptation_pb2, inference_pb2, registry_pb2, rollout_pb2
    from acclimate_service.domain.model import Preprocessing
    from acclimate_service.rpc import (
        convert,
        convert_access,
        convert_jobs,
        convert_oip,
        convert_predictions,
        convert_rollouts,
    )

    tensors = (
        lambda request: convert_oip.images(request, Preprocessing(size=16)),
        convert_oip.takes_long,
        convert_oip.wanted,
        convert_oip.told,
    )
    return [
        (registry_pb2.RegisterModelRequest.Draft, (convert.registration,)),
        (registry_pb2.SetModelGuardRequest, (convert.model_guard,)),
        (registry_pb2.SetAliasRequest, (convert.alias_move,)),
        (access_pb2.CreateTokenRequest, (convert_access.token_draft,)),
        (access_pb2.RotateTokenRequest, (convert_access.rotation,)),
        (access_pb2.ListAuditEntriesRequest, (convert_access.audit_filter,)),
        (adaptation_pb2.CreateDomainRequest, (convert_jobs.new_domain,)),
        (adaptation_pb2.UploadBatchRequest.Open, (convert_jobs.opening,)),
        (adaptation_pb2.Example, (convert_jobs.check_example,)),
        (adaptation_pb2.CreateAdaptationJobRequest, (convert_jobs.new_job,)),
        (rollout_pb2.StartRolloutRequest, (convert_rollouts.draft,)),
        (inference_pb2.PredictRequest, (convert_predictions.question,)),
        (inference_pb2.Tensor, (lambda tensor: convert_predictions.pixels(tensor, 16),)),
        (oip.ModelInferRequest, tensors),
    ]


def _request(rng: random.Random) -> bytes:
    readers = _readers()
    number = rng.randrange(len(readers))
    message = readers[number][0]()
    inputs.grown(rng, message, depth=4)
    return bytes([number]) + message.SerializeToString()


def _weights(rng: random.Random) -> bytes:
    import io

    import safetensors.torch
    import torch

    state = {"a.weight": torch.zeros(rng.randrange(1, 4), 2), "b": torch.ones(3).half()}
    if rng.random() < 0.3:
        return safetensors.torch.save(state)
    file = io.BytesIO()
    torch.save(state, file, _use_new_zipfile_serialization=rng.random() < 0.5)
    return file.getvalue()


def _name(rng: random.Random) -> bytes:
    return rng.choice((*inputs.HOSTILE, *inputs.WORTHWHILE)).encode()


TARGETS: Final[Mapping[str, Target]] = {
    "images": Target(make=images, seed=inputs.image),
    "weights": Target(make=weights, seed=_weights),
    "requests": Target(make=requests, seed=_request),
    "names": Target(make=names, seed=_name),
}


@dataclass(frozen=True, kw_only=True)
class Found:
    """What became of one target; ``fault`` is the end of what it said, if it did not hold."""

    target: str
    inputs: int
    reached: int  # places of the code, as libFuzzer counts them
    fault: str = ""


def breed(name: str, seconds: int, seed: int, folder: Path) -> Found:
    """Run one target in a process of its own. What broke it is kept in *folder*, by its digest."""
    rng, corpus = random.Random(f"{seed} {name}"), folder / name
    corpus.mkdir()
    for number in range(SEEDS):
        (corpus / str(number)).write_bytes(TARGETS[name].seed(rng))
    options = {
        "max_total_time": seconds,
        "seed": seed,
        "timeout": HANG_SECONDS,
        "rss_limit_mb": MEMORY_MIB,
        "max_len": 8192,
        "artifact_prefix": f"{folder / name}-",
        "print_final_stats": 1,
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.guided", "--target", name, str(corpus)]
        + [f"-{option}={value}" for option, value in options.items()],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    said = done.stderr
    counts = [int(number) for number in re.findall(r"number_of_executed_units: (\d+)", said)]
    reached = [int(number) for number in re.findall(r"\bcov: (\d+)", said)]
    whole = done.returncode == 0 and counts
    return Found(
        target=name,
        inputs=max(counts, default=0),
        reached=max(reached, default=0),
        fault="" if whole else f"{said[-1000:]}\n{done.stdout[-2000:]}",
    )


def _child(name: str, arguments: Sequence[str]) -> None:
    """Never returns: libFuzzer ends the process."""
    atheris = importlib.import_module("atheris")  # which no lock has: see main

    with atheris.instrument_imports(include=["acclimate_service"]):
        run, refusals = TARGETS[name].make()

    def once(content: bytes) -> None:
        try:
            run(content)
        except refusals:
            return

    atheris.Setup([sys.argv[0], *arguments], once)
    atheris.Fuzz()


def main() -> int:
    """Print the table; 1 if an input was neither taken nor refused, took too long or too much."""
    if sys.argv[1:2] == ["--target"]:
        _child(sys.argv[2], sys.argv[3:])
    parser = argparse.ArgumentParser(prog="fuzz --guided", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="TARGET", help=f"{', '.join(TARGETS)}; or all")
    parser.add_argument("--seconds", type=int, default=120, help="of each target")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, default=FOUND, help="for what breaks one")
    asked = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        print("this needs atheris, which ./run fuzz --guided brings", file=sys.stderr)
        return NO_ATHERIS
    faults = 0
    print(f"{'target':10}{'inputs':>10}{'reached':>9}")
    for name in asked.names or TARGETS:
        with tempfile.TemporaryDirectory() as folder:
            found = breed(name, asked.seconds, asked.seed, Path(folder))
            print(f"{name:10}{found.inputs:>10,}{found.reached:>9,}", flush=True)
            if found.fault:
                faults += 1
                print(found.fault)
                asked.keep.mkdir(parents=True, exist_ok=True)
                for file in Path(folder).glob(f"{name}-*"):
                    file.rename(asked.keep / file.name)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
