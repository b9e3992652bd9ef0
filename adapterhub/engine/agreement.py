"""Whether merged weights say what the stack says: what both make of a few texts, in float32.

That is logits, of every token or of a text, as the task has them; of a model without a head, its last hidden states.

The stack is folded over its base in float32 by other code than the merge's (PEFT's own, where the method is not LoRA).
Its weights are then rounded once, to the dtypes of what was written, so that only the order of sums may differ: the
bound need not leave room for the rounding, which is measured beside it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.algebra.combine import combine
from adapterhub.algebra.read_alone import is_sum_of_factors
from adapterhub.catalog.tasks import TASKS
from adapterhub.engine.base import choose_device, load_base, set_threads, without_future_warnings
from adapterhub.engine.fold import fold
from adapterhub.engine.parts import Placed, fold_any, parts_of
from adapterhub.engine.peft_adapter import other_method, put_on
from adapterhub.engine.stack import own_tokenizer
from adapterhub.errors import IncompatibleError
from adapterhub.progress import SILENT, Progress
from adapterhub.spec.lora import LoraSpec

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from adapterhub.bases import BaseRecord
    from adapterhub.catalog.combinations import Rule
    from adapterhub.package import Package

PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "¿Qué hago si tengo fiebre?",
    "Q: A train leaves at 9:40 and arrives at 12:05. How long does it take?\nA:",
)
# Ids spread over the whole vocabulary, and those that were trained: rows of embeddings which no prompt names.
SPREAD = 64
# Of the largest logit: what another order of float32 sums makes, and what that makes of a rounding here and there.
BOUND_EXACT, BOUND_ROUNDED = 1e-4, 2e-3
_TORCH_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How far outputs are apart, each as the largest difference over the largest value.

    outputs: what they are. difference: merged weights against the stack, rounded alike. bound: what that may be.
    rounding: merged weights against the stack in float32. effect: the stack against the bare base. tokens: how many
    places were compared.
    """

    difference: float
    bound: float
    rounding: float
    effect: float
    tokens: int
    outputs: str = "logits"

    @property
    def ok(self) -> bool:
        """Whether the difference is within the bound; a NaN is not."""
        return self.difference <= self.bound

    @property
    def sentence(self) -> str:
        """What was found, in one line."""
        return (
            f"verified on {self.tokens} tokens: {self.outputs} differ from the stack's by {self.difference:.1e} of the "
            "largest "
            f"(rounding costs {self.rounding:.1e}, the stack changes {self.effect:.1e})"
        )

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "difference": self.difference,
            "bound": self.bound,
            "rounding": self.rounding,
            "effect": self.effect,
            "tokens": self.tokens,
            "outputs": self.outputs,
            "ok": self.ok,
        }


