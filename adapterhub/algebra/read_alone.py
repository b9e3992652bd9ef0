"""One adapter by itself, of any method whose change can be written into weights: headers in, unread changes out.

How several become one is told by `combine` (sums of factors) and `compose` (everything else). Names of tensors are
those of peft 0.21.2.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from adapterhub.algebra.changes import Change, Changes, ExpertFactors, Rewriting, changes_of, load_finite
from adapterhub.algebra.combine import Layers, combine
from adapterhub.algebra.compose import compose
from adapterhub.algebra.delta import KEY_PREFIX, Packaged, read_factors
from adapterhub.algebra.lora_like import KINDS, ProductModule, read_products
from adapterhub.algebra.method_readers import METHOD_READERS, Reader, read_tokens
from adapterhub.catalog.hyperparameters import BOOKKEEPING
from adapterhub.catalog.methods import method_of_config
from adapterhub.errors import IncompatibleError, InvalidFileError
from adapterhub.package import is_default
from adapterhub.spec._decode import Frozen
from adapterhub.spec.lora import LoraSpec
from adapterhub.spec.manifest import CONFIG_FILE, WEIGHTS_FILE
from adapterhub.weights import Header, TensorInfo, read_header

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from adapterhub.algebra.rewrites import Rewrite
    from adapterhub.catalog.combinations import Rule
    from adapterhub.spec.manifest import Manifest

    Floats = NDArray[np.float32]

_SHOWN = 20
_EXPERT_FACTOR = re.compile(r"(?P<container>.+\.experts)(?P<inner>(?:\.base_layer)*)\.(?P<part>lora_[AB])\.weight")
_LORA_BIAS = re.compile(r"(?P<module>.+)\.lora_B\.bias")
# What LoRA may train beside its factors, and has to be without to be read as a sum of them.
_BESIDE = ("bias", "lora_bias", "trainable_token_indices", "target_parameters", "layer_replication")
# Settings of configs that the tensors show as well.
_SHOWN_BY_TENSORS = frozenset({"boft_n_butterfly_factor"})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plain:
    """A package whose config leaves out what is read here."""

    path: Path
    manifest: Manifest
    config: Mapping[str, Frozen]


def read_stack(
    layers: Layers, rule: Rule | None = None, *, read: Callable[[Packaged], Changes] | None = None
) -> Changes:
    """Return what a stack changes: the exact or combined sum of LoRAs, one adapter as it was trained, or a composition.

    read: reads what one package changes by itself; by default `read_alone`.

    Raises:
        IncompatibleError: the adapters exclude each other, or one does what no merge can write; `details` has every
            reason. InvalidFileError: tensors and config disagree. What `combine` raises.
    """
    if is_sum_of_factors(layers):
        return changes_of(combine(layers, rule))
    if len(layers) == 1 and layers[0][1] == 1.0 and (rule is None or rule.exact):
        return (read or read_alone)(layers[0][0])
    return compose(layers, rule, read or read_alone)


def is_sum_of_factors(layers: Layers) -> bool:
    """Say whether a stack is LoRAs' factors and nothing besides, or one DoRA."""
    doras = sum(package.config.get("use_dora") is True for package, _ in layers)
    return not any(stands_alone(package) for package, _ in layers) and (not doras or len(layers) == 1)


