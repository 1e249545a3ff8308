"""Sightline gives any language model eyes."""

__version__ = "0.1.0"
