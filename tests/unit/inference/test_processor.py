from __future__ import annotations

import pytest

from acclimate_service.inference.processor import overflows

OLD = "flags\t\t: fpu sse4_2 avx avx2 avx512f avx512bw\n"


@pytest.mark.parametrize("flag", ["avx512_vnni", "avx_vnni"])
def test_an_x86_with_vnni_multiplies_exactly(flag: str) -> None:
    assert not overflows("x86_64", OLD.replace("avx2", flag))


@pytest.mark.parametrize("told", [OLD, "", "model name : made with avx512_vnni in mind\n"])
def test_an_x86_that_does_not_say_so_overflows(told: str) -> None:
    assert overflows("x86_64", told)


def test_other_processors_do_not() -> None:
    assert not overflows("aarch64", "Features : fp asimd\n")
