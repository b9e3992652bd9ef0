"""How many threads numpy's linear algebra takes."""

from __future__ import annotations

import os
import sys

# The products are thin and small: threads win nothing on an idle machine, and on a busy one OpenBLAS's wait for each
# other in a loop that made a merge twenty times slower. One number for every verb also gives every verb the same bits.
BLAS_THREADS = 1


def limit_blas_threads(threads: int | None) -> None:
    """Set the number of OpenBLAS's threads, where the environment says none; it is read once, when numpy is loaded."""
    if "numpy" not in sys.modules:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", str(threads or BLAS_THREADS))
