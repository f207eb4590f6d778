"""The house rules that a machine can hold us to, over the whole tree."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from tests.unit.rpc.methods import methods, text_fields

from acclimate_service.domain.errors import ServiceError
from acclimate_service.rpc.rights import RIGHTS

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCES = (ROOT / "service", ROOT / "clients" / "python")
LONGEST = 400  # lines of a module
EMPTY_NAMES = {"manager", "managers", "helper", "helpers", "util", "utils"}
TORCH = {"onnx", "onnxscript", "timm", "torch", "torchvision"}
BEYOND_THE_BASE = TORCH | {"numpy", "onnxruntime", "pydantic", "sqlalchemy"}

# What would tie the tree to one machine or to one package index.
MACHINE_PATH = re.compile(r"(?<![\w.~/-])/(?:work|farm|root|home|Users)/\w")
INDEX_HOST = re.compile(r"[p]ypi\.org|[p]ythonhosted\.org|registry\.[n]pmjs|[p]ytorch\.org/whl")
GENERATED = re.compile(r"_pb2(_grpc)?\.pyi?$")


def modules() -> list[Path]:
    """Every module of ours that a person wrote."""
    return [
        path
        for source in SOURCES
        for path in sorted(source.rglob("*.py"))
        if not GENERATED.search(path.name)
    ]


def tracked_files() -> list[Path]:
    """What git tracks; in a copy without git, what such a copy is made of."""
    try:
        listing = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        folders = (*SOURCES, ROOT / "protos", ROOT / "tests", ROOT / "requirements")
        return [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return [ROOT / name for name in listing.split("\0") if name and (ROOT / name).is_file()]


def texts() -> Iterator[tuple[Path, str]]:
    """Every tracked text file, with its path relative to the repository."""
    for path in tracked_files():
        content = path.read_bytes()
        if b"\0" not in content and "__pycache__" not in path.parts:
            yield path.relative_to(ROOT), content.decode()


def all_errors(base: type[ServiceError] = ServiceError) -> list[type[ServiceError]]:
    """*base* and every class below it."""
    return [base, *(error for below in base.__subclasses__() for error in all_errors(below))]


def pins(lock: str) -> dict[str, Version]:
    """The lowest version that a lock under ``requirements/`` pins of each distribution."""
    found: dict[str, Version] = {}
    for line in (ROOT / "requirements" / lock).read_text().splitlines():
        if match := re.match(r"([\w.-]+)==([^\s;]+)", line):
            name, version = canonicalize_name(match[1]), Version(match[2])
            found[name] = min(version, found.get(name, version))
    return found


def loaded_by(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after *statement*."""
    outcome = subprocess.run(
        [sys.executable, "-c", f"{statement}\nimport sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert outcome.returncode == 0, outcome.stderr
    return {name.partition(".")[0] for name in outcome.stdout.split()}


def test_no_module_is_longer_than_the_limit() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in modules()
    }
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


def test_every_module_says_what_it_is() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in modules()
        if not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert silent == []


def test_no_file_or_class_has_a_name_that_says_nothing() -> None:
    empty = []
    for path in modules():
        if EMPTY_NAMES & set(path.stem.lower().split("_")):
            empty.append(str(path.relative_to(ROOT)))
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                words = re.findall(r"[A-Z]+[a-z]*", node.name)
                if EMPTY_NAMES & {word.lower() for word in words}:
                    empty.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
    assert empty == []


def test_every_error_has_a_reason_of_its_own() -> None:
    errors = all_errors()[1:]
    without = [error.__name__ for error in errors if "reason" not in vars(error)]
    assert without == []
    reasons = Counter(error.reason for error in errors)
    assert [reason for reason, uses in reasons.items() if uses > 1] == []
    assert [reason for reason in reasons if not re.fullmatch(r"[A-Z][A-Z0-9_]{2,62}", reason)] == []


# Strings of a request that name nothing a scope could limit. Those of a common word are
# told with their method.
PLAIN_TEXTS = {
    *("commit.chain", "commit.sha256", "description", "format", "labels", "page_token", "reason"),
    *("request_id", "draft.request_id", "open.request_id", "draft.architecture.library"),
    *("draft.architecture.name", "draft.labels", "draft.preprocessing.interpolation"),
    *("draft.weights.reference", "item.example.id", "item.example.label", "item.example.tags"),
    *(
        "spec.guard_preset",
        "spec.strategy",
        "spec.variants",
        "repository_name",
        "model_version",
        "principal",
        "routing_key",
    ),
    *("parameters.key", "parameters.value.string_param", "certificate"),
    *("Check service", "Watch service"),
    *("Predict id", "PredictStream id", "RevokeToken name"),
    *("CreateToken models", "CreateToken domains", "SetModelGuard preset"),
    *(f"ListAuditEntries {field}" for field in ("who", "action", "subject")),
    *(f"Model{what} version" for what in ("Ready", "Metadata", "Config", "Statistics")),
    *(
        f"{method} {field}"
        for method in ("ModelInfer", "ModelStreamInfer")
        for field in (
            *("id", "inputs.name", "inputs.datatype", "inputs.parameters.key", "outputs.name"),
            *("inputs.parameters.value.string_param", "outputs.parameters.key"),
            "outputs.parameters.value.string_param",
        )
    ),
}


def test_every_method_says_who_may_call_it() -> None:
    assert {method.name for method in methods()} == set(RIGHTS)


def test_every_name_in_a_request_is_checked_against_the_caller() -> None:
    unknown = set()
    for method in methods():
        right, short = RIGHTS[method.name], method.name.rpartition("/")[2]
        checked = {*right.models, *right.domains, *right.jobs, *right.promotes}
        if short == "ServerReflectionInfo":
            continue  # it speaks of types, not of resources
        for field in set(text_fields(method.request.DESCRIPTOR)) - checked:
            if not {field, f"{short} {field}"} & PLAIN_TEXTS:
                unknown.add(f"{short} {field}")
    assert unknown == set()


def test_no_tracked_file_names_a_machine_or_a_package_index() -> None:
    leaks = [
        f"{path}:{number} {line.strip()[:80]}"
        for path, text in texts()
        for number, line in enumerate(text.splitlines(), start=1)
        if MACHINE_PATH.search(line) or INDEX_HOST.search(line)
    ]
    assert leaks == []


def test_the_rooms_import_downwards_only() -> None:
    outcome = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stdout


def test_the_client_loads_nothing_beyond_the_base() -> None:
    assert loaded_by("import acclimate, acclimate.cli") & BEYOND_THE_BASE == set()


def test_the_serving_process_does_not_load_torch() -> None:
    assert loaded_by("import acclimate_service.serve") & TORCH == set()


def test_blobs_in_a_folder_load_no_library_for_object_stores() -> None:
    statement = "import acclimate_service.serve, acclimate_service.work, acclimate_service.upkeep"
    assert "obstore" not in loaded_by(statement)


def test_the_lock_has_what_pyproject_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    pinned = pins("dev.txt") | {"acclimate": Version(project["version"])}
    asked = [*project["dependencies"]]
    # The environment has the GPU's runtime, which runs on a CPU too; never both.
    asked += [line for extra, lines in extras.items() if extra != "cpu" for line in lines]
    unmet = [
        line
        for line in asked
        if (wanted := Requirement(line)).specifier.contains(pinned[canonicalize_name(wanted.name)])
        is False
    ]
    assert unmet == []


@pytest.mark.parametrize("lock", sorted(path.name for path in ROOT.glob("requirements/*.txt")))
def test_every_pin_has_a_hash(lock: str) -> None:
    entries = re.split(r"\n(?=[a-z0-9])", (ROOT / "requirements" / lock).read_text())
    bare = [entry.splitlines()[0] for entry in entries[1:] if "--hash=sha256:" not in entry]
    assert bare == []


def test_what_serves_is_installed_without_torch() -> None:
    assert pins("serve.txt").keys() & TORCH == set()


def test_what_is_deployed_is_what_was_tested() -> None:
    tested = pins("dev.txt")
    tested["onnxruntime"] = tested["onnxruntime-gpu"]
    for lock in ("build.txt", "serve.txt", "work.txt"):
        untested = {name for name, version in pins(lock).items() if tested.get(name) != version}
        assert untested == set(), lock
