"""How the tensors of each method that stands alone are read: names and shapes now, values when they are asked for.

(IA)³, LayerNorm tuning, trained tokens, OFT, BOFT and VeRA, by the names that peft 0.21.2 saves; BitFit by our own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from adapterhub.algebra.changes import Change, ExpertFactors, Rewriting, Shape, load_finite
from adapterhub.algebra.delta import Packaged, WholeTensor
from adapterhub.catalog.own_methods import BITFIT_TYPE
from adapterhub.spec._decode import Frozen
from adapterhub.spec.bitfit import DELTA
from adapterhub.spec.manifest import WEIGHTS_FILE
from adapterhub.weights import TensorInfo, read_bytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from adapterhub.algebra.rewrites import Rewrite

    Floats = NDArray[np.float32]
    Load = Callable[[], Floats]

_TOKENS = re.compile(r"(?P<module>.+?)(?:\.token_adapter)?\.trainable_tokens_delta")
_SHARED = ("base_model.vera_A", "base_model.vera_B")
_EPS = 6e-5
_TERMS = 5


@dataclass(slots=True, kw_only=True)
class Reader:
    """One package being read. left: tensors nobody has taken yet, by the model's names; the rest is what was found."""

    package: Packaged
    label: str
    left: dict[str, TensorInfo]
    tensors: dict[str, Change] = field(default_factory=dict)
    whole: dict[str, WholeTensor] = field(default_factory=dict)
    experts: list[ExpertFactors] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def file(self) -> Path:
        """The package's weights."""
        return self.package.path / WEIGHTS_FILE

    def take(self, expression: re.Pattern[str]) -> list[tuple[re.Match[str], TensorInfo]]:
        """Take every tensor whose name matches."""
        tried = [(expression.fullmatch(name), tensor) for name, tensor in self.left.items()]
        found = [(match, tensor) for match, tensor in tried if match]
        for match, _ in found:
            del self.left[match[0]]
        return found

    def take_parts(self, expression: str) -> dict[str, dict[str, TensorInfo]]:
        """Take tensors by the expression's groups: module, then part."""
        found: dict[str, dict[str, TensorInfo]] = {}
        for match, tensor in self.take(re.compile(expression)):
            found.setdefault(match["module"], {})[match["part"]] = tensor
        return dict(sorted(found.items()))

    def take_whole(self, expression: str) -> None:
        """Take tensors that go in the place of the base's."""
        for match, tensor in self.take(re.compile(expression)):
            self.put_whole(match[0].replace(".base_layer.", "."), tensor)

    def put_whole(self, name: str, tensor: TensorInfo) -> None:
        """Let a tensor go in the place of the base's of this name."""
        self.whole[name] = WholeTensor(name=name, label=self.label, file=self.file, tensor=tensor, copy=False)

    def put(self, name: str, shape: Shape, loaded: Callable[[], Rewrite], *, rank: int = 0) -> None:
        """Let a weight or bias be changed."""
        module = name.removesuffix(".weight")
        self.tensors[name] = Rewriting(module=module, label=self.label, shape=shape, loaded=loaded, rank=rank)

    def load(self, tensor: TensorInfo, module: str) -> Load:
        """Return what loads a tensor, in float32."""
        return partial(load_finite, self.file, tensor, module, self.label)

    def setting(self, name: str, default: Frozen) -> Frozen:
        """Return a setting of adapter_config.json."""
        value = self.package.config.get(name)
        return default if value is None else value


def read_ia3(reader: Reader) -> None:
    """Read (IA)³'s vectors: l (out, 1) scales the output, with its bias, l (1, in) the input."""
    for module, parts in reader.take_parts(r"(?P<module>.+)\.(?P<part>ia3_l)").items():
        tensor = parts["ia3_l"]
        if len(tensor.shape) != 2 or 1 not in tensor.shape:
            reader.faults.append(f"{module}: ia3_l {list(tensor.shape)} is no vector")
            continue
        size, of_input = tensor.elements, tensor.shape[1] > 1
        if size == 1:
            forward = reader.setting("feedforward_modules", ())
            of_input = isinstance(forward, tuple) and module.rpartition(".")[2] in forward
        loaded = partial(_scaled, reader.load(tensor, module), module, of_input)
        reader.put(f"{module}.weight", (None, size) if of_input else (size, None), loaded)
        if not of_input:
            bias = partial(_scaled, reader.load(tensor, module), f"{module}.bias", False)
            reader.tensors[f"{module}.bias"] = Rewriting(
                module=f"{module}.bias", label=reader.label, shape=(size, None), loaded=bias, optional=True
            )


