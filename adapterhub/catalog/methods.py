"""Adapter methods: one row each, with PEFT's name for it, its paper, and its hyperparameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from adapterhub.errors import UsageError
from adapterhub.spec._decode import Faults, Frozen, freeze, kind_of, suggest

KINDS = ("int", "float", "bool", "str", "names", "mapping", "any")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hyperparameter:
    """One hyperparameter, by PEFT's name.

    kind: `int`, `float`, `bool`, `str`, `names` (a list of texts, one text, or null), `mapping` (text to number) or
    `any` (one of `choices`, or a list of whole numbers where there are none). minimum, maximum: inclusive.
    """

    name: str
    kind: str
    default: Frozen
    help: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[Frozen, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One way to adapt a base model.

    peft_type: PEFT's word for it in adapter_config.json, None where PEFT has no such method. group: `low-rank`,
    `scaling`, `orthogonal`, `sparse`, `prompt`, `mixture` or `other`. buildable: `adapt build` trains it today.
    foldable: its change can be written into the base's weights.
    """

    name: str
    peft_type: str | None
    title: str
    paper: str
    group: str
    hyperparameters: tuple[Hyperparameter, ...] = ()
    buildable: bool = False
    foldable: bool = False

    def hyperparameter(self, name: str) -> Hyperparameter | None:
        """Return the row of one hyperparameter."""
        return next((row for row in self.hyperparameters if row.name == name), None)


LORA_HYPERPARAMETERS: tuple[Hyperparameter, ...] = (
    Hyperparameter(name="r", kind="int", default=16, minimum=1, maximum=65536, help="rank of A and B"),
    Hyperparameter(
        name="lora_alpha", kind="float", default=32, minimum=0.0, help="the delta is scaled by lora_alpha / r"
    ),
    Hyperparameter(
        name="lora_dropout", kind="float", default=0.0, minimum=0.0, maximum=0.99, help="dropout before A in training"
    ),
    Hyperparameter(
        name="target_modules",
        kind="names",
        default=None,
        help="modules to adapt: ends of names, one regular expression, all-linear, or null for the family's default",
    ),
    Hyperparameter(name="exclude_modules", kind="names", default=None, help="modules to leave out, written likewise"),
    Hyperparameter(
        name="bias", kind="str", default="none", choices=("none", "all", "lora_only"), help="biases trained along"
    ),
    Hyperparameter(
        name="use_rslora",
        kind="bool",
        default=False,
        help="scale by lora_alpha / sqrt(r) instead (https://arxiv.org/abs/2312.03732)",
    ),
    Hyperparameter(name="use_dora", kind="bool", default=False, help="train magnitudes apart: the method dora"),
    Hyperparameter(
        name="rank_pattern", kind="mapping", default=MappingProxyType({}), minimum=1, help="other ranks, by module name"
    ),
    Hyperparameter(
        name="alpha_pattern",
        kind="mapping",
        default=MappingProxyType({}),
        minimum=0.0,
        help="other alphas, by module name",
    ),
    Hyperparameter(
        name="layers_to_transform", kind="any", default=None, help="indices of the layers to adapt; null for all"
    ),
    Hyperparameter(
        name="layers_pattern", kind="names", default=None, help="name of the module list that indices count in"
    ),
    Hyperparameter(
        name="modules_to_save", kind="names", default=None, help="modules trained in full and saved along (heads)"
    ),
    # PiSSA, OLoRA, CorDA, LoRA-GA and LoftQ change the base's weights at the start, so that the adapter alone is no
    # adapter of the base it names; EVA needs data first. They are not offered.
    Hyperparameter(
        name="init_lora_weights",
        kind="any",
        default=True,
        choices=(True, False, "gaussian", "orthogonal"),
        help="how A and B begin; true leaves the base's output unchanged",
    ),
)


# Every key that peft 0.21.2 writes for LoRA; one that is not here comes from a newer PEFT, or from nobody.
LORA_CONFIG_KEYS: frozenset[str] = frozenset(
    {row.name for row in LORA_HYPERPARAMETERS}
    | {
        "alora_invocation_tokens",
        "arrow_config",
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "fan_in_fan_out",
        "inference_mode",
        "kasa_config",
        "layer_replication",
        "loftq_config",
        "lora_bias",
        "lora_ga_config",
        "megatron_config",
        "megatron_core",
        "monteclora_config",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "target_parameters",
        "task_type",
        "trainable_token_indices",
        "use_bdlora",
        "use_qalora",
        "velora_config",
    }
)


