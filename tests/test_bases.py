"""Records of base models: what they say, that they come back whole, and that a changed folder is noticed."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from adapterhub.bases import BaseRecord, BaseState, BaseStore, decode_record, encode_record, look_at, read_base
from adapterhub.errors import IntegrityError, InvalidFileError, UnsatisfiedError, UsageError
from adapterhub.settings import Settings
from adapterhub.spec.base_model import BaseModelRef, Derivation
from adapterhub.weights import open_checkpoint
from tests.factory import tiny_gpt2, tiny_llama


@pytest.fixture
def store(settings: Settings) -> BaseStore:
    return BaseStore(settings)


def add(store: BaseStore, folder: Path, id: str = "tiny") -> BaseRecord:
    record = read_base(folder, BaseModelRef(id=id), "folder")
    store.add(record)
    return record


def flip_byte(path: Path) -> None:
    """Change the last byte, keeping the size; the time of the file moves, as any writer moves it."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    touch(path)


def touch(path: Path) -> None:
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000_000))


def test_a_record_tells_what_the_folder_holds(tmp_path: Path, store: BaseStore) -> None:
    folder = tiny_llama(tmp_path / "base", dtype="bfloat16", shards=2)
    record = add(store, folder)
    assert record.ref.architecture == "LlamaForCausalLM"
    assert record.ref.model_type == "llama"
    assert record.ref.fingerprints.weights is not None
    assert record.dtype == "bfloat16"
    assert record.parameters == sum(item.elements for item in open_checkpoint(folder).tensors.values())
    assert record.size == sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert {stamp.path for stamp in record.stamps} == {
        path.name for path in folder.iterdir() if path.name != "generation_config.json"
    }


def test_tied_weights_count_once_and_buffers_never(tmp_path: Path, store: BaseStore) -> None:
    tied = add(store, tiny_llama(tmp_path / "tied", tie=True), "tied")
    untied = add(store, tiny_llama(tmp_path / "untied"), "untied")
    assert untied.parameters - tied.parameters == 264 * 32
    assert add(store, tiny_gpt2(tmp_path / "gpt2"), "gpt2").parameters > 0


def test_a_record_comes_back_as_it_was(tmp_path: Path, store: BaseStore) -> None:
    derived = Derivation(how="GGUF x.gguf dequantized to bfloat16", id="org/base")
    record = read_base(
        tiny_llama(tmp_path / "base"), BaseModelRef(id="tiny", derived_from=derived), "gguf", notes=("assumed",)
    )
    store.add(record)
    assert store.get("tiny") == record
    assert store.list() == (record,)


def test_a_converted_model_is_recorded_relative_to_the_store(tmp_path: Path, settings: Settings) -> None:
    store = BaseStore(settings)
    tiny_llama(store.model_folder("tiny"))
    add(store, store.model_folder("tiny"))
    moved = replace(settings, home=tmp_path / "elsewhere")
    shutil.copytree(settings.home, moved.home, copy_function=shutil.copy2)
    shutil.rmtree(settings.home)
    assert BaseStore(moved).get("tiny").path == moved.bases / "models" / "tiny"


def test_a_base_that_is_not_here(store: BaseStore) -> None:
    with pytest.raises(UnsatisfiedError, match="no base model org/none") as caught:
        store.get("org/none")
    assert caught.value.hint is not None and "`adapt base add org/none` downloads it" in caught.value.hint
    with pytest.raises(UnsatisfiedError, match="no base model none") as caught:
        store.get("none")
    assert caught.value.hint is not None and "adapt base add none --from FOLDER" in caught.value.hint
    assert store.find("org/none") is None
    assert store.list() == ()


@pytest.mark.parametrize("id", ["../../etc", "a/b/c", "", "/abs", "a--b", "C:\\x"])
def test_an_id_never_becomes_a_path(store: BaseStore, id: str) -> None:
    with pytest.raises(UsageError):
        store.get(id)
    with pytest.raises(UsageError):
        store.remove(id)


def test_ids_that_differ_in_case_alone_collide(tmp_path: Path, store: BaseStore) -> None:
    record = add(store, tiny_llama(tmp_path / "base"), "Org/Base")
    with pytest.raises(UsageError, match="case alone"):
        store.add(replace(record, ref=replace(record.ref, id="org/base")))
    with pytest.raises(UnsatisfiedError, match="there is Org/Base"):
        store.get("org/base")


