"""The loss of labelled tokens, computing logits for those tokens alone.

On small models with large vocabularies the output layer is most of the work, and chats label a third of their tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from adapterhub.engine.data import IGNORED

if TYPE_CHECKING:
    import torch


def token_losses(model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the cross-entropy of every labelled token in float32, in the order of rows and positions: (labelled,)."""
    import torch

    targets = batch["labels"][:, 1:]
    labelled = targets != IGNORED
    logits = labelled_logits(model, batch["input_ids"], labelled)
    return torch.nn.functional.cross_entropy(logits.float(), targets[labelled], reduction="none")


def labelled_logits(model: Any, input_ids: torch.Tensor, labelled: torch.Tensor) -> torch.Tensor:
    """Return the logits that predict the labelled tokens, (labelled, vocabulary); batches are padded on the right.

    labelled: (rows, tokens - 1), True where the *next* token carries a label. The output layer's input is narrowed to
    those positions on its way in, so whatever an architecture does to logits afterwards (scaling, soft caps) still
    happens. Where an architecture has no such layer, all logits are computed and picked from.

    No attention mask is passed: attention is causal and padding comes last, so no real token can see any, and without
    a mask the fused causal kernel runs.
    """
    head, rows, count = _output_layer(model), input_ids.shape[0], int(labelled.sum())
    narrowed = []

    def narrow(_: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        hidden = inputs[0]
        if hidden.ndim != 3 or hidden.shape[:2] != input_ids.shape:
            return None
        narrowed.append(True)
        return (hidden[:, :-1][labelled].unsqueeze(0), *inputs[1:])

    hook = head.register_forward_pre_hook(narrow) if head is not None else None
    try:
        logits = model(input_ids=input_ids, use_cache=False).logits
    finally:
        if hook is not None:
            hook.remove()
    if narrowed:
        if logits.shape[:2] != (1, count):
            raise RuntimeError(f"the model reshaped {count} narrowed positions to {tuple(logits.shape)}")
        return logits[0]
    assert logits.shape[:2] == (rows, input_ids.shape[1])
    return logits[:, :-1][labelled]


def _output_layer(model: Any) -> Any:
    """Return the module that turns hidden states into logits, below PEFT's wrapper, or None where there is none."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    try:
        return base.get_output_embeddings()
    except (AttributeError, NotImplementedError):
        return None


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Return the context a forward pass runs in: mixed precision over 16-bit base weights, nothing over float32."""
    import torch

    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)
