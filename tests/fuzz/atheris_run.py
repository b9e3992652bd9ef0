"""`python -m tests.fuzz.atheris_run TARGET [-runs=N] [-max_total_time=S]`: one target under atheris, where it installs.

Coverage-guided (https://github.com/google/atheris); the options are libFuzzer's. Without atheris it says so and ends
with 2; the hypothesis tests and `python -m tests.benchmarks fuzz` need nothing of it.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path


def main() -> int:
    """Fuzz the target that the first argument names until libFuzzer ends; return the exit code."""
    try:
        import atheris
    except ImportError:
        print("atheris is not installed: pip install atheris", file=sys.stderr)
        return 2
    with atheris.instrument_imports(include=["adapterhub", "ruamel"]):
        from tests.fuzz.targets import TARGETS
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        print(f"name one of: {', '.join(TARGETS)}", file=sys.stderr)
        return 2
    target = TARGETS[sys.argv[1]]
    corpus = Path(tempfile.mkdtemp(prefix="adapt-fuzz-"))
    for index, seed in enumerate(target.seeds):
        (corpus / f"seed-{index}").write_bytes(seed)

    def once(data: bytes) -> None:
        target.accepts(data)

    options = sys.argv[2:] or ["-runs=20000"]
    artifacts = f"-artifact_prefix={corpus}/"
    atheris.Setup([sys.argv[0], *options, "-max_len=4096", artifacts, str(corpus)], once)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
