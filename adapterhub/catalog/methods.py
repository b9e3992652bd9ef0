"""Adapter methods: one row each, with PEFT's name for it, its paper, and its hyperparameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from adapterhub.catalog import hyperparameters as rows
from adapterhub.catalog.hyperparameters import Hyperparameter
from adapterhub.errors import UsageError
from adapterhub.spec._decode import Faults, Frozen, freeze, suggest


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One way to adapt a base model.

    peft_type: PEFT's word for it in adapter_config.json, None where PEFT has no such method. group: `low-rank`,
    `scaling`, `orthogonal`, `sparse`, `prompt`, `mixture` or `other`. targets: the modules it adapts: `linear`,
    `scaled` (linear ones, some of them by their input), `norms`, `embedding`, or `` for none. buildable: `adapt build`
    trains it today. foldable: its change can be written into the base's weights.
    """

    name: str
    peft_type: str | None
    title: str
    paper: str
    group: str
    targets: str = ""
    hyperparameters: tuple[Hyperparameter, ...] = ()
    buildable: bool = False
    foldable: bool = False

    def hyperparameter(self, name: str) -> Hyperparameter | None:
        """Return the row of one hyperparameter."""
        return next((row for row in self.hyperparameters if row.name == name), None)


# Every key that peft 0.21.2 writes for LoRA; one that is not here comes from a newer PEFT, or from nobody.
LORA_CONFIG_KEYS: frozenset[str] = frozenset(
    {row.name for row in rows.LORA} | rows.BOOKKEEPING | set(rows.LEFT_OUT["lora"])
)


def _row(name: str, title: str, paper: str, group: str, *, foldable: bool = True) -> Method:
    """Make the row of a method that is named, not built; `paper` is an arXiv number, a URL, or '' for PEFT's docs."""
    docs = f"https://huggingface.co/docs/peft/package_reference/{name}"
    url = paper if "/" in paper else f"https://arxiv.org/abs/{paper}" if paper else docs
    return Method(name=name, peft_type=name.upper(), title=title, paper=url, group=group, foldable=foldable)


def _built(row: Method, hyperparameters: tuple[Hyperparameter, ...], *, targets: str = "") -> Method:
    """Make the row of a method that `adapt build` trains."""
    return replace(row, hyperparameters=hyperparameters, targets=targets, buildable=True)


_LORA = Method(
    name="lora",
    peft_type="LORA",
    title="Low-Rank Adaptation",
    paper="https://arxiv.org/abs/2106.09685",
    group="low-rank",
    targets="linear",
    hyperparameters=rows.LORA,
    buildable=True,
    foldable=True,
)
_DORA = replace(
    _LORA,
    name="dora",
    title="Weight-Decomposed Low-Rank Adaptation",
    paper="https://arxiv.org/abs/2402.09353",
    hyperparameters=rows.DORA,
)

