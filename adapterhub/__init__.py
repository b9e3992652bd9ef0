"""adapterhub: a declarative package manager and format for model adapters."""

from __future__ import annotations

__version__ = "0.1.0"
