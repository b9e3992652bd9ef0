"""A stack in memory: base model and tokenizer, with the adapters folded into the weights, or a prompt before them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.engine.base import LoadedBase, choose_device, choose_dtype, load_base, quiet_libraries, set_threads
from adapterhub.engine.parts import parts_of, put_parts
from adapterhub.errors import IncompatibleError, InvalidFileError
from adapterhub.spec.manifest import WEIGHTS_FILE
from adapterhub.weights import read_header

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from adapterhub.bases import BaseRecord
    from adapterhub.catalog.combinations import Rule
    from adapterhub.package import Package
    from adapterhub.spec.quantization import Quantization


def load_stack(
    record: BaseRecord,
    layers: Sequence[tuple[Package, float]],
    *,
    rule: Rule | None = None,
    tokenizer: Path | None = None,
    device: str | None = None,
    dtype: str = "auto",
    threads: int | None = None,
    quantization: Quantization | None = None,
    task: str = "CAUSAL_LM",
    labels: Sequence[str] = (),
) -> LoadedBase:
    """Load a base model with a stack of adapters folded into its weights; no layers, the bare base.

    What cannot end in the weights stands over them (engine/parts.py): bottlenecks in the layers, trained prompts before
    the model, as PEFT's. One adapter of another method than LoRA is merged by PEFT.
    `rule` says how the adapters become one: by default as their exact sum. `tokenizer` is the folder of an adapter
    whose own replaces the base's. `quantization`: what the base is packed as; beside packed weights the stack stands as
    one LoRA, and an adapter of another method as PEFT has it. task, labels: the adapters', whose head comes with them.

    Raises:
        IncompatibleError: an adapter does not fit the base, or the adapters not each other. What `load_base`,
        `choose_device` and `choose_dtype` raise.
    """
    # Headers first: what makes no stack is refused before the base is read.
    parts = parts_of(layers, rule)
    set_threads(threads)
    place = choose_device(device)
    loaded = load_base(
        record, device=place, dtype=choose_dtype(dtype, place), task=task, labels=labels, quantization=quantization
    )
    _refuse_missing_head(loaded.made, layers, task)
    loaded = put_parts(loaded, parts, task=task)
    return loaded if tokenizer is None else replace(loaded, tokenizer=own_tokenizer(tokenizer, loaded.tokenizer))


def _refuse_missing_head(made: Sequence[str], layers: Sequence[tuple[Package, float]], task: str) -> None:
    """Refuse what would be told by a head of random values: neither the base nor an adapter brings one."""
    brought = {
        part
        for package, _ in layers
        for name in read_header(package.path / WEIGHTS_FILE).tensors
        for part in name.split(".")
    }
    missing = [name for name in made if name not in brought]
    if missing:
        raise IncompatibleError(
            f"{task} needs {', '.join(missing)}, which neither the base model nor the adapter has",
            where=", ".join(f"{package.manifest.name}@{package.manifest.version}" for package, _ in layers) or None,
            hint="take an adapter that was saved with its head",
        )


def own_tokenizer(folder: Path, base: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Load the tokenizer that an adapter brings; where it has no chat template, the base's holds."""
    from transformers import AutoTokenizer

    quiet_libraries()
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, KeyError, ValueError, RuntimeError, ImportError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InvalidFileError(f"its tokenizer cannot be loaded: {line[:300]}", where=str(folder)) from error
    if tokenizer.chat_template is None:
        tokenizer.chat_template = base.chat_template
    return tokenizer
