"""Merge adapters into their base as mergekit does, each by its `model+lora`: merge_with_mergekit.py BASE OUT ADAPTER…

Run by an interpreter that has mergekit, which pins other versions than adapterhub does.
"""

import sys
import tempfile

from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions

base, out, *adapters = sys.argv[1:]
config = MergeConfiguration.model_validate(
    {
        # base + Σ weight · ((base + adapter) − base)
        "merge_method": "task_arithmetic",
        "base_model": base,
        "models": [{"model": f"{base}+{adapter}", "parameters": {"weight": 1.0}} for adapter in adapters],
        "dtype": "bfloat16",
    }
)
# Each adapter's own merge is written there first; kept, it would save a second run that part of the work.
with tempfile.TemporaryDirectory(prefix="mergekit-") as cache:
    run_merge(config, out, MergeOptions(lora_merge_cache=cache, lazy_unpickle=True, quiet=True))
