"""Generate the Python stubs of every proto, or check that the committed ones are current.

Usage, through the wrapper that makes the isolated environment this needs:

    ./run protos            # write clients/python/**/*_pb2*.py[i]
    ./run protos --check    # write nothing; exit 1 and name what differs

The environment is apart from the project's because grpcio-tools pins protobuf
(``requirements/protos.in`` says which releases, and why).
"""

from __future__ import annotations

import argparse
import importlib.resources
import sys
import sysconfig
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
STUBS = ROOT / "clients" / "python"
PATTERNS = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi")


def generate(target: Path) -> None:
    """Write the stubs of every file under ``protos/`` into *target*.

    Raises:
        SystemExit: protoc refused a file; it has printed why.
    """
    well_known = importlib.resources.files("grpc_tools") / "_proto"
    # mypy-protobuf's plugins lie beside this interpreter, which need not be on PATH.
    scripts = Path(sysconfig.get_path("scripts"))
    outcome = protoc.main(
        [
            "protoc",
            f"--proto_path={PROTOS}",
            f"--proto_path={well_known}",
            f"--plugin=protoc-gen-mypy={scripts / 'protoc-gen-mypy'}",
            f"--plugin=protoc-gen-mypy_grpc={scripts / 'protoc-gen-mypy_grpc'}",
            f"--python_out={target}",
            f"--grpc_python_out={target}",
            f"--mypy_out=quiet:{target}",
            f"--mypy_grpc_out=quiet:{target}",
            *sorted(path.relative_to(PROTOS).as_posix() for path in PROTOS.rglob("*.proto")),
        ]
    )
    if outcome != 0:
        raise SystemExit(outcome)


def stubs_under(folder: Path) -> dict[Path, bytes]:
    """The generated files under *folder*: path relative to it → content."""
    return {
        path.relative_to(folder): path.read_bytes()
        for pattern in PATTERNS
        for path in folder.rglob(pattern)
    }


def main() -> int:
    """Generate or check; the exit code says whether the stubs are current."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, compare only")
    check = parser.parse_args().check

    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        fresh, committed = stubs_under(Path(scratch)), stubs_under(STUBS)

    differing = sorted(
        path for path in fresh.keys() | committed.keys() if fresh.get(path) != committed.get(path)
    )
    for path in differing:
        print((STUBS / path).relative_to(ROOT))
    if check:
        if differing:
            print("are not the stubs of protos/; run ./run protos")
        return bool(differing)

    for path in differing:
        stub = STUBS / path
        if path in fresh:
            stub.parent.mkdir(parents=True, exist_ok=True)
            stub.write_bytes(fresh[path])
        else:
            stub.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
