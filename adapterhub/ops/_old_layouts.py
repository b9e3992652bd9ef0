"""How adapters were and are written elsewhere: key layouts and config keys, and what PEFT calls the same today.

What is known here, and where it comes from:
- PEFT before 0.3: `merge_weights`, `enable_lora` (null unless parts of a fused weight were adapted) in the config.
- PEFT before 0.12, and dumps of a model's state: `lora_A.default.weight`, `modules_to_save.default.`,
  `original_module.`, `lora_magnitude_vector.weight`, `lora_embedding_A.default`.
- wrappers of trainers: `module.` (DDP), `_orig_mod.` (torch.compile), `_fsdp_wrapped_module.` (FSDP),
  `_checkpoint_wrapped_module.` (activation checkpointing).
- the prefix `base_model.model.` missing, or there twice (an adapter of an adapted model).
- loralib (https://github.com/microsoft/LoRA) and early PEFT: `lora_A` without `.weight`.
- diffusers before 0.20: `lora.down.weight`, `lora.up.weight`; and `lora_down.weight`, `lora_up.weight` with `alpha`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from adapterhub.algebra.delta import KEY_PREFIX
from adapterhub.catalog.methods import LORA_CONFIG_KEYS
from adapterhub.errors import IncompatibleError, InvalidFileError
from adapterhub.package import is_default
from adapterhub.spec._decode import Frozen
from adapterhub.weights import Header, TensorInfo

_WRAPPERS = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_LEADING = re.compile(r"(?:module\.)*(?:base_model\.model\.)?")
_FACTOR = re.compile(
    r"(?P<module>.+?)\.(?P<part>lora_embedding_A|lora_embedding_B|lora_magnitude_vector|lora_A|lora_B|lora_E"
    r"|hada_w[12]_[ab]|hada_t[12]|lokr_w[12]_[ab]|lokr_w[12]|lokr_t2)"
    r"(?:\.(?P<adapter>(?!weight$|bias$)[^.]+))?(?:\.(?P<leaf>weight|bias))?"
)
_UP_AND_DOWN = re.compile(r"(?P<module>.+?)\.(?:lora[._](?P<way>down|up)\.weight|(?P<alpha>alpha))")
_SAVED = re.compile(r"(?P<module>.+?)\.modules_to_save\.(?:(?P<adapter>[^.]+)\.)?(?P<leaf>weight|bias|[^.]+)")
_KOHYA = re.compile(r"lora_(unet|te\d?|transformer)_\w+\.")
_MLX = re.compile(r".+\.lora_[ab]")
# Parameters whose name has `.weight` below it; of AdaLoRA, these have not.
_WEIGHTS = ("lora_A", "lora_B")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A file's tensors by the names that PEFT gives them today.

    header: those of the adapter. renamed: how many had another name. dropped: names in the file of what is no part of
    an adapter, the base's own copies. alphas: by module, the tensor that holds its lora_alpha.
    """

    header: Header
    renamed: int
    dropped: tuple[str, ...]
    alphas: Mapping[str, TensorInfo]


