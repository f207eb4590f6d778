from __future__ import annotations

import inspect
import json
import subprocess
import sys

import pytest

import acclimate
from acclimate import errors

PUBLIC = {
    "TLS",
    "AcclimateError",
    "Architecture",
    "Client",
    "Example",
    "Job",
    "JobState",
    "Prediction",
    "Preprocessing",
    "Role",
    "UploadResult",
    "WeightsSource",
    "examples_from_folder",
    "examples_from_sheet",
}


def loaded_by(statement: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after *statement*."""
    program = f"{statement}\nimport json, sys; print(json.dumps(sorted(sys.modules)))"
    printed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    return set(json.loads(printed.splitlines()[-1]))


def test_the_public_surface_is_what_it_says() -> None:
    assert set(acclimate.__all__) == PUBLIC
    for name in PUBLIC:
        assert getattr(acclimate, name).__name__ == name


def test_nothing_else_is_to_be_had() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Servicer'"):
        _ = acclimate.Servicer


def test_every_public_call_says_what_it_does() -> None:
    methods = inspect.getmembers(acclimate.Client, inspect.isfunction)
    silent = [name for name, method in methods if not name.startswith("_") and not method.__doc__]
    assert silent == []


def test_there_is_one_tree_of_errors() -> None:
    classes = [
        c
        for _, c in inspect.getmembers(errors, inspect.isclass)
        if c.__module__ == ("acclimate.errors")
    ]
    assert all(issubclass(c, errors.AcclimateError) for c in classes)


def test_the_client_loads_nothing_of_the_service() -> None:
    heavy = {"acclimate_service", "numpy", "onnxruntime", "pydantic", "PIL", "sqlalchemy", "torch"}
    assert loaded_by("import acclimate; acclimate.Client()") & heavy == set()


def test_help_waits_for_no_grpc() -> None:
    program = (
        "import sys; sys.argv = ['acclimate', '--help']\n"
        "import acclimate.cli\n"
        "try: acclimate.cli.main()\n"
        "except SystemExit: pass"
    )
    heavy = {"acclimate_service", "grpc", "google.protobuf", "numpy", "torch"}
    assert loaded_by(program) & heavy == set()


def test_importing_the_package_alone_loads_almost_nothing() -> None:
    assert loaded_by("import acclimate") & {"grpc", "google.protobuf", "typer", "rich"} == set()
