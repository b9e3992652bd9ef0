"""Every way to use an adapter gives what the adapter gives: method by architecture, against plain PEFT."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest

from adapterhub.catalog.methods import METHODS
from adapterhub.catalog.own_methods import BASELINE
from adapterhub.catalog.tasks import TASKS
from adapterhub.errors import IncompatibleError
from adapterhub.ops.merge import merge, plan_merge
from adapterhub.spec.manifest import MANIFEST_FILE
from tests.equivalence.matrix import BFLOAT16, MANY, REASONS, cell, classify, expected
from tests.equivalence.page import PAGE, text
from tests.equivalence.worlds import ARCHITECTURES, CASES, PATHS, ROWS, World, slug
from tests.factory import edit_json

pytestmark = pytest.mark.engine

# A decoder, and an encoder with a decoder; the others are tried by `make test-all`.
QUICK = ("llama", "t5")


@pytest.mark.parametrize(
    "word", [word if word in QUICK else pytest.param(word, marks=pytest.mark.exhaustive) for word in ARCHITECTURES]
)
def test_every_way_agrees_with_peft_or_is_refused_as_the_table_says(tmp_path: Path, word: str) -> None:
    world = World(tmp_path, word)
    found = {case: cell(world, case) for case in ROWS}
    wrong = {
        case: (code, f"expected {expected()[case][word]}", *notes)
        for case, (code, notes) in found.items()
        if code != expected()[case][word]
    }
    assert not wrong


def test_every_buildable_method_has_a_row_and_every_reason_is_some_cells() -> None:
    wanted = {row.name for row in METHODS.values() if row.buildable and row.group != BASELINE}
    assert {method for method, _ in CASES.values()} == wanted
    cells = [code for row in expected().values() for code in row.values()]
    assert all(code == "-" or len(code) == len(PATHS) for code in cells)
    assert {letter for code in cells for letter in code} == {*REASONS, "=", "-"}
    # What is published is what was made, whatever the method.
    assert all(code[-1] in "=-" for code in cells)


def test_the_page_is_what_the_table_says() -> None:
    """When this fails, and the change is wanted: `python -m tests.equivalence.page`."""
    assert PAGE.read_text("utf-8") == text()


def test_a_disagreement_and_an_unknown_refusal_are_seen() -> None:
    import torch

    active = torch.tensor([1.0, -2.0])
    assert classify(active + 1e-5, active) == "="
    assert classify(active + torch.tensor([0.0, 3e-4]), active) == "!"
    assert classify(active * float("nan"), active) == "!"
    assert classify(IncompatibleError("adapters of BEFT cannot be merged here"), active) == "c"
    assert classify(IncompatibleError("some new reason"), active) == "?"


# Of an error: what another order of float32 sums makes, by a rounding here and there.
ORDER = 1.01


def bfloat16_errors(root: Path, case: str, seed: int) -> dict[str, float]:
    """Return mean errors against PEFT's active adapter in float32 over the same bfloat16 weights, as shares of that of
    PEFT's active adapter in bfloat16; weights: of merged weights that are computed with in float32."""
    import torch

    world = World(root, "llama", dtype="bfloat16", rows=40, seed=seed)
    folders = world.make(case)
    exact = world.output(world.peft(folders, torch.float32))
    found = {
        "active": world.output(world.peft(folders)),
        "peft": world.output(world.peft(folders).merge_and_unload()),
        **{path: world.outcome(path, case) for path in ("loaded", "concatenated", "merged")},
        "weights": world.output(world.plain(root / "merged" / slug(case)).to(torch.float32)),
        "bare": world.output(world.base(torch.float32)),
    }
    errors = {name: float((item - exact).abs().mean()) for name, item in found.items()}
    assert 0 < errors["active"] < 0.2 * errors["bare"]
    return {name: error / errors["active"] for name, error in errors.items()}


@pytest.mark.parametrize("case", ["lora, two", "dora"])
def test_in_bfloat16_what_is_folded_is_no_further_off_than_what_peft_merges(tmp_path: Path, case: str) -> None:
    found = bfloat16_errors(tmp_path, case, 0)
    assert found["loaded"] <= ORDER * found["peft"] and found["merged"] <= ORDER * found["peft"], found
    assert found["concatenated"] <= ORDER, found
    assert 0.2 < found["weights"] < 0.5, found


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", ["lora, two", "dora"])
def test_in_bfloat16_over_many_bases_and_adapters(tmp_path: Path, case: str) -> None:
    """What the page says of bfloat16; against the active adapter, a fold costs less than its weights' one rounding."""
    found = [bfloat16_errors(tmp_path / str(seed), case, seed) for seed in range(MANY)]
    assert all(max(row["loaded"], row["merged"]) <= ORDER * row["peft"] for row in found)
    assert all(row["concatenated"] <= ORDER for row in found)
    means = {name: fmean(row[name] for row in found) for name in found[0]}
    errors = {name: stdev(row[name] for row in found) / MANY**0.5 for name in found[0]}
    for name, (mean, error) in BFLOAT16[case].items():
        assert abs(means[name] - mean) <= 4 * error and abs(errors[name] - error) <= error, (name, means, errors)
    assert means["merged"] <= (1 + means["weights"] ** 2) ** 0.5


@pytest.mark.parametrize(
    ("word", "case"), [("t5", "lora"), ("bert", "hra"), pytest.param("bert", "lora", marks=pytest.mark.exhaustive)]
)
def test_a_merge_of_any_task_is_verified(tmp_path: Path, word: str, case: str) -> None:
    world = World(tmp_path, word, dtype="bfloat16")
    (folder,) = world.make(case)
    options: dict[str, Any] = {"stack": str(folder), "verify": True, "settings": world.settings, "cwd": tmp_path}
    found = merge(plan_merge(tmp_path / "out", **options)).agreement
    assert found is not None and found.ok and found.tokens > 100
    assert found.outputs == {"t5": "logits", "bert": "last hidden states"}[word]
    assert found.effect > 10 * found.rounding > 30 * found.difference
    card = (tmp_path / "out" / "README.md").read_text()
    assert TASKS[world.task].auto_class in card and f"{found.outputs} differ from the stack's" in card


def test_a_head_stays_beside_its_base(tmp_path: Path) -> None:
    world = World(tmp_path, "t5")
    (folder,) = world.make("lora")
    edit_json(folder / MANIFEST_FILE, task="SEQ_CLS")
    with pytest.raises(IncompatibleError, match="cannot be loaded") as caught:
        plan_merge(tmp_path / "out", stack=str(folder), settings=world.settings, cwd=tmp_path)
    assert "was trained for SEQ_CLS" in caught.value.details[0]
