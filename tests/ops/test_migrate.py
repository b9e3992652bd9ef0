"""Rewriting files of older formats."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from adapterhub.cli.main import main
from adapterhub.documents import read_lockfile, read_recipe, read_yaml
from adapterhub.environment import find_environment
from adapterhub.errors import InvalidFileError, UnsatisfiedError
from adapterhub.ops.migrate import FIXED, MigratePlan, migrate, plan_migrate
from adapterhub.settings import Settings
from adapterhub.spec import migrations
from adapterhub.spec.migrations import Migration

EXAMPLES = Path(__file__).parents[1] / "data" / "formats"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with an adapters.yaml and an adapters.lock of format 1.0."""
    folder = tmp_path / "project"
    folder.mkdir()
    shutil.copyfile(EXAMPLES / "project-1.0.yaml", folder / "adapters.yaml")
    shutil.copyfile(EXAMPLES / "lockfile-1.0.json", folder / "adapters.lock")
    return folder


def planned(folder: Path, settings: Settings, *paths: Path) -> MigratePlan:
    return plan_migrate(paths, environment=find_environment(folder, settings))


def test_an_older_lock_is_rewritten_once(project: Path, settings: Settings) -> None:
    before = read_lockfile(project)  # read through the same steps
    plan = planned(project, settings)
    assert [(step.action, Path(step.subject).name) for step in plan.steps] == [
        ("keep", "adapters.yaml"),
        ("write", "adapters.lock"),
    ]
    yaml = (project / "adapters.yaml").read_bytes()
    migrate(plan)
    data = json.loads((project / "adapters.lock").read_bytes())
    assert data["lock_version"] == "1.1"
    assert all(entry["requires"] == [] for entry in data["entries"])
    assert read_lockfile(project) == before
    assert (project / "adapters.yaml").read_bytes() == yaml
    again = planned(project, settings)
    assert not again.changes
    migrate(again)


def test_the_lock_is_read_anew_when_it_is_written(project: Path, settings: Settings) -> None:
    plan = planned(project, settings)
    (project / "adapters.lock").write_text('{"lock_version": "1.0", "entries": []}')
    migrate(plan)
    assert read_lockfile(project).entries == ()


def test_comments_of_a_project_stay(project: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no second version of adapters.yaml yet: a step of the test's own stands in for the first one."""
    path = project / "adapters.yaml"
    path.write_text(path.read_text().replace('"1.0"', '"0.9"'))
    step = Migration(
        key="project_version", before="0.9", after="1.0", says="nothing", change=lambda data: {**data, "extra": {}}
    )
    monkeypatch.setattr(migrations, "MIGRATIONS", (*migrations.MIGRATIONS, step))
    migrate(planned(project, settings, path))
    text = path.read_text()
    assert 'project_version: "1.0"' in text
    assert "# the one that counsel signed off" in text and "# pinned by its branch" in text
    assert "team" not in text


def test_a_recipe_is_rewritten_as_it_was_written(settings: Settings, tmp_path: Path) -> None:
    """Its files of rows were JSONL whatever their names; what it does not say stays unsaid, comments stay."""
    path = tmp_path / "recipe.yaml"
    path.write_text((EXAMPLES / "recipe-1.0.yaml").read_text().replace("heldout.jsonl", "heldout.csv  # odd name"))
    before = read_recipe(path)
    migrate(planned(tmp_path, settings, path))
    text = path.read_text()
    assert 'recipe_version: "1.2"' in text and "# A recipe as a person wrote it" in text
    assert "quantization" not in text and "heldout.csv" in text
    assert read_recipe(path) == before
    assert [source.file_type for source in before.data.sources(before.data.eval)] == ["jsonl"]
    assert before.digest != read_recipe(EXAMPLES / "recipe-1.0.yaml").digest
    assert not planned(tmp_path, settings, path).changes
    other = tmp_path / "recipe.json"
    other.write_text(json.dumps(read_yaml(EXAMPLES / "recipe-1.0.yaml")))
    migrate(planned(tmp_path, settings, other))
    assert json.loads(other.read_text())["recipe_version"] == "1.2"


@pytest.mark.parametrize("kind", sorted(FIXED))
def test_what_others_know_by_its_bytes_is_never_rewritten(
    kind: str, tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"{kind}.json"
    path.write_bytes((EXAMPLES / f"{kind}-1.0.json").read_bytes().replace(b'_version": "1.0"', b'_version": "0.9"'))
    step = Migration(key=f"{kind}_version", before="0.9", after="1.0", says="nothing", change=dict)
    monkeypatch.setattr(migrations, "MIGRATIONS", (step,))
    before = path.read_bytes()
    plan = planned(tmp_path, settings, path)
    assert not plan.changes
    assert FIXED[kind] in plan.steps[0].detail
    migrate(plan)
    assert path.read_bytes() == before


def test_what_is_given(project: Path, settings: Settings, tmp_path: Path) -> None:
    recipe = EXAMPLES / "recipe-1.0.yaml"
    plan = planned(tmp_path, settings, project, recipe, recipe)
    assert [item.kind for item in plan.files] == ["project", "lockfile", "recipe"]
    with pytest.raises(UnsatisfiedError, match="neither"):
        planned(tmp_path, settings, tmp_path)
    with pytest.raises(UnsatisfiedError):
        planned(tmp_path, settings, tmp_path / "none.yaml")
    assert planned(tmp_path, settings).files == ()


def test_a_newer_format_is_refused_with_what_to_do(project: Path, settings: Settings) -> None:
    (project / "adapters.lock").write_text('{"lock_version": "2.0", "entries": []}')
    with pytest.raises(InvalidFileError, match="pip install -U adapterhub"):
        planned(project, settings)


def test_the_command(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(project)
    before = (project / "adapters.lock").read_bytes()
    assert main(["migrate", "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert "1.0 to 1.1" in out and "nothing was done" in err
    assert (project / "adapters.lock").read_bytes() == before
    assert main(["migrate", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["files"]
    assert [(row["kind"], row["version"], row["target"]) for row in rows] == [
        ("project", "1.0", "1.0"),
        ("lockfile", "1.0", "1.1"),
    ]
    assert main(["migrate"]) == 0
    assert capsys.readouterr().out.splitlines()[2].split()[1:] == ["lockfile", "1.1", "ok"]
