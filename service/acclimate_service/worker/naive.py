"""What plain fine-tuning would have done to a job's incumbent: for comparison, never for serving.

    python -m acclimate_service.worker.naive --home FOLDER --job jobs/ID --json

Every weight moves, Adam at 1e-3, BatchNorm updating, no replay, no select images: the
usual script. Measured on the same verify images as the job's own candidate.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from acclimate_service.domain.errors import NoIncumbent
from acclimate_service.domain.names import JobName
from acclimate_service.imaging import decode_prepared
from acclimate_service.store import Store, open_store
from acclimate_service.training import weights
from acclimate_service.training.augment import GENTLE
from acclimate_service.training.cache import Cache
from acclimate_service.training.dataset import Stock
from acclimate_service.training.device import choose_device
from acclimate_service.training.finetune import Effort, tune
from acclimate_service.training.network import Network, build, normalise
from acclimate_service.training.run import Run
from acclimate_service.training.strategies import parse
from acclimate_service.training.trunk import LAYOUT, Trunk
from acclimate_service.worker.evaluate import VerifySet
from acclimate_service.worker.stock import images_of

_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Naive:
    """Top-1 accuracies on verify images, in [0, 1], and the seconds of training."""

    target_before: float
    target_after: float
    source_before: float
    source_after: float
    seconds: float


def fine_tune(store: Store, name: JobName, *, threads: int, device: torch.device) -> Naive:
    """Fine-tune the job's incumbent the usual way on the job's training images.

    Raises:
        NoIncumbent: the job adapted nothing.
    """
    job = store.jobs.get(name)
    draft = job.draft
    if draft.incumbent is None or draft.target is None or draft.source in (None, draft.target):
        raise NoIncumbent(f"{name} adapted no incumbent from a source to another domain")
    assert draft.source is not None
    found = store.registry.get_version(draft.incumbent).manifest
    network = build(found.architecture, labels=len(found.labels), size=found.preprocessing.size)
    weights.restore(network, store.blobs.get(found.artifacts.weights))
    network.preprocessing = found.preprocessing
    network.to(device)
    network.to(memory_format=LAYOUT)
    images = images_of(
        store, target=draft.target, known=[draft.source], space=found.labels, replay_per_class=0
    )
    sets = (images.target, images.known[0])
    before = [_accuracy(network, verify, store, device) for verify in sets]
    began = time.monotonic()
    run = Run(clock=time.monotonic, seed=draft.spec.seed, device=device, readers=threads)
    cache = Cache(budget=2**30)
    tune(
        network,
        parse("naive"),
        start={key: t.detach().cpu().clone() for key, t in network.state_dict().items()},
        stock=Stock(train=images.stock.train),
        trunk=Trunk(network, cache, augmentation=GENTLE, views=draft.spec.views, run=run),
        effort=Effort(epochs=draft.spec.epochs, batch_size=draft.spec.batch_size),
        run=run,
    )
    seconds = time.monotonic() - began
    after = [_accuracy(network, verify, store, device) for verify in sets]
    return Naive(
        target_before=before[0],
        target_after=after[0],
        source_before=before[1],
        source_after=after[1],
        seconds=seconds,
    )


def _accuracy(network: Network, verify: VerifySet, store: Store, device: torch.device) -> float:
    network.eval()
    right = 0
    for start in range(0, len(verify), _BATCH):
        some = verify.examples[start : start + _BATCH]
        pixels = [decode_prepared(store.blobs.get(e.blob), network.preprocessing) for e in some]
        x = torch.from_numpy(np.stack(pixels)).to(device)
        with torch.no_grad():
            answers = network(normalise(x, network.preprocessing)).argmax(dim=1).cpu().numpy()
        right += int((answers == verify.labels[start : start + _BATCH]).sum())
    return right / max(1, len(verify))


def main(arguments: Sequence[str] | None = None) -> None:
    """Fine-tune and print the accuracies."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--home", type=Path, required=True, help="the service's folder")
    parser.add_argument("--job", required=True, help="jobs/ID of an adaptation")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args(arguments)
    home = given.home.absolute()
    store = open_store(f"sqlite:///{home / 'acclimate.db'}", home / "blobs")
    device = choose_device("auto", threads=given.threads)
    found = fine_tune(store, JobName.parse(given.job), threads=given.threads, device=device)
    if given.json:
        sys.stdout.write(json.dumps(asdict(found)) + "\n")
    else:
        for key, value in asdict(found).items():
            sys.stdout.write(f"{key:14} {value:.3f}\n")


if __name__ == "__main__":
    main()