def read_alone(package: Packaged) -> Changes:
    """Return what one package changes, by itself and with weight 1.

    Raises:
        IncompatibleError, InvalidFileError: it does what no merge can write; tensors and config disagree.
            `details` has every reason.
    """
    label = f"{package.manifest.name}@{package.manifest.version}"
    peft_type = str(package.config.get("peft_type") or "LORA")
    if peft_type in KINDS:
        return _by_rows(package)
    readers = {**METHOD_READERS, "LORA": _read_lora}
    if not is_read_here(package):
        raise IncompatibleError(
            f"adapters of {peft_type} cannot be merged here",
            where=label,
            hint="what stands before or beside the base's weights stays there: adapt run --stack loads it"
            if (method := method_of_config(package.config)) is not None and method.buildable
            else None,
        )
    header = read_header(package.path / WEIGHTS_FILE)
    left = {name.removeprefix(KEY_PREFIX): tensor for name, tensor in header.tensors.items()}
    reader = Reader(package=package, label=label, left=left)
    if peft_type != "LORA":
        _refuse_unknown(package, label)
        for name in _names(package.config.get("modules_to_save")):
            reader.take_whole(rf".*{re.escape(name)}\..+")
        if package.config.get("bias", "none") != "none":
            reader.take_whole(r"(?:.*\.)?bias")
    readers[peft_type](reader)
    if reader.left and peft_type != "LORA":
        raise IncompatibleError(
            f"has {len(reader.left)} tensors that are none of its method's",
            where=f"{label}: {WEIGHTS_FILE}",
            details=tuple(sorted(reader.left)[:_SHOWN]),
        )
    if reader.faults or not (reader.tensors or reader.whole or reader.experts):
        raise InvalidFileError(
            f"these are not the tensors of a {peft_type}",
            where=f"{label}: {WEIGHTS_FILE}",
            details=tuple(reader.faults[:_SHOWN]),
        )
    return Changes(
        tensors=MappingProxyType(dict(sorted(reader.tensors.items()))),
        whole=MappingProxyType(reader.whole),
        experts=tuple(reader.experts),
        labels=(label,),
        fan_in_fan_out=package.config.get("fan_in_fan_out") is True,
        replication=_spec(package).layer_replication if peft_type == "LORA" else (),
    )


def is_read_here(package: Packaged) -> bool:
    """Say whether a package's method is one whose change is told here, row by row."""
    return str(package.config.get("peft_type") or "LORA") in {*KINDS, *METHOD_READERS, "LORA"}


def _spec(package: Packaged) -> LoraSpec:
    return LoraSpec.from_hyperparameters(package.config, where=str(package.path / CONFIG_FILE))


def stands_alone(package: Packaged) -> bool:
    """Say whether a package is more, or something else, than factors of LoRA."""
    config = package.config
    if config.get("peft_type") not in (None, "LORA"):
        return True
    return any(config.get(key) != "none" and not is_default(key, config.get(key)) for key in _BESIDE)


def _names(value: object) -> tuple[str, ...]:
    return tuple(str(item) for item in value) if isinstance(value, tuple) else ()


def _refuse_unknown(package: Packaged, label: str) -> None:
    """Refuse a config that sets what is not known of the method here."""
    method = method_of_config(package.config)
    known = BOOKKEEPING | _SHOWN_BY_TENSORS | {row.name for row in (method.hyperparameters if method else ())}
    unknown = [
        f"{key}: {value!r}"[:200]
        for key, value in package.config.items()
        if key not in known and not is_default(key, value)
    ]
    if unknown:
        raise IncompatibleError(
            "sets what is not known of its method here",
            where=f"{label}: {CONFIG_FILE}",
            hint="merge it with the tool it was made with",
            details=tuple(unknown[:_SHOWN]),
        )


def _by_rows(package: Packaged) -> Changes:
    """Read AdaLoRA as factors, LoHa and LoKr row by row, which takes no more memory than their small matrices."""
    changes = changes_of(read_products(package))
    rows = {"LOHA": _hadamard, "LOKR": _kronecker}.get(str(package.config.get("peft_type")))
    if rows is None:
        return changes
    tensors: dict[str, Change] = {}
    for name, change in changes.tensors.items():
        assert isinstance(change, ProductModule)
        tensors[name] = Rewriting(
            module=change.module,
            label=change.label,
            shape=change.shape,
            loaded=partial(rows, change),
            rank=change.rank,
        )
    return replace(changes, tensors=MappingProxyType(tensors))


