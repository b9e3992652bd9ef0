"""Methods whose change of a weight is a product of small matrices, as the factors B·A that it is equal to; exactly.

    AdaLoRA   ΔW = c·B·diag(E)·A,        c = α / (init_r + 1e-5)               https://arxiv.org/abs/2303.10512
    LoHa      ΔW = s·(P₁Q₁) ∘ (P₂Q₂)   = s·(P₁ ⋆ P₂)·(Q₁ ⋆ Q₂),   rank r²      https://arxiv.org/abs/2108.06098
    LoKr      ΔW = s·W₁ ⊗ W₂           = s·(P₁ ⊗ P₂)·(Q₁ ⊗ Q₂),   W = P·Q      https://arxiv.org/abs/2309.14859

with s = α/r, and ⋆ the products of all pairs of columns (of P) or rows (of Q). Scalings and names of tensors are those
of peft 0.21.2 (peft/tuners/{adalora,loha,lokr}/layer.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from adapterhub.algebra.delta import (
    KEY_PREFIX,
    LowRank,
    ModuleDelta,
    Packaged,
    Source,
    StackDelta,
    WholeTensor,
    read_factors,
    refuse_what_is_no_sum,
)
from adapterhub.errors import IncompatibleError, InvalidFileError
from adapterhub.spec.lora import LoraSpec
from adapterhub.spec.manifest import CONFIG_FILE, WEIGHTS_FILE
from adapterhub.weights import Header, TensorInfo, load_array, read_header

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Doubles = NDArray[np.float64]

_PART = re.compile(
    r"(?P<module>.+)\.(?P<part>hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t2|lora_[ABE])(?:\.weight)?"
)
# AdaLoRA's default of init_r, and what its layer adds to it.
_INIT_R, _RANK_SHIFT = 12, 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class ProductModule(ModuleDelta):
    """One module's change by a LoRA-like method, unread.

    tensors: by their part of the name. full_rank: of the factors before they are cut to what the matrix can have.
    """

    label: str
    file: Path
    tensors: Mapping[str, TensorInfo]
    scale: float
    kind: Kind
    size: tuple[int, int]
    full_rank: int

    @property
    def rank(self) -> int:
        """The rank of the factors: no more than the matrix can have."""
        return min(self.full_rank, *self.size)

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the weight that is changed."""
        return self.size

    @property
    def embedding(self) -> bool:
        """False: these methods adapt linear layers."""
        return False

    @property
    def dora(self) -> bool:
        """False."""
        return False

    def load(self) -> LowRank:
        """Read the small matrices and multiply them out into two factors.

        Raises:
            IncompatibleError: one holds NaN or infinity.
        """
        import numpy as np

        from adapterhub.algebra.compress import truncate

        arrays = {name: load_array(self.file, tensor).astype(np.float64) for name, tensor in self.tensors.items()}
        if not all(np.isfinite(value).all() for value in arrays.values()):
            raise IncompatibleError(
                "holds NaN or infinite values: it would break the base model",
                where=f"{self.label}: {self.module}",
                hint="build the adapter again, or ask its author",
            )
        wide, tall = self.kind.factors(arrays)
        a, b = wide.astype(np.float32), (self.scale * tall).astype(np.float32)
        if len(a) > self.rank:
            found = truncate(a, b, self.rank)
            a, b = found.a, found.b
        return LowRank(module=self.module, a=a, b=b)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One method: sets of tensors that a module may have, their factors (A, B), and shape and rank of the product."""

    needs: tuple[frozenset[str], ...]
    factors: Callable[[Mapping[str, Doubles]], tuple[Doubles, Doubles]]
    shapes: Callable[[Mapping[str, TensorInfo]], tuple[tuple[int, int], int]]


def read_changes(package: Packaged, *, header: Header | None = None) -> StackDelta:
    """Read what a LoRA, or an adapter of one of KINDS, changes: headers only.

    Raises:
        IncompatibleError, InvalidFileError: as `delta.read_factors` and `read_products`.
    """
    read = read_products if package.config.get("peft_type") in KINDS else read_factors
    return read(package, header=header)


def read_products(package: Packaged, *, header: Header | None = None) -> StackDelta:
    """Read what an adapter of one of KINDS changes: headers only. `header`: as `delta.read_factors` has it.

    Raises:
        IncompatibleError: it does something that no low-rank change of linear weights is. InvalidFileError: its
            tensors are not those of its method.
    """
    label = f"{package.manifest.name}@{package.manifest.version}"
    file, peft_type = package.path / WEIGHTS_FILE, str(package.config.get("peft_type"))
    kind = KINDS[peft_type]
    spec = _spec(package, peft_type)
    config = {key: value for key, value in package.config.items() if key != "peft_type"}
    source = Source(label=label, weight=1.0, spec=spec, config=MappingProxyType(config))
    refuse_what_is_no_sum(source)
    grouped, whole = _group(header if header is not None else read_header(file), source, file)
    modules: dict[str, ModuleDelta] = {}
    faults: list[str] = []
    for module, tensors in sorted(grouped.items()):
        if not (tensors.keys() in kind.needs and all(len(tensor.shape) == 2 for tensor in tensors.values())):
            shapes = ", ".join(f"{part} {list(tensor.shape)}" for part, tensor in sorted(tensors.items()))
            faults.append(f"{module}: {shapes} is no {peft_type} of a linear layer")
            continue
        size, rank = kind.shapes(tensors)
        if rank:  # AdaLoRA may have taken all of a module's rank away
            scale = _scale(spec, package, peft_type, module, tensors)
            modules[module] = ProductModule(
                module=module,
                parts=(),
                label=label,
                file=file,
                tensors=MappingProxyType(tensors),
                scale=scale,
                kind=kind,
                size=size,
                full_rank=rank,
            )
    if faults or not (modules or whole):
        raise InvalidFileError(
            f"these are not the tensors of a {peft_type}", where=f"{label}: {WEIGHTS_FILE}", details=tuple(faults[:20])
        )
    if len(modules) < len(grouped):
        source = replace(source, spec=replace(spec, target_modules=tuple(modules)))
    return StackDelta(modules=MappingProxyType(modules), whole=MappingProxyType(whole), sources=(source,))


def _spec(package: Packaged, peft_type: str) -> LoraSpec:
    """Return which modules an adapter is of, in LoRA's words."""
    config = dict(package.config)
    if peft_type == "ADALORA":
        config.pop("rank_pattern", None)  # masks, which the tensors were cut by when they were saved
    else:
        config["lora_alpha"] = config.pop("alpha", None)
    return LoraSpec.from_hyperparameters(config, where=str(package.path / CONFIG_FILE))


