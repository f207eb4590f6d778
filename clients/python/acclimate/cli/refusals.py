"""How a command ends: its exit code, and one clear line for each thing refused."""

from __future__ import annotations

import contextlib
import enum
import os
from typing import Any

import typer
from typer.core import TyperGroup

from acclimate import errors
from acclimate.cli.spoken import spoken
from acclimate.resources import JobState


class Exit(enum.IntEnum):
    """The exit codes; part of the command line's contract."""

    DONE = 0
    REFUSED = 1
    USAGE = 2
    NOT_ACCEPTED = 3  # the guard rejected, or could not decide
    JOB_FAILED = 4  # or was cancelled
    UNREACHABLE = 5


def exit_of(error: errors.AcclimateError) -> Exit:
    """The exit code of an error."""
    if isinstance(error, errors.Unavailable | errors.DeadlineExceeded | errors.Overloaded):
        return Exit.UNREACHABLE
    return Exit.REFUSED


def exit_of_job(state: JobState) -> Exit:
    """The exit code of a job's end."""
    if state in (JobState.REJECTED, JobState.INCONCLUSIVE):
        return Exit.NOT_ACCEPTED
    if state in (JobState.FAILED, JobState.CANCELLED):
        return Exit.JOB_FAILED
    return Exit.DONE


def shown(text: str) -> str:
    """*text* as a terminal shows and does not obey it."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def complain(reason: str, message: str) -> None:
    """One line on stderr, if that can be written to: ``up`` outlives the disk of its log."""
    with contextlib.suppress(OSError):
        typer.echo(f"acclimate: {reason}: {shown(' '.join(message.split()))}", err=True)


def usage(message: str) -> typer.Exit:
    """What to raise when the command line, or a file it names, is wrong."""
    complain("USAGE", message)
    return typer.Exit(Exit.USAGE)


class Refusals(TyperGroup):
    """The root command: turns errors into a line on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:  # click's context, or typer's own copy of it, by release
        """Run the command."""
        try:
            return super().invoke(ctx)
        except errors.AcclimateError as error:
            message = error.message
            if isinstance(error, errors.Unavailable) and error.reason == "UNAVAILABLE":
                why = message.rpartition(": ")[2].rstrip("]")  # before it, every address tried
                message = (
                    f"the service does not answer ({why}); start it with `acclimate up`, or say "
                    "by --server where it is"
                )
            if error.reason == "CONNECTION_LOST" and not os.environ.get("ACCLIMATE_TLS_CA"):
                message += "; if the service uses TLS, set ACCLIMATE_TLS_CA"
            complain(error.reason, spoken(message))
            raise typer.Exit(exit_of(error)) from None
        except BrokenPipeError:
            raise  # who reads has enough (`| head`): the command line's framework ends in silence
        except OSError as error:
            what = error.strerror or str(error)
            raise usage(f"{what}: {error.filename}" if error.filename else what) from None
