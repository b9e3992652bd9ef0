"""Safetensors checkpoints by header and by stream: names, shapes, dtypes, byte ranges, digests; no torch.

`header` says what a file claims and refuses what is malformed, `checkpoint` finds the files of a folder, `arrays`
brings tensors into numpy and back, `writer` streams a new file, `fingerprints` digests what was found. numpy is
imported only by the functions of `arrays` that need it, so whoever reads headers stays light.
"""

from __future__ import annotations

from adapterhub.weights.arrays import (
    iter_chunks,
    load_array,
    read_bytes,
    to_bf16_bytes,
    to_dtype_bytes,
)
from adapterhub.weights.checkpoint import Checkpoint, open_checkpoint
from adapterhub.weights.fingerprints import WeightFingerprints, fingerprint, tensor_table_digest
from adapterhub.weights.header import (
    DTYPE_BITS,
    MAX_HEADER_BYTES,
    Header,
    TensorInfo,
    header_end,
    parse_header,
    read_header,
    refuse_other_kinds,
    sniff,
)
from adapterhub.weights.writer import SafetensorsWriter, TensorSpec, aligned_order

__all__ = [
    "DTYPE_BITS",
    "MAX_HEADER_BYTES",
    "Checkpoint",
    "Header",
    "SafetensorsWriter",
    "TensorInfo",
    "TensorSpec",
    "WeightFingerprints",
    "aligned_order",
    "fingerprint",
    "header_end",
    "iter_chunks",
    "load_array",
    "open_checkpoint",
    "parse_header",
    "read_bytes",
    "read_header",
    "refuse_other_kinds",
    "sniff",
    "tensor_table_digest",
    "to_bf16_bytes",
    "to_dtype_bytes",
]
