"""Which images a job learns from, chooses by and is judged on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from acclimate_service.domain.errors import NotEnoughExamples
from acclimate_service.domain.examples import Example, Split
from acclimate_service.domain.names import DomainName
from acclimate_service.store import Store, data_digest
from acclimate_service.training.dataset import Stock, prepare
from acclimate_service.worker.evaluate import VerifySet
from acclimate_service.worker.images import reserve, stored_images, verify_set
from acclimate_service.worker.overlap import NearCopy, near_copies

FETCHED = 256  # images brought near between two signs of life


@dataclass(frozen=True, kw_only=True)
class JobImages:
    """Everything one job may touch, by use. ``known`` are the domains not to be forgotten.

    ``learnt`` are the examples of the domain that is learned, by content;
    ``near_copies`` what was left out for showing a held-out image.
    """

    stock: Stock
    target: VerifySet
    learnt: dict[str, Example]
    known: tuple[VerifySet, ...]
    digests: dict[str, str]
    near_copies: tuple[NearCopy, ...] = ()


def images_of(
    store: Store,
    *,
    target: DomainName,
    known: Sequence[DomainName],
    space: Sequence[str],
    replay_per_class: int,
    up_to: int | None = None,
    step: Callable[[], object] = lambda: None,
) -> JobImages:
    """Gather the images for learning *target* without forgetting the *known* domains.

    What is to be kept is one thing, wherever it came from: the replay and the select
    images of all known domains are each put together; verify images stay apart, so
    that each domain is judged by itself. An image is used once: what serves the
    target's training does not serve another domain's choices, and nothing that is a
    near-copy of a verify image serves either. What was uploaded after commit *up_to* is
    for other jobs. *step* is called now and then.

    Raises:
        NotEnoughExamples: the target has nothing to learn from.
        InvalidSpec: a target label is not in the label *space*.
    """
    others = [domain for domain in dict.fromkeys(known) if domain != target]
    # Each domain is read once, so that what is learned, judged by and named by its digest
    # are the images of one moment, whatever is uploaded meanwhile.
    held = {domain: _read(store, domain, up_to, step) for domain in (target, *others)}
    train = held[target][Split.TRAIN]
    if not train:
        raise NotEnoughExamples(
            f"{target} has no images to train on; upload some in the role TRAIN or AUTO",
            domain=target,
        )
    verify = {d: verify_set(str(d), _within(space, held[d][Split.VERIFY]), space) for d in held}

    def usable(split: Split) -> list[Example]:
        # A known domain may since have labels that no version knows.
        return [e for domain in others for e in _within(space, held[domain][split])]

    gathered = _Gathered(
        train=train,
        select=held[target][Split.SELECT],
        verify=[example for one in verify.values() for example in one.examples],
        replay=usable(Split.TRAIN),
        kept_select=usable(Split.SELECT),
    )
    copies = gathered.near_copies(read=store.blobs.get, step=step)
    gathered = gathered.without(copies)
    if not gathered.train:
        raise NotEnoughExamples(
            f"all {len(train)} training images of {target} are near-copies of held-out ones; "
            "upload others",
            domain=target,
        )
    replay = [
        example
        for _, of_domain in itertools.groupby(gathered.replay, key=lambda e: e.domain)
        for example in reserve(of_domain, replay_per_class)
    ]
    read = store.blobs.get
    used = [*gathered.train, *gathered.select, *gathered.verify, *replay, *gathered.kept_select]
    for start in range(0, len(used), FETCHED):
        step()
        store.blobs.fetch(e.blob for e in used[start : start + FETCHED])
    return JobImages(
        stock=prepare(
            stored_images(gathered.train, space, read),
            labels=len(space),
            select=stored_images(gathered.select, space, read),
            replay=stored_images(replay, space, read),
            source_select=stored_images(gathered.kept_select, space, read),
        ),
        target=verify[target],
        learnt={e.content: e for e in (*train, *gathered.select, *verify[target].examples)},
        known=tuple(verify[domain] for domain in others),
        digests={
            str(domain): data_digest(e.content for some in held[domain].values() for e in some)
            for domain in (*others, target)
        },
        near_copies=tuple(copies),
    )


def _read(
    store: Store, domain: DomainName, up_to: int | None, step: Callable[[], object]
) -> dict[Split, list[Example]]:
    """All that a domain holds, by use."""
    step()
    found: dict[Split, list[Example]] = {split: [] for split in Split}
    for example in store.domains.examples(domain, splits=tuple(Split), up_to=up_to):
        found[example.split].append(example)
    return found


def _within(space: Sequence[str], examples: Iterable[Example]) -> list[Example]:
    """Those whose labels are in the label *space*."""
    known = frozenset(space)
    return [example for example in examples if example.label in known]


@dataclass(frozen=True, kw_only=True)
class _Gathered:
    """All the examples that a job might use: the target's, and those of the known domains."""

    train: Sequence[Example]
    select: Sequence[Example]
    verify: Sequence[Example]  # of all of them
    replay: Sequence[Example]
    kept_select: Sequence[Example]

    def near_copies(
        self, *, read: Callable[[str], bytes], step: Callable[[], object]
    ) -> list[NearCopy]:
        """What must not be learned from, nor chosen by, as it shows what is held out."""
        select = [*self.select, *self.kept_select]
        chosen_by = near_copies(select, self.verify, read=read, step=step)
        held = [*self.verify, *select]
        return near_copies([*self.train, *self.replay], held, read=read, step=step) + chosen_by

    def without(self, copies: Sequence[NearCopy]) -> _Gathered:
        """The rest."""
        gone = {copy.example.content for copy in copies}

        def rest(some: Sequence[Example]) -> list[Example]:
            return [example for example in some if example.content not in gone]

        return replace(
            self,
            train=rest(self.train),
            select=rest(self.select),
            replay=rest(self.replay),
            kept_select=rest(self.kept_select),
        )


def verify_images(
    store: Store, domain: DomainName, space: Sequence[str], *, up_to: int | None = None
) -> VerifySet:
    """A domain's verify images whose labels are in the label *space*."""
    found = store.domains.examples(domain, splits=[Split.VERIFY], up_to=up_to)
    return verify_set(str(domain), _within(space, found), space)