# Every method of PEFT's PeftType; papers as its docs and sources name them.
_NAMED: tuple[Method, ...] = (
    _built(_row("adalora", "AdaLoRA", "2303.10512", "low-rank"), rows.ADALORA, targets="linear"),
    _built(_row("loha", "Low-Rank Hadamard Product", "2108.06098", "low-rank"), rows.LOHA, targets="linear"),
    _built(_row("lokr", "Low-Rank Kronecker Product", "2309.14859", "low-rank"), rows.LOKR, targets="linear"),
    _built(
        _row("vera", "Vector-based Random Matrix Adaptation", "2310.11454", "low-rank"), rows.VERA, targets="linear"
    ),
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
    _built(_row("ia3", "(IA)³", "2205.05638", "scaling"), rows.IA3, targets="scaled"),
    _row("road", "RoAd", "2409.00119", "scaling"),
    _built(_row("ln_tuning", "LayerNorm tuning", "2312.11420", "scaling"), rows.LN_TUNING, targets="norms"),
    _row("beft", "Bias-Efficient Fine-Tuning", "2509.15974", "scaling"),
    _built(_row("oft", "Orthogonal Finetuning", "2306.07280", "orthogonal"), rows.OFT, targets="linear"),
    _built(_row("boft", "Butterfly Orthogonal Finetuning", "2311.06243", "orthogonal"), rows.BOFT, targets="linear"),
    _row("hra", "Householder Reflection Adaptation", "2405.17484", "orthogonal"),
    _row("psoft", "Principal Subspace OFT", "https://openreview.net/forum?id=FSHrinMArK", "orthogonal"),
    _row("osf", "Orthogonal Subspace Fine-tuning", "", "orthogonal"),
    _row("fourierft", "FourierFT", "2405.03003", "sparse"),
    _row("waveft", "Wavelet Fine-Tuning", "", "sparse"),
    _row("c3a", "Circular Convolution Adaptation", "2407.19342", "sparse"),
    _row("shira", "Sparse High-Rank Adapters", "2406.13175", "sparse"),
    _built(
        _row("trainable_tokens", "trainable token embeddings", "", "sparse"), rows.TRAINABLE_TOKENS, targets="embedding"
    ),
    _built(_row("prompt_tuning", "prompt tuning", "2104.08691", "prompt", foldable=False), rows.PROMPT_TUNING),
    _built(_row("prefix_tuning", "prefix tuning", "2101.00190", "prompt", foldable=False), rows.PREFIX_TUNING),
    _built(_row("p_tuning", "P-tuning", "2103.10385", "prompt", foldable=False), rows.P_TUNING),
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
    if "alpha" in known and "lora_alpha" in given and "alpha" not in given:
        # A recipe's `alpha` was taken for LoRA's; LoHa and LoKr have one by that very name.
        given = {("alpha" if name == "lora_alpha" else name): value for name, value in given.items()}
    for name in given:
        if name not in known:
            faults.add(str(name), _unknown(method, str(name), known))
    filled: dict[str, Frozen] = {}
    for row in method.hyperparameters:
        filled[row.name] = row.default
        if row.name in given:
            filled[row.name] = freeze(given[row.name])
            if (fault := row.fault(given[row.name])) is not None:
                faults.add(row.name, fault)
    if not faults.found:
        _cross_check(method, filled, faults)
    faults.raise_if_any()
    return MappingProxyType(filled)


def _unknown(method: Method, name: str, known: list[str]) -> str:
    if (reason := rows.LEFT_OUT.get(method.name, {}).get(name)) is not None:
        return reason
    near = suggest(name, known)
    told = f"; did you mean {near!r}?" if near else f"; known: {', '.join(known)}"
    return f"{method.name} has no such hyperparameter{told}"


def _cross_check(method: Method, filled: Mapping[str, Frozen], faults: Faults) -> None:
    """The rules that no single value can break."""
    if "use_dora" in filled:
        if (wanted := method.name == "dora") != filled["use_dora"]:
            faults.add("use_dora", "has to stay true with method: dora" if wanted else "is a method of its own: dora")
        elif wanted and changes_base(filled.get("init_lora_weights")):
            faults.add("init_lora_weights", "DoRA's magnitudes are those of the base, which this start changes")
    if filled.get("target_modules") == ():
        faults.add("target_modules", "names no module; leave it out for the default of the base's family")
    if filled.get("layers_pattern") and filled["layers_to_transform"] is None:
        faults.add("layers_pattern", "is used only together with layers_to_transform")
    if isinstance(filled.get("target_modules"), str) and filled.get("layers_to_transform") is not None:
        faults.add("layers_to_transform", "needs target_modules as a list of names")
    if (check := _OWN_RULES.get(method.name)) is not None:
        check(filled, faults)


def changes_base(init: object) -> bool:
    """Say whether a value of init_lora_weights moves a part of the base's weights into the adapter at the start."""
    return isinstance(init, str) and init.startswith(("pissa", "olora"))


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


def _check_trainable_tokens(filled: Mapping[str, Frozen], faults: Faults) -> None:
    indices = filled["token_indices"]
    if not isinstance(indices, tuple) or not indices:
        faults.add("token_indices", "name at least one token, by its id in the base's tokenizer: [49152, 49153]")
    elif len(set(indices)) < len(indices):
        faults.add("token_indices", "names a token twice")


def _number(value: Frozen) -> float:
    assert isinstance(value, int | float)
    return value


_OWN_RULES: Mapping[str, Callable[[Mapping[str, Frozen], Faults], None]] = MappingProxyType(
    {
        "adalora": _check_adalora,
        "ia3": _check_ia3,
        "oft": _check_oft,
        "boft": _check_boft,
        "prompt_tuning": _check_prompt_tuning,
        "prefix_tuning": _check_prefix_tuning,
        "trainable_tokens": _check_trainable_tokens,
    }
)
