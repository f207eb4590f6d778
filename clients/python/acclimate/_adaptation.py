"""The client's calls to AdaptationService: domains, uploads, jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from os import PathLike

from acclimate import _calls, _names, _wire
from acclimate._connection import Connection
from acclimate._upload import Upload
from acclimate._window import Window
from acclimate.errors import AcclimateError
from acclimate.job import Job
from acclimate.resources import (
    Acknowledgement,
    Domain,
    Example,
    JobState,
    Json,
    LabeledBatch,
    Role,
    UploadResult,
)
from acclimate.v1 import adaptation_pb2, adaptation_pb2_grpc


class AdaptationCalls:
    """Where images come from, and the jobs that adapt a model to them."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._adaptation = adaptation_pb2_grpc.AdaptationServiceStub(connection.channel)

    def create_domain(
        self,
        name: str,
        labels: Iterable[str],
        *,
        description: str = "",
        request_id: str | None = None,
    ) -> Domain:
        """Create a domain.

        Args:
            name: its id, a lower-case slug.
            labels: what its images may show.
            description: for people.
            request_id: what makes a repeated call the same call.

        Raises:
            AlreadyExists: the id is taken.
        """
        call = _calls.create_domain(name, labels, description=description, request_id=request_id)
        return self._connection.ask(call)

    def domain(self, name: str) -> Domain:
        """One domain, with its counts of images.

        Raises:
            NotFound: there is none of this name.
        """
        return self._connection.ask(_calls.domain(name))

    def domains(self) -> list[Domain]:
        """All domains."""
        request = adaptation_pb2.ListDomainsRequest()
        pages = self._connection.pages(self._adaptation.ListDomains, request)
        return [_wire.domain(message) for page in pages for message in page.domains]

    def upload(
        self,
        domain: str,
        examples: Iterable[Example],
        *,
        role: Role = Role.AUTO,
        request_id: str | None = None,
        on_acknowledgement: Callable[[Acknowledgement], None] | None = None,
        on_wait: Callable[[AcclimateError, float], None] | None = None,
    ) -> UploadResult:
        """Upload labelled images as one batch, which jobs see once it is whole.

        *examples* is read lazily; only a bounded window of it is ever in memory.
        A broken connection is resumed. So is an upload that an earlier call with
        the same request_id began, if the same examples come in the same order:
        what the service has already answered is then not sent again.

        Args:
            domain: where the images come from.
            examples: the images.
            role: what they are given for.
            request_id: what makes the upload resumable by another call.
            on_acknowledgement: told every answer, in order, on the calling thread.
            on_wait: told what is waited for when the service refuses for a while (its disk is
                full, say), and for how many seconds at most.

        Raises:
            TypeError: *examples* is a path: read it with `examples_from_folder`.
            InvalidRequest: the whole batch was refused (none of it was accepted, say).
            UploadMismatch: the examples are not those the request_id began with.
            Unavailable: the service stayed away for longer than the client's patience.
        """
        if isinstance(examples, str | bytes | PathLike):
            raise TypeError(
                "examples are Example objects: examples_from_folder(...) reads a folder"
            )
        window = Window(
            domain=_names.domain_name(domain),
            role=role,
            request_id=request_id or _calls.new_request_id(),
            on_acknowledgement=on_acknowledgement,
        )
        upload = Upload(self._connection, window=window, examples=examples, on_wait=on_wait)
        return upload.run()

    def batches(self, domain: str) -> list[LabeledBatch]:
        """All batches of a domain."""
        request = adaptation_pb2.ListLabeledBatchesRequest(parent=_names.domain_name(domain))
        pages = self._connection.pages(self._adaptation.ListLabeledBatches, request)
        return [_wire.batch(message) for page in pages for message in page.batches]

    def delete_domain(self, name: str, *, reason: str = "") -> None:
        """Delete a domain with its images.

        Raises:
            Conflict: it is a model's source, a job on it runs, or one was judged with it.
        """
        request = adaptation_pb2.DeleteDomainRequest(name=_names.domain_name(name), reason=reason)
        self._connection.call(self._adaptation.DeleteDomain, request, idempotent=False)

    def delete_batch(self, name: str, *, reason: str = "") -> None:
        """Take an upload back: the batch of this full name, with its images.

        Raises:
            Conflict: a job that may read it runs, or was judged since it came.
        """
        request = adaptation_pb2.DeleteLabeledBatchRequest(name=name, reason=reason)
        self._connection.call(self._adaptation.DeleteLabeledBatch, request, idempotent=False)

    def adapt(
        self,
        model: str,
        domain: str,
        *,
        strategy: str = "auto",
        epochs: int | None = None,
        budget_seconds: float | None = None,
        batch_size: int | None = None,
        seed: int | None = None,
        replay_per_class: int | None = None,
        views: int | None = None,
        extend_labels: bool = False,
        base: str = "",
        promote_to: str = "",
        variants: Sequence[str] = (),
        guard_preset: str = "",
        guard: Mapping[str, Json] | None = None,
        request_id: str | None = None,
    ) -> Job:
        """Start the job that adapts a model to a domain, or bootstraps a bare backbone.

        What is left unset has the service's default.

        Args:
            model: the model.
            domain: the domain to learn.
            strategy: ``auto`` measures and chooses; others: docs/strategies.md.
            epochs: passes over the training images at most.
            budget_seconds: seconds to spend at most.
            batch_size: images a step.
            seed: of everything random.
            replay_per_class: source images a class shown again, against forgetting.
            views: augmented views of every training image.
            extend_labels: let labels that the model lacks grow its head.
            base: the version (``3``) or alias to adapt from; empty for ``production``.
            promote_to: the alias to move when, and only when, the guard accepts.
            variants: ``int8`` (for CPUs), ``fp16`` (for GPUs): also make these of the
                version, each judged by the guard beside it.
            guard_preset: ``balanced``, ``strict`` or ``exploratory``.
            guard: overrides of the preset, by field name.
            request_id: what makes a repeated call the same call.

        Raises:
            NotFound: there is no such model, domain or base.
            Conflict: there is nothing to adapt from, or there are too few images.
        """
        call = _calls.adapt(
            model,
            domain,
            strategy=strategy,
            epochs=epochs,
            budget_seconds=budget_seconds,
            batch_size=batch_size,
            seed=seed,
            replay_per_class=replay_per_class,
            views=views,
            extend_labels=extend_labels,
            base=base,
            promote_to=promote_to,
            variants=variants,
            guard_preset=guard_preset,
            guard=guard,
            request_id=request_id,
        )
        return Job(self._connection, self._connection.ask(call))

    def job(self, name: str) -> Job:
        """A handle on one job.

        Raises:
            NotFound: there is none of this name.
        """
        return Job.named(self._connection, _names.job_name(name))

    def jobs(
        self,
        *,
        model: str = "",
        domain: str = "",
        state: JobState | None = None,
        limit: int | None = None,
    ) -> list[Job]:
        """All jobs, or those of one model, of one domain that is learnt, or in one state.

        The newest come first, *limit* at most.
        """
        request = adaptation_pb2.ListAdaptationJobsRequest(
            model=_names.model_name(model) if model else "",
            domain=_names.domain_name(domain) if domain else "",
            state=_wire.state_number(state),
        )
        pages = self._connection.pages(self._adaptation.ListAdaptationJobs, request)
        messages = (message for page in pages for message in page.jobs)
        return [Job(self._connection, _wire.job(message)) for message in islice(messages, limit)]
