"""`adapt merge` and `adapt run` by a combination that is not the exact sum: one change, wherever it goes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapterhub.cli.main import main
from adapterhub.ops.load import plan_load
from adapterhub.ops.merge import merge, plan_merge
from adapterhub.ops.validate import validate
from adapterhub.package import open_package
from adapterhub.settings import Settings
from adapterhub.spec.stack import Parameters
from tests.algebra import dense
from tests.factory import read_tensors, tiny_gpt2, tiny_llama, tiny_lora
from tests.ops.test_merge import add_base

TARGETS = ("q_proj", "down_proj")
RULES: list[tuple[str, Parameters]] = [
    ("linear", Parameters()),
    ("svd", Parameters(rank=3)),
    ("ties", Parameters(density=0.5, rank=8)),
    ("dare_linear", Parameters(density=0.5, seed=7)),
    ("dare_ties", Parameters(density=0.7, seed=7, scale=0.8)),
    ("magnitude_prune", Parameters(density=0.3, normalize=True)),
    ("knots", Parameters(density=0.5)),
]


@pytest.fixture
def project(tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a base, two adapters `./a` and `./b`, and no adapters.yaml."""
    base = tiny_llama(tmp_path / "base")
    add_base(base, settings)
    tiny_lora(tmp_path / "a", base, r=4, lora_alpha=32, target_modules=TARGETS, name="a")
    tiny_lora(tmp_path / "b", base, r=6, lora_alpha=32, target_modules=TARGETS, seed=1, name="b")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def as_adapter(project: Path, out: str, settings: Settings, **how: Any) -> dict[str, Any]:
    merge(plan_merge(project / out, as_adapter=True, settings=settings, **how))
    return dense.deltas_of(project / out)


@pytest.mark.parametrize(("name", "parameters"), RULES, ids=[name for name, _ in RULES])
def test_a_checkpoint_is_the_base_and_the_merged_adapter(
    project: Path, settings: Settings, name: str, parameters: Parameters
) -> None:
    how: dict[str, Any] = {"stack": "./a,./b=-0.5", "combination": name, "parameters": parameters}
    deltas = as_adapter(project, "one", settings, **how)
    result = merge(plan_merge(project / "whole", settings=settings, **how))
    merge(plan_merge(project / "second", stack="./one", settings=settings))
    base, whole, second = (read_tensors(project / folder) for folder in ("base", "whole", "second"))
    assert len(deltas) == 4
    for module, delta in deltas.items():
        changed = whole[f"{module}.weight"]
        assert changed.tobytes() == second[f"{module}.weight"].tobytes()
        np.testing.assert_allclose(changed, base[f"{module}.weight"] + delta, rtol=0, atol=1e-6)
        assert np.abs(delta).max() > 1e-3
    if name == "linear":
        assert result.truncation is None
    else:
        assert result.truncation is not None and result.report is not None
        errors = [module.truncation.error for module in result.report.modules if module.truncation]
        assert min(errors) <= result.truncation.error <= max(errors)
        assert (result.truncation.error > 0.05) == (name != "knots")


def test_weights_that_are_stored_the_other_way_round(tmp_path: Path, settings: Settings) -> None:
    """GPT-2's Conv1D holds (in, out): the combined change is added transposed."""
    base = tiny_gpt2(tmp_path / "base")
    add_base(base, settings, "tiny-gpt2")
    how: dict[str, Any] = {"target_modules": ("c_attn",), "prefix": "transformer.", "base_id": "tiny-gpt2"}
    folders = [tiny_lora(tmp_path / word, base, seed=seed, name=word, **how) for seed, word in enumerate("ab")]
    parameters = Parameters(density=0.5)
    stack = f"{folders[0]},{folders[1]}"
    deltas = as_adapter(tmp_path, "one", settings, stack=stack, combination="ties", parameters=parameters)
    merge(plan_merge(tmp_path / "out", stack=stack, combination="ties", parameters=parameters, settings=settings))
    before, after = read_tensors(base), read_tensors(tmp_path / "out")
    assert deltas
    for module, delta in deltas.items():
        name = f"{module.removeprefix('transformer.')}.weight"
        np.testing.assert_allclose(after[name] - before[name], delta.T, rtol=0, atol=1e-6)
        assert np.abs(delta).max() > 1e-3


