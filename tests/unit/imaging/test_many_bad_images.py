"""Every kind of bad image, twenty times over: each is refused or declared, in bounds."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from tests.fuzz.inputs import mutated
from tests.unit.imaging.test_bad_images import KINDS, MEBIBYTES, SECONDS

VARIANTS = 20

PROBE = """
import json, sys, time
from acclimate_service.domain.errors import BadImage
from acclimate_service.imaging import decode

def peak():
    status = open("/proc/self/status").read()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024

answers = []
for path in sys.argv[1:]:
    file = open(path, "rb").read()
    before, started = peak(), time.process_time()
    try:
        said = str(decode(file).shape)
    except BadImage as error:
        said = error.metadata["why"]
    answers.append([said, time.process_time() - started, peak() - before])
print(json.dumps(answers))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
@pytest.mark.parametrize("kind", KINDS)
def test_twenty_of_a_kind_are_refused_or_declared_in_time_and_memory(
    kind: str, tmp_path: Path
) -> None:
    rng, whole = random.Random(kind), KINDS[kind][0]()
    paths = []
    for number in range(VARIANTS):
        path = tmp_path / f"{number:02}"
        path.write_bytes(mutated(rng, whole) if number else whole)
        paths.append(str(path))
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *paths], capture_output=True, check=True, timeout=100
    )
    answers = json.loads(done.stdout)
    assert len(answers) == VARIANTS
    refused = sum(not said.startswith("(") for said, _, _ in answers)
    worst = [max(column) for column in list(zip(*answers, strict=True))[1:]]
    print(f"{kind}: {refused} refused, {VARIANTS - refused} decoded, ", end="")
    print(f"at most {worst[0]:.2f} s and {worst[1]:.0f} MiB")
    for said, seconds, mebibytes in answers:
        assert seconds < SECONDS, (kind, said)
        assert mebibytes < MEBIBYTES, (kind, said)
