"""How many threads numpy's matrix library may use, which it reads once, when it is loaded."""

from __future__ import annotations

import os
import sys

from adapterhub.settings import Settings

# Factors are thin: threads win nothing on an idle machine, and on a busy one they wait for each other.
DEFAULT_THREADS = 1


def limit_threads(settings: Settings) -> None:
    """Limit OpenBLAS to the threads that were set, else to one, where numpy is not loaded yet and nobody said."""
    if "numpy" not in sys.modules:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", str(settings.threads or DEFAULT_THREADS))
