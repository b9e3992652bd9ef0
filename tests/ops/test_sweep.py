"""`adapt sweep` and `adapt compare`: several trainings, each a process of its own, in one table."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from adapterhub.bases import BaseStore, read_base
from adapterhub.cli.main import main
from adapterhub.errors import BuildError, InvalidFileError, UsageError
from adapterhub.ops._scatter import Dot, scatter
from adapterhub.ops.compare import compare, plan_compare
from adapterhub.ops.sweep import plan_sweep, sweep
from adapterhub.package import open_package, require_intact
from adapterhub.settings import Settings
from adapterhub.spec.base_model import BaseModelRef
from adapterhub.weights.header import read_header
from tests.engine.tiny import Recorder
from tests.factory import tiny_llama
from tests.ops.test_build import project

R = "hyperparameters.r"


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def home(settings: Settings, base_folder: Path) -> Settings:
    BaseStore(settings).add(read_base(base_folder, BaseModelRef(id="tiny-llama"), "folder"))
    return settings


def test_every_combination_is_a_training_and_a_list_adds_more(tmp_path: Path, home: Settings) -> None:
    recipe = project(tmp_path)
    more = tmp_path / "more.yaml"
    more.write_text("- {hyperparameters.r: 16, training.seed: 9}\n- {hyperparameters.target_modules: [q_proj]}\n")
    plan = plan_sweep(recipe, grid=[f"{R}=2,4", "training.learning_rate=1e-3,2e-3"], listed=more, settings=home)
    assert [dict(trial.recipe.hyperparameters)["r"] for trial in plan.trials] == [2, 2, 4, 4, 16, 4]
    assert [trial.recipe.training.learning_rate for trial in plan.trials] == [1e-3, 2e-3, 1e-3, 2e-3, 1e-2, 1e-2]
    assert plan.trials[-1].recipe.hyperparameters["target_modules"] == ("q_proj",)
    assert plan.fields == (R, "training.learning_rate", "training.seed", "hyperparameters.target_modules")
    assert (plan.metric, len({trial.key for trial in plan.trials})) == ("eval_loss", 6)
    assert not (tmp_path / "dist").exists()


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({}, "nothing varies"),
        ({"grid": [R]}, "FIELD=VALUE"),
        ({"grid": [f"{R}="]}, "FIELD=VALUE"),
        ({"grid": [f"{R}=[2"]}, "--grid"),
        ({"grid": [f"{R}=2", f"{R}=4"]}, "named twice"),
        ({"grid": [f"{R}=2,2"]}, "named twice"),
        ({"grid": ["training.seed=" + ",".join(map(str, range(1001)))]}, "more than 1000"),
        ({"grid": [f"{R}=4,0"]}, "r=0"),
        ({"grid": ["training.max_step=4"]}, "did you mean 'max_steps'"),
    ],
)
def test_what_makes_no_sweep_is_refused_before_a_training(
    tmp_path: Path, home: Settings, given: dict[str, Any], word: str
) -> None:
    with pytest.raises(UsageError) as caught:
        plan_sweep(project(tmp_path), settings=home, **given)
    assert word in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize("text", ["r: 4\n", "[]\n", "- 4\n", "- {}\n"])
def test_a_list_of_another_form_is_refused(tmp_path: Path, home: Settings, text: str) -> None:
    (tmp_path / "more.yaml").write_text(text)
    with pytest.raises(InvalidFileError, match=r"more\.yaml"):
        plan_sweep(project(tmp_path), listed=tmp_path / "more.yaml", settings=home)


@pytest.mark.engine
def test_trainings_are_kept_compared_and_not_done_again(tmp_path: Path, home: Settings) -> None:
    recipe, out = project(tmp_path), tmp_path / "out"
    grid = [f"{R}=2,4", "training.learning_rate=1e-2"]
    result = sweep(plan_sweep(recipe, grid=grid, out=out, settings=home), progress=Recorder.new())
    small, large = (outcome.result for outcome in result.outcomes)
    assert large.trainable == 2 * small.trainable > 0
    for outcome in result.outcomes:
        assert outcome.trial.keep is not None
        package = open_package(outcome.trial.keep)
        require_intact(package)
        assert package.manifest.metrics["eval_loss"] == outcome.quality("eval_loss")
        header = read_header(outcome.trial.keep / "adapter_model.safetensors")
        assert sum(tensor.elements for tensor in header.tensors.values()) == outcome.result.trainable
        assert outcome.result.memory is not None and outcome.result.memory > 50_000_000
    assert result.best is min(result.outcomes, key=lambda outcome: outcome.quality("eval_loss") or 0)
    data = json.loads((out / "sweep.json").read_text())
    assert [row["values"][R] for row in data["trials"]] == [2, 4]
    assert result.plot is not None
    assert len(list(ElementTree.parse(result.plot).iter("{http://www.w3.org/2000/svg}circle"))) == 4

    again = plan_sweep(recipe, grid=[f"{R}=2,4,8", "training.learning_rate=1e-2"], out=out, settings=home)
    assert [step.action for step in again.steps] == ["keep", "keep", "train"]
    (tmp_path / "train.jsonl").write_text((tmp_path / "train.jsonl").read_text().replace("red", "rot"))
    changed = plan_sweep(recipe, grid=grid, out=out, settings=home)
    assert [step.action for step in changed.steps] == ["train", "train"]


@pytest.mark.engine
def test_a_training_that_fails_is_a_row_and_all_that_fail_an_error(tmp_path: Path, home: Settings) -> None:
    recipe = project(tmp_path)
    grid = ["training.learning_rate=1e-2,10.0"]
    changes = ["training.max_grad_norm=0", "training.max_steps=40", "training.weight_decay=1e30"]
    plan = plan_sweep(recipe, grid=grid, overrides=changes, out=tmp_path / "out", settings=home)
    with pytest.raises(BuildError, match="every training failed") as caught:
        sweep(plan, progress=Recorder.new())
    assert "learning_rate=10" in str(caught.value) and "the loss is" in str(caught.value)
    assert not list((tmp_path / "out").glob("packages/*"))


@pytest.mark.engine
def test_ways_are_compared_on_the_same_rows(
    tmp_path: Path, home: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = project(tmp_path, training={"max_steps": 3})
    monkeypatch.setenv("ADAPTERHUB_HOME", str(home.home))
    monkeypatch.chdir(tmp_path)
    assert main(["compare", str(recipe), "--way", "recipe", "--way", "ia3:training.learning_rate=0.05", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    lora, ia3 = data["ways"]
    assert lora["metrics"]["eval_loss_base"] == ia3["metrics"]["eval_loss_base"]
    assert 0 < ia3["trainable_parameters"] < lora["trainable_parameters"]
    assert lora["steps"] == ia3["steps"] == 3
    assert data["best"] in ("recipe", "ia3:training.learning_rate=0.05")
    assert not list(tmp_path.rglob("*.safetensors"))
    assert main(["compare", str(recipe), "--way", "recipe", "--way", "ia3:training.learning_rate=0.05"]) == 0
    table = capsys.readouterr().out
    assert "PEAK MEMORY" in table and table.count("← best") == 1


@pytest.mark.parametrize(
    ("ways", "word"), [(("qlroa",), "did you mean qlora"), (("lora", "lora"), "twice"), (("lora:x",), "FIELD=VALUE")]
)
def test_ways_that_are_none_are_refused(tmp_path: Path, home: Settings, ways: tuple[str, ...], word: str) -> None:
    with pytest.raises(UsageError) as caught:
        plan_compare(project(tmp_path), ways=ways, settings=home)
    assert word in f"{caught.value} {caught.value.hint}"


def test_a_picture_shows_every_dot_and_counts_in_powers_where_sizes_are_far_apart() -> None:
    dots = [
        Dot(label=f"r={r} & more", quality=1 / r, across=(1000.0 * r, 3.0 + r), best=r == 64) for r in (1, 8, 64, 512)
    ]
    text = scatter(dots, metric="eval_loss", axes=("trainable parameters", "seconds"))
    assert text is not None
    tree = ElementTree.fromstring(text)
    circles = list(tree.iter("{http://www.w3.org/2000/svg}circle"))
    assert len(circles) == 8 and sum(circle.get("r") == "6" for circle in circles) == 2
    first = [float(circle.get("cx", "0")) for circle in circles[:4]]
    gaps = [b - a for a, b in itertools.pairwise(first)]
    assert max(gaps) - min(gaps) < 1  # equal factors, equal distances
    assert scatter(dots[:1], metric="x", axes=("y",)) is None


@pytest.mark.engine
def test_compare_trains_nothing_that_is_kept(tmp_path: Path, home: Settings) -> None:
    plan = plan_compare(project(tmp_path), ways=("recipe",), out=tmp_path / "out", settings=home)
    assert plan.warnings
    assert compare(plan).outcomes[0].result.size > 0
    assert [path.name for path in (tmp_path / "out").iterdir() if path.is_file()] == ["compare.json"]