def _row(name: str, title: str, paper: str, group: str, *, foldable: bool = True) -> Method:
    """Make the row of a method that is named, not built; `paper` is an arXiv number, a URL, or '' for PEFT's docs."""
    docs = f"https://huggingface.co/docs/peft/package_reference/{name}"
    url = paper if "/" in paper else f"https://arxiv.org/abs/{paper}" if paper else docs
    return Method(name=name, peft_type=name.upper(), title=title, paper=url, group=group, foldable=foldable)


_LORA = Method(
    name="lora",
    peft_type="LORA",
    title="Low-Rank Adaptation",
    paper="https://arxiv.org/abs/2106.09685",
    group="low-rank",
    hyperparameters=LORA_HYPERPARAMETERS,
    buildable=True,
    foldable=True,
)
_DORA = replace(
    _LORA,
    name="dora",
    title="Weight-Decomposed Low-Rank Adaptation",
    paper="https://arxiv.org/abs/2402.09353",
    hyperparameters=tuple(
        replace(row, default=True) if row.name == "use_dora" else row for row in LORA_HYPERPARAMETERS
    ),
    buildable=False,
)

# Every method of PEFT's PeftType; papers as its docs and sources name them.
_NAMED: tuple[Method, ...] = (
    _row("adalora", "AdaLoRA", "2303.10512", "low-rank"),
    _row("loha", "Low-Rank Hadamard Product", "2108.06098", "low-rank"),
    _row("lokr", "Low-Rank Kronecker Product", "2309.14859", "low-rank"),
    _row("vera", "Vector-based Random Matrix Adaptation", "2310.11454", "low-rank"),
    _row("pvera", "Probabilistic Vector-based Random Matrix Adaptation", "2512.07703", "low-rank"),
    _row("vblora", "VB-LoRA", "2405.15179", "low-rank"),
    _row("randlora", "RandLoRA", "2502.00987", "low-rank"),
    _row("gralora", "Granular LoRA", "2505.20355", "low-rank"),
    _row("glora", "Generalized LoRA", "2306.07967", "low-rank"),
    _row("hira", "Hadamard High-Rank Adaptation", "https://openreview.net/forum?id=TwJrTz9cRS", "low-rank"),
    _row("lily", "Lily", "2407.09946", "low-rank"),
    _row("unilora", "Uni-LoRA", "2506.00799", "low-rank"),
    _row("tinylora", "TinyLoRA", "2602.04118", "low-rank"),
    _row("miss", "Matrix Shard Sharing", "2409.15371", "low-rank"),
    _row("delora", "Decoupled Low-Rank Adaptation", "2503.18225", "low-rank"),
    _row("adamss", "Adaptive Multi-Subspaces", "", "low-rank"),
    _row("deft", "Decompositional Efficient Fine-Tuning", "", "low-rank"),
    _row("frod", "FRoD", "https://doi.org/10.1609/aaai.v40i31.39813", "low-rank"),
    _row("supertuning", "SuperTuning", "2607.09287", "low-rank"),
    _row("peanut", "PEANuT", "2410.01870", "low-rank"),
    _row("ia3", "(IA)³", "2205.05638", "scaling"),
    _row("road", "RoAd", "2409.00119", "scaling"),
    _row("ln_tuning", "LayerNorm tuning", "2312.11420", "scaling"),
    _row("beft", "Bias-Efficient Fine-Tuning", "2509.15974", "scaling"),
    _row("oft", "Orthogonal Finetuning", "2306.07280", "orthogonal"),
    _row("boft", "Butterfly Orthogonal Finetuning", "2311.06243", "orthogonal"),
    _row("hra", "Householder Reflection Adaptation", "2405.17484", "orthogonal"),
    _row("psoft", "Principal Subspace OFT", "https://openreview.net/forum?id=FSHrinMArK", "orthogonal"),
    _row("osf", "Orthogonal Subspace Fine-tuning", "", "orthogonal"),
    _row("fourierft", "FourierFT", "2405.03003", "sparse"),
    _row("waveft", "Wavelet Fine-Tuning", "", "sparse"),
    _row("c3a", "Circular Convolution Adaptation", "2407.19342", "sparse"),
    _row("shira", "Sparse High-Rank Adapters", "2406.13175", "sparse"),
    _row("trainable_tokens", "trainable token embeddings", "", "sparse"),
    _row("prompt_tuning", "prompt tuning", "2104.08691", "prompt", foldable=False),
    _row("prefix_tuning", "prefix tuning", "2101.00190", "prompt", foldable=False),
    _row("p_tuning", "P-tuning", "2103.10385", "prompt", foldable=False),
    _row("multitask_prompt_tuning", "multitask prompt tuning", "2303.02861", "prompt", foldable=False),
    _row("cpt", "Context-aware Prompt Tuning", "2410.17222", "prompt", foldable=False),
    _row("cartridge", "Cartridges", "2506.06266", "prompt", foldable=False),
    _row("adaption_prompt", "LLaMA-Adapter", "2303.16199", "prompt", foldable=False),
    _row("poly", "Polytropon", "2202.13914", "mixture", foldable=False),
    _row("xlora", "X-LoRA", "2402.07148", "mixture", foldable=False),
    _row("shadow", "ShadowPEFT", "", "other", foldable=False),
    # Not PEFT's.
    replace(
        _row("bottleneck", "bottleneck adapters (Houlsby, Pfeiffer)", "1902.00751", "other", foldable=False),
        peft_type=None,
    ),
    replace(_row("bitfit", "BitFit: biases alone", "2106.10199", "scaling"), peft_type=None),
)

