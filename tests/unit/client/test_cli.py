"""The command line, in this process, against a fake service."""

from __future__ import annotations

import datetime as dt
import json
import re
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import struct_pb2
from google.rpc import code_pb2
from tests.unit.client.fake_service import Service
from tests.unit.client.test_job import story
from tests.unit.client.test_registry import pieces
from typer.testing import CliRunner, Result

from acclimate import Client
from acclimate.cli import app, options, output
from acclimate.cli.extras import require
from acclimate.tokens import AuditEntry
from acclimate.v1 import adaptation_pb2, registry_pb2

COMMANDS = [
    ["up"], ["serve"], ["work"], ["health"], ["demo"], ["register"], ["models"], ["versions"],
    ["aliases"], ["promote"], ["rollback"], ["export"], ["predict"], ["upload"], ["adapt"],
    ["report"], ["stats"], ["domains"], ["domains", "create"], ["domains", "get"], ["jobs"],
    ["tokens", "create"], ["tokens", "list"], ["tokens", "rotate"], ["tokens", "revoke"],
    ["jobs", "get"], ["jobs", "watch"], ["jobs", "cancel"], ["jobs", "force"], ["guard", "plan"],
    ["audit"], ["doctor"], ["rollout", "start"], ["rollout", "show"], ["rollout", "stop"],
    ["rollout", "list"], ["drift"], ["delete"], ["guard", "show"], ["guard", "set"],
]  # fmt: skip
PROCESSES = (["serve"], ["work"])  # they only log
# Becomes the service's own program even for its help: tests/integration/test_upkeep.py.
HANDED_ON = [["store"]]


