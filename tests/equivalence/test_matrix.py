"""Every way to use an adapter gives what the adapter gives: method by architecture, against plain PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adapterhub.catalog.methods import METHODS
from adapterhub.catalog.own_methods import BASELINE
from adapterhub.errors import IncompatibleError, UsageError
from adapterhub.ops.merge import plan_merge
from adapterhub.spec.manifest import MANIFEST_FILE
from tests.equivalence.matrix import REASONS, cell, classify, expected
from tests.equivalence.page import PAGE, text
from tests.equivalence.worlds import ARCHITECTURES, CASES, PATHS, World
from tests.factory import edit_json

pytestmark = pytest.mark.engine

# A decoder, and an encoder with a decoder; the others are tried by `make test-all`.
QUICK = ("llama", "t5")


@pytest.mark.parametrize(
    "word", [word if word in QUICK else pytest.param(word, marks=pytest.mark.exhaustive) for word in ARCHITECTURES]
)
def test_every_way_agrees_with_peft_or_is_refused_as_the_table_says(tmp_path: Path, word: str) -> None:
    world = World(tmp_path, word)
    found = {case: cell(world, case) for case in CASES}
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


# bfloat16: both errors come from rounded activations more than from rounded weights, so that they lie within a few
# percent of each other, now one below and now the other.
NOISE = 1.05


@pytest.mark.parametrize("case", ["lora, two", "dora"])
def test_in_bfloat16_the_error_is_no_larger_than_peft_s_own(tmp_path: Path, case: str) -> None:
    import torch

    world = World(tmp_path, "llama", dtype="bfloat16", rows=40)
    folders = world.make(case)
    exact = world.output(world.peft(folders, torch.float32))
    bare = world.output(world.base(torch.float32))

    def error(found: Any) -> float:
        return float((found - exact).abs().mean())

    active = error(world.output(world.peft(folders)))
    ways = {path: error(world.outcome(path, case)) for path in ("loaded", "concatenated", "merged")}
    assert 0 < active < 0.2 * error(bare)
    assert all(found <= NOISE * active for found in ways.values()), (ways, active)


def test_a_merge_is_verified_on_text_alone_and_a_head_stays_beside_its_base(tmp_path: Path) -> None:
    world = World(tmp_path, "t5")
    (folder,) = world.make("lora")
    options: dict[str, Any] = {"stack": str(folder), "settings": world.settings, "cwd": tmp_path}
    with pytest.raises(UsageError, match="SEQ_2_SEQ_LM"):
        plan_merge(tmp_path / "out", verify=True, **options)
    edit_json(folder / MANIFEST_FILE, task="SEQ_CLS")
    with pytest.raises(IncompatibleError, match="cannot be loaded") as caught:
        plan_merge(tmp_path / "out", **options)
    assert "was trained for SEQ_CLS" in caught.value.details[0]