def _hadamard(change: ProductModule) -> Rewrite:
    import numpy as np

    from adapterhub.algebra.rewrites import Hadamard

    parts = {part: load_finite(change.file, at, change.module, change.label) for part, at in change.tensors.items()}
    return Hadamard(
        module=change.module,
        left=(parts["hada_w1_a"], parts["hada_w2_a"]),
        right=(parts["hada_w1_b"], parts["hada_w2_b"] * np.float32(change.scale)),
    )


def _kronecker(change: ProductModule) -> Rewrite:
    import numpy as np

    from adapterhub.algebra.rewrites import Kronecker

    parts = {part: load_finite(change.file, at, change.module, change.label) for part, at in change.tensors.items()}
    first, second = (
        parts[name] if name in parts else parts[f"{name}_a"] @ parts[f"{name}_b"] for name in ("lokr_w1", "lokr_w2")
    )
    return Kronecker(module=change.module, first=first, second=second * np.float32(change.scale))


def _read_lora(reader: Reader) -> None:
    """Read LoRA's factors, and what it trained beside them: biases, tokens, fused experts."""
    package, config = reader.package, reader.package.config
    spec = _spec(package)
    if spec.use_dora and (spec.lora_bias or spec.target_parameters):
        raise IncompatibleError("DoRA has neither lora_bias nor target_parameters", where=reader.label)
    if spec.bias != "none":
        reader.take_whole(r"(?:.*\.)?(?<!lora_B\.)bias")
    for match, tensor in reader.take(_LORA_BIAS):
        if spec.lora_bias:
            _put_bias(reader, match["module"], tensor, spec.scaling_of(match["module"]))
        else:
            reader.faults.append(f"{match[0]}: lora_bias is false")
    if spec.trainable_token_indices is not None:
        read_tokens(reader, spec.trainable_token_indices)
    if spec.target_parameters:
        _take_experts(reader, spec)
    if not reader.left:
        return
    without = {key: value for key, value in config.items() if key not in _BESIDE}
    tensors = {KEY_PREFIX + name: tensor for name, tensor in reader.left.items()}
    rest = Header(tensors=MappingProxyType(tensors), metadata=MappingProxyType({}), file_size=0)
    plain = _Plain(path=package.path, manifest=package.manifest, config=MappingProxyType(without))
    sum_of_factors = changes_of(read_factors(plain, header=rest))
    reader.tensors |= sum_of_factors.tensors
    reader.whole |= sum_of_factors.whole
    reader.left.clear()


def _put_bias(reader: Reader, module: str, tensor: TensorInfo, scale: float) -> None:
    loaded = partial(_shifted, reader.load(tensor, module), f"{module}.bias", scale)
    reader.put(f"{module}.bias", (tensor.elements, None), loaded)


def _shifted(load: Callable[[], Floats], module: str, scale: float) -> Rewrite:
    import numpy as np

    from adapterhub.algebra.rewrites import Shifted

    return Shifted(module=module, shift=load() * np.float32(scale))


def _take_experts(reader: Reader, spec: LoraSpec) -> None:
    """Take the factors of fused experts: a wrapper within a wrapper for every parameter but the first."""
    pairs: dict[tuple[str, str], dict[str, TensorInfo]] = {}
    for match, tensor in reader.take(_EXPERT_FACTOR):
        pairs.setdefault((match["container"], match["inner"]), {})[match["part"]] = tensor
    names = {name.rpartition(".")[2] for name in spec.target_parameters}
    for (container, inner), parts in sorted(pairs.items()):
        if len(parts) != 2 or any(len(tensor.shape) != 2 for tensor in parts.values()):
            reader.faults.append(f"{container}{inner}: lora_A and lora_B are no factors")
            continue
        reader.experts.append(
            ExpertFactors(
                container=container,
                label=reader.label,
                file=reader.file,
                a=parts["lora_A"],
                b=parts["lora_B"],
                ranks=MappingProxyType({name: spec.rank_of(f"{container}.{name}") for name in names}),
                scales=MappingProxyType({name: spec.scaling_of(f"{container}.{name}") for name in names}),
            )
        )
