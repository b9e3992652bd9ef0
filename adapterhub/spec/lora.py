"""LoRA's hyperparameters as one typed value, and how PEFT reads them: which modules, which rank, which scaling.

Names and meaning are those of PEFT's LoraConfig; matching follows peft 0.21.2, `get_pattern_key` and
`match_target_against_key` (peft/utils/other.py) and `check_target_module_exists` (peft/tuners/tuners_utils.py).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Any, TypeVar

from adapterhub.errors import InvalidFileError, UsageError
from adapterhub.spec._decode import Faults, Frozen, Reader, finite, freeze, kind_of

ALL_LINEAR = "all-linear"
BIAS = ("none", "all", "lora_only")
# PEFT changes the base model's weights when it creates an adapter with one of these, so B·A is a difference from
# other weights than the base's own (pissa_init, olora_init, corda_init, loftq_init, lora_ga_init, KaSA).
BASE_CHANGING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")
# Variants of LoRA whose forward pass is not W·x + s·B·A·x.
VARIANT_FIELDS = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "use_bdlora",
    "use_qalora",
)

T = TypeVar("T")
_MAX_PATTERN = 4096
# Seconds of processor time that one expression may try one module's name; it takes microseconds.
_PATIENCE = 0.5
_REPEATS = re.compile(r"[*+?{]")
_STRAY_BRACE = re.compile(r"\{(?![0-9]+(,[0-9]*)?\}|,[0-9]+\})")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSpec:
    """LoRA as one adapter has it.

    target_modules: names (a module matches when its path is one, or ends in `.` and one), or one regular expression
    for the whole path, or `all-linear`, or None: PEFT's default for the family.
    rank_pattern, alpha_pattern: by regular expression for the end of a module's path; the first that matches wins.
    modules_to_save: modules trained whole beside LoRA. variants: names of config fields set to a variant of LoRA.
    """

    r: int = 8
    lora_alpha: float = 8
    use_rslora: bool = False
    use_dora: bool = False
    lora_bias: bool = False
    bias: str = "none"
    lora_dropout: float = 0.0
    fan_in_fan_out: bool = False
    init_lora_weights: bool | str | None = True
    target_modules: tuple[str, ...] | str | None = None
    exclude_modules: tuple[str, ...] | str | None = None
    layers_to_transform: tuple[int, ...] | int | None = None
    layers_pattern: tuple[str, ...] | str | None = None
    rank_pattern: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    alpha_pattern: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    modules_to_save: tuple[str, ...] = ()
    target_parameters: tuple[str, ...] = ()
    trainable_token_indices: Frozen = None
    layer_replication: tuple[tuple[int, int], ...] = ()
    variants: tuple[str, ...] = ()

    @classmethod
    def from_hyperparameters(cls, data: Mapping[str, object], *, where: str = "adapter_config.json") -> LoraSpec:
        """Read PEFT's names out of an adapter_config.json or a manifest's hyperparameters; other keys are left alone.

        Raises:
            InvalidFileError: every fault found, each with the path of its field.
        """
        faults = Faults(where=where)
        # PEFT writes null for "as if it were not there" in several fields; its own reader takes either.
        r = Reader({key: value for key, value in data.items() if value is not None}, faults)
        value = cls(
            r=r.integer("r", 8, minimum=1),
            lora_alpha=r.number("lora_alpha", 8),
            use_rslora=r.boolean("use_rslora", False),
            use_dora=r.boolean("use_dora", False),
            lora_bias=r.boolean("lora_bias", False),
            bias=r.string("bias", "none", choices=BIAS),
            lora_dropout=r.number("lora_dropout", 0.0, minimum=0.0, maximum=1.0),
            fan_in_fan_out=r.boolean("fan_in_fan_out", False),
            init_lora_weights=_read_init(r),
            target_modules=_read_modules(r, "target_modules"),
            exclude_modules=_read_modules(r, "exclude_modules"),
            layers_to_transform=_read_layers(r),
            layers_pattern=_read_modules(r, "layers_pattern", expressions=True),
            rank_pattern=MappingProxyType(_read_ranks(r)),
            alpha_pattern=MappingProxyType(_read_alphas(r)),
            modules_to_save=_read_saved(r),
            target_parameters=r.strings("target_parameters", ()),
            trainable_token_indices=_read_tokens(r),
            layer_replication=_read_replication(r),
            variants=tuple(name for name in VARIANT_FIELDS if data.get(name)),
        )
        if isinstance(value.target_modules, str) and value.layers_to_transform is not None:
            r.fault("layers_to_transform", "cannot be used when target_modules is one expression")
        faults.raise_if_any()
        return value

    def rank_of(self, module: str) -> int:
        """Return the rank of a module, by its path in the base model (`model.layers.0.self_attn.q_proj`)."""
        return _by_pattern(self.rank_pattern, module, self.r)

    def alpha_of(self, module: str) -> float:
        """Return lora_alpha of a module."""
        return _by_pattern(self.alpha_pattern, module, self.lora_alpha)

    def scaling_of(self, module: str) -> float:
        """Return the factor before B·A: α/r, or α/√r with rsLoRA (https://arxiv.org/abs/2312.03732)."""
        rank = self.rank_of(module)
        return self.alpha_of(module) / (math.sqrt(rank) if self.use_rslora else rank)

    def targets(self, modules: Iterable[str], *, head: str | None = None) -> tuple[str, ...]:
        """Return those of a base model's module paths that PEFT would adapt, in the order given.

        For `all-linear`, `modules` are the linear ones; `head` (the output layer) is then left out, as PEFT does.

        Raises:
            UsageError: target_modules is None, which only a family's table can answer.
        """
        if self.target_modules is None:
            raise UsageError("target_modules is not set", hint="name them, or write target_modules: all-linear")
        if isinstance(self.target_modules, str) and self.target_modules.lower() == ALL_LINEAR:
            return tuple(name for name in modules if name != head and not self.excludes(name))
        return tuple(name for name in modules if self.matches(name))

    def matches(self, module: str) -> bool:
        """Say whether PEFT would adapt a module of this path (`all-linear` and None match nothing here)."""
        if self.excludes(module):
            return False
        targets = self.target_modules
        if targets is None:
            return False
        if isinstance(targets, str):
            return _match(targets, targets, module, whole=True) is not None
        if module in targets:
            return True  # a full path is meant as it stands: layers_to_transform does not narrow it
        return any(module.endswith(f".{name}") for name in targets) and self._in_layers(module)

    def excludes(self, module: str) -> bool:
        """Say whether exclude_modules or modules_to_save keeps LoRA away from a module."""
        excluded = self.exclude_modules
        if isinstance(excluded, str):
            if excluded and _match(excluded, excluded, module, whole=True):
                return True
        elif excluded and (module in excluded or any(module.endswith(f".{name}") for name in excluded)):
            return True
        return any(_match(name, rf"(^|.*\.){name}($|\..*)", module) for name in self.modules_to_save)

    def _in_layers(self, module: str) -> bool:
        wanted = self.layers_to_transform
        if wanted is None or wanted == ():
            return True
        if self.layers_pattern:
            names = (self.layers_pattern,) if isinstance(self.layers_pattern, str) else self.layers_pattern
            tries = (_match(name, rf"(?:^|.*?\.){name}\.(?P<idx>\d+)\.", module) for name in names)
            found = next((match for match in tries if match), None)
        else:
            # The first number below a container is the layer, later ones are experts.
            found = re.match(r".*?\.[^.]*\.(?P<idx>\d+)\.", module)
        if found is None:
            return False
        index = int(found["idx"])
        return index == wanted if isinstance(wanted, int) else index in wanted


def _by_pattern(patterns: Mapping[str, T], module: str, default: T) -> T:
    for pattern, value in patterns.items():
        if _match(pattern, rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _match(given: str, expression: str, module: str, *, whole: bool = False) -> Any:
    """Match an expression, which PEFT makes of a given one, with a module's path as `re` does, but not without end.

    Expressions come from strangers, and some try every way to cut a name into pieces before they give up. `re` cannot
    be stopped then; the `regex` library, which reads the same expressions, can.

    Raises:
        InvalidFileError: it takes longer than any honest expression.
    """
    try:
        return _matcher(given, expression, whole)(module)
    except TimeoutError as error:
        raise InvalidFileError(
            f"the expression {given[:80]!r} takes too long to match a module's name",
            where="adapter_config.json",
            hint="repeat no group that itself repeats: write (a|b)+ and not ((a|b)*)+",
        ) from error


@lru_cache(maxsize=8192)
def _matcher(given: str, expression: str, whole: bool) -> Callable[[str], Any]:
    if not _REPEATS.search(given):
        plain = re.compile(expression)
        return plain.fullmatch if whole else plain.match
    import regex

    try:
        stoppable = regex.compile(expression)
    except regex.error as error:
        raise InvalidFileError(f"{given[:80]!r} is not a regular expression: {error}") from error
    return partial(stoppable.fullmatch if whole else stoppable.match, timeout=_PATIENCE)


def _read_init(r: Reader) -> bool | str | None:
    value = r.raw("init_lora_weights", True)
    if isinstance(value, bool | str):
        return value
    r.fault("init_lora_weights", f"expected true, false or a word, found {kind_of(value)}")
    return True


def _read_modules(r: Reader, key: str, *, expressions: bool = False) -> tuple[str, ...] | str | None:
    """Read a list of names or one text; a lone text (and every entry, if told) is a regular expression."""
    if key not in r:
        return None
    value = r.raw(key)
    if isinstance(value, str):
        _check_expression(r, key, value)
        return value
    names = r.strings(key)
    if expressions:
        for name in names:
            _check_expression(r, key, name)
    return names


def _read_saved(r: Reader) -> tuple[str, ...]:
    names = r.strings("modules_to_save", ())
    for name in names:
        _check_expression(r, "modules_to_save", name)
    return names


def _check_expression(r: Reader, key: str, text: str) -> None:
    if len(text) > _MAX_PATTERN:
        r.fault(key, f"is longer than {_MAX_PATTERN} characters")
        return
    try:
        re.compile(rf"(.*\.)?({text})$")
        if _STRAY_BRACE.search(text):
            r.fault(key, f"{text[:80]!r} holds a brace that repeats nothing")
    except (re.error, OverflowError, RecursionError) as error:
        r.fault(key, f"{text[:80]!r} is not a regular expression: {error}")


def _read_layers(r: Reader) -> tuple[int, ...] | int | None:
    if "layers_to_transform" not in r:
        return None
    value = r.raw("layers_to_transform")
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, list | tuple):
        numbers = tuple(item for item in value if isinstance(item, int) and not isinstance(item, bool))
        if len(numbers) == len(value):
            return numbers
    r.fault("layers_to_transform", "expected a whole number or a list of them")
    return None


def _read_ranks(r: Reader) -> dict[str, int]:
    found: dict[str, int] = {}
    for pattern, value in r.items("rank_pattern"):
        _check_expression(r, f"rank_pattern.{pattern}", pattern)
        if isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 2**63:
            found[pattern] = value
        else:
            r.fault(f"rank_pattern.{pattern}", "expected a whole number of at least 1")
    return found


def _read_alphas(r: Reader) -> dict[str, float]:
    found: dict[str, float] = {}
    for pattern, value in r.items("alpha_pattern"):
        _check_expression(r, f"alpha_pattern.{pattern}", pattern)
        if isinstance(value, int | float) and not isinstance(value, bool) and finite(value):
            found[pattern] = value
        else:
            r.fault(f"alpha_pattern.{pattern}", "expected a finite number")
    return found


def _read_tokens(r: Reader) -> Frozen:
    value = r.raw("trainable_token_indices", None)
    lists = list(value.values()) if isinstance(value, Mapping) else [] if value is None else [value]
    for items in lists:
        if not isinstance(items, list | tuple) or not all(isinstance(item, int) for item in items):
            r.fault("trainable_token_indices", "expected a list of token ids, or lists by module name")
            return None
    return freeze(value)


def _read_replication(r: Reader) -> tuple[tuple[int, int], ...]:
    value = r.raw("layer_replication", ())
    pairs: list[tuple[int, int]] = []
    for pair in value if isinstance(value, list | tuple) else [value]:
        match pair:
            case [int(start), int(end)]:
                pairs.append((start, end))
            case _:
                r.fault("layer_replication", "expected a list of [start, end] pairs of whole numbers")
                return ()
    return tuple(pairs)