def test_an_untouched_folder_is_not_read_again(
    tmp_path: Path, store: BaseStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = add(store, tiny_llama(tmp_path / "base"))

    def read_again(*args: object, **kwargs: object) -> None:
        raise AssertionError("hashed although nothing was touched")

    monkeypatch.setattr("adapterhub.bases.fingerprint_base", read_again)
    monkeypatch.setattr("adapterhub.bases.quick_fingerprints", read_again)
    assert store.get("tiny") == record


def test_a_touched_folder_is_hashed_once_and_its_times_are_kept(tmp_path: Path, store: BaseStore) -> None:
    folder = tiny_llama(tmp_path / "base")
    before = add(store, folder)
    touch(folder / "model.safetensors")
    assert look_at(before) is BaseState.TOUCHED
    after = store.get("tiny")
    assert after.ref == before.ref and after.stamps != before.stamps
    assert look_at(store.read("tiny")) is BaseState.INTACT


@pytest.mark.parametrize(
    ("name", "part"),
    [("model.safetensors", "weights"), ("tokenizer.json", "tokenizer"), ("config.json", "config")],
)
def test_a_changed_folder_is_refused_and_says_what_changed(
    tmp_path: Path, store: BaseStore, name: str, part: str
) -> None:
    folder = tiny_llama(tmp_path / "base")
    add(store, folder)
    path = folder / name
    if name.endswith(".json"):
        value = json.loads(path.read_text())
        value.update({"added_tokens": []} if part == "tokenizer" else {"rms_norm_eps": 1e-3})
        path.write_text(json.dumps(value))
    else:
        flip_byte(path)
    with pytest.raises(IntegrityError) as caught:
        store.get("tiny")
    assert f"{part} differs" in caught.value.details
    assert caught.value.hint is not None and "adapt base remove tiny" in caught.value.hint


def test_a_change_that_keeps_size_and_time_is_found_by_verify(tmp_path: Path, store: BaseStore) -> None:
    """Bit rot: nothing at a glance, everything in a full check."""
    folder = tiny_llama(tmp_path / "base")
    record = add(store, folder)
    path = folder / "model.safetensors"
    times = path.stat()
    flip_byte(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert look_at(record) is BaseState.INTACT
    with pytest.raises(IntegrityError, match="not what it was"):
        store.verify(record)


def test_a_tokenizer_that_went_is_noticed(tmp_path: Path, store: BaseStore) -> None:
    folder = tiny_llama(tmp_path / "base")
    record = add(store, folder)
    (folder / "tokenizer.json").unlink()
    assert look_at(record) is BaseState.CHANGED
    with pytest.raises(IntegrityError) as caught:
        store.get("tiny")
    assert "tokenizer is gone" in caught.value.details


def test_a_folder_that_went_is_noticed(tmp_path: Path, store: BaseStore) -> None:
    folder = tiny_llama(tmp_path / "base")
    record = add(store, folder)
    shutil.rmtree(folder)
    assert look_at(record) is BaseState.GONE
    with pytest.raises(UnsatisfiedError, match="is gone") as caught:
        store.get("tiny")
    assert caught.value.hint == f"adapt base add tiny --from {folder}"


def test_removing_forgets_a_referenced_folder_and_deletes_a_converted_one(tmp_path: Path, store: BaseStore) -> None:
    folder = tiny_llama(tmp_path / "base")
    add(store, folder)
    own = tiny_llama(store.model_folder("own"))
    add(store, own, "own")
    store.remove("tiny")
    store.remove("own")
    assert folder.is_dir() and not own.exists()
    assert store.list() == ()
    with pytest.raises(UnsatisfiedError):
        store.remove("tiny")


def test_an_interrupted_conversion_leaves_nothing(tmp_path: Path, store: BaseStore) -> None:
    with pytest.raises(RuntimeError), store.adding("tiny") as target:
        tiny_llama(target)
        raise RuntimeError
    assert not store.model_folder("tiny").exists()
    # What a killed process could not clear is cleared by the next one; another base's is not.
    models = store.model_folder("tiny").parent
    for name in ("tiny", ".tiny.12-0123abcd.tmp", ".tiny.0123456789ab.partial", ".tiny.b.12-0123abcd.tmp"):
        (models / name).mkdir(parents=True)
    with store.adding("tiny") as target:
        assert target == models / "tiny"
        assert [path.name for path in models.iterdir()] == [".tiny.b.12-0123abcd.tmp"]


def test_a_record_that_somebody_broke_names_every_fault(tmp_path: Path, store: BaseStore) -> None:
    record = add(store, tiny_llama(tmp_path / "base"))
    data = encode_record(record, root=store.root)
    data |= {"parameters": -1, "source": "hearsay", "stamps": [{"path": "../x", "bytes": 1, "mtime_ns": 2}]}
    with pytest.raises(InvalidFileError) as caught:
        decode_record(data, where="tiny.json", root=store.root)
    assert len(caught.value.details) == 3


def test_a_newer_record_s_unknown_keys_are_no_fault(tmp_path: Path, store: BaseStore) -> None:
    record = add(store, tiny_llama(tmp_path / "base"))
    data = {**encode_record(record, root=store.root), "record_version": "1.9", "novel": 1}
    assert decode_record(data, where="x", root=store.root) == record
    with pytest.raises(InvalidFileError, match="newer"):
        decode_record({**data, "record_version": "2.0"}, where="x", root=store.root)
