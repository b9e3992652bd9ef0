"""How fast this machine multiplies float32 matrices: measured with numpy, in a process of its own, in under a second.

In a process of its own because the number of threads of numpy's BLAS is fixed when it is loaded.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

SECONDS = 0.5
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
_TIME_OUT = 30.0


def measure_matmul(*, threads: int, rows: int, inner: int, columns: int) -> float | None:
    """Return FLOP/s of (rows, inner) x (inner, columns) in float32 with so many threads; None where it cannot be told.

    The median of the repetitions counts, so that one pause of the machine does not.
    """
    environment = {**os.environ, **dict.fromkeys(_THREAD_VARIABLES, str(threads))}
    command = [sys.executable, "-m", __name__, str(rows), str(inner), str(columns)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_TIME_OUT, check=True)
        return float(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def main(words: list[str]) -> None:
    """Measure, and write FLOP/s to the pipe that the parent reads."""
    import numpy as np

    rows, inner, columns = (int(word) for word in words)
    left = np.full((rows, inner), 0.5, np.float32)
    right = np.full((inner, columns), 0.25, np.float32)
    out = np.empty((rows, columns), np.float32)
    np.matmul(left, right, out=out)  # the first one wakes the threads
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while (begin := time.perf_counter()) < end or not times:
        np.matmul(left, right, out=out)
        times.append(time.perf_counter() - begin)
    speed = 2 * rows * inner * columns / sorted(times)[len(times) // 2]
    os.write(1, f"{speed}\n".encode())


if __name__ == "__main__":
    main(sys.argv[1:])