def present_layout(header: Header, *, where: str) -> Layout:
    """Return the tensors of an adapter by the names that PEFT gives them today.

    Raises:
        IncompatibleError: it is written by another tool's rules, or holds several adapters. InvalidFileError: two
            tensors have the same name today.
    """
    _refuse_other_tools(header, where)
    found: dict[str, TensorInfo] = {}
    alphas: dict[str, TensorInfo] = {}
    dropped: list[str] = []
    adapters: set[str] = set()
    names = {key: stripped(key) for key in header.tensors}
    embeddings = {name.partition(".lora_embedding_")[0] for name in names.values() if ".lora_embedding_" in name}
    weights = not any(".lora_E" in name for name in names.values())
    ways = any((match := _UP_AND_DOWN.fullmatch(name)) and match["way"] for name in names.values())
    for key, tensor in header.tensors.items():
        name = names[key]
        if _is_base_s(name, embeddings):
            dropped.append(key)
            continue
        if ways and (match := _UP_AND_DOWN.fullmatch(name)) and match["alpha"]:
            alphas[match["module"]] = tensor
            continue
        today, adapter = _today(name, weights=weights)
        adapters |= {adapter} if adapter is not None else set()
        full = KEY_PREFIX + today
        if full in found:
            raise InvalidFileError(
                f"two tensors are {full} today: {found[full].name} and {key}", where=where, hint="keep one of them"
            )
        found[full] = tensor
    if len(adapters) > 1:
        raise IncompatibleError(
            f"holds several adapters: {', '.join(sorted(adapters))}",
            where=where,
            hint="save each one by itself, as PEFT's save_pretrained does, and convert them one by one",
        )
    renamed = sum(name != tensor.name for name, tensor in found.items())
    tensors = {name: replace(found[name], name=name) for name in sorted(found)}
    current = Header(tensors=MappingProxyType(tensors), metadata=header.metadata, file_size=header.file_size)
    return Layout(header=current, renamed=renamed, dropped=tuple(dropped), alphas=MappingProxyType(alphas))


def stripped(key: str) -> str:
    """Return a key without the names of wrappers and without PEFT's prefix, however often it is there."""
    name, before = _WRAPPERS.sub("", key), ""
    while name != before:
        before = name
        name = _LEADING.sub("", name, count=1)
    return name


def _today(name: str, *, weights: bool) -> tuple[str, str | None]:
    """Return a name, without PEFT's prefix, as PEFT writes it today; and the adapter's name that was in it.

    weights: A and B are modules with a weight, as LoRA's are and AdaLoRA's are not.
    """
    match = _UP_AND_DOWN.fullmatch(name)
    if match and match["way"]:
        return f"{match['module']}.lora_{'A' if match['way'] == 'down' else 'B'}.weight", None
    if match := _FACTOR.fullmatch(name):
        part = match["part"]
        ending = f".{match['leaf'] or 'weight'}" if part in _WEIGHTS and weights else ""
        return f"{match['module']}.{part}{ending}", match["adapter"]
    if match := _SAVED.fullmatch(name):
        return f"{match['module']}.{match['leaf']}", match["adapter"]
    return name, None


def _is_base_s(name: str, embeddings: set[str]) -> bool:
    """Say whether a tensor of a dump is no adapter's: what wrappers keep of the base, and AdaLoRA's counter.

    An adapted embedding's own weight is the exception: PEFT writes it itself, since a vocabulary may have grown.
    """
    inside = ".base_layer." in name and name.partition(".base_layer.")[0] not in embeddings
    return inside or ".original_module." in name or name.endswith(".ranknum") or ".ranknum." in name


def _refuse_other_tools(header: Header, where: str) -> None:
    if any(_KOHYA.match(key) for key in header.tensors):
        raise IncompatibleError(
            "is written by kohya's rules, whose names say no longer which module they mean",
            where=where,
            hint="convert it with the tool it was made with, or with diffusers",
        )
    if any(_MLX.fullmatch(key) for key in header.tensors):
        raise IncompatibleError(
            "is written by MLX's rules, with its factors transposed", where=where, hint="fuse or export it with mlx-lm"
        )


def present_config(config: Mapping[str, Frozen], *, where: str) -> tuple[dict[str, Frozen], tuple[str, ...]]:
    """Return a LoRA's config with PEFT's keys of today alone, and the keys that were left out; another's as it is.

    Raises:
        IncompatibleError: a key that PEFT no longer has says something that it can no longer say.
    """
    parts = config.get("enable_lora")
    if parts is not None and parts is not False:
        raise IncompatibleError(
            "adapts parts of fused weights (enable_lora), which PEFT has not had since 0.3",
            where=f"{where}: enable_lora",
            hint="merge it with the PEFT it was made with",
        )
    if config.get("peft_type") != "LORA":
        return dict(config), ()
    known = {key: value for key, value in config.items() if key in LORA_CONFIG_KEYS}
    left = sorted(key for key in config if key not in LORA_CONFIG_KEYS and not is_default(key, config[key]))
    return known, tuple(left)
