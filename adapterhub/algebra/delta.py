"""The change of weights that packages make, as low-rank factors by module, read lazily.

For one module and the packages 1…n with weights w and scalings s (α/r, or α/√r with rsLoRA) the exact sum is

    ΔW = Σ wᵢ·sᵢ·Bᵢ·Aᵢ = B·A   with   A = [A₁; …; Aₙ] (R, in),   B = [w₁s₁B₁, …, wₙsₙBₙ] (out, R),   R = Σ rᵢ

so a stack is one adapter of rank R, whatever ranks, patterns and targets its members have. Nothing is read but
headers until `ModuleDelta.load`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

from adapterhub.errors import IncompatibleError, InvalidFileError
from adapterhub.spec.lora import BASE_CHANGING_INITS, LoraSpec
from adapterhub.spec.manifest import CONFIG_FILE, WEIGHTS_FILE
from adapterhub.weights import Header, TensorInfo, load_array, read_header

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from adapterhub.spec._decode import Frozen
    from adapterhub.spec.manifest import Manifest

KEY_PREFIX = "base_model.model."
_FACTOR = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(?:\.weight)?"
)


class Packaged(Protocol):
    """What is needed of a package: its folder, its manifest, and its adapter_config.json."""

    @property
    def path(self) -> Path: ...

    @property
    def manifest(self) -> Manifest: ...

    @property
    def config(self) -> Mapping[str, Frozen]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One member of a stack: the label it is called by in messages, its coefficient, and its LoRA hyperparameters."""

    label: str
    weight: float
    spec: LoraSpec
    config: Mapping[str, Frozen]


@dataclass(frozen=True, slots=True, kw_only=True)
class Truncation:
    """What a cut to a lower rank left of a change: Σσ² of what was kept, and of all."""

    kept: float = 0.0
    energy: float = 0.0

    @property
    def kept_energy(self) -> float:
        """The share that was kept; 1.0 where there was nothing to lose."""
        return self.kept / self.energy if self.energy else 1.0

    @property
    def error(self) -> float:
        """‖ΔW − what was kept‖ / ‖ΔW‖."""
        return math.sqrt(max(1.0 - self.kept_energy, 0.0))

    def __add__(self, other: Truncation) -> Truncation:
        return Truncation(kept=self.kept + other.kept, energy=self.energy + other.energy)


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRank:
    """A loaded delta: `b @ a` is what a weight of shape (out, in) gains.

    a: (R, in) float32. b: (out, R) float32, scaling and weight included. magnitude: DoRA's m, (out,), or None. For an
    embedding, out is the number of rows (tokens) and in their length, as its weight is stored. truncation: what a
    combination lost by its rank; None where nothing was cut.
    """

    module: str
    a: NDArray[np.float32]
    b: NDArray[np.float32]
    magnitude: NDArray[np.float32] | None = None
    truncation: Truncation | None = None

    def dense(self) -> NDArray[np.float32]:
        """Return the whole change, (out, in): for small matrices and tests."""
        product: NDArray[np.float32] = self.b @ self.a
        return product


