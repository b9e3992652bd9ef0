"""What one row of the table of families says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

Names = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One family of architectures.

    model_types: transformers' `config.model_type` words. prefix: the name of the headless model inside a model with a
    head, empty where such a model has none. attention, mlp: last parts of the linear modules' names; some may be
    absent from a variant. default_targets: LoRA's, where a recipe names none. embeddings, head: module names inside a
    language model (head is None where an encoder has none), the input embedding first; those of layers by their last
    part. layers: the module lists. encoder_decoder: it has two of them. conv1d: linear weights are stored (in, out),
    as GPT-2's. stored_names: modules that checkpoints name otherwise than the model does, stored name → module name.
    routers: matrices of experts' routers that are no linear module, so that no `target_modules` reaches them. experts:
    parameters that hold a layer's experts fused, with three dimensions, out of reach for the same reason. handed_over:
    names in `target_modules` that PEFT turns into `target_parameters`, router and experts, all of them for
    `all-linear`, instead of adapting the modules of this name (peft 0.21.2, `_MOE_TARGET_MODULE_MAPPING`). refused:
    linear modules whose weight the model reads past the module, so that LoRA on them does nothing. task_modules: by
    task, linear modules of hidden × hidden outside the layers that its class has, besides the layer of labels, and
    classes of other tasks have not.
    """

    name: str
    model_types: Names
    prefix: str
    attention: Names
    mlp: Names
    default_targets: Names
    embeddings: Names
    head: str | None
    layers: Names
    encoder_decoder: bool = False
    conv1d: bool = False
    stored_names: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    routers: Names = ()
    experts: Names = ()
    handed_over: Names = ()
    refused: Names = ()
    task_modules: Mapping[str, Names] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def kind(self) -> str:
        """`decoder`, `encoder` or `encoder-decoder`."""
        if self.encoder_decoder:
            return "encoder-decoder"
        return "encoder" if self.head is None else "decoder"


QKVO = ("q_proj", "k_proj", "v_proj", "o_proj")
QKV_OUT = ("q_proj", "k_proj", "v_proj", "out_proj")
GATED = ("gate_proj", "up_proj", "down_proj")


def llama_like(
    name: str, *model_types: str, mlp: Names = GATED, routers: Names = (), experts: Names = (), handed_over: Names = ()
) -> Family:
    """Return the row of an architecture that names its modules as Llama does."""
    return Family(
        name=name,
        model_types=model_types,
        prefix="model",
        attention=QKVO,
        mlp=mlp,
        default_targets=QKVO,
        embeddings=("model.embed_tokens",),
        head="lm_head",
        layers=("model.layers",),
        routers=routers,
        experts=experts,
        handed_over=handed_over,
    )
