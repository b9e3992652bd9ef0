"""The base model in memory: the one place that decides device and dtype, and loads weights from local files only."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adapterhub.catalog.tasks import Task, task_named
from adapterhub.engine.data import pad_id
from adapterhub.errors import (
    AdapterHubError,
    IncompatibleError,
    IntegrityError,
    InvalidFileError,
    UnsatisfiedError,
    UsageError,
)

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from adapterhub.algebra.delta import Truncation
    from adapterhub.bases import BaseRecord
    from adapterhub.spec.quantization import Quantization

# What stands between a body and its head in some architectures and is left out of checkpoints that were saved without.
_POOLERS = ("pooler", "pre_classifier")
DEVICE_WORDS = ("auto", "cpu", "cuda", "mps")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedBase:
    """A base model ready to compute: frozen weights in `dtype` on `device`, in eval mode, and its tokenizer.

    truncation: what a stack that was folded in lost by a limit of its rank; None where nothing was cut. quantization:
    how its linear weights are packed, None where they are not; `dtype` is then that of the others. made: the modules
    that the checkpoint lacks and the task needs, newly made: an adapter has to bring them along.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    dtype: torch.dtype
    truncation: Truncation | None = None
    quantization: Quantization | None = None
    made: tuple[str, ...] = ()


def choose_device(name: str | None = None) -> torch.device:
    """Return the device to compute on: what is named (`cpu`, `cuda`, `cuda:1`, `mps`), else the best that is here.

    Raises:
        UsageError: the name is no device, or this machine has none of that kind.
    """
    import torch

    if name is None or name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    word, _, index = name.partition(":")
    if word not in DEVICE_WORDS[1:] or (index and (word != "cuda" or not index.isdigit())):
        raise UsageError(f"{name!r} is not a device", hint="use one of auto, cpu, cuda, cuda:0, mps")
    if word == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(index or 0) >= count:
            raise UsageError(f"this machine has {count} CUDA devices, {name!r} is not one", hint="use --device auto")
        return torch.device("cuda", int(index or 0))
    if word == "mps" and not torch.backends.mps.is_available():
        raise UsageError("this machine has no MPS device", hint="use --device auto")
    return torch.device(word)


def choose_dtype(requested: str, device: torch.device) -> torch.dtype:
    """Return the dtype of the frozen weights: what is requested (`float32`, `bfloat16`, `float16`), else by device.

    `auto` is bfloat16 where the hardware multiplies it natively (CUDA from 8.0, MPS from macOS 14, CPUs with AMX or
    AVX512-BF16), float16 on older CUDA, and float32 elsewhere: on other CPUs bfloat16 is several times slower.

    Raises:
        UsageError: the word is no dtype of ours.
    """
    import torch

    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if requested in known:
        return known[requested]
    if requested != "auto":
        raise UsageError(f"{requested!r} is not a dtype", hint=f"use one of auto, {', '.join(known)}")
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    if device.type == "mps":
        return torch.bfloat16 if torch.backends.mps.is_macos_or_newer(14, 0) else torch.float32
    return torch.bfloat16 if cpu_multiplies_bfloat16() else torch.float32


