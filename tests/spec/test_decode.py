"""Every fault at once, each with the path of its field, and the nearest known word."""

from __future__ import annotations

import pytest

from adapterhub.errors import InvalidFileError
from adapterhub.spec._decode import Faults, Reader, freeze, thaw
from adapterhub.spec.manifest import Manifest
from adapterhub.spec.project import Project
from adapterhub.spec.recipe import Recipe

RECIPE = {
    "recipe_version": "1.0",
    "name": "a",
    "version": "1.0.0",
    "base_model": "b",
    "data": {"train": "t.jsonl"},
}


def test_all_faults_at_once_with_their_paths() -> None:
    bad = {
        **RECIPE,
        "nmae": 1,
        "version": "1",
        "data": {"train": "../t", "max_length": 2, "evl": "x"},
        "training": {"learning_rate": "fast", "seed": -1, "optim": "adamw_torch_fussed"},
    }
    with pytest.raises(InvalidFileError) as caught:
        Recipe.from_data(bad, where="r.yaml")
    text = str(caught.value)
    for expected in (
        "r.yaml",
        "version: '1' is not a version",
        "data.train:",
        "data.max_length: must be at least 8",
        "data.evl: unknown key; did you mean 'eval'?",
        "training.learning_rate: expected a number, found text ('fast')",
        "training.seed: must be at least 0",
        "training.optim: 'adamw_torch_fussed' is not known; did you mean 'adamw_torch_fused'?",
        "nmae: unknown key; did you mean 'name'?",
    ):
        assert expected in text


def test_alpha_is_lora_alpha_and_not_both() -> None:
    short = Recipe.from_data({**RECIPE, "hyperparameters": {"alpha": 8}})
    assert dict(short.hyperparameters) == {"lora_alpha": 8}
    assert short.digest == Recipe.from_data({**RECIPE, "hyperparameters": {"lora_alpha": 8}}).digest
    with pytest.raises(InvalidFileError, match="another word for lora_alpha"):
        Recipe.from_data({**RECIPE, "hyperparameters": {"alpha": 8, "lora_alpha": 8}})


def test_spelled_out_defaults_do_not_change_a_recipes_digest() -> None:
    plain = Recipe.from_data(RECIPE)
    spelled = Recipe.from_data({**RECIPE, "method": "lora", "task": "CAUSAL_LM", "training": {"seed": 42}})
    assert plain.digest == spelled.digest
    assert plain.digest != Recipe.from_data({**RECIPE, "training": {"seed": 43}}).digest


def test_a_manifest_of_a_newer_minor_is_read_and_of_a_newer_major_refused() -> None:
    entry = {"path": "adapter_config.json", "size": 1, "sha256": "0" * 64}
    data = {
        "manifest_version": "1.7",
        "kind": "adapter",
        "name": "a",
        "version": "1.0.0",
        "base_model": {"id": "b"},
        "method": "lora",
        "files": [entry],
        "novelty": True,
    }
    assert Manifest.from_data(data).name == "a"
    with pytest.raises(InvalidFileError, match="novelty: unknown key"):
        Manifest.from_data({**data, "manifest_version": "1.0"})
    with pytest.raises(InvalidFileError, match="upgrade"):
        Manifest.from_data({**data, "manifest_version": "2.0"})


def test_what_a_person_writes_refuses_a_newer_minor() -> None:
    with pytest.raises(InvalidFileError, match="upgrade"):
        Project.from_data({"project_version": "1.1"})


@pytest.mark.parametrize("value", [None, 1, "x", [], [1]])
def test_a_document_that_is_no_mapping(value: object) -> None:
    with pytest.raises(InvalidFileError, match="expected a mapping"):
        Recipe.from_data(value)


def test_frozen_data_cannot_be_changed_and_thaws_to_what_it_was() -> None:
    data = {"a": [1, {"b": None}], "c": 1.5}
    frozen = freeze(data)
    with pytest.raises(TypeError):
        frozen["a"] = 1  # type: ignore[index]
    assert thaw(frozen) == data
    with pytest.raises(TypeError):
        freeze({"a": object()})


def test_a_reader_notes_what_a_newer_format_brings() -> None:
    faults = Faults(where="f")
    reader = Reader({"v": "1.3", "new": 1}, faults)
    newer = reader.format_version("v", supported="1.0")
    reader.finish_versioned(newer, "1.0")
    assert faults.found == []
    assert faults.notes == ["ignored keys of a newer format than 1.0: new"]