METHODS: Mapping[str, Method] = MappingProxyType({row.name: row for row in (_LORA, _DORA, *_NAMED)})

# Words people use for a method that is another one with a setting.
OTHER_WORDS: Mapping[str, str] = MappingProxyType(
    {
        "qlora": "method: lora over a quantized base: write `method: lora` and `quantization: {load_in_4bit: true}`",
        "rslora": "lora with another scaling: write `method: lora` and `use_rslora: true` below hyperparameters",
        "bone": "renamed by its authors and PEFT: write `method: miss`",
    }
)


def method_named(name: str) -> Method:
    """Return the row of a method.

    Raises:
        UsageError: no method has this name; the nearest one is named.
    """
    if name in METHODS:
        return METHODS[name]
    if name.lower() in OTHER_WORDS:
        raise UsageError(f"{name!r} is not a method of its own", hint=OTHER_WORDS[name.lower()])
    near = suggest(name.lower(), METHODS)
    known = ", ".join(row.name for row in METHODS.values() if row.buildable)
    raise UsageError(f"{name!r} is not a method", hint=f"did you mean {near}?" if near else f"buildable: {known}")


def method_of_peft_type(peft_type: str) -> Method | None:
    """Return the first row with PEFT's word for a method (`LORA`), None where no row has it."""
    return next((row for row in METHODS.values() if row.peft_type is not None and row.peft_type == peft_type), None)


def method_of_config(config: Mapping[str, object]) -> Method | None:
    """Return the row that an adapter_config.json is of: by its peft_type, and for LORA by use_dora."""
    peft_type = config.get("peft_type")
    if peft_type == "LORA" and config.get("use_dora") is True:
        return METHODS["dora"]
    return method_of_peft_type(peft_type) if isinstance(peft_type, str) else None


def require_buildable(method: Method) -> None:
    """Refuse a method that `adapt build` cannot train.

    Raises:
        UsageError: it cannot; the hint names those it can.
    """
    if not method.buildable:
        known = ", ".join(row.name for row in METHODS.values() if row.buildable)
        raise UsageError(f"{method.name} cannot be built yet", hint=f"buildable: {known}")


