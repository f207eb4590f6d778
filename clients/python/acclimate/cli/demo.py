"""``acclimate demo``: the whole path on two real digit sets, within three minutes."""

from __future__ import annotations


def demo() -> None:
    """Adapt a digit classifier to another hand, and see what it forgets.

    Example: acclimate demo
    """