def _scaled(load: Load, module: str, of_input: bool) -> Rewrite:
    from adapterhub.algebra.rewrites import Scaled

    return Scaled(module=module, factors=load().reshape(-1), of_input=of_input)


def read_norms(reader: Reader) -> None:
    """Read the trained weights and biases of norms."""
    for match, tensor in reader.take(re.compile(r"(?P<module>.+)\.ln_tuning_layers\.(?P<part>weight|bias)")):
        reader.put_whole(f"{match['module']}.{match['part']}", tensor)


def read_tokens(reader: Reader, indices: Frozen) -> None:
    """Read trained rows of embeddings. indices: ids of tokens, in the rows' order, or such lists by module's name."""
    for match, tensor in reader.take(_TOKENS):
        module = match["module"]
        ids = indices
        if isinstance(indices, Mapping):
            ids = next((ids for name, ids in indices.items() if f".{module}".endswith(f".{name}")), ())
        if not isinstance(ids, tuple) or len(tensor.shape) != 2 or len(ids) != tensor.shape[0] or not ids:
            told = len(ids) if isinstance(ids, tuple) else 0
            reader.faults.append(f"{module}: {list(tensor.shape)} trained rows, and {told} ids of tokens")
            continue
        rows = tuple(int(str(item)) for item in ids)
        if min(rows) < 0:
            reader.faults.append(f"{module}: {min(rows)} is the id of no token")
            continue
        reader.tensors[f"{module}.weight"] = Rewriting(
            module=module,
            label=reader.label,
            shape=(None, tensor.shape[1]),
            loaded=partial(_rows, reader.load(tensor, module), module, rows),
            embedding=True,
            follows=sha256(repr(rows).encode() + read_bytes(reader.file, tensor)).hexdigest(),
            rows=max(rows) + 1,
        )


def _rows(load: Load, module: str, rows: Sequence[int]) -> Rewrite:
    from adapterhub.algebra.rewrites import Rows

    return Rows(module=module, values=dict(zip(rows, load(), strict=True)))


def read_trainable_tokens(reader: Reader) -> None:
    """Read the method that trains tokens and nothing else."""
    read_tokens(reader, reader.setting("token_indices", ()))


def read_oft(reader: Reader) -> None:
    """Read OFT's rotations, (blocks, k·(k−1)/2); with block_share one block stands for all."""
    shared = reader.setting("block_share", False)
    for module, parts in reader.take_parts(r"(?P<module>.+)\.(?P<part>oft_R)\.weight").items():
        tensor = parts["oft_R"]
        size = _block_size(tensor.shape)
        if size is None or (shared and tensor.shape[0] != 1):
            reader.faults.append(f"{module}: oft_R {list(tensor.shape)} holds no blocks")
            continue
        width = None if shared else size * tensor.shape[0]
        settings = {
            "terms": reader.setting("num_cayley_neumann_terms", _TERMS)
            if reader.setting("use_cayley_neumann", True)
            else None,
            "eps": reader.setting("eps", _EPS) if reader.setting("coft", False) else None,
        }
        loaded = partial(_rotated, reader.load(tensor, module), module, size, settings)
        reader.tensors[f"{module}.weight"] = Rewriting(
            module=module,
            label=reader.label,
            shape=(None, width),
            loaded=loaded,
            plain=True,
            multiple=size if shared else 1,
        )


def _block_size(shape: tuple[int, ...]) -> int | None:
    """Return k of (n, k·(k−1)/2)."""
    if len(shape) != 2 or not shape[0]:
        return None
    size = round((1 + (1 + 8 * shape[1]) ** 0.5) / 2)
    return size if size * (size - 1) // 2 == shape[1] else None


def _rotated(load: Load, module: str, size: int, settings: Mapping[str, Frozen]) -> Rewrite:
    import numpy as np

    from adapterhub.algebra.rewrites import Rotated, cayley, skew_of

    skew = skew_of(load().astype(np.float64), size)
    terms, eps = settings["terms"], settings["eps"]
    if isinstance(eps, float | int):
        # Constrained OFT: no block's S is longer than eps/√blocks (https://arxiv.org/abs/2306.07280, section 3.1).
        bound = eps / np.sqrt(len(skew))
        norms = np.linalg.norm(skew, axis=(1, 2), keepdims=True)
        skew *= np.where(norms > bound, bound / np.maximum(norms, 1e-300), 1.0)
    turned = cayley(skew, terms=terms if isinstance(terms, int) else None)
    return Rotated(module=module, blocks=_transposed(turned))