def check_hyperparameters(method: Method, given: Mapping[str, object], *, where: str) -> Mapping[str, Frozen]:
    """Check values against a buildable method's row and fill in its defaults.

    `target_modules` stays None where nothing was given: the family of the base decides (families.default_targets).

    Raises:
        InvalidFileError: every fault found, each with the hyperparameter's name; an unknown one with the nearest.
        UsageError: the method cannot be built.
    """
    require_buildable(method)
    faults = Faults(where=where)
    known = [row.name for row in method.hyperparameters]
    for name in given:
        if name not in known:
            near = suggest(str(name), known)
            faults.add(
                str(name),
                f"{method.name} has no such hyperparameter"
                + (f"; did you mean {near!r}?" if near else f"; known: {', '.join(known)}"),
            )
    filled: dict[str, Frozen] = {}
    for row in method.hyperparameters:
        filled[row.name] = row.default
        if row.name in given:
            filled[row.name] = freeze(given[row.name])
            if (fault := _fault(row, given[row.name])) is not None:
                faults.add(row.name, fault)
    if not faults.found:
        _cross_check(method, filled, faults)
    faults.raise_if_any()
    return MappingProxyType(filled)


def _cross_check(method: Method, filled: Mapping[str, Frozen], faults: Faults) -> None:
    """The rules that no single value can break."""
    if (wanted := method.name == "dora") != filled["use_dora"]:
        faults.add("use_dora", "has to stay true with method: dora" if wanted else "is a method of its own: dora")
    if filled["target_modules"] == ():
        faults.add("target_modules", "names no module; leave it out for the default of the base's family")
    if filled["layers_pattern"] and filled["layers_to_transform"] is None:
        faults.add("layers_pattern", "is used only together with layers_to_transform")
    if isinstance(filled["target_modules"], str) and filled["layers_to_transform"] is not None:
        faults.add("layers_to_transform", "needs target_modules as a list of names")


def _fault(row: Hyperparameter, value: object) -> str | None:
    """Say what is wrong with one value, None where nothing is."""
    if row.kind == "any":
        return _any_fault(row, value)
    if row.kind == "mapping":
        return _mapping_fault(row, value)
    if row.kind == "names":
        return _names_fault(value)
    expected, accept = {
        "int": ("a whole number", (int,)),
        "float": ("a number", (int, float)),
        "bool": ("true or false", (bool,)),
        "str": ("text", (str,)),
    }[row.kind]
    if not isinstance(value, accept) or (isinstance(value, bool) and row.kind != "bool"):
        return f"expected {expected}, found {kind_of(value)}"
    if isinstance(value, int | float) and row.kind != "bool":
        return _range_fault(row, value)
    if row.choices and value not in row.choices:
        return f"{value!r} is not known; known: {', '.join(str(choice) for choice in row.choices)}"
    return None


def _range_fault(row: Hyperparameter, value: float) -> str | None:
    if not math.isfinite(value):
        return f"must be finite, is {value}"
    if row.minimum is not None and value < row.minimum:
        return f"must be at least {row.minimum:g}, is {value:g}"
    if row.maximum is not None and value > row.maximum:
        return f"must be at most {row.maximum:g}, is {value:g}"
    return None


def _names_fault(value: object) -> str | None:
    if value is None or (isinstance(value, str) and value):
        return None
    if isinstance(value, list | tuple) and all(isinstance(item, str) and item for item in value):
        return None
    return f"expected a list of names, one text or null, found {kind_of(value)}"


def _mapping_fault(row: Hyperparameter, value: object) -> str | None:
    if not isinstance(value, Mapping):
        return f"expected a mapping from module names to numbers, found {kind_of(value)}"
    for key, item in value.items():
        whole = row.name == "rank_pattern"
        if isinstance(item, bool) or not isinstance(item, int if whole else (int, float)):
            return f"{key}: expected a {'whole ' if whole else ''}number, found {kind_of(item)}"
        if (fault := _range_fault(row, item)) is not None:
            return f"{key}: {fault}"
    return None


def _any_fault(row: Hyperparameter, value: object) -> str | None:
    if row.choices:
        # 1 == True in Python; in a recipe they are different words.
        if any(type(value) is type(choice) and value == choice for choice in row.choices):
            return None
        return f"{value!r} is not known; known: {', '.join(str(choice).lower() for choice in row.choices)}"
    items = value if isinstance(value, list | tuple) else (value,)
    if value is None or all(type(item) is int and item >= 0 for item in items):
        return None
    return f"expected whole numbers from 0, found {kind_of(value)}"
