"""What no single hyperparameter of a method can break: rules over several, one function a method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from adapterhub.catalog import own_methods
from adapterhub.spec._decode import Faults, Frozen


def _check_adalora(filled: Mapping[str, Frozen], faults: Faults) -> None:
    # With nothing to take away PEFT asks torch for the 0th smallest of the scores, which there is not.
    if _number(filled["target_r"]) >= _number(filled["init_r"]):
        faults.add("target_r", f"must be less than init_r ({filled['init_r']}), is {filled['target_r']}")


def _check_ia3(filled: Mapping[str, Frozen], faults: Faults) -> None:
    targets, forward = filled["target_modules"], filled["feedforward_modules"]
    if forward is not None and targets is None:
        faults.add("feedforward_modules", "needs target_modules, which hold them too")
    elif isinstance(targets, tuple) and isinstance(forward, tuple):
        outside = [str(name) for name in forward if name not in targets]
        if outside:
            faults.add("feedforward_modules", f"{', '.join(outside)}: not in target_modules, which hold them too")


def _check_oft(filled: Mapping[str, Frozen], faults: Faults) -> None:
    if bool(filled["r"]) == bool(filled["oft_block_size"]):
        faults.add("oft_block_size", "give either r or oft_block_size, and 0 for the other")


def _check_boft(filled: Mapping[str, Frozen], faults: Faults) -> None:
    if bool(filled["boft_block_num"]) == bool(filled["boft_block_size"]):
        faults.add("boft_block_size", "give either boft_block_num or boft_block_size, and 0 for the other")


def _check_prompt_tuning(filled: Mapping[str, Frozen], faults: Faults) -> None:
    if (filled["prompt_tuning_init"] == "TEXT") != bool(filled["prompt_tuning_init_text"]):
        faults.add("prompt_tuning_init_text", "belongs to prompt_tuning_init: TEXT, and that to it")


def _check_prefix_tuning(filled: Mapping[str, Frozen], faults: Faults) -> None:
    if filled["encoder_hidden_size"] is not None and not filled["prefix_projection"]:
        faults.add("encoder_hidden_size", "is the width of the network that prefix_projection: true asks for")


def _check_road(filled: Mapping[str, Frozen], faults: Faults) -> None:
    if _number(filled["group_size"]) % 2:
        faults.add("group_size", f"must be even, is {filled['group_size']}")


def _check_hra(filled: Mapping[str, Frozen], faults: Faults) -> None:
    # Two equal reflections are none; an odd one out would change the base from the start.
    if _number(filled["r"]) % 2 and filled["init_weights"]:
        faults.add("r", f"must be even with init_weights: true, is {filled['r']}")
    if filled["apply_GS"] and filled["init_weights"]:
        faults.add("apply_GS", "cannot make the equal pairs of init_weights: true orthogonal; set that to false")


def _check_gralora(filled: Mapping[str, Frozen], faults: Faults) -> None:
    if _number(filled["r"]) % _number(filled["gralora_k"]):
        faults.add("r", f"must be a multiple of gralora_k ({filled['gralora_k']}), is {filled['r']}")


def _check_glora(filled: Mapping[str, Frozen], faults: Faults) -> None:
    if {filled["config_A_B"], filled["config_C"], filled["config_D_E"]} == {"none"}:
        faults.add("config_A_B", "with config_C and config_D_E all none, nothing would be trained")


def _check_vblora(filled: Mapping[str, Frozen], faults: Faults) -> None:
    if _number(filled["topk"]) > _number(filled["num_vectors"]):
        faults.add("topk", f"must be at most num_vectors ({filled['num_vectors']}), is {filled['topk']}")


def _check_randlora(filled: Mapping[str, Frozen], faults: Faults) -> None:
    if filled["sparse"] and filled["very_sparse"]:
        faults.add("very_sparse", "give either sparse or very_sparse")


def _check_miss(filled: Mapping[str, Frozen], faults: Faults) -> None:
    if filled["mini_r"] != 1 and filled["init_weights"] != "mini":
        faults.add("mini_r", "belongs to init_weights: mini")
    if filled["init_weights"] == "mini" and _number(filled["r"]) % _number(filled["mini_r"]):
        faults.add("mini_r", f"must divide r ({filled['r']}), is {filled['mini_r']}")


def _check_osf(filled: Mapping[str, Frozen], faults: Faults) -> None:
    rank = filled["effective_rank"]
    if isinstance(rank, float) and rank >= 1:
        faults.add("effective_rank", f"is a whole number or a share below 1, is {rank:g}")


def _check_supertuning(filled: Mapping[str, Frozen], faults: Faults) -> None:
    for name in ("lora_alpha", "lora_dropout"):
        if filled[name] and filled["r"] is None:
            faults.add(name, "is of the LoRA that r asks for")


def _check_cartridge(filled: Mapping[str, Frozen], faults: Faults) -> None:
    if _number(filled["num_frozen_tokens"]) >= _number(filled["num_virtual_tokens"]):
        faults.add("num_frozen_tokens", "leaves none of num_virtual_tokens to train")


def _check_trainable_tokens(filled: Mapping[str, Frozen], faults: Faults) -> None:
    indices = filled["token_indices"]
    if not isinstance(indices, tuple) or not indices:
        faults.add("token_indices", "name at least one token, by its id in the base's tokenizer: [49152, 49153]")
    elif len(set(indices)) < len(indices):
        faults.add("token_indices", "names a token twice")


def _number(value: Frozen) -> float:
    assert isinstance(value, int | float)
    return value


RULES: Mapping[str, Callable[[Mapping[str, Frozen], Faults], None]] = MappingProxyType(
    {
        "adalora": _check_adalora,
        "ia3": _check_ia3,
        "oft": _check_oft,
        "boft": _check_boft,
        "prompt_tuning": _check_prompt_tuning,
        "prefix_tuning": _check_prefix_tuning,
        "road": _check_road,
        "hra": _check_hra,
        "gralora": _check_gralora,
        "glora": _check_glora,
        "vblora": _check_vblora,
        "randlora": _check_randlora,
        "miss": _check_miss,
        "osf": _check_osf,
        "supertuning": _check_supertuning,
        "cartridge": _check_cartridge,
        "trainable_tokens": _check_trainable_tokens,
        "bottleneck": own_methods.check_bottleneck,
    }
)