def compare_logits(
    record: BaseRecord,
    layers: Sequence[tuple[Package, float]],
    rule: Rule | None,
    *,
    merged: Path,
    stored: Mapping[str, str],
    task: str = "CAUSAL_LM",
    tokenizer: Path | None = None,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> Agreement:
    """Run a stack over its base, then the folder of merged weights, one model in memory at a time.

    stored: the dtypes of the merged tensors by name, in safetensors' words. task: whose class of models both are. What
    has a decoder is given each text backwards there.

    Raises:
        IncompatibleError: the stack cannot be loaded over its base to compare with. What `load_base` raises.
    """
    import torch

    set_threads(threads)
    device = choose_device(None)
    with torch.no_grad(), progress.task("verifying", total=3, unit="models") as bar:
        loaded = load_base(record, device=device, dtype=torch.float32, task=task)
        words = loaded.tokenizer if tokenizer is None else own_tokenizer(tokenizer, loaded.tokenizer)
        model: Any = loaded.model
        probes = _probes(words, _trained_tokens(layers), int(model.get_input_embeddings().weight.shape[0]))
        probes = [ids[: _room(model)] for ids in probes]
        bare = _outputs(model, probes)
        bar.advance()
        model = _with_stack(model, layers, rule, task)
        exact = _outputs(model, probes)
        _round(model, stored)
        rounded = _outputs(model, probes)
        bar.advance()
        del model, loaded
        again = load_base(replace(record, path=merged), device=device, dtype=torch.float32, task=task)
        ours = _outputs(again.model, probes)
        bar.advance()
    same = set(stored.values()) <= {"F32", "F64"}
    return Agreement(
        difference=_apart(ours, rounded),
        bound=BOUND_EXACT if same else BOUND_ROUNDED,
        rounding=_apart(ours, exact),
        effect=_apart(exact, bare),
        tokens=sum(map(len, probes)),
        outputs="last hidden states" if TASKS[task].bare else "logits",
    )


def _with_stack(model: Any, layers: Sequence[tuple[Package, float]], rule: Rule | None, task: str) -> Any:
    """Return the model with the stack in its weights."""
    if is_sum_of_factors(layers):
        fold(model, combine(layers, rule))
        return model
    if (rule is not None and rule.normalize) or any(weight != 1.0 for _, weight in layers):
        for item in parts_of(layers, rule).weights:
            if isinstance(item, Placed):
                model = put_on(model, item.package, item.method, task=task, weight=item.weight)
            else:
                fold_any(model, item)
        return model
    for package, _ in layers:
        method = other_method([(package, 1.0)])
        model = put_on(model, package, method, task=task) if method is not None else _merged_by_peft(model, package)
    return model


def _merged_by_peft(model: Any, package: Package) -> Any:
    """Return the model with a LoRA that trained more than factors in its weights."""
    from peft import PeftModel

    spec = LoraSpec.from_hyperparameters(package.config)
    for name, _ in model.named_modules():
        # A stranger's expressions are matched first by what can be stopped; PEFT's `re` cannot.
        if spec.matches(name):
            spec.rank_of(name)
            spec.alpha_of(name)
    try:
        with without_future_warnings():
            peft: Any = PeftModel.from_pretrained(model, str(package.path), torch_device="cpu")
            if spec.layer_replication:
                _part(peft)
            return peft.merge_and_unload(safe_merge=True)
    except (ValueError, TypeError, RuntimeError, KeyError) as error:
        raise IncompatibleError(
            f"PEFT cannot load it over this base, so that there is nothing to compare with: {str(error)[:300]}",
            where=str(package.path),
            hint="leave out --verify",
        ) from error


def _part(model: Any) -> None:
    """Give replicated layers weights of their own: PEFT would add the changes of all copies to the one they share."""
    from torch import nn

    seen: set[int] = set()
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            if id(parameter) in seen:
                module._parameters[name] = nn.Parameter(parameter.detach().clone(), requires_grad=False)
            seen.add(id(parameter))


def _trained_tokens(layers: Sequence[tuple[Package, float]]) -> list[int]:
    """Return ids of tokens that adapters trained, as many as a prompt holds."""
    found: list[int] = []
    for package, _ in layers:
        for key in ("token_indices", "trainable_token_indices"):
            value = package.config.get(key)
            lists = value.values() if isinstance(value, Mapping) else [value]
            found += [item for items in lists if isinstance(items, tuple) for item in items if isinstance(item, int)]
    return found[:SPREAD]


def _probes(tokenizer: PreTrainedTokenizerBase, trained: list[int], rows: int) -> list[list[int]]:
    """Return lists of token ids below `rows`."""
    texts = [[int(item) for item in tokenizer(text)["input_ids"]] for text in PROMPTS]
    spread = [index * rows // SPREAD for index in range(SPREAD)]
    return [ids for ids in ([item for item in text if item < rows] for text in (*texts, spread, trained)) if ids]


def _room(model: Any) -> int:
    """Return how many tokens a model takes at once, as far as it matters here."""
    most = getattr(model.config, "max_position_embeddings", None)
    # Some encoders count positions from behind the padding's id.
    return most - 2 if isinstance(most, int) and most > 2 else 4 * SPREAD


def _outputs(model: Any, probes: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Return what a model makes of each probe, (tokens, vocabulary) or (tokens, width), on the CPU."""
    import torch

    model.eval()
    place = model.get_input_embeddings().weight.device
    made = []
    for ids in probes:
        given = {"input_ids": torch.tensor([list(ids)], device=place)}
        if model.config.is_encoder_decoder:
            given["decoder_input_ids"] = given["input_ids"].flip(1)
        found = model(**given)
        values = found.logits if hasattr(found, "logits") else found.last_hidden_state
        made.append(values[0].float().cpu())
    return made


def _round(model: Any, stored: Mapping[str, str]) -> None:
    """Round a float32 model's weights to what is stored of them, in place."""
    import torch

    usual = Counter(stored.values()).most_common(1)[0][0] if stored else "F32"
    prefix = f"{model.base_model_prefix}."
    for name, parameter in model.named_parameters():
        names = (name, name.removeprefix(prefix), prefix + name)
        word = next((stored[candidate] for candidate in names if candidate in stored), usual)
        dtype = getattr(torch, _TORCH_NAMES.get(word, "float32"))
        if dtype not in (torch.float32, torch.float64):
            parameter.data.copy_(parameter.data.to(dtype))


def _apart(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> float:
    """Return the largest difference over the largest logit; a vocabulary that grew counts as far as both go."""
    import torch

    largest = max(float(item.abs().max()) for item in other)
    worst = torch.tensor(0.0)
    for first, second in zip(one, other, strict=True):
        width = min(first.shape[1], second.shape[1])
        worst = torch.maximum(worst, (first[:, :width] - second[:, :width]).abs().max())
    return float(worst) / largest