def test_a_merged_adapter_records_how_it_was_made(project: Path, settings: Settings) -> None:
    parameters = Parameters(density=0.5, rank=5, seed=11)
    how: dict[str, Any] = {"stack": "./a,./b=0.5", "combination": "dare_ties", "parameters": parameters}
    first = as_adapter(project, "one", settings, **how)
    package = open_package(project / "one")
    merged: Any = package.manifest.extra["merged"]
    assert merged["combination"] == "dare_ties"
    assert dict(merged["parameters"]) == {"density": 0.5, "lambda": 1.0, "seed": 11, "rank": 5}
    members = [(member["name"], member["weight"], member["manifest"]) for member in merged["members"]]
    digests = [str(open_package(project / word).manifest.digest) for word in "ab"]
    assert members == [("a", 1.0, digests[0]), ("b", 0.5, digests[1])]
    assert package.config["r"] == package.config["lora_alpha"] == 5
    assert validate(str(project / "one"), settings=settings).ok
    card = (project / "one" / "README.md").read_text()
    assert "dare_ties (density 0.5, lambda 1, seed 11, rank 5)" in card and "leaves out" in card
    # The same again, byte by byte; and another with another seed.
    merge(plan_merge(project / "two", as_adapter=True, settings=settings, **how))
    weights = "adapter_model.safetensors"
    assert (project / "one" / weights).read_bytes() == (project / "two" / weights).read_bytes()
    other = as_adapter(project, "three", settings, **how | {"parameters": Parameters(density=0.5, rank=5, seed=12)})
    assert all(np.linalg.norm(other[name] - first[name]) > 0.1 * np.linalg.norm(first[name]) for name in first)


def test_a_named_stack_is_combined_as_it_says(project: Path, settings: Settings) -> None:
    layers = "[{adapter: ./a}, {adapter: ./b, weight: 0.5}]"
    (project / "adapters.yaml").write_text(
        'project_version: "1.0"\nbase_model: tiny-llama\nstacks:\n'
        f"  careful: {{layers: {layers}, combination: ties, density: 0.4, rank: 6}}\n"
    )
    plan = plan_load("careful", settings=settings)
    assert str(plan.rule) == "ties (density 0.4, lambda 1, rank 6)"
    data = plan_merge(project / "x", stack="careful", settings=settings).to_data()
    assert data["parameters"] == {"density": 0.4, "lambda": 1.0, "rank": 6}
    # What is said on the spot goes before; another combination has none of its parameters.
    more = plan_load("careful", parameters=Parameters(rank=2, scale=3.0), settings=settings)
    assert str(more.rule) == "ties (density 0.4, lambda 3, rank 2)"
    assert str(plan_load("careful", combination="svd", settings=settings).rule) == "svd"
    assert str(plan_load("careful", combination="ties", settings=settings).rule) == str(plan.rule)
    named = as_adapter(project, "named", settings, stack="careful")
    parameters = Parameters(density=0.4, rank=6)
    said = as_adapter(project, "said", settings, stack="./a,./b=0.5", combination="ties", parameters=parameters)
    assert all(np.array_equal(named[module], said[module]) for module in said)


