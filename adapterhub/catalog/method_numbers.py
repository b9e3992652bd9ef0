"""How many numbers a method trains in one linear module, as the layers of peft 0.21.2 make them (tuners/*/layer.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from adapterhub.spec._decode import Frozen


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """One module's part. trained: parameters; the rest as of ops' Target, where it is roughly so and not exactly."""

    trained: int
    kept: int = 0
    reads: bool = True
    fixed: int = 0
    products: float = 0.0


Count = Callable[[Mapping[str, Frozen], int, int, int], Numbers]


def _adalora(given: Mapping[str, Frozen], inputs: int, outputs: int, rank: int) -> Numbers:
    del given
    return Numbers(trained=rank * (inputs + outputs + 1), kept=rank, products=rank * (inputs + outputs))


def _loha(given: Mapping[str, Frozen], inputs: int, outputs: int, rank: int) -> Numbers:
    del given
    # The change is made as a matrix, and multiplied as one.
    size = inputs * outputs
    return Numbers(trained=2 * rank * (inputs + outputs), fixed=size, products=size)


def _lokr(given: Mapping[str, Frozen], inputs: int, outputs: int, rank: int) -> Numbers:
    factor = _whole(given, "decompose_factor")
    left, right = factors(outputs, factor), factors(inputs, factor)
    first, second = left[0] * right[0], left[1] * right[1]
    if given["decompose_both"] and rank < max(left[0], right[0]) / 2:
        first = rank * (left[0] + right[0])
    if rank < max(left[1], right[1]) / 2:
        second = rank * (left[1] + right[1])
    size = inputs * outputs
    return Numbers(trained=first + second, fixed=size, products=size)


def _vera(given: Mapping[str, Frozen], inputs: int, outputs: int, rank: int) -> Numbers:
    del given
    # The shared matrices are frozen: no input is kept for them, and no gradient of theirs is computed.
    return Numbers(trained=rank + outputs, kept=rank + outputs, reads=False, products=rank * (inputs + outputs) * 2 / 3)


def _oft(given: Mapping[str, Frozen], inputs: int, outputs: int, rank: int) -> Numbers:
    del outputs
    block = _whole(given, "oft_block_size")
    if rank == 0:
        block = _divisor(inputs, block)
        count = inputs // block
    else:
        count = _divisor(inputs, rank)
        block = inputs // count
    blocks = 1 if given["block_share"] else count
    return Numbers(trained=blocks * block * (block - 1) // 2, fixed=6 * blocks * block * block, products=inputs * block)


def _boft(given: Mapping[str, Frozen], inputs: int, outputs: int, rank: int) -> Numbers:
    del rank
    block = _whole(given, "boft_block_size") or inputs // max(1, _whole(given, "boft_block_num"))
    # The rotated matrix is made anew in every pass, and takes the place of the base's.
    return Numbers(
        trained=inputs // block * block * block + outputs,
        fixed=2 * inputs * outputs + 2 * inputs * inputs,
        products=inputs * outputs / 3,
    )


COUNTS: Mapping[str, Count] = MappingProxyType(
    {"adalora": _adalora, "loha": _loha, "lokr": _lokr, "vera": _vera, "oft": _oft, "boft": _boft}
)
# What each calls its rank.
RANKS: Mapping[str, str] = MappingProxyType({"adalora": "init_r"})


def factors(dimension: int, factor: int) -> tuple[int, int]:
    """Return two factors, the smaller one first, as LyCORIS chooses them: near `factor`, or each other for -1."""
    if factor > 0 and dimension % factor == 0:
        # As PEFT has it, the given one stands first even where it is the larger one.
        return factor, dimension // factor
    limit = dimension if factor == -1 else factor
    small, large = 1, dimension
    while small < large:
        new = small + 1
        while dimension % new:
            new += 1
        if new + dimension // new > small + large or new > limit:
            break
        small, large = new, dimension // new
    return min(small, large), max(small, large)


def _divisor(size: int, wanted: int) -> int:
    """Return the divisor nearest to a number, of two the smaller one."""
    if wanted >= size:
        return size
    above = next(number for number in range(wanted, size + 1) if size % number == 0)
    below = next(number for number in range(wanted, 0, -1) if size % number == 0)
    return below if wanted - below <= above - wanted else above


def _whole(given: Mapping[str, Frozen], name: str) -> int:
    value = given[name]
    assert isinstance(value, int)
    return value
