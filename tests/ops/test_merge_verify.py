"""`adapt merge --verify`: what agrees is kept and told, what does not is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adapterhub.algebra.rows import Workspace
from adapterhub.cli.main import main
from adapterhub.engine.agreement import BOUND_EXACT, BOUND_ROUNDED
from adapterhub.errors import UnsatisfiedError
from adapterhub.ops.base import add_base
from adapterhub.ops.merge import merge, plan_merge
from adapterhub.settings import Settings
from tests.algebra.test_read_alone import METHODS, trained
from tests.factory import tiny_gpt2, tiny_llama, tiny_lora

pytestmark = pytest.mark.engine


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("ADAPTERHUB_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return Settings(home=tmp_path / "home")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_stack_agrees_in_every_dtype(tmp_path: Path, settings: Settings, dtype: str) -> None:
    base = tiny_llama(tmp_path / "base", hidden=64)
    add_base("tiny-llama", str(base), settings=settings)
    tiny_lora(tmp_path / "a", base, target_modules=("q_proj", "down_proj"), lora_alpha=32, name="a")
    tiny_lora(tmp_path / "b", base, seed=1, lora_alpha=32, name="b")
    result = merge(plan_merge(tmp_path / "out", stack="./a,./b=-0.5", dtype=dtype, verify=True, settings=settings))
    found = result.agreement
    assert found is not None and found.ok and found.tokens > 100
    assert found.bound == (BOUND_EXACT if dtype == "float32" else BOUND_ROUNDED)
    assert found.effect > 100 * max(found.difference, 1e-6)  # the stack does something, and it is that
    if dtype != "float32":
        assert found.difference < found.rounding / 3  # rounding is measured beside the difference, not in it
    assert f"differ from the stack's by {found.difference:.1e}" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("method", ["ia3", "oft", "tokens", "lora-tokens", "adalora"])
def test_other_methods_agree(tmp_path: Path, settings: Settings, method: str) -> None:
    base = tiny_llama(tmp_path / "base", dtype="bfloat16", shards=2)
    add_base("tiny-llama", str(base), settings=settings)
    adapter = trained(base, METHODS[method][0]("llama"), tmp_path / "a", base_id="tiny-llama")
    result = merge(plan_merge(tmp_path / "out", stack=str(adapter), verify=True, settings=settings))
    assert result.agreement is not None and result.agreement.difference < 1e-3 < result.agreement.effect


def test_trained_biases_agree(tmp_path: Path, settings: Settings) -> None:
    base = tiny_gpt2(tmp_path / "base")
    add_base("tiny-gpt2", str(base), settings=settings)
    adapter = trained(base, METHODS["lora-bias-all"][0]("gpt2"), tmp_path / "a", base_id="tiny-gpt2")
    result = merge(plan_merge(tmp_path / "out", stack=str(adapter), verify=True, settings=settings))
    assert result.agreement is not None and result.agreement.ok


def test_what_does_not_agree_is_not_kept(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tiny_llama(tmp_path / "base")
    add_base("tiny-llama", str(base), settings=settings)
    tiny_lora(tmp_path / "a", base, lora_alpha=32, name="a")
    plain = Workspace.changed

    def wrong(self: Workspace, values: Any, low: Any, rows: slice, *, transposed: bool) -> Any:
        new, delta = plain(self, values, low, rows, transposed=transposed)
        new += delta / 20  # five hundredths too much
        return new, delta

    monkeypatch.setattr(Workspace, "changed", wrong)
    with pytest.raises(UnsatisfiedError, match="are not the stack"):
        merge(plan_merge(tmp_path / "out", stack="./a", verify=True, settings=settings))
    assert main(["merge", "--stack", "./a", "--out", "out", "--verify"]) == 1
    assert "the merged weights are not the stack" in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ADAPTERHUB_HOME", str(tmp_path / "home"))
    assert main(["merge", "--stack", "./a", "--out", "out", "--verify", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["agreement"]["ok"] is True
