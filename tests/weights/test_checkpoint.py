"""Folders of weights: which file counts, and that an index tells the truth about its shards."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from adapterhub.errors import IntegrityError, InvalidFileError, LocalIOError
from adapterhub.weights import open_checkpoint, read_bytes

ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


def shard(path: Path, **tensors: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: np.full(4, value, np.float32) for name, value in tensors.items()}, path)


def index(folder: Path, weight_map: object, **more: object) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 32}, "weight_map": weight_map, **more}))


@pytest.fixture
def sharded(tmp_path) -> Path:
    shard(tmp_path / ONE, a=1, c=3)
    shard(tmp_path / TWO, b=2)
    index(tmp_path, {"a": ONE, "b": TWO, "c": ONE})
    return tmp_path


def test_shards_become_one_sorted_table(sharded):
    checkpoint = open_checkpoint(sharded)
    assert checkpoint.files == (ONE, TWO)
    assert checkpoint.index_name == INDEX
    assert [(name, tensor.file) for name, tensor in checkpoint.tensors.items()] == [("a", ONE), ("b", TWO), ("c", ONE)]
    for name, value in (("a", 1), ("b", 2), ("c", 3)):
        read = np.frombuffer(read_bytes(sharded, checkpoint.tensors[name]), np.float32)
        np.testing.assert_array_equal(read, np.full(4, value))


def test_shards_may_lie_in_a_folder_below(tmp_path):
    shard(tmp_path / "parts" / "x.safetensors", a=7)
    index(tmp_path, {"a": "parts/x.safetensors"})
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.tensors["a"].file == "parts/x.safetensors"
    assert read_bytes(tmp_path, checkpoint.tensors["a"]) == np.full(4, 7, np.float32).tobytes()


def test_a_single_file_wins_over_an_index_as_in_transformers(sharded):
    shard(sharded / "model.safetensors", z=1)
    checkpoint = open_checkpoint(sharded)
    assert (checkpoint.files, list(checkpoint.tensors), checkpoint.index_name) == (("model.safetensors",), ["z"], None)


def test_the_only_safetensors_file_is_taken_whatever_its_name(tmp_path):
    shard(tmp_path / "adapter_model.safetensors", a=1)
    (tmp_path / "training_args.bin").write_bytes(b"\x80\x04.")
    assert open_checkpoint(tmp_path).files == ("adapter_model.safetensors",)


def test_several_files_without_an_index_are_refused_by_name(tmp_path):
    shard(tmp_path / "a.safetensors", a=1)
    shard(tmp_path / "b.safetensors", b=1)
    with pytest.raises(InvalidFileError, match="2 safetensors files") as caught:
        open_checkpoint(tmp_path)
    assert caught.value.details == ("a.safetensors", "b.safetensors")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "adapter_model.pt", "model.pth", "last.ckpt"])
def test_only_pickles_are_refused_with_a_way_out(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(InvalidFileError, match="never opened") as caught:
        open_checkpoint(tmp_path)
    assert name in caught.value.message
    assert "safetensors" in caught.value.hint


def test_only_a_gguf_points_to_the_import(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(InvalidFileError) as caught:
        open_checkpoint(tmp_path)
    assert caught.value.hint.startswith("adapt base add")


def test_an_empty_folder_and_none_at_all(tmp_path):
    with pytest.raises(InvalidFileError, match="no safetensors file"):
        open_checkpoint(tmp_path)
    with pytest.raises(LocalIOError):
        open_checkpoint(tmp_path / "none")


def faults_of(folder: Path) -> tuple[str, ...]:
    with pytest.raises(IntegrityError) as caught:
        open_checkpoint(folder)
    assert INDEX in caught.value.where
    assert caught.value.hint
    return (caught.value.message, *caught.value.details)


def test_a_missing_shard(sharded):
    (sharded / TWO).unlink()
    assert f"shard {TWO} is missing" in faults_of(sharded)


def test_every_disagreement_is_told_at_once(sharded):
    index(sharded, {"a": TWO, "b": TWO, "d": ONE})
    message, *details = faults_of(sharded)
    assert "3 places" in message
    assert details == [
        f"tensor 'a' is in {ONE}, the index says {TWO}",
        f"tensor 'c' of {ONE} is not in the index",
        f"tensor 'd' is not in {ONE}, where the index says it is",
    ]


def test_a_tensor_in_two_shards(sharded):
    shard(sharded / TWO, a=1, b=2)
    assert f"tensor 'a' is in two shards: {ONE} and {TWO}" in faults_of(sharded)


def test_many_disagreements_are_counted_and_cut(sharded):
    index(sharded, {"a": ONE, "b": TWO, "c": ONE, **{f"x{number}": ONE for number in range(50)}})
    message, *details = faults_of(sharded)
    assert "50 places" in message
    assert details[-1] == "… and 30 more"
    assert len(details) == 21


@pytest.mark.parametrize(
    "name",
    [
        "../x.safetensors",
        "a/../../x.safetensors",
        "/x.safetensors",
        "C:x.safetensors",
        "..\\x.safetensors",
        "x\0.safetensors",
        "./x.safetensors",
        "a//x.safetensors",
        "",
        "..",
        "x.bin",
    ],
)
def test_a_shard_name_that_leaves_the_folder_is_refused_unopened(tmp_path, name):
    folder = tmp_path / "inside"
    folder.mkdir()
    shard(tmp_path / "x.safetensors", a=1)
    index(folder, {"a": name})
    assert "does not stay inside" in faults_of(folder)[0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "\xff",
        '{"weight_map": []}',
        '{"weight_map": {"a": 1}}',
        '{"weight_map": {"a": "x.safetensors", "a": "x.safetensors"}}',
        '{"weight_map":' + "[" * 100_000,
    ],
)
def test_a_malformed_index_is_refused(tmp_path, text):
    (tmp_path / INDEX).write_bytes(text.encode("latin-1"))
    assert faults_of(tmp_path)


def test_a_malformed_shard_is_named(sharded):
    (sharded / TWO).write_bytes((sharded / TWO).read_bytes()[:-1])
    with pytest.raises(IntegrityError) as caught:
        open_checkpoint(sharded)
    assert TWO in caught.value.where
