"""What comes in, remembered as features, and compared with what a version knows.

Of every request until there is something to tell, and then of one in ``EVERY``, the version's
pooled features are kept, the newest ``KEPT`` images of each version; the images themselves are
not. What they are compared with is computed when somebody asks, behind all predictions, and
kept as long as the version is.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import OrderedDict, deque

import numpy as np
from numpy.typing import NDArray

from acclimate_service.domain.drift import FEWEST, ROWS, Drift, Features, drift, sketch
from acclimate_service.domain.examples import Example, Split
from acclimate_service.domain.model import ModelVersion
from acclimate_service.domain.names import DomainName, ModelName
from acclimate_service.inference.answer import Answer
from acclimate_service.inference.batcher import PATIENT
from acclimate_service.inference.encoded import Encoded
from acclimate_service.inference.handle import Handle
from acclimate_service.rpc.bounds import Lane
from acclimate_service.store import Store

EVERY = 8  # requests, of which one is remembered once there are images enough to tell
KEPT = 256  # images of each version
VERSIONS = 32  # remembered at once
REFERENCES = 160 * 2**20  # bytes of what they are compared with: of 1,250 domains
TOGETHER = 16  # reference images of one run
OUTPUT = "embeddings"


class Drifts:
    """Live features by version, and their drift. Belongs to one event loop.

    Which requests are remembered is *drawn*, but for the first ones.
    """

    def __init__(self, store: Store, *, lane: Lane, drawn: np.random.Generator) -> None:
        self._store = store
        self._lane = lane
        self._drawn = drawn
        self._count = itertools.count()
        self._chosen = 0  # the place, of every EVERY requests, of the one that is remembered
        self._referring = asyncio.Lock()
        self._seen: OrderedDict[str, deque[NDArray[np.float32]]] = OrderedDict()
        self._known: OrderedDict[tuple[str, DomainName], Features] = OrderedDict()
        self._referred = 0  # bytes of all of them

    def outputs(self, version: str, asked: tuple[str, ...]) -> tuple[str, ...]:
        """The outputs to compute for a version's next request: those *asked*, perhaps one more."""
        if OUTPUT in asked:
            return asked
        if len(self._seen.get(version, ())) < FEWEST:
            # Who tries the service out asks 50 images, not 400, before wanting to know.
            return (*asked, OUTPUT)
        place = next(self._count) % EVERY
        if place == 0:
            # By chance: of models or cameras that ask by turns, always the same would be seen.
            self._chosen = int(self._drawn.integers(EVERY))
        return (*asked, OUTPUT) if place == self._chosen else asked

    def observe(self, version: str, answer: Answer) -> None:
        """Remember an answer's features, if they were computed."""
        rows = answer.outputs.get(OUTPUT)
        if rows is None:
            return
        seen = self._seen.setdefault(version, deque(maxlen=KEPT))
        self._seen.move_to_end(version)
        seen.extend(np.array(row, np.float32) for row in rows)
        while len(self._seen) > VERSIONS:
            self._seen.popitem(last=False)

    async def measure(self, handle: Handle[ModelVersion]) -> Drift:
        """How far the last images that the version answered lie from each domain it knows.

        Raises:
            Overloaded: the server has no room for the comparison now.
            StoreUnavailable: the store is out of reach.
        """
        version = handle.details
        domains = await self._lane.run(self._domains, version)
        # One at a time: many at once would fill the room that predictions need.
        async with self._referring:
            known = {str(one): await self._reference(handle, one) for one in domains}
        live = np.array(self._seen.get(handle.version, ()))
        return await self._lane.run(lambda: drift(sketch(live) if len(live) else live, known))

    def _domains(self, version: ModelVersion) -> list[DomainName]:
        """The model's source, and every domain that a version of its lineage was made for."""
        registry = self._store.registry
        source = registry.get_model(ModelName(version.name.model)).source_domain
        accepted = registry.accepted_domains(version.name)
        return [one for one in dict.fromkeys([source, *accepted]) if one is not None]

    async def _reference(self, handle: Handle[ModelVersion], domain: DomainName) -> Features:
        """What a domain's images are like to the version; nothing of one that has too few yet."""
        key = (handle.version, domain)
        if key not in self._known:
            examples = await self._lane.run(self._examples, domain)
            if len(examples) < FEWEST:
                return np.empty((0, 0), np.float32)
            rows = await self._features(handle, examples)
            found = self._known[key] = await self._lane.run(sketch, rows)
            self._referred += found.nbytes
            while self._referred > REFERENCES and len(self._known) > 1:
                self._referred -= self._known.popitem(last=False)[1].nbytes
        self._known.move_to_end(key)
        return self._known[key]

    def _examples(self, domain: DomainName) -> list[Example]:
        """Select images, and training images where those are too few; never verify images."""
        found = self._store.domains.examples(domain, splits=[Split.SELECT])
        if len(found) < FEWEST:
            found = [*found, *self._store.domains.examples(domain, splits=[Split.TRAIN])]
        # Ordered by content, which is as good as by chance.
        return found[:ROWS]

    async def _features(self, handle: Handle[ModelVersion], examples: list[Example]) -> Features:
        preprocessing = handle.details.manifest.preprocessing
        rows: list[Features] = []
        for start in range(0, len(examples), TOGETHER):
            blobs = [one.blob for one in examples[start : start + TOGETHER]]
            files = [await self._lane.run(self._store.blobs.get, blob) for blob in blobs]
            answer = await handle.run(
                Encoded(files=tuple(files), preprocessing=preprocessing),
                (OUTPUT,),
                priority=PATIENT,
                counted=False,  # nobody asked for these
            )
            rows.append(answer.outputs[OUTPUT])
        return np.concatenate(rows)
