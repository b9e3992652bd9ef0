"""Every combination against dense arithmetic in float64, and the properties that the algebra promises."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterhub.algebra import elementwise
from adapterhub.algebra.combine import FUNCTIONS, CombinedModule, Job, combine
from adapterhub.algebra.delta import StackDelta, read_factors
from adapterhub.algebra.elementwise import Member, MergedRows, random_source
from adapterhub.algebra.normal_form import write_normal_form
from adapterhub.catalog.combinations import COMBINATIONS, Rule, rule_of
from adapterhub.errors import IncompatibleError, UsageError
from adapterhub.package import open_package
from adapterhub.spec.stack import Parameters
from tests.algebra import dense
from tests.factory import edit_tensors, tiny_llama, tiny_lora

DENSITY, SCALE, SEED = 0.3, 1.7, 5
TOLERANCE = 1e-6
NAMES = tuple(COMBINATIONS)
# Of the largest matrix of the tiny model: no rank limit at all.
FULL = 64


def rule(name: str, **given: Any) -> Rule:
    """A rule with the parameters that this combination takes, of those given."""
    row = COMBINATIONS[name]
    taken = {"density": row.density is not None, "seed": row.needs_seed, "scale": row.takes_lambda}
    return rule_of(name, Parameters(**{key: value for key, value in given.items() if taken.get(key, True)}))


def reference(name: str, deltas: Sequence[dense.Doubles], weights: Sequence[float], module: str) -> dense.Doubles:
    """The same in dense float64, without a limit of the rank."""
    weighted = [weight * delta for weight, delta in zip(weights, deltas, strict=True)]
    drop = dense.dare(weighted, DENSITY, SEED, module)
    made: dict[str, Callable[[], dense.Doubles]] = {
        "sum": lambda: dense.summed(weighted),
        "cat": lambda: dense.summed(weighted),
        "linear": lambda: dense.summed(weighted) / np.abs(weights).sum(),
        "svd": lambda: dense.summed(weighted),
        "ties": lambda: dense.ties(weighted, DENSITY, SCALE),
        "dare_linear": lambda: dense.summed(drop),
        "dare_ties": lambda: dense.agreeing_mean(drop, SCALE),
        "magnitude_prune": lambda: dense.summed([dense.top(delta, DENSITY) for delta in weighted]),
        "knots": lambda: dense.knots(weighted, DENSITY, SCALE),
    }
    return made[name]()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base") / "base", layers=1)


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three adapters of the same two modules that differ in rank and scaling."""
    folder = tmp_path_factory.mktemp("adapters")
    how: list[dict[str, Any]] = [{"r": 4}, {"r": 3, "use_rslora": True}, {"r": 5, "lora_alpha": 3}]
    return [
        tiny_lora(folder / str(i), base, seed=i, target_modules=("q_proj", "down_proj"), manifest=False, **one)
        for i, one in enumerate(how)
    ]


WEIGHTS = (1.0, -0.6, 0.4)


def combined(folders: Sequence[Path], weights: Sequence[float], by: Rule | None) -> StackDelta:
    return combine([(open_package(path), weight) for path, weight in zip(folders, weights, strict=True)], by)


def assert_close(ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any], tolerance: float = TOLERANCE) -> None:
    assert np.linalg.norm(ours - theirs) <= tolerance * max(float(np.linalg.norm(theirs)), 1e-12)


def test_every_available_combination_has_a_function_and_no_other() -> None:
    assert set(FUNCTIONS) == {name for name, row in COMBINATIONS.items() if row.available}


