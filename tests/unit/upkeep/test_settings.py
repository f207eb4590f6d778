from __future__ import annotations

import re
from pathlib import Path

import pytest
import structlog

from acclimate_service.config import ServeSettings, Settings, WorkSettings, read, unknown
from acclimate_service.domain.errors import InvalidSpec


def test_settings_of_every_process_are_known_in_each_others_environment() -> None:
    assert unknown(["ACCLIMATE_QUEUE", "ACCLIMATE_DEVICE", "ACCLIMATE_TLS_CA", "PATH"]) == []


def test_what_is_no_setting_is_told_with_the_one_that_was_likely_meant() -> None:
    told = unknown(["ACCLIMATE_DATABSE_URL", "ACCLIMATE_FORCE_EVERYTHING"])
    assert told == ["ACCLIMATE_DATABSE_URL (ACCLIMATE_DATABASE_URL?)", "ACCLIMATE_FORCE_EVERYTHING"]


def test_what_kubernetes_says_of_a_service_is_no_typo() -> None:
    links = ["ACCLIMATE_SERVICE_HOST", "ACCLIMATE_SERVICE_PORT_GRPC", "ACCLIMATE_PORT_50051_TCP"]
    assert unknown(links) == []


def test_a_process_that_starts_tells_the_names_that_it_ignores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ACCLIMATE_AUHT", "1")
    with structlog.testing.capture_logs() as lines:
        read(ServeSettings)
    (line,) = (each for each in lines if each["event"] == "no settings, ignored")
    assert line["log_level"] == "warning"
    assert "ACCLIMATE_AUHT (ACCLIMATE_AUTH?)" in line["names"]


def test_a_value_that_cannot_be_is_refused_by_its_variable_and_not_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ACCLIMATE_THREADS", "hunter2")
    with pytest.raises(InvalidSpec, match="ACCLIMATE_THREADS: ") as refused:
        read(WorkSettings)
    assert "hunter2" not in str(refused.value)


def test_the_page_on_settings_has_every_setting_with_its_default() -> None:
    page = (Path(__file__).parents[3] / "docs" / "settings.md").read_text()
    both, serve, work = page.partition("<!-- settings")[2].split("\n## ")[1:]
    for table, fields in (
        (both, Settings.model_fields),
        (serve, {k: v for k, v in ServeSettings.model_fields.items() if k not in BOTH}),
        (work, {k: v for k, v in WorkSettings.model_fields.items() if k not in BOTH}),
    ):
        rows = dict(re.findall(r"(?m)^\| `([A-Z_]+)` \| ([^|]+) \|", table))
        assert list(rows) == [name.upper() for name in fields]
        for name, field in fields.items():
            told = rows[name.upper()].strip("`").casefold()
            if field.default not in (None, "") and not field.default_factory:
                assert told == str(field.default).removesuffix(".0").casefold(), name


BOTH = Settings.model_fields.keys()
