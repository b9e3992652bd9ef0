"""A base that bitsandbytes packed in few bits, unpacked into a base of its own, which adapters can be merged into."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Literal

from adapterhub.bases import BaseRecord, BaseStore, read_base
from adapterhub.errors import IncompatibleError, UsageError
from adapterhub.files import new_folder
from adapterhub.ops import _merged
from adapterhub.ops._base_source import FoundSource
from adapterhub.ops._quantized import packed_bits, quantized_by
from adapterhub.progress import SILENT, Progress
from adapterhub.settings import Settings
from adapterhub.spec.base_model import BaseModelRef, Derivation

KIND: Literal["dequantized"] = "dequantized"


def refuse_beside(source: str | None, derived_from: str | None, dtype: str | None, dtypes: Sequence[str]) -> None:
    """Refuse options that contradict --dequantize, or have no meaning beside it.

    Raises:
        UsageError: one does.
    """
    if source is not None or derived_from is not None:
        raise UsageError(
            "--dequantize names what the new base model is made and derived from",
            where="--from" if source is not None else "--derived-from",
            hint="leave it out",
        )
    if dtype is not None and dtype not in dtypes:
        raise UsageError(f"{dtype!r} is not one of {', '.join(dtypes)}", where="--dtype")


def packed_base(name: str, packed: str, *, settings: Settings) -> FoundSource:
    """Return a base that is here and packed by bitsandbytes, as a source to add another from.

    Raises:
        UsageError: the new name is a repository's. UnsatisfiedError, IntegrityError: there is no such base, or its
        folder changed. IncompatibleError: it is not packed, or by another library.
    """
    if "/" in name:
        raise UsageError(
            f"an unpacked base model takes a name of its own: {name} is a repository's",
            hint=f"adapt base add {PurePosixPath(name).name.lower()} --dequantize {packed}",
        )
    record = BaseStore(settings).get(packed)
    library = quantized_by(record)
    if library != "bitsandbytes":
        told = f"is quantized with {library}, which cannot be unpacked here" if library else "is not stored quantized"
        hint = f"name the 16-bit original that {packed} is of" if library else "adapters are merged into it as it is"
        raise IncompatibleError(f"the base model {packed} {told}", where="--dequantize", hint=hint)
    return FoundSource(kind=KIND, path=record.path, size=record.size)


def derivation_of(packed: BaseRecord, dtype: str | None) -> Derivation:
    """Say what a base was unpacked from: the packed one's name, and the digest of its weights."""
    bits = packed_bits(packed, None)
    how = f"dequantized from bitsandbytes {bits}-bit" + (f" to {dtype}" if dtype else "")
    return Derivation(how=how, id=packed.ref.id, digest=packed.ref.fingerprints.weights)


def add_dequantized(
    store: BaseStore, name: str, packed: BaseRecord, dtype: str | None, progress: Progress = SILENT
) -> BaseRecord:
    """Unpack a base into the base store, and write its record last; the folder appears when it is whole.

    Raises:
        IncompatibleError, IntegrityError: what `engine.dequantize` raises.
    """
    from adapterhub.engine.dequantize import dequantize

    target = store.model_folder(name)
    shutil.rmtree(target, ignore_errors=True)
    with new_folder(target) as folder, progress.task("dequantizing", total=None) as task:

        def advance(tensor: str, done: int, total: int) -> None:
            del tensor
            task.update(tensors=f"{done} of {total}")

        dequantize(packed.path, folder, dtype=dtype, advance=advance)
        _merged.copy_side_files(packed.path, folder)
    ref = BaseModelRef(id=name, derived_from=derivation_of(packed, dtype))
    note = f"weights are what {packed.ref.id} packed in few bits, not the original checkpoint's"
    record = read_base(target, ref, KIND, notes=(note,), progress=progress)
    store.add(record)
    return record