@dataclass(frozen=True, slots=True, kw_only=True)
class Factors:
    """One package's factors of one module, unread; `scale` is weight times scaling."""

    label: str
    file: Path
    a: TensorInfo
    b: TensorInfo
    scale: float
    embedding: bool = False
    magnitude: TensorInfo | None = None

    @property
    def rank(self) -> int:
        """r of this package's factors."""
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the weight that is changed, as LowRank has it."""
        if self.embedding:
            return self.a.shape[1], self.b.shape[0]
        return self.b.shape[0], self.a.shape[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleDelta:
    """What a stack does to one module, unread."""

    module: str
    parts: tuple[Factors, ...]

    @property
    def rank(self) -> int:
        """The ranks of all members added up."""
        return sum(part.rank for part in self.parts)

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the weight that is changed."""
        return self.parts[0].shape

    @property
    def embedding(self) -> bool:
        """True when the module is an embedding, whose weight is stored (tokens, length)."""
        return self.parts[0].embedding

    @property
    def dora(self) -> bool:
        """True when a magnitude goes with it."""
        return self.parts[0].magnitude is not None

    def load(self) -> LowRank:
        """Read the factors and concatenate them.

        Raises:
            IncompatibleError: a factor holds NaN or infinity.
        """
        import numpy as np

        out, width = self.shape
        a = np.empty((self.rank, width), np.float32)
        b = np.empty((out, self.rank), np.float32)
        at = 0
        for part in self.parts:
            first, second = load_array(part.file, part.a), load_array(part.file, part.b)
            if not (np.isfinite(first).all() and np.isfinite(second).all()):
                raise IncompatibleError(
                    "holds NaN or infinite values: it would break the base model",
                    where=f"{part.label}: {self.module}",
                    hint="build the adapter again, or ask its author",
                )
            if part.embedding:
                first, second = second.T, first.T
            a[at : at + part.rank] = first
            np.multiply(second, np.float32(part.scale), out=b[:, at : at + part.rank])
            at += part.rank
        only = self.parts[0]
        magnitude = None if only.magnitude is None else load_array(only.file, only.magnitude).reshape(-1)
        return LowRank(module=self.module, a=a, b=b, magnitude=magnitude)


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeTensor:
    """A tensor that a package carries whole: of modules_to_save, or PEFT's copy of an embedding (`copy`)."""

    name: str
    label: str
    file: Path
    tensor: TensorInfo
    copy: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StackDelta:
    """Everything a stack changes: low-rank deltas by module path, whole tensors by tensor name, and who contributed."""

    modules: Mapping[str, ModuleDelta]
    whole: Mapping[str, WholeTensor] = field(default_factory=lambda: MappingProxyType({}))
    sources: tuple[Source, ...] = ()

    @property
    def dora(self) -> bool:
        """True for a single DoRA adapter."""
        return any(module.dora for module in self.modules.values())


def read_factors(package: Packaged, weight: float = 1.0, *, header: Header | None = None) -> StackDelta:
    """Read what one package changes: headers only. `header`: its tensors by PEFT's names, where the file has others.

    Raises:
        IncompatibleError: it does something that cannot be written as a sum of low-rank factors; `details` has every
            module or field.
        InvalidFileError: its tensors and its config disagree.
    """
    label = f"{package.manifest.name}@{package.manifest.version}"
    file = package.path / WEIGHTS_FILE
    if (kind := package.config.get("peft_type")) not in (None, "LORA"):
        # Before its settings are read as LoRA's, some of which it may have under the same names.
        raise IncompatibleError(
            "cannot be written as a sum of low-rank changes",
            where=label,
            hint="adapt convert makes a LoRA of AdaLoRA, LoHa and LoKr; others are run alone: adapt run --stack NAME",
            details=(f"peft_type: {kind} is not LoRA",),
        )
    spec = LoraSpec.from_hyperparameters(package.config, where=str(package.path / CONFIG_FILE))
    source = Source(label=label, weight=weight, spec=spec, config=package.config)
    refuse_what_is_no_sum(source)
    header = header if header is not None else read_header(file)
    grouped, whole, strangers = _group(header, source, file)
    if strangers:
        raise IncompatibleError(
            f"has {len(strangers)} tensors that are no LoRA factors",
            where=f"{label}: {WEIGHTS_FILE}",
            hint="merge it with the tool it was made with",
            details=tuple(strangers[:20]),
        )
    faults: list[str] = []
    modules = {}
    for module in sorted(grouped):
        factors = _factors(module, grouped[module], source, file, faults)
        if factors is not None:
            modules[module] = ModuleDelta(module=module, parts=(factors,))
    if not modules and not whole and not faults:
        faults.append("no LoRA factors at all")
    if faults:
        raise InvalidFileError(
            "weights and adapter_config.json disagree", where=f"{label}: {WEIGHTS_FILE}", details=tuple(faults[:20])
        )
    return StackDelta(modules=MappingProxyType(modules), whole=MappingProxyType(whole), sources=(source,))