@pytest.mark.parametrize("name", NAMES)
def test_without_a_limit_of_the_rank_it_is_the_dense_computation(name: str, adapters: list[Path]) -> None:
    total = combined(adapters, WEIGHTS, rule(name, rank=FULL, density=DENSITY, scale=SCALE, seed=SEED))
    deltas = [dense.deltas_of(folder) for folder in adapters]
    assert set(total.modules) == set(deltas[0]) and len(total.modules) == 2
    for module, change in total.modules.items():
        low = change.load()
        assert_close(low.dense(), reference(name, [delta[module] for delta in deltas], WEIGHTS, module))
        assert low.a.shape[0] == low.b.shape[1] == change.rank <= min(change.shape)
        assert low.truncation is not None and low.truncation.error < 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_a_limit_of_the_rank_gives_the_nearest_matrix_of_that_rank(name: str, adapters: list[Path]) -> None:
    total = combined(adapters, WEIGHTS, rule(name, rank=3, density=DENSITY, scale=SCALE, seed=SEED))
    deltas = [dense.deltas_of(folder) for folder in adapters]
    for module, change in total.modules.items():
        whole = reference(name, [delta[module] for delta in deltas], WEIGHTS, module)
        low = change.load()
        assert change.rank == low.a.shape[0] == 3
        values = np.linalg.svd(whole, compute_uv=False)
        lost = np.linalg.norm(values[3:]) / np.linalg.norm(values)
        # Where singular values lie close together many matrices are as near as the nearest.
        assert np.linalg.norm(low.dense() - whole) / np.linalg.norm(whole) == pytest.approx(lost, rel=1e-6)
        assert_close(low.dense(), dense.nearest(whole, 3), 1e-3)
        assert low.truncation is not None
        assert low.truncation.error == pytest.approx(lost, rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_the_rank_that_nobody_named(name: str, adapters: list[Path]) -> None:
    total = combined(adapters, WEIGHTS, rule(name))
    wanted = 4 + 3 + 5 if name in ("sum", "cat", "linear", "knots") else 5
    assert {module.rank for module in total.modules.values()} == {wanted}
    assert all(len(module.load().a) == wanted for module in total.modules.values())


@pytest.mark.parametrize("name", ["sum", "cat", "linear"])
def test_an_exact_one_stays_factors_side_by_side(name: str, adapters: list[Path]) -> None:
    total = combined(adapters, WEIGHTS, rule(name))
    assert not any(isinstance(module, CombinedModule) for module in total.modules.values())
    assert all(module.load().truncation is None for module in total.modules.values())


@pytest.mark.parametrize("name", NAMES)
def test_one_adapter_of_weight_one_returns_itself(name: str, adapters: list[Path]) -> None:
    total = combined(adapters[:1], (1.0,), rule(name, density=1.0, scale=1.0))
    for module, delta in dense.deltas_of(adapters[0]).items():
        assert total.modules[module].rank == 4
        assert_close(total.modules[module].load().dense(), delta)


@pytest.mark.parametrize("name", NAMES)
def test_weight_zero_drops_an_adapter(name: str, adapters: list[Path]) -> None:
    how: dict[str, Any] = {"rank": FULL, "density": DENSITY, "scale": SCALE, "seed": SEED}
    dropped = combined([adapters[0], adapters[1], adapters[2]], (1.0, -0.6, 0.0), rule(name, **how))
    without = combined(adapters[:2], (1.0, -0.6), rule(name, **how))
    for module, change in without.modules.items():
        assert_close(dropped.modules[module].load().dense(), change.load().dense())
    nothing = combined(adapters[:2], (0.0, 0.0), rule("ties"))
    assert all(not module.load().dense().any() for module in nothing.modules.values())


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties"])
def test_what_is_drawn_depends_on_seed_module_and_place_alone(name: str, adapters: list[Path], base: Path) -> None:
    def changes(seed: int, weights: Sequence[float] = WEIGHTS) -> dict[str, Any]:
        total = combined(adapters, weights, rule(name, seed=seed, density=0.5, rank=FULL))
        return {module: change.load().dense() for module, change in reversed(total.modules.items())}

    first, again, other = changes(1), changes(1), changes(2)
    for module, value in first.items():
        assert value.tobytes() == again[module].tobytes()
        assert np.linalg.norm(value - other[module]) > 0.1 * np.linalg.norm(value)
    # The same numbers for the same place, whatever the others are.
    single, pair = changes(1, (0.0, 1.0, 0.0)), changes(1, (0.0, 1.0, 0.0))
    assert all(single[module].tobytes() == pair[module].tobytes() for module in single)
    draws = {random_source(seed, module, index).random_raw() for seed in (0, 1) for module in "xy" for index in (0, 1)}
    assert len(draws) == 8


def test_dare_keeps_the_expected_change() -> None:
    """The mean over many seeds is the change itself: dropped entries are made up for."""
    rng = np.random.default_rng(0)
    member = Member(index=0, a=rng.normal(size=(2, 12)).astype("f4"), b=rng.normal(size=(8, 2)).astype("f4"))
    total = np.zeros(member.shape)
    for seed in range(400):
        made = FUNCTIONS["dare_linear"](Job(module="m", members=[member], rule=rule("dare_linear", seed=seed)))
        assert isinstance(made, MergedRows)
        total += np.concatenate([values for _, values in made()]) / 400
    whole = member.b @ member.a
    assert np.abs(total - whole).max() < 5 * np.abs(whole).max() / np.sqrt(400)


def test_pruned_to_the_share_that_was_asked_for(adapters: list[Path]) -> None:
    package = open_package(adapters[0])
    total = combine([(package, 1.0)], rule("magnitude_prune", density=0.25, rank=FULL))
    for module, change in total.modules.items():
        low = change.load().dense()
        kept = np.abs(low) > 1e-6
        assert kept.sum() == int(0.25 * low.size)
        whole = np.abs(dense.deltas_of(adapters[0])[module])
        assert whole[kept].min() >= whole[~kept].max()


def test_normalising_divides_by_the_magnitudes(adapters: list[Path]) -> None:
    deltas = [dense.deltas_of(folder) for folder in adapters]
    for by in (rule("linear"), rule("sum", normalize=True)):
        total = combined(adapters, (2.0, -1.0, 1.0), by)
        for module, change in total.modules.items():
            expected = (2 * deltas[0][module] - deltas[1][module] + deltas[2][module]) / 4
            assert_close(change.load().dense(), expected)
    for by in (rule("linear"), rule("ties", normalize=True)):
        with pytest.raises(UsageError, match="all zero"):
            combined(adapters[:2], (0.0, 0.0), by)


def test_dora_is_itself_and_nothing_else(base: Path, tmp_path: Path, adapters: list[Path]) -> None:
    folder = tiny_lora(tmp_path / "dora", base, use_dora=True, manifest=False)
    assert combined([folder], (1.0,), None).dora
    assert combined([folder], (0.5,), rule("linear")).dora  # of one adapter, a mean is the adapter
    for by in (rule("ties"), rule("sum", rank=2), rule("svd")):
        with pytest.raises(IncompatibleError, match="DoRA rescales"):
            combined([folder], (1.0,), by)
    with pytest.raises(IncompatibleError):
        combined([folder, adapters[0]], (1.0, 1.0), rule("ties"))


def test_adapters_of_different_modules(base: Path, tmp_path: Path, adapters: list[Path]) -> None:
    """A module that one member alone changes is combined of that one, and drawn by its place in the stack."""
    other = tiny_lora(tmp_path / "v", base, r=2, target_modules=("v_proj",), seed=9, manifest=False)
    folders = [adapters[0], other, adapters[1]]
    total = combined(folders, (1.0, 2.0, 1.0), rule("dare_linear", rank=FULL, density=DENSITY, seed=SEED))
    (name,) = (name for name in total.modules if name.endswith("v_proj"))
    delta = 2 * dense.deltas_of(other)[name]
    expected = dense.dare([np.zeros_like(delta), delta], DENSITY, SEED, name)[1]
    assert_close(total.modules[name].load().dense(), expected)
    assert combined(folders, (1.0, 2.0, 1.0), rule("ties")).modules[name].rank == 2


def test_embeddings_are_combined_as_they_are_stored(base: Path, tmp_path: Path) -> None:
    """(tokens, length): PEFT's lora_embedding_A is (r, tokens), its B (length, r)."""
    rng, at = np.random.default_rng(3), "base_model.model.model.embed_tokens.lora_embedding_"
    folders, deltas = [], []
    for index in range(2):
        pair = {f"{at}A": rng.normal(size=(2, 264)), f"{at}B": rng.normal(size=(32, 2))}
        folder = tiny_lora(tmp_path / str(index), base, r=2, target_modules=("q_proj",), manifest=False)
        edit_tensors(folder / "adapter_model.safetensors", lambda tensors, pair=pair: tensors | pair)
        folders.append(folder)
        deltas.append(4 * (pair[f"{at}B"] @ pair[f"{at}A"]).T)
    for name in ("ties", "knots"):
        total = combined(folders, (1.0, 1.0), rule(name, density=DENSITY, scale=SCALE, rank=FULL))
        low = total.modules["model.embed_tokens"]
        assert low.embedding and low.shape == (264, 32)
        made = dense.ties(deltas, DENSITY, SCALE) if name == "ties" else dense.knots(deltas, DENSITY, SCALE)
        assert_close(low.load().dense(), made, 1e-5)
        written = tmp_path / name
        written.mkdir()
        write_normal_form(total, written, base_model="tiny-llama")
        again = read_factors(open_package(written)).modules["model.embed_tokens"].load()
        assert again.dense().tobytes() == low.load().dense().tobytes()


def test_a_large_module_takes_no_more_memory_than_a_few_row_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    members = [
        Member(index=i, a=rng.normal(size=(2, 1000)).astype("f4"), b=rng.normal(size=(1500, 2)).astype("f4"))
        for i in range(2)
    ]
    monkeypatch.setattr(elementwise, "KEPT_BYTES", 0)
    monkeypatch.setattr(elementwise, "CHUNK_ELEMENTS", 1 << 14)

    def peak(name: str) -> tuple[int, Any]:
        from adapterhub.algebra.compress import truncate_rows

        made = FUNCTIONS[name](Job(module="m", members=members, rule=rule(name, density=0.5)))
        assert isinstance(made, MergedRows)
        tracemalloc.start()
        found = truncate_rows(made, 4)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size, found.b @ found.a

    for name in ("ties", "dare_ties"):
        size, low = peak(name)
        assert size < 1500 * 1000 * 4 / 2  # half of one dense matrix
        with monkeypatch.context() as context:
            context.setattr(elementwise, "KEPT_BYTES", 1 << 30)
            _, kept = peak(name)
        assert_close(low, kept, 1e-6)


FACTORS = st.integers(0, 2**32 - 1)


def members_of(seed: int, shape: tuple[int, int], ranks: Sequence[int], same_sign: bool = False) -> list[Member]:
    rng = np.random.default_rng(seed)
    out, width = shape
    made = []
    for index, rank in enumerate(ranks):
        a, b = rng.normal(size=(rank, width)), rng.normal(size=(out, rank))
        if same_sign:
            a, b = np.abs(a), np.abs(b)
        made.append(Member(index=index, a=a.astype("f4"), b=b.astype("f4")))
    return made


def whole(name: str, members: Sequence[Member], **given: Any) -> Any:
    made = FUNCTIONS[name](Job(module="m", members=members, rule=rule(name, **given)))
    if isinstance(made, tuple):
        return made[1].astype("f8") @ made[0].astype("f8")
    return np.concatenate([values for _, values in made()])


SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 12))
RANKS = st.lists(st.integers(1, 5), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(seed=FACTORS, shape=SHAPES, ranks=RANKS, data=st.data())
@pytest.mark.parametrize("name", ["sum", "linear", "svd", "ties", "magnitude_prune", "knots"])
def test_the_order_of_what_draws_nothing_does_not_matter(
    name: str, seed: int, shape: tuple[int, int], ranks: list[int], data: st.DataObject
) -> None:
    members = members_of(seed, shape, ranks)
    shuffled = data.draw(st.permutations(members))
    assert_close(whole(name, shuffled, density=0.5), whole(name, members, density=0.5), 1e-4)


@settings(max_examples=60, deadline=None)
@given(seed=FACTORS, shape=SHAPES, ranks=RANKS)
def test_at_density_one_what_only_leaves_out_is_the_sum(seed: int, shape: tuple[int, int], ranks: list[int]) -> None:
    members = members_of(seed, shape, ranks)
    for name in ("dare_linear", "magnitude_prune"):
        assert_close(whole(name, members, density=1.0), whole("sum", members), 1e-5)
    # TIES takes a mean: it is the sum divided by their number where all agree, and λ can undo that.
    agreeing = members_of(seed, shape, ranks, same_sign=True)
    for name in ("ties", "dare_ties"):
        assert_close(whole(name, agreeing, density=1.0, scale=float(len(ranks))), whole("sum", agreeing), 1e-5)


@settings(max_examples=60, deadline=None)
@given(seed=FACTORS, shape=SHAPES, ranks=RANKS, factor=st.floats(0.1, 10))
def test_ties_scales_with_its_members_and_with_lambda(
    seed: int, shape: tuple[int, int], ranks: list[int], factor: float
) -> None:
    members = members_of(seed, shape, ranks)
    larger = [Member(index=m.index, a=m.a, b=m.b * np.float32(2)) for m in members]  # a power of two rounds nothing
    base = whole("ties", members, density=0.4)
    assert_close(whole("ties", larger, density=0.4), 2 * base, 1e-6)
    assert_close(whole("ties", members, density=0.4, scale=factor), factor * base, 1e-5)


@pytest.mark.parametrize("name", ["ties", "dare_linear", "dare_ties", "magnitude_prune", "knots"])
@pytest.mark.filterwarnings("error")
def test_what_is_too_large_for_float32_is_refused(name: str, base: Path, tmp_path: Path) -> None:
    folder = tiny_lora(tmp_path / "a", base, manifest=False)
    edit_tensors(folder / "adapter_model.safetensors", lambda t: {key: value * 1e25 for key, value in t.items()})
    total = combined([folder, folder], (1.0, 1.0), rule(name, rank=2))
    with pytest.raises(IncompatibleError, match="not finite"):
        next(iter(total.modules.values())).load()


def test_what_cancels_exactly_leaves_nothing() -> None:
    (member,) = members_of(0, (6, 7), [2])
    opposite = Member(index=1, a=member.a, b=-member.b)
    for name in ("sum", "ties", "magnitude_prune", "knots"):
        assert np.abs(whole(name, [member, opposite], density=0.5)).max() < 1e-6
