"""Acclimate's Python client."""