def test_the_command_line(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begin = ["merge", "--as-adapter", "--stack", "./a,./b=-2"]
    made = ["--combination", "ties", "--density", "0.5", "--rank", "16", "--lambda", "2", "--normalize", "--json"]
    assert main([*begin, "--out", "one", *made]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["combination"] == "ties" and 0 < result["truncation_error"] < 0.5
    assert result["parameters"] == {"density": 0.5, "lambda": 2.0, "rank": 16, "normalize": True}
    a, b = dense.deltas_of(project / "a"), dense.deltas_of(project / "b")
    for module, delta in dense.deltas_of(project / "one").items():
        expected = dense.nearest(dense.ties([a[module] / 3, -2 * b[module] / 3], 0.5, 2.0), 16)
        assert np.linalg.norm(delta - expected) <= 1e-3 * np.linalg.norm(expected)
    drawn = ["--combination", "dare_linear", "--density", "0.5", "--seed", "3"]
    assert main([*begin, "--out", "two", *drawn]) == 0
    said = capsys.readouterr().err
    assert "dare_linear (density 0.5, seed 3): the rank of the result leaves out" in " ".join(said.split())
    for fault in (
        ["--combination", "tie"],
        ["--combination", "ties", "--seed", "0"],
        ["--density", "0.5"],
        ["--combination", "ties", "--density", "0"],
        ["--rank", "0"],
    ):
        assert main([*begin, "--out", "three", *fault]) == 2
    assert main([*begin[:1], *begin[2:], "--as-adapter", "four"]) == 0
    assert (project / "four" / "adapter_config.json").is_file()
    for nowhere in ([], ["--as-adapter"], ["--as-adapter", "five", "--out", "six"]):
        assert main(["merge", "--stack", "./a", *nowhere]) == 2
    assert main(["merge", "--stack", "./a=0,./b=0", "--normalize", "--out", "three"]) == 2
    assert "all zero" in capsys.readouterr().err and not (project / "three").exists()


@pytest.mark.engine
@pytest.mark.parametrize("name", ["ties", "dare_linear", "knots"])
def test_run_merge_and_the_merged_adapter_agree_bit_by_bit(project: Path, settings: Settings, name: str) -> None:
    import torch

    from adapterhub.ops.load import load

    parameters = Parameters(density=0.5, rank=5)
    how: dict[str, Any] = {"stack": "./a,./b=0.5", "combination": name, "parameters": parameters, "settings": settings}
    notes: list[str] = []

    class Listening:
        def note(self, text: str) -> None:
            notes.append(text)

        def task(self, *arguments: Any, **more: Any) -> Any:
            from adapterhub.progress import SILENT

            return SILENT.task(*arguments, **more)

    loaded = load(how["stack"], dtype="float32", progress=Listening(), **{k: how[k] for k in how if k != "stack"})
    merge(plan_merge(project / "one", as_adapter=True, **how))
    merge(plan_merge(project / "whole", **how))
    single = load("./one", dtype="float32", settings=settings)
    whole = read_tensors(project / "whole")
    for key, tensor in loaded.model.state_dict().items():
        assert torch.equal(tensor, single.model.state_dict()[key])
        if key in whole:
            assert np.abs(tensor.numpy() - whole[key]).max() <= 1e-6  # another library adds
    assert loaded.truncation is not None and single.truncation is None
    assert any("leaves out" in note for note in notes)


def test_validate_reads_the_combinations_of_a_project(tmp_path: Path, settings: Settings) -> None:
    path = tmp_path / "adapters.yaml"
    begin = 'project_version: "1.0"\nadapters: {a: acme/a}\nstacks:\n'
    path.write_text(f"{begin}  one: {{layers: [{{adapter: a}}], combination: dare_ties, density: 0.5, seed: 3}}\n")
    assert validate(str(path), settings=settings).ok
    path.write_text(
        f"{begin}  one: {{layers: [{{adapter: a}}], combination: tie}}\n"
        "  two: {layers: [{adapter: a}], density: 0.5, seed: 3}\n"
    )
    report = validate(str(path), settings=settings)
    assert [finding.where.rpartition(" ")[2] for finding in report.errors] == ["stacks.one", "stacks.two", "stacks.two"]
    assert "did you mean ties" in report.errors[0].message and "density" in report.errors[1].message
