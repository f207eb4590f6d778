"""Which images a job learns from, chooses by and is judged on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from acclimate_service.domain.errors import NotEnoughExamples
from acclimate_service.domain.examples import Example, Split
from acclimate_service.domain.names import DomainName
from acclimate_service.store import Store, data_digest
from acclimate_service.training.dataset import Stock, prepare
from acclimate_service.worker.evaluate import VerifySet
from acclimate_service.worker.images import reserve, stored_images, verify_set


@dataclass(frozen=True, kw_only=True)
class JobImages:
    """Everything one job may touch, by use. ``known`` are the domains not to be forgotten."""

    stock: Stock
    target: VerifySet
    known: tuple[VerifySet, ...]
    digests: dict[str, str]


def images_of(
    store: Store,
    *,
    target: DomainName,
    known: Sequence[DomainName],
    space: Sequence[str],
    replay_per_class: int,
) -> JobImages:
    """Gather the images for learning *target* without forgetting the *known* domains.

    What is to be kept is one thing, wherever it came from: the replay and the select
    images of all known domains are each put together; verify images stay apart, so
    that each domain is judged by itself. An image is used once: what serves the
    target's training does not serve another domain's choices.

    Raises:
        NotEnoughExamples: the target has nothing to learn from.
        InvalidSpec: a target label is not in the label *space*.
    """

    def examples(domain: DomainName, split: Split) -> list[Example]:
        return store.domains.examples(domain, splits=[split])

    train = examples(target, Split.TRAIN)
    if not train:
        raise NotEnoughExamples(
            f"{target} has no images to train on; upload some in the role TRAIN or AUTO",
            domain=target,
        )
    others = [domain for domain in known if domain != target]
    replay = [e for d in others for e in reserve(examples(d, Split.TRAIN), replay_per_class)]
    kept_select = [e for d in others for e in examples(d, Split.SELECT)]
    known_space = set(space)  # a known domain may since have labels that no version knows

    def usable(found: Sequence[Example]) -> list[Example]:
        return [example for example in found if example.label in known_space]

    read = store.blobs.get
    return JobImages(
        stock=prepare(
            stored_images(train, space, read),
            labels=len(space),
            select=stored_images(examples(target, Split.SELECT), space, read),
            replay=stored_images(usable(replay), space, read),
            source_select=stored_images(usable(kept_select), space, read),
        ),
        target=verify_images(store, target, space),
        known=tuple(verify_images(store, domain, space) for domain in others),
        digests={
            str(d): data_digest(e.content for s in Split for e in examples(d, s))
            for d in dict.fromkeys([*known, target])
        },
    )


def verify_images(store: Store, domain: DomainName, space: Sequence[str]) -> VerifySet:
    """A domain's verify images whose labels are in the label *space*."""
    found = store.domains.examples(domain, splits=[Split.VERIFY])
    return verify_set(str(domain), [e for e in found if e.label in set(space)], space)