def concatenate(layers: Sequence[tuple[Packaged, float]]) -> StackDelta:
    """Return the exact weighted sum of several packages; headers only.

    Raises:
        IncompatibleError: the members cannot be summed: DoRA among several, different tasks, shapes that differ, a
            module that two save whole. `details` has every reason.
        InvalidFileError: a package's tensors and config disagree.
    """
    read = [read_factors(package, weight) for package, weight in layers]
    sources = tuple(source for delta in read for source in delta.sources)
    faults = _clashes(read, sources)
    parts: dict[str, list[Factors]] = {}
    whole: dict[str, WholeTensor] = {}
    for delta in read:
        for name, module in delta.modules.items():
            known = parts.setdefault(name, [])
            if known and (known[0].shape, known[0].embedding) != (module.shape, module.embedding):
                faults.append(
                    f"{name}: {known[0].label} changes {known[0].shape}, {module.parts[0].label} {module.shape}"
                )
            known.extend(module.parts)
        whole.update(delta.whole)
    if faults:
        raise IncompatibleError(
            "these adapters cannot be summed",
            where=", ".join(source.label for source in sources),
            details=tuple(faults),
        )
    modules = {name: ModuleDelta(module=name, parts=tuple(parts[name])) for name in sorted(parts)}
    return StackDelta(modules=MappingProxyType(modules), whole=MappingProxyType(whole), sources=sources)


def refuse_what_is_no_sum(source: Source) -> None:
    """Refuse settings of LoRA that make it something else than a sum of low-rank changes.

    Raises:
        IncompatibleError: `details` has every one.
    """
    spec, config = source.spec, source.config
    faults: list[str] = []
    if (kind := config.get("peft_type")) not in (None, "LORA"):
        faults.append(f"peft_type: {kind} is not LoRA")
    if spec.lora_bias:
        faults.append("lora_bias: a bias on B is no low-rank change of the weight")
    if spec.bias != "none":
        faults.append(f"bias: {spec.bias!r} trains biases too")
    if spec.layer_replication:
        faults.append("layer_replication: the base's layers are repeated, its weights are not enough")
    if spec.target_parameters:
        faults.append("target_parameters: fused experts have no matrix of their own")
    if spec.trainable_token_indices is not None:
        faults.append("trainable_token_indices: rows of the embedding were trained")
    if config.get("ensure_weight_tying"):
        faults.append("ensure_weight_tying: one adapter serves two tied modules")
    if isinstance(spec.init_lora_weights, str) and spec.init_lora_weights.startswith(BASE_CHANGING_INITS):
        faults.append(
            f"init_lora_weights: {spec.init_lora_weights!r} changed the base's weights when the adapter was made"
        )
    faults += [f"{name}: this variant of LoRA is no change of the weight alone" for name in spec.variants]
    if spec.use_dora and source.weight != 1.0:
        faults.append(
            f"use_dora: DoRA rescales the whole weight, so it has no coefficient but 1 (given {source.weight:g})"
        )
    if spec.modules_to_save and source.weight != 1.0:
        faults.append(f"modules_to_save: a module saved whole has no coefficient but 1 (given {source.weight:g})")
    if faults:
        raise IncompatibleError(
            "cannot be written as a sum of low-rank changes",
            where=source.label,
            hint="adapt merge writes biases, tokens and fused experts of one adapter alone, at weight 1",
            details=tuple(faults),
        )