def read_boft(reader: Reader) -> None:
    """Read BOFT's rotations, (layers, blocks, k, k), and its scales, (out, 1)."""
    for module, parts in reader.take_parts(r"(?P<module>.+)\.(?P<part>boft_R|boft_s)").items():
        turned, scales = parts.get("boft_R"), parts.get("boft_s")
        fits = turned is not None and len(turned.shape) == 4 and turned.shape[2] == turned.shape[3]
        if turned is None or scales is None or not fits or not _is_butterfly(turned.shape):
            shapes = ", ".join(f"{part} {list(tensor.shape)}" for part, tensor in sorted(parts.items()))
            reader.faults.append(f"{module}: {shapes} are no butterfly of blocks")
            continue
        loaded = partial(_butterfly, reader.load(turned, module), reader.load(scales, module), module)
        reader.tensors[f"{module}.weight"] = Rewriting(
            module=module,
            label=reader.label,
            shape=(scales.elements, turned.shape[1] * turned.shape[2]),
            loaded=loaded,
            plain=True,
        )


def _is_butterfly(shape: tuple[int, ...]) -> bool:
    layers, blocks, size, _ = shape
    return layers == 1 or (layers > 1 and size % 2 == 0 and blocks % (1 << (layers - 1)) == 0)


def _butterfly(turned: Load, scales: Load, module: str) -> Rewrite:
    import numpy as np

    from adapterhub.algebra.rewrites import Rotated, butterfly, cayley

    data = turned().astype(np.float64)
    skew = 0.5 * (data - data.transpose(0, 1, 3, 2))
    rotations = cayley(skew.reshape(-1, *skew.shape[2:])).reshape(skew.shape)
    return Rotated(module=module, blocks=_transposed(butterfly(rotations)), scales=scales().reshape(-1))


def _transposed(blocks: NDArray[np.float64]) -> Floats:
    import numpy as np

    return np.ascontiguousarray(blocks.transpose(0, 2, 1), np.float32)


def read_vera(reader: Reader) -> None:
    """Read VeRA's vectors, and the two random matrices that all modules share, each cut to the module's size."""
    shared = [reader.left.pop(name, None) for name in _SHARED]
    a, b = shared
    modules = reader.take_parts(r"(?P<module>.+)\.(?P<part>vera_lambda_[bd])")
    if a is None or b is None:
        reader.faults.append("vera_A and vera_B are not among the tensors: train with save_projection: true")
        return
    for module, parts in modules.items():
        lambda_b, lambda_d = parts.get("vera_lambda_b"), parts.get("vera_lambda_d")
        ranks = {a.shape[0], b.shape[1], lambda_d.elements if lambda_d else 0}
        if lambda_b is None or lambda_d is None or len(ranks) != 1 or lambda_b.elements > b.shape[0]:
            reader.faults.append(f"{module}: its vectors do not fit vera_A {list(a.shape)} and vera_B {list(b.shape)}")
            continue
        loads = tuple(reader.load(tensor, module) for tensor in (a, b, lambda_d, lambda_b))
        reader.tensors[f"{module}.weight"] = Rewriting(
            module=module,
            label=reader.label,
            shape=(lambda_b.elements, None),
            loaded=partial(_shared, loads, module),
            rank=a.shape[0],
            widest=a.shape[1],
        )


def _shared(loads: Sequence[Load], module: str) -> Rewrite:
    from adapterhub.algebra.rewrites import Shared

    a, b, lambda_d, lambda_b = (load() for load in loads)
    return Shared(module=module, a=lambda_d[:, None] * a, b=lambda_b[:, None] * b[: len(lambda_b)])


def read_bitfit(reader: Reader) -> None:
    """Read BitFit's differences of biases (engine/methods/bitfit.py)."""
    for match, tensor in reader.take(re.compile(r"(?P<bias>.+\.bias)" + DELTA)):
        loaded = partial(_added, reader.load(tensor, match["bias"]), match["bias"])
        reader.put(match["bias"], (tensor.elements, None), loaded)


def _added(load: Load, module: str) -> Rewrite:
    from adapterhub.algebra.rewrites import Shifted

    return Shifted(module=module, shift=load())


METHOD_READERS: Mapping[str, Callable[[Reader], None]] = MappingProxyType(
    {
        "IA3": read_ia3,
        "LN_TUNING": read_norms,
        "TRAINABLE_TOKENS": read_trainable_tokens,
        "OFT": read_oft,
        "BOFT": read_boft,
        "VERA": read_vera,
        BITFIT_TYPE: read_bitfit,
    }
)
"""By PEFT's word for the method."""
