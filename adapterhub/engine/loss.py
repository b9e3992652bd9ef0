"""The loss of labelled tokens, computing no more than it needs.

Logits are computed for labelled tokens alone: on small models with large vocabularies the output layer is much of the
work, and chats label a third of their tokens. What all rows of a batch begin with (a system prompt, as a rule) is
computed once for all of them. Neither changes the loss or its gradients beyond rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from adapterhub.engine.data import IGNORED
from adapterhub.engine.linear_loss import is_frozen_linear, linear_losses

if TYPE_CHECKING:
    import torch

# Architectures whose attention goes on from a cache exactly as without one, gradients included: what the tests compare.
SHARES_PREFIX = ("gemma", "gpt2", "granite", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3")
# A shared beginning that saves less than this share of the tokens costs more than it saves.
WORTH_SHARING = 0.08


def token_losses(model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the cross-entropy of every labelled token in float32, in the order of rows and positions: (labelled,)."""
    import torch

    targets = batch["labels"][:, 1:]
    labelled = targets != IGNORED
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = _output_layer(base)
    if is_frozen_linear(head) and _hands_on(base, head):
        with _bypassed(head):
            hidden = labelled_logits(model, batch["input_ids"], labelled)
        return linear_losses(hidden, head, targets[labelled])
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
    import torch

    wanted = torch.nn.functional.pad(labelled, (0, 1))
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = _output_layer(base)
    if head is None:
        return _last(model(input_ids=input_ids, use_cache=False).logits, wanted)
    if length := 0 if _may_not_share(model) else _shared_length(base, input_ids, labelled):
        logits = _after_shared_prefix(model, base, head, input_ids, wanted, length)
        if logits is not None:
            return logits
    with _narrowed(head, wanted) as narrowed:
        logits = model(input_ids=input_ids, use_cache=False).logits
    return logits[0] if narrowed else _last(logits, wanted)


# Of each base whether its logits are its output layer's to the bit; some scale or cap them.
_KNOWN: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


def _hands_on(base: Any, head: Any) -> bool:
    """Say whether a model returns what its output layer gives as it is: tried once, on two tokens, without dropout."""
    import torch

    if base not in _KNOWN:
        given: list[torch.Tensor] = []
        training = [module for module in base.modules() if module.training]
        hook = head.register_forward_hook(lambda _, __, output: given.append(output.clone()))
        base.eval()
        try:
            with torch.no_grad():
                logits = base(input_ids=torch.tensor([[1, 2]], device=head.weight.device)).logits
            # Nothing is told by zeros, which is what some models make of a token that only pads.
            told = len(given) == 1 and bool(given[0].any())
            _KNOWN[base] = told and torch.equal(logits.float(), given[0].float())
        finally:
            hook.remove()
            for module in training:
                module.training = True
    return _KNOWN[base]


@contextmanager
def _bypassed(head: Any) -> Iterator[None]:
    """Let an output layer give back what it is given, so that a model's logits are its last hidden states."""
    head.forward = lambda hidden: hidden
    try:
        yield
    finally:
        del head.forward


def _last(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Pick the wanted positions; trained prompts put theirs before the text's."""
    return logits[:, logits.shape[1] - wanted.shape[1] :][wanted]


def _may_not_share(model: Any) -> bool:
    """Say whether an adapter may do other things to one pass than to two: all but LoRA and the bare base, to be safe.

    Prompts would be put before each, and some methods draw what a step leaves out anew in each pass.
    """
    config = getattr(model, "active_peft_config", None)
    return config is not None and config.peft_type != "LORA"


@contextmanager
def _narrowed(head: Any, wanted: torch.Tensor) -> Iterator[list[bool]]:
    """Let an output layer see only the `wanted` positions, (rows, tokens) to (1, wanted); the list says if it did."""
    done: list[bool] = []

    def narrow(_: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        hidden = inputs[0]
        if hidden.ndim != 3 or hidden.shape[0] != wanted.shape[0] or hidden.shape[1] < wanted.shape[1]:
            return None
        done.append(True)
        # Trained prompts put their positions before the text's.
        hidden = hidden[:, hidden.shape[1] - wanted.shape[1] :]
        return (hidden[wanted].unsqueeze(0), *inputs[1:])

    hook = head.register_forward_pre_hook(narrow)
    try:
        yield done
    finally:
        hook.remove()


def _shared_length(base: Any, input_ids: torch.Tensor, labelled: torch.Tensor) -> int:
    """Return how many first tokens all rows share, none of them needed for a logit; 0 where sharing does not pay.

    With dropout, rows that share a beginning would share its noise; with checkpointing there is no cache to go on from.
    """
    rows, tokens = input_ids.shape
    if rows < 2 or base.config.model_type not in SHARES_PREFIX:
        return 0
    if base.training and _draws_or_recomputes(base):
        return 0
    same = int((input_ids == input_ids[:1]).all(0).long().cumprod(0).sum())
    length = min(same, int(labelled.any(0).nonzero()[0]))
    return length if length * (rows - 1) >= WORTH_SHARING * rows * tokens else 0


def _draws_or_recomputes(base: Any) -> bool:
    """Say whether a model has dropout, noise on its embeddings (NEFTune) or checkpointing switched on."""
    import torch

    if float(getattr(base.config, "attention_dropout", 0) or 0) > 0:
        return True
    return any(
        (isinstance(module, torch.nn.Dropout) and module.p > 0)
        or getattr(module, "gradient_checkpointing", False)
        or hasattr(module, "neftune_noise_alpha")
        for module in base.modules()
    )


def _after_shared_prefix(
    model: Any, base: Any, head: Any, input_ids: torch.Tensor, wanted: torch.Tensor, length: int
) -> torch.Tensor | None:
    """Run the shared first tokens once, and the rest of every row from their keys and values.

    None where the cache is not a plain one of every layer (sliding windows, recurrent states).
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer

    cache = DynamicCache(config=base.config)
    with _narrowed(head, wanted[:1, :length]):
        model(input_ids=input_ids[:1, :length], past_key_values=cache, use_cache=True)
    if not cache.layers or any(type(x) is not DynamicLayer or x.get_seq_length() != length for x in cache.layers):
        return None
    cache.batch_repeat_interleave(len(input_ids))
    with _narrowed(head, wanted[:, length:]) as narrowed:
        logits = model(input_ids=input_ids[:, length:], past_key_values=cache, use_cache=True).logits
    return logits[0] if narrowed else logits[wanted[:, length:]]


def _output_layer(base: Any) -> Any:
    """Return the module that turns hidden states into logits, or None where an architecture names none."""
    try:
        return base.get_output_embeddings()
    except (AttributeError, NotImplementedError):
        return None


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Return the context a forward pass runs in: mixed precision over 16-bit base weights, nothing over float32."""
    import torch

    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)