def _scale(spec: LoraSpec, package: Packaged, peft_type: str, module: str, tensors: Mapping[str, TensorInfo]) -> float:
    if peft_type != "ADALORA":
        return spec.scaling_of(module)
    start = package.config.get("init_r")
    alpha = spec.lora_alpha if spec.lora_alpha > 0 else float(tensors["lora_A"].shape[0])
    return alpha / ((start if isinstance(start, int) else _INIT_R) + _RANK_SHIFT)


def _group(
    header: Header, source: Source, file: Path
) -> tuple[dict[str, dict[str, TensorInfo]], dict[str, WholeTensor]]:
    """Sort tensors into parts by module, and those of modules_to_save by name."""
    saved = [re.compile(rf".*{re.escape(name)}\..+") for name in source.spec.modules_to_save]
    grouped: dict[str, dict[str, TensorInfo]] = {}
    whole: dict[str, WholeTensor] = {}
    strangers = []
    for key, tensor in header.tensors.items():
        name = key.removeprefix(KEY_PREFIX)
        if match := _PART.fullmatch(name):
            grouped.setdefault(match["module"], {})[match["part"]] = tensor
        elif any(pattern.match(name) for pattern in saved):
            whole[name] = WholeTensor(name=name, label=source.label, file=file, tensor=tensor, copy=False)
        else:
            strangers.append(key)
    if strangers:
        raise IncompatibleError(
            f"has {len(strangers)} tensors that are none of its method's",
            where=f"{source.label}: {WEIGHTS_FILE}",
            details=tuple(strangers[:20]),
        )
    return grouped, whole


def _adalora(arrays: Mapping[str, Doubles]) -> tuple[Doubles, Doubles]:
    return arrays["lora_A"] * arrays["lora_E"], arrays["lora_B"]


def _adalora_shapes(tensors: Mapping[str, TensorInfo]) -> tuple[tuple[int, int], int]:
    rank, width = tensors["lora_A"].shape
    return (tensors["lora_B"].shape[0], width), rank


def _loha(arrays: Mapping[str, Doubles]) -> tuple[Doubles, Doubles]:
    import numpy as np

    first, second = arrays["hada_w1_b"], arrays["hada_w2_b"]
    a = (first[:, None, :] * second[None, :, :]).reshape(-1, first.shape[1])
    first, second = arrays["hada_w1_a"], arrays["hada_w2_a"]
    b = (first[:, :, None] * second[:, None, :]).reshape(first.shape[0], -1)
    return np.ascontiguousarray(a), np.ascontiguousarray(b)


def _loha_shapes(tensors: Mapping[str, TensorInfo]) -> tuple[tuple[int, int], int]:
    left, right = tensors["hada_w1_a"].shape, tensors["hada_w1_b"].shape
    return (left[0], right[1]), left[1] * tensors["hada_w2_a"].shape[1]


def _lokr(arrays: Mapping[str, Doubles]) -> tuple[Doubles, Doubles]:
    import numpy as np

    (p1, q1), (p2, q2) = _split(arrays, "lokr_w1"), _split(arrays, "lokr_w2")
    return np.asarray(np.kron(q1, q2), np.float64), np.asarray(np.kron(p1, p2), np.float64)


def _split(arrays: Mapping[str, Doubles], name: str) -> tuple[Doubles, Doubles]:
    """Return P and Q with W = P·Q: as they are stored, else W itself and an identity."""
    import numpy as np

    if name not in arrays:
        return arrays[f"{name}_a"], arrays[f"{name}_b"]
    whole = arrays[name]
    rows, columns = whole.shape
    return (np.eye(rows), whole) if rows <= columns else (whole, np.eye(columns))


def _lokr_shapes(tensors: Mapping[str, TensorInfo]) -> tuple[tuple[int, int], int]:
    out, width, rank = 1, 1, 1
    for name in ("lokr_w1", "lokr_w2"):
        if name in tensors:
            rows, columns = tensors[name].shape
            inner = min(rows, columns)
        else:
            rows, inner = tensors[f"{name}_a"].shape
            columns = tensors[f"{name}_b"].shape[1]
        out, width, rank = out * rows, width * columns, rank * inner
    return (out, width), rank


_W1, _W2 = ({"lokr_w1"}, {"lokr_w1_a", "lokr_w1_b"}), ({"lokr_w2"}, {"lokr_w2_a", "lokr_w2_b"})

KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "ADALORA": Kind(needs=(frozenset({"lora_A", "lora_B", "lora_E"}),), factors=_adalora, shapes=_adalora_shapes),
        "LOHA": Kind(
            needs=(frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}),),
            factors=_loha,
            shapes=_loha_shapes,
        ),
        "LOKR": Kind(
            needs=tuple(frozenset(one | other) for one in _W1 for other in _W2), factors=_lokr, shapes=_lokr_shapes
        ),
    }
)
"""By PEFT's word for the method."""
