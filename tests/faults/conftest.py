"""Fixtures of this folder."""

from driven_clients import pair

__all__ = ["pair"]