def cpu_multiplies_bfloat16() -> bool:
    """Tell whether this CPU has instructions for bfloat16 matrix products (AMX or AVX512-BF16)."""
    import torch

    # torch has no public question for this; the private ones return False where they do not apply.
    probes = (getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    return any(bool(probe()) for probe in probes if probe is not None)


def set_threads(threads: int | None) -> int:
    """Fix the number of threads of one computation (None: the processors this process may use); return it."""
    import torch

    if threads is None and "OMP_NUM_THREADS" not in os.environ:
        threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if threads is not None and threads != torch.get_num_threads():
        torch.set_num_threads(threads)
    return torch.get_num_threads()


def quiet_libraries() -> None:
    """Keep transformers, peft and accelerate from printing: what a person should see goes through Progress."""
    import logging

    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for name in ("accelerate", "bitsandbytes", "peft", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)


@contextmanager
def without_future_warnings() -> Iterator[None]:
    """Keep back what the libraries say to each other about names that a later version will not have."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def load_base(
    record: BaseRecord,
    *,
    device: torch.device,
    dtype: torch.dtype,
    task: str = "CAUSAL_LM",
    labels: Sequence[str] = (),
    seed: int | None = None,
    quantization: Quantization | None = None,
) -> LoadedBase:
    """Load a base model for a task, and its tokenizer, from the folder a base record points to; opens no connection.

    Only safetensors are read and no code of the model's repository runs. A head that the checkpoint lacks is made anew
    by `seed`; labels: the names that a classifier's head tells apart, in their order. quantization: what linear weights
    are packed as while they are read; 4-bit products are computed in its compute dtype, else in `dtype`.

    Raises:
        UnsatisfiedError: the folder is gone, or the weights do not fit in the device's memory.
        IntegrityError: the checkpoint lacks weights that the model needs. InvalidFileError: it cannot be read.
        IncompatibleError: transformers does not know the architecture, or nothing of it could be packed.
        UsageError: what is stored quantized is to be quantized.
    """
    import torch
    import transformers

    from adapterhub.engine import quantized

    row = task_named(task)
    heads = (*row.head_modules, *_POOLERS)
    auto_class = getattr(transformers, row.auto_class)
    named: dict[str, Any] = {}
    if row.labels:
        named = {"num_labels": len(labels), "id2label": dict(enumerate(labels))}
        named["label2id"] = {label: index for index, label in enumerate(labels)}
    quiet_libraries()
    if not record.path.is_dir():
        raise UnsatisfiedError(
            f"the folder of base model {record.ref.id} is gone",
            where=str(record.path),
            hint=f"adapt base add {record.ref.id} --from …",
        )
    config = _read_config(record)
    quantized.refuse_twice(config.get("quantization_config"), quantization, str(record.path))
    packed_as = quantized.stored_quantization(config) if quantization is None else quantization
    if packed_as is not None:
        packed_as = packed_as.computing_in(str(dtype).removeprefix("torch."))
    options: dict[str, Any] = {**named, "dtype": dtype}
    # Packed weights go where the map says; without one they would go to a GPU.
    options["device_map"] = None if device.type == "cpu" and packed_as is None else {"": device}
    with _loading(record, device):
        if quantization is not None and packed_as is not None:
            options |= quantized.loading_options(record.path, auto_class, packed_as, named, heads)
        if seed is not None:
            torch.manual_seed(seed)
        model, info = auto_class.from_pretrained(
            str(record.path),
            **options,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    lacking = sorted(info["missing_keys"]) + sorted(str(item[0]) for item in info["mismatched_keys"])
    _require_whole(record, model, [name for name in lacking if not is_new_head(name, row)])
    model.requires_grad_(False)
    model.eval()
    if packed_as is not None:
        quantized.settle(model, packed_as)
    tokenizer = load_tokenizer(record)
    if row.name == "SEQ_CLS":
        # Decoders tell a row's last token by it, so it has to be what batches are filled up with.
        model.config.get_text_config().pad_token_id = pad_id(tokenizer)
    return LoadedBase(
        model=model,
        tokenizer=tokenizer,
        device=device,
        dtype=dtype,
        quantization=packed_as,
        # What a bare model lacks is a pooler, which no task of vectors reads.
        made=() if row.bare else tuple(dict.fromkeys(p for name in lacking for p in name.split(".") if p in heads)),
    )


def _require_whole(record: BaseRecord, model: PreTrainedModel, missing: Sequence[str]) -> None:
    """Refuse a checkpoint that lacks weights of the model's body."""
    if missing:
        shown = ", ".join(missing[:5]) + (" …" if len(missing) > 5 else "")
        raise IntegrityError(
            f"the checkpoint lacks {len(missing)} of the tensors {type(model).__name__} needs: {shown}",
            where=str(record.path),
            hint=f"adapt base remove {record.ref.id}, then add it again from a complete folder",
        )


@contextmanager
def _loading(record: BaseRecord, device: torch.device) -> Iterator[None]:
    """Turn what transformers raises for a folder it cannot load into our errors."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UnsatisfiedError(
            f"base model {record.ref.id} does not fit in the memory of {device}", hint="--device cpu"
        ) from error
    except (OSError, KeyError, ValueError, RuntimeError, ImportError) as error:
        raise _cannot_load(record, error) from error


def is_new_head(name: str, task: Task) -> bool:
    """Say whether a tensor that a checkpoint lacks is of the head that the task adds: `classifier.dense.weight`."""
    return any(part in task.head_modules or part in _POOLERS for part in name.split(".")[:-1])


def load_tokenizer(record: BaseRecord) -> PreTrainedTokenizerBase:
    """Load a base's tokenizer from its folder.

    Raises:
        InvalidFileError: the folder has none that can be read.
    """
    from transformers import AutoTokenizer

    quiet_libraries()
    try:
        return AutoTokenizer.from_pretrained(str(record.path), local_files_only=True, trust_remote_code=False)
    except (OSError, KeyError, ValueError, RuntimeError, ImportError) as error:
        raise InvalidFileError(f"no tokenizer can be loaded: {_first_line(error)}", where=str(record.path)) from error


def _read_config(record: BaseRecord) -> dict[str, Any]:
    """Return config.json; one that names Python code to import is refused before transformers asks on the terminal."""
    try:
        config = json.loads((record.path / "config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidFileError(f"no config.json can be read: {error}", where=str(record.path)) from error
    if not isinstance(config, dict) or config.get("auto_map"):
        raise IncompatibleError(
            f"base model {record.ref.id} needs code from its own repository, which adapterhub never runs",
            where=str(record.path / "config.json"),
        )
    return config


def _cannot_load(record: BaseRecord, error: Exception) -> AdapterHubError:
    message = f"base model {record.ref.id} cannot be loaded: {_first_line(error)}"
    known = isinstance(error, KeyError | ValueError | ImportError)
    kind = IncompatibleError if known else InvalidFileError
    return kind(message, where=str(record.path))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
