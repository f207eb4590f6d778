"""Short forms of resource names: ``digits`` for ``models/digits``, ``digits/3`` for a version.

Full names pass through unchanged; the service judges whether they are well formed.
"""

from __future__ import annotations


def model_name(text: str) -> str:
    """``digits`` → ``models/digits``."""
    return text if text.startswith("models/") else f"models/{text}"


def domain_name(text: str) -> str:
    """``shop`` → ``domains/shop``."""
    return text if text.startswith("domains/") else f"domains/{text}"


def job_name(text: str) -> str:
    """``a1b2`` → ``jobs/a1b2``."""
    return text if text.startswith("jobs/") else f"jobs/{text}"


def version_name(text: str, *, model: str = "") -> str:
    """``digits/3`` → ``models/digits/versions/3``; with a *model*, ``3`` alone is enough."""
    if text.startswith("models/"):
        return text
    if "/" in text:
        model, _, text = text.partition("/")
    # Without a model the service says what is missing, of the name as it was given.
    return f"{model_name(model)}/versions/{text}" if model else text


def alias_name(model: str, alias: str) -> str:
    """``digits``, ``production`` → ``models/digits/aliases/production``."""
    return f"{model_name(model)}/aliases/{alias}"


def rollout_name(text: str) -> str:
    """``digits/20261125-101500-1a2b3c`` → the full name of that rollout of ``digits``."""
    if text.startswith("models/"):
        return text
    model, _, rollout = text.partition("/")
    return f"{model_name(model)}/rollouts/{rollout}"


def served_name(text: str) -> str:
    """What answers: ``digits`` (its production), ``digits@canary`` or ``digits/3``."""
    if text.startswith("models/"):
        return text
    if "@" in text:
        model, _, alias = text.partition("@")
        return alias_name(model, alias)
    if "/" in text:
        return version_name(text)
    return model_name(text)


def base_name(text: str, *, model: str) -> str:
    """What to adapt from: a version (``3``) or an alias (``canary``); empty stays empty."""
    if not text or text.startswith("models/"):
        return text
    if text.isdigit():
        return version_name(text, model=model)
    return alias_name(model, text)
