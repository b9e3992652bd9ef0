"""What a base's folder and a caller say about packed weights, before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping

from adapterhub.bases import BaseRecord
from adapterhub.errors import UsageError
from adapterhub.fingerprints import read_config
from adapterhub.spec.quantization import Quantization


def quantized_by(record: BaseRecord) -> str | None:
    """Return what a base is stored quantized by (`bitsandbytes`, `gptq` …), by its config.json; None where it is not.

    Raises:
        InvalidFileError: it cannot be read.
    """
    found = read_config(record.path).get("quantization_config")
    if not found:
        return None
    return str(found.get("quant_method") or "quantization_config") if isinstance(found, Mapping) else "yes"


def packed_bits(record: BaseRecord, quantization: Quantization | None) -> int | None:
    """Return in how many bits the base's linear weights will be packed, 4 or 8; None where they will not.

    Raises:
        UsageError: a base that is stored quantized is to be quantized as it is loaded.
    """
    library = quantized_by(record)
    if library is None:
        return None if quantization is None else quantization.bits
    if quantization is not None:
        raise UsageError(
            f"{record.ref.id} is stored quantized ({library}): it cannot be quantized again as it is loaded",
            where="--load-in-4bit" if quantization.load_in_4bit else "--load-in-8bit",
            hint="leave it out, or name the 16-bit original: --base NAME",
        )
    stored = read_config(record.path)["quantization_config"]
    return 8 if isinstance(stored, Mapping) and stored.get("load_in_8bit") else 4
