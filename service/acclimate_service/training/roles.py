"""A library's module given another way to compute the same, and given back.

Its tensors, their names and its place in the model stay: only its class changes, to one
that mixes a role into the library's own.
"""

from __future__ import annotations

from torch import nn

_MIXED: dict[tuple[type[nn.Module], type[nn.Module]], type[nn.Module]] = {}
_OWN: dict[type[nn.Module], type[nn.Module]] = {}  # the class that a mixed one was made of


def take(module: nn.Module, role: type[nn.Module]) -> None:
    """Let a module play a role: a class of methods that come before its own."""
    own = type(module)
    if (role, own) not in _MIXED:
        _MIXED[role, own] = type(f"{role.__name__}{own.__name__}", (role, own), {})
        _OWN[_MIXED[role, own]] = own
    module.__class__ = _MIXED[role, own]


def leave(module: nn.Module) -> None:
    """Let a module be the library's own again, whatever roles it plays."""
    while type(module) in _OWN:
        module.__class__ = _OWN[type(module)]
