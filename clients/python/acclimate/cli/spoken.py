"""The service's words in those of the command line.

The service names its calls and fields, which are right for every client. Who typed
a command is told the command and the option instead.
"""

from __future__ import annotations

import re
from typing import Final

COMMANDS: Final = {
    "CancelAdaptationJob": "jobs cancel",
    "CreateAdaptationJob": "adapt",
    "CreateDomain": "domains create",
    "CreateToken": "tokens create",
    "ForceModelVersion": "jobs force",
    "GetAdaptationJob": "jobs get",
    "GetDomain": "domains get",
    "GetReport": "report",
    "ListAdaptationJobs": "jobs",
    "ListAliases": "aliases",
    "ListDomains": "domains",
    "ListLabeledBatches": "domains get",
    "ListModelVersions": "versions",
    "ListModels": "models",
    "ListRollouts": "rollout list",
    "ListTokens": "tokens list",
    "RegisterModel": "register",
    "SetAlias": "promote",
    "WatchAdaptationJob": "jobs watch",
}
OPTIONS: Final = {
    r"`base`": "--base",
    r"promote_to": "--promote-to",
    r"spec\.variants\.\d+": "--variant",
    r"(?:spec\.)?guard_overrides\.(?=[a-z])": "--guard-set ",
    r"(?:spec\.)?guard_overrides": "--guard-set",
    r"\boverrides\.(?=[a-z])": "--set ",
    r"spec\.guard_preset": "--guard",
    r"spec\.(?=[a-z])": "--",
    r"preprocessing\.size": "--size",
}
_CALL = re.compile(rf"\b({'|'.join(COMMANDS)})\b")
_FIELD = re.compile(r"(--[a-z]+(?:_[a-z]+)+)")


def spoken(message: str) -> str:
    """*message*, with commands for calls and options for fields."""
    message = _CALL.sub(lambda call: f"`acclimate {COMMANDS[call[1]]}`", message)
    for field, option in OPTIONS.items():
        message = re.sub(field, option, message)
    return _FIELD.sub(lambda option: option[1].replace("_", "-"), message)