def _group(
    header: Header, source: Source, file: Path
) -> tuple[dict[str, dict[str, TensorInfo]], dict[str, WholeTensor], list[str]]:
    """Sort a package's tensors into factors by module, whole tensors by name, and keys that are neither."""
    grouped: dict[str, dict[str, TensorInfo]] = {}
    whole: dict[str, WholeTensor] = {}
    strangers: list[str] = []
    saved = [re.compile(rf".*{re.escape(name)}\..+") for name in source.spec.modules_to_save]
    for key, tensor in header.tensors.items():
        name = key.removeprefix(KEY_PREFIX)
        match = _FACTOR.fullmatch(name)
        if name == key:
            strangers.append(key)
        elif match:
            grouped.setdefault(match["module"], {})[match["part"]] = tensor
        elif any(pattern.match(name) for pattern in saved):
            whole[name] = WholeTensor(name=name, label=source.label, file=file, tensor=tensor, copy=False)
        elif name.endswith(".weight") and "lora_" not in name:
            # PEFT saves the embeddings too when they are targeted or the vocabulary was resized.
            plain = name.removesuffix(".base_layer.weight").removesuffix(".weight") + ".weight"
            whole[plain] = WholeTensor(name=plain, label=source.label, file=file, tensor=tensor, copy=True)
        else:
            strangers.append(key)
    return grouped, whole, strangers


def _factors(
    module: str, tensors: Mapping[str, TensorInfo], source: Source, file: Path, faults: list[str]
) -> Factors | None:
    """Return one module's factors, or record what is wrong with them."""
    embedding = "lora_embedding_A" in tensors or "lora_embedding_B" in tensors
    names = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
    a, b, magnitude = tensors.get(names[0]), tensors.get(names[1]), tensors.get("lora_magnitude_vector")
    if a is None or b is None:
        faults.append(f"{module}: has no {names[0] if a is None else names[1]}")
        return None
    rank = source.spec.rank_of(module)
    if len(a.shape) != 2 or len(b.shape) != 2 or not 0 < a.shape[0] == b.shape[1]:
        faults.append(f"{module}: {names[0]} {list(a.shape)} and {names[1]} {list(b.shape)} are no factors of a matrix")
    elif a.shape[0] != rank:
        faults.append(f"{module}: rank is {a.shape[0]} in the weights, {rank} by r and rank_pattern")
    elif source.spec.use_dora and (embedding or magnitude is None):
        faults.append(f"{module}: DoRA {'of an embedding' if embedding else 'without lora_magnitude_vector'}")
    elif magnitude is not None and (not source.spec.use_dora or magnitude.elements != b.shape[0]):
        faults.append(f"{module}: lora_magnitude_vector {list(magnitude.shape)} does not belong to {list(b.shape)}")
    else:
        scale = source.weight * source.spec.scaling_of(module)
        return Factors(label=source.label, file=file, a=a, b=b, scale=scale, embedding=embedding, magnitude=magnitude)
    return None


def _clashes(read: Sequence[StackDelta], sources: Sequence[Source]) -> list[str]:
    """Return why members of a stack exclude each other."""
    faults = []
    if len(read) > 1:
        faults += [
            f"{s.label}: use_dora: DoRA rescales the weight it finds, so it sums with none"
            for s in sources
            if s.spec.use_dora
        ]
    tasks = {str(source.config["task_type"]) for source in sources if source.config.get("task_type")}
    if len(tasks) > 1:
        faults.append(f"task_type: they were trained for different tasks: {', '.join(sorted(tasks))}")
    for index, delta in enumerate(read):
        for name, tensor in delta.whole.items():
            module = name.rpartition(".")[0]
            for other_index, other in enumerate(read):
                if other_index == index:
                    continue
                label = other.sources[0].label
                if not tensor.copy and module in other.modules:
                    faults.append(f"{module}: saved whole by {tensor.label}, adapted by {label}")
                twin = other.whole.get(name)
                if twin and other_index > index and not same_bytes(tensor, twin):
                    faults.append(f"{name}: saved whole by {tensor.label} and by {label}, with other values")
    return faults


def same_bytes(first: WholeTensor, second: WholeTensor) -> bool:
    """Say whether two tensors are the same, byte for byte."""
    from adapterhub.weights import iter_chunks

    if (first.tensor.dtype, first.tensor.shape) != (second.tensor.dtype, second.tensor.shape):
        return False
    pairs = zip(iter_chunks(first.file, first.tensor), iter_chunks(second.file, second.tensor), strict=True)
    return all(one == other for one, other in pairs)
