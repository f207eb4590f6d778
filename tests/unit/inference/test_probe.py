from __future__ import annotations

import pytest

from acclimate_service.domain.errors import ProviderUnavailable
from acclimate_service.inference.execution import Execution
from acclimate_service.inference.probe import probe


def test_the_cpu_is_always_there() -> None:
    probe(Execution())


def test_a_gpu_that_is_not_there_is_refused_and_never_replaced_by_the_cpu() -> None:
    try:
        import torch
    except ImportError:
        pytest.skip("only torch can say whether there is a GPU")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ProviderUnavailable, match="cuda was asked for"):
        probe(Execution.for_gpu())
