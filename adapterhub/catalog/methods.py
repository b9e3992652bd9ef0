"""Adapter methods: one row each, with PEFT's name for it, its paper, and its hyperparameters."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from adapterhub.catalog import hyperparameters as rows
from adapterhub.catalog import own_methods
from adapterhub.catalog.method_rows import DORA, LORA, NAMED, Method
from adapterhub.catalog.method_rules import RULES
from adapterhub.errors import UsageError
from adapterhub.spec._decode import Faults, Frozen, freeze, suggest

__all__ = ["LORA_CONFIG_KEYS", "METHODS", "OTHER_WORDS", "Method", "check_hyperparameters", "method_named"]

# Every key that peft 0.21.2 writes for LoRA; one that is not here comes from a newer PEFT, or from nobody.
LORA_CONFIG_KEYS: frozenset[str] = frozenset(
    {row.name for row in rows.LORA} | rows.BOOKKEEPING | set(rows.LEFT_OUT["lora"])
)


# Not PEFT's.
_OWN: tuple[Method, ...] = (
    Method(
        name="bottleneck",
        peft_type=own_methods.BOTTLENECK_TYPE,
        title="bottleneck adapters (Houlsby, Pfeiffer, parallel)",
        paper="https://arxiv.org/abs/1902.00751",
        group="other",
        hyperparameters=own_methods.BOTTLENECK,
        buildable=True,
    ),
    Method(
        name="bitfit",
        peft_type=own_methods.BITFIT_TYPE,
        title="BitFit: biases alone",
        paper="https://arxiv.org/abs/2106.10199",
        group="scaling",
        hyperparameters=own_methods.BITFIT,
        buildable=True,
        foldable=True,
    ),
    Method(
        name="full",
        peft_type=None,
        title="full fine-tuning",
        paper="https://arxiv.org/abs/1810.04805",
        group=own_methods.BASELINE,
    ),
    Method(
        name="partial",
        peft_type=None,
        title="fine-tuning of the last layers",
        paper="https://arxiv.org/abs/1810.04805",
        group=own_methods.BASELINE,
        hyperparameters=own_methods.PARTIAL,
    ),
)

METHODS: Mapping[str, Method] = MappingProxyType({row.name: row for row in (LORA, DORA, *NAMED, *_OWN)})

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
    if method.group == own_methods.BASELINE:
        raise UsageError(
            f"{method.name}: a fine-tuned base is not an adapter",
            hint="`adapt compare` trains one to compare with; `adapt extract` makes a LoRA of one",
        )
    if not method.buildable:
        known = ", ".join(row.name for row in METHODS.values() if row.buildable)
        why = f": {method.why_not}" if method.why_not else " yet"
        raise UsageError(f"{method.name} cannot be built{why}", hint=f"buildable: {known}")


def check_hyperparameters(method: Method, given: Mapping[str, object], *, where: str) -> Mapping[str, Frozen]:
    """Check values against the row of a method that can be trained and fill in its defaults.

    `target_modules` stays None where nothing was given: the family of the base decides (families.default_targets).

    Raises:
        InvalidFileError: every fault found, each with the hyperparameter's name; an unknown one with the nearest.
        UsageError: the method cannot be trained.
    """
    if method.group != own_methods.BASELINE:
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
            for place, fault in row.faults(given[row.name]):
                faults.add(place, fault)
    if not faults.found:
        _fill_settings(method, filled, faults)
        _cross_check(method, filled, faults)
    faults.raise_if_any()
    return MappingProxyType(filled)


def _unknown(method: Method, name: str, known: list[str]) -> str:
    if (reason := rows.LEFT_OUT.get(method.name, {}).get(name)) is not None:
        return reason
    near = suggest(name, known)
    told = f"; did you mean {near!r}?" if near else f"; known: {', '.join(known)}"
    return f"{method.name} has no such hyperparameter{told}"


def _fill_settings(method: Method, filled: dict[str, Frozen], faults: Faults) -> None:
    """Complete the settings of a start where it is asked for; where it is not, there are none.

    Left out, they leave the hyperparameters of all other recipes, and the digests of these, as they were before.
    """
    for row in method.hyperparameters:
        if row.kind != "settings":
            continue
        start = row.name.removesuffix("_config")
        if filled["init_lora_weights"] == start:
            filled[row.name] = row.complete(filled[row.name])
        elif filled.pop(row.name) is not None:
            faults.add(row.name, f"belongs to init_lora_weights: {start}")


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
    if (check := RULES.get(method.name)) is not None:
        check(filled, faults)


def changes_base(init: object) -> bool:
    """Say whether a value of init_lora_weights moves a part of the base's weights into the adapter at the start."""
    return isinstance(init, str) and init.startswith(("pissa", "olora"))