@pytest.fixture
def run(target: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("ACCLIMATE_SERVER", target)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(output.console, "width", 200)  # it may have read another one already

    def invoke(*words: object) -> Result:
        return CliRunner().invoke(app, [str(word) for word in words])

    return invoke


def names(command: Any, path: tuple[str, ...] = ()) -> list[list[str]]:
    """Every command below *command*, by its words."""
    does_something = not hasattr(command, "commands") or command.invoke_without_command
    found = [list(path)] if path and does_something else []
    for name, child in getattr(command, "commands", {}).items():
        found += names(child, (*path, name))
    return found


def test_the_commands_are_those_that_are_tested_here() -> None:
    import typer.main

    assert sorted(names(typer.main.get_command(app))) == sorted(COMMANDS + HANDED_ON)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example_and_json(run: Any, command: list[str]) -> None:
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert f"Example: acclimate {' '.join(command)}" in " ".join(result.output.split())
    assert ("--json" in result.output) == (command not in PROCESSES)
    assert re.search(r"\{[a-z]", result.output) is None  # arguments are in capitals


@pytest.mark.parametrize(
    ("words", "path", "expected"),
    [
        (["health"], ["serving"], True),
        (["models"], ["models", 0, "name"], "models/digits"),
        (["versions", "digits"], ["versions", 0, "manifest", "seed"], 3),
        (["versions", "digits"], ["aliases", 0, "version"], "models/digits/versions/2"),
        (["stats", "digits"], ["statistics", 0, "infer", "seconds"], 0.04),
        (["aliases", "digits"], ["aliases", 0, "name"], "models/digits/aliases/production"),
        (["promote", "digits", "2"], ["version"], "models/digits/versions/2"),
        (["rollback", "digits"], ["version"], "models/digits/versions/1"),
        (["drift", "digits"], ["domains", 0, 0], "domains/night"),
        (["domains"], ["domains", 2, "name"], "domains/d2"),
        (["domains", "get", "pens"], ["counts", 0, "select"], 2),
        (["domains", "create", "pens", "--labels", "1,2"], ["labels"], ["1", "2"]),
        (["jobs"], ["jobs", 0, "state"], "RUNNING"),
        (["jobs", "get", "j1"], ["phase"], "TUNING"),
        (["jobs", "cancel", "j1"], ["cancel_requested"], True),
        (["jobs", "force", "j1", "--reason", "x"], ["origin"], "ACCEPTED"),
        (["adapt", "digits", "pens"], ["name"], "jobs/j1"),
        (["adapt", "digits", "pens", "--variant", "int8"], ["name"], "jobs/j1"),
        (["report", "j1"], ["a"], 1),
        (["register", "digits", "timm/resnet18"], ["model", "architecture", "name"], "resnet18"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else None,
)
def test_json_output_parses_and_nothing_else_is_printed(
    run: Any, words: list[str], path: list[Any], expected: object
) -> None:
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    for step in path:
        found = found[step]
    assert found == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["models"], "timm/resnet18"),
        (["versions", "digits"], "production"),
        (["versions", "digits"], "int8"),
        (["aliases", "digits"], "digits/2"),
        (["stats", "digits"], "12.5"),
        (["stats", "digits"], "int8"),
        (["drift", "digits"], "<0.001  unlike"),
        (["domains"], "d1"),
        (["domains", "get", "pens"], "domains/pens"),
        (["jobs"], "TUNING"),
        (["jobs", "--domain", "pens"], "TUNING"),
        (["jobs", "get", "j1"], "jobs/j1 RUNNING TUNING"),
        (["adapt", "digits", "pens"], "jobs watch j1"),
        (["register", "digits", "timm/resnet18"], "acclimate adapt digits DOMAIN"),
        (["promote", "digits", "2"], "production → digits/2"),
        (["health"], "SERVING"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_people_get_words(run: Any, words: list[str], expected: str) -> None:
    result = run(*words)
    assert result.exit_code == 0, result.output
    assert expected in result.stdout


def test_a_refusal_is_one_line_on_stderr_and_exit_code_1(run: Any) -> None:
    result = run("domains", "get", "elsewhere", "--json")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        "acclimate: NOT_FOUND: there is no 'domains/elsewhere'; see `acclimate domains`"
    ]


def test_a_service_out_of_reach_is_exit_code_5_and_says_the_next_step(run: Any) -> None:
    result = run("health", "--server", "127.0.0.1:1", "--timeout", "2")
    assert result.exit_code == 5
    assert "start it with `acclimate up`" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "words",
    [
        ["upload", "/nowhere", "--domain", "pens"],
        ["register", "digits", "resnet18"],
        ["models", "--server", "localhost"],
        ["up", "--port", "99999"],
        ["upload", ".", "--domain", "pens", "--limit-per-class", "-1"],
        ["register", "digits", "timm/resnet18", "--weights", "/nowhere.pt"],
        ["adapt", "digits", "pens", "--guard-set", "source_margin"],
        ["report", "j1", "--json", "--open"],
        ["jobs", "--state", "sleeping"],
        ["nonsense"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_2(run: Any, words: list[str]) -> None:
    assert run(*words).exit_code == 2


@pytest.mark.parametrize(
    ("state", "code"),
    [
        ("STATE_SUCCEEDED", 0),
        ("STATE_REJECTED", 3),
        ("STATE_INCONCLUSIVE", 3),
        ("STATE_FAILED", 4),
        ("STATE_CANCELLED", 4),
    ],
)
def test_a_watched_jobs_end_is_the_exit_code(
    run: Any, service: Service, monkeypatch: pytest.MonkeyPatch, state: str, code: int
) -> None:
    service.events = story(3)
    end = service.end
    number = adaptation_pb2.AdaptationJob.State.Value(state)
    monkeypatch.setattr(service, "end", lambda _: end(number))
    result = run("adapt", "digits", "pens", "--watch", "--json")
    assert result.exit_code == code
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["event"]["sequence"] for line in lines[:-1]] == [1, 2, 3]
    assert lines[-1]["job"]["state"] == state.removeprefix("STATE_")


def test_a_registration_that_cannot_work_is_told_how_to_be_taken_back(
    run: Any, service: Service
) -> None:
    service.end(adaptation_pb2.AdaptationJob.STATE_FAILED)
    service.job.failure_reason = "UNSUPPORTED_ARCHITECTURE"
    service.job.kind = adaptation_pb2.AdaptationJob.KIND_ADAPT
    assert "acclimate delete" not in run("jobs", "get", "j1").stdout
    service.job.kind = adaptation_pb2.AdaptationJob.KIND_BOOTSTRAP
    assert "acclimate delete models/digits" in run("jobs", "get", "j1").stdout


def test_a_story_is_plain_lines_where_there_is_no_terminal(run: Any, service: Service) -> None:
    service.events = story(2)
    verdict = struct_pb2.Struct()
    verdict.update(
        {
            "verdict": {
                "decision": "ACCEPT",
                "summary": "nothing lost",
                "checks": [
                    {
                        "name": "source accuracy",
                        "decision": "ACCEPT",
                        "unit": "drop in accuracy",
                        "observed": 0.004,
                        "interval": [-0.01, 0.021],
                        "limit": 0.01,
                        "decided_by": [
                            {"text": "drop 0.4 ≤ 1.0 points"},
                            {"text": "at worst 2.1 < 3.0 points"},
                        ],
                        "n": 480,
                        "lost": 5,
                        "gained": 3,
                    }
                ],
            }
        }
    )
    service.job.summary.CopyFrom(verdict)
    result = run("jobs", "watch", "j1")
    assert result.exit_code == 0
    assert "EPOCH    TUNING    event 1" in result.stdout
    assert "✓ ACCEPT  nothing lost" in result.stdout
    row = next(line for line in result.stdout.splitlines() if "source accuracy" in line)
    assert " ".join(row.split()) == (
        "✓ source accuracy drop 0.4 ≤ 1.0 points, at worst 2.1 < 3.0 points 480 5 3"
    )
    assert "version digits/2" in result.stdout
    assert "\x1b" not in result.stdout


def test_a_folder_is_uploaded_and_refused_images_are_named(
    run: Any, service: Service, tmp_path: Path
) -> None:
    for name in ("1/a.png", "1/b.png", "2/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"" if "b" in name else name.encode())
    result = run("upload", tmp_path, "--domain", "pens", "--role", "train", "--request-id", "u1")
    assert result.exit_code == 0
    assert [example.id for example in service.batches["u1"].stored] == [
        "1/a.png", "1/b.png", "2/c.png",
    ]  # fmt: skip
    assert "2 accepted" in result.stdout
    assert "BAD_IMAGE: 1/b.png: the file is empty" in result.stderr


def test_an_upload_that_is_refused_for_a_while_says_so_once_and_what_it_waits_for(
    run: Any, service: Service, tmp_path: Path
) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "a.png").write_bytes(b"a")
    service.faults.break_after = [0, 0, 0]
    result = run("upload", tmp_path, "--domain", "pens", "--json")
    assert result.exit_code == 0, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("acclimate: WAITING: STORE_UNAVAILABLE: broken on command; trying again")
    assert line.endswith("for up to 120 s")
    assert json.loads(result.stdout)["batch"]["accepted"] == 1


def test_a_thousand_refusals_of_one_kind_are_not_a_thousand_lines(run: Any, tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    for number in range(23):
        (tmp_path / "1" / f"{number}.png").write_bytes(b"")
    result = run("upload", tmp_path, "--domain", "pens")
    lines = result.stderr.splitlines()
    assert len(lines) == 21
    assert lines[-1].startswith("acclimate: BAD_IMAGE: 3 more images")
    told = json.loads(run("upload", tmp_path, "--domain", "pens", "--json").stdout)
    assert len(told["rejected"]) == 23


def test_what_an_upload_leaves_out_is_named(run: Any, tmp_path: Path) -> None:
    for name in ("1/a.png", "1/b.bmp", "1/c.bmp", "2/d.tif", "e.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    result = run("upload", tmp_path, "--domain", "pens")
    assert result.exit_code == 0
    others, unlabelled, empty = result.stderr.splitlines()
    assert others.startswith("acclimate: PASSED_OVER: no JPEG, PNG or WebP: 2 .bmp, 1 .tif;")
    assert unlabelled.startswith("acclimate: PASSED_OVER: 1 images without a label, such as e.jpg;")
    assert empty == "acclimate: NO_IMAGES: the subfolder '2' holds no image that can be uploaded"


def test_an_upload_to_a_domain_that_is_not_there_says_how_to_make_it(
    run: Any, tmp_path: Path
) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "a.png").write_bytes(b"x")
    result = run("upload", tmp_path, "--domain", "elsewhere")
    assert result.exit_code == 2
    assert "add --create" in result.stderr


def test_a_csv_is_uploaded_with_the_labels_that_it_names(
    run: Any, service: Service, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    sheet = tmp_path / "labels.csv"
    sheet.write_text("image,label\na.png,1\n")
    assert run("upload", sheet, "--domain", "pens", "--request-id", "u1").exit_code == 0
    assert [(one.id, one.label) for one in service.batches["u1"].stored] == [("a.png", "1")]
    sheet.write_text("image,label\nb.png,1\n")
    result = run("upload", sheet, "--domain", "pens")
    assert result.exit_code == 2
    assert "line 2: there is no file" in result.stderr


def test_an_upload_creates_its_domain_on_request(
    run: Any, service: Service, tmp_path: Path
) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.png").write_bytes(b"x")
    run("upload", tmp_path, "--domain", "cats", "--create")
    created = [r for _, r in service.seen if isinstance(r, adaptation_pb2.CreateDomainRequest)]
    assert [(r.domain_id, list(r.labels)) for r in created] == [("cats", ["cat"])]


def test_weights_are_read_from_wherever_they_are(
    run: Any, service: Service, tmp_path: Path
) -> None:
    file = tmp_path / "w.safetensors"
    file.write_bytes(b"weights")
    labels = tmp_path / "labels.txt"
    labels.write_text("cat\ndog\n")
    run("register", "a", "timm/x", "--weights", "package:some-weights", "--size", "64")
    run("register", "b", "timm/x", "--weights", "hub:IMAGENET1K_V2")
    run("register", "c", "timm/x", "--weights", file, "--labels-file", labels, "--no-wait")
    drafts = [
        message.draft
        for _, messages in service.seen
        if isinstance(messages, list)
        for message in messages
        if message.HasField("draft")
    ]
    kinds = registry_pb2.WeightsSource
    assert [(d.weights.kind, d.weights.reference) for d in drafts] == [
        (kinds.KIND_PACKAGE, "some-weights"),
        (kinds.KIND_HUB, "IMAGENET1K_V2"),
        (kinds.KIND_FILE, ""),
    ]
    assert [d.promote_to for d in drafts] == ["", "", "production"]
    assert list(drafts[2].labels) == ["cat", "dog"]


def test_a_script_that_is_run_again_asks_with_the_request_id_of_its_own(
    run: Any, service: Service
) -> None:
    run("adapt", "digits", "pens", "--request-id", "pens-2026-11")
    run("register", "a", "timm/x", "--request-id", "shop-1")
    (adapted,) = [
        r for _, r in service.seen if isinstance(r, adaptation_pb2.CreateAdaptationJobRequest)
    ]
    (registered,) = [r for _, r in service.seen if isinstance(r, list)]
    assert (adapted.request_id, registered[0].draft.request_id) == ("pens-2026-11", "shop-1")


def test_a_folder_stands_for_all_images_in_it(run: Any, tmp_path: Path) -> None:
    for name in ("mug/b.png", "mug/a.jpg", "pen/c.webp", "pen/notes.txt", ".trash/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "none").mkdir()
    found = json.loads(run("predict", "digits", tmp_path, "--json").stdout)["predictions"]
    expected = [str(tmp_path / name) for name in ("mug/a.jpg", "mug/b.png", "pen/c.webp")]
    assert [answer["image"] for answer in found] == expected
    empty = run("predict", "digits", tmp_path / "none")
    assert (empty.exit_code, "holds no JPEG, PNG or WebP" in empty.stderr) == (2, True)


def test_predictions_name_the_version(run: Any, tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    image.write_bytes(b"x")
    result = run("predict", "digits", image, image)
    assert result.stdout.count("75.0 %") == 2
    assert "digits/2, int8, sha256 abababababab" in result.stdout
    found = json.loads(run("predict", "digits", image, "--json").stdout)["predictions"]
    assert found[0]["image"] == str(image)
    assert found[0]["prediction"]["classes"] == [{"label": "7", "probability": 0.75}]


def test_an_image_that_is_none_costs_only_itself(run: Any, tmp_path: Path) -> None:
    for name, content in (("a.png", b"x"), ("b.png", b"bad"), ("c.png", b"x")):
        (tmp_path / name).write_bytes(content)
    images = [tmp_path / name for name in ("a.png", "b.png", "c.png")]
    result = run("predict", "digits", *images, "--json")
    assert result.exit_code == 1
    assert [found["image"] for found in json.loads(result.stdout)["predictions"]] == [
        str(images[0]), str(images[2]),
    ]  # fmt: skip
    assert result.stderr == f"acclimate: BAD_IMAGE: {images[1]}: not an image\n"


def test_a_version_is_exported(run: Any, service: Service, tmp_path: Path) -> None:
    service.export = pieces("model.onnx", b"onnx")
    assert run("export", "digits/2", tmp_path / "out").exit_code == 0
    assert (tmp_path / "out" / "model.onnx").read_bytes() == b"onnx"


@pytest.mark.parametrize(
    ("named", "full", "call"),
    [
        ("digits/1", "models/digits/versions/1", "DeleteModelVersion"),
        ("models/digits/versions/1", "models/digits/versions/1", "DeleteModelVersion"),
        ("digits@canary", "models/digits/aliases/canary", "DeleteAlias"),
        ("models/digits", "models/digits", "DeleteModel"),
        ("domains/pens", "domains/pens", "DeleteDomain"),
        ("domains/pens/batches/b1", "domains/pens/batches/b1", "DeleteLabeledBatch"),
    ],
)
def test_what_is_to_be_deleted_is_known_by_its_name(
    run: Any, service: Service, named: str, full: str, call: str
) -> None:
    result = run("delete", named, "--reason", "a typo", "--json")
    assert json.loads(result.stdout) == {"deleted": full}
    asked: Any
    method, asked = service.seen[-1]
    assert (method, asked.name, asked.reason) == (call, full, "a typo")


def test_a_bare_id_is_not_deleted(run: Any, service: Service) -> None:
    result = run("delete", "digits")
    assert result.exit_code == 2
    assert "models/digits or domains/digits" in result.stderr
    assert service.seen == []


def test_a_report_is_written_where_it_is_asked_for(run: Any, tmp_path: Path) -> None:
    result = run("report", "j1", "--out", tmp_path / "report.html")
    assert result.exit_code == 0
    assert (tmp_path / "report.html").read_bytes() == b"<html></html>"
    assert str(tmp_path / "report.html") in result.stdout


def test_an_upload_that_breaks_off_says_how_to_go_on(
    run: Any, service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("acclimate.cli.options.PATIENCE", 0.2)
    service.faults.break_after = [0] * 1000
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "a.png").write_bytes(b"x")
    result = run("upload", tmp_path, "--domain", "pens", "--request-id", "u7")
    assert result.exit_code == 5
    assert "--request-id u7" in result.stderr


def test_a_missing_extra_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Exception, match="2") as caught:
        require("no_such_module", extra="serve,cpu", what="`acclimate serve`")
    assert getattr(caught.value, "exit_code", None) == 2
    assert "pip install 'acclimate[serve,cpu]'" in capsys.readouterr().err


def test_the_guard_plans_without_a_service(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCLIMATE_SERVER", "127.0.0.1:1")
    result = run("guard", "plan", "--margin", "0.01", "--json")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    free = [row for row in rows if row["discordance"] == 0]
    # Zero lost of 250 still leaves more than a point: the rule of three.
    assert min(row["verify"] for row in free) > 250
    assert run("guard", "plan", "--margin", "2").exit_code == 2


def test_a_forced_version_is_listed_with_who_and_why(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Service.version

    def forced(self: Service) -> Any:
        found = honest(self)
        found.forced_by, found.forced_reason = "ann", "[the lost class] is discontinued"
        return found

    assert "forced" not in run("versions", "digits").stdout
    monkeypatch.setattr(Service, "version", forced)
    told = run("versions", "digits").stdout
    assert "2 was forced by ann: [the lost class] is discontinued" in told


def test_versions_that_the_server_is_too_old_for_are_named(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Service, "unreadable", ("models/digits/versions/3",))
    told = run("versions", "digits")
    assert told.exit_code == 0
    assert "3 is of a format that is newer than the server" in told.stdout
    listed = json.loads(run("versions", "digits", "--json").stdout)
    assert listed["unreadable"] == ["models/digits/versions/3"]
    assert len(listed["versions"]) == 1


@pytest.mark.parametrize(
    ("who", "told"),
    [("anonymous at ipv4:1.2.3.4:5", ""), ("clerk", " from ipv4:1.2.3.4:5")],
)
def test_the_audit_log_names_an_address_once(
    run: Any, monkeypatch: pytest.MonkeyPatch, who: str, told: str
) -> None:
    entry = AuditEntry(
        number=1,
        time=dt.datetime(2026, 11, 1, tzinfo=dt.UTC),
        who=who,
        action="SetAlias",
        subject="models/shop",
        why="",
        origin="ipv4:1.2.3.4:5",
    )
    monkeypatch.setattr(Client, "audit", lambda _, **__: iter([entry]))
    expected = f"2026-11-01 00:00:00Z  {who}: SetAlias models/shop{told}\n"
    assert run("audit").stdout == expected


def test_a_list_of_jobs_says_that_there_are_older_ones(run: Any, service: Service) -> None:
    service.endless_jobs = 30
    lines = run("jobs", "--limit", "3").stdout.splitlines()
    assert len(lines) == 1 + 3 + 1
    assert "--limit 6" in lines[-1]
    assert len(run("jobs").stdout.splitlines()) == 1 + 50 + 1
    assert len(json.loads(run("jobs", "--limit", "70", "--json").stdout)["jobs"]) == 70


def test_a_models_policy_is_set_with_a_reason_and_shown(run: Any) -> None:
    words = ("guard", "set", "digits", "--preset", "strict", "--set", "source_margin=0.04")
    assert run(*words).exit_code == 2  # no reason
    result = run(*words, "--reason", "old lenses", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {
        "model": "models/digits",
        "preset": "strict",
        "overrides": {"source_margin": 0.04, "reason": "old lenses"},
    }
    shown = run("guard", "show", "digits")
    assert "balanced, as none is set" in shown.stdout
    assert run("guard", "set", "digits", "--reason", "x", "--set", "no-equals").exit_code == 2


def test_an_overload_is_waited_for_as_the_service_asks(run: Any, service: Service) -> None:
    service.faults.calls = [(code_pb2.RESOURCE_EXHAUSTED, "OVERLOADED", 0.05)]
    assert run("models").exit_code == 0


@pytest.mark.parametrize(
    "words",
    [("jobs", "--server", "127.0.0.1:1", "cancel", "j1"), ("domains", "--json", "get", "pens")],
)
def test_an_option_before_a_subcommand_is_refused_and_not_dropped(
    run: Any, service: Service, words: tuple[str, ...]
) -> None:
    done = run(*words)
    assert done.exit_code == 2
    assert f"write {words[1]} after `{words[-2]}`" in done.stderr
    assert service.seen == []


@pytest.mark.parametrize(
    "refused",
    [(code_pb2.RESOURCE_EXHAUSTED, "STORE_FULL"), (code_pb2.ABORTED, "UPLOAD_INCOMPLETE")],
)
def test_an_upload_that_is_still_open_says_how_to_go_on(
    run: Any,
    service: Service,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused: tuple[int, str],
) -> None:
    monkeypatch.setattr(options, "PATIENCE", 0.3)
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "a.png").write_bytes(b"x")
    service.faults.refuse_commits = refused
    done = run("upload", tmp_path, "--domain", "pens")
    assert done.exit_code != 0
    (request_id,) = service.batches
    assert f"--request-id {request_id}" in done.stderr
    service.faults.refuse_commits = None
    assert run("upload", tmp_path, "--domain", "pens", "--request-id", request_id).exit_code == 0


def test_a_script_finds_the_name_of_an_upload_to_take_back(
    run: Any, service: Service, tmp_path: Path
) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "a.png").write_bytes(b"x")
    assert run("upload", tmp_path, "--domain", "pens").exit_code == 0
    told = json.loads(run("domains", "get", "pens", "--json").stdout)
    assert told["name"] == "domains/pens"
    (name,) = [batch["name"] for batch in told["batches"]]
    assert run("delete", name).exit_code == 0
    assert service.seen[-1][0] == "DeleteLabeledBatch"


def test_an_upload_that_was_never_begun_is_not_to_be_gone_on_with(
    run: Any, service: Service, tmp_path: Path
) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "a.png").write_bytes(b"x")
    service.faults.refuse_openings = code_pb2.PERMISSION_DENIED, "PERMISSION_DENIED"
    done = run("upload", tmp_path, "--domain", "pens")
    assert done.exit_code == 1
    assert done.stderr == "acclimate: PERMISSION_DENIED: refused on command\n"


def test_a_watch_whose_service_is_gone_says_that_the_job_goes_on(
    run: Any, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(options, "PATIENCE", 0.3)
    service.events = story(3)
    service.faults.watch_after = [0] * 1000
    done = run("jobs", "watch", "j1", "--json")
    assert done.exit_code == 5
    assert "RESUME: jobs/j1 goes on; see `acclimate jobs watch j1`" in done.stderr


def test_a_version_without_its_model_is_refused_as_it_was_written(
    run: Any, service: Service, tmp_path: Path
) -> None:
    run("export", "2", tmp_path)
    (asked,) = [r for _, r in service.seen if isinstance(r, registry_pb2.ExportModelVersionRequest)]
    assert asked.name == "2"
