"""Fingerprints: the same for the same weights however they are stored, different for anything else."""

from __future__ import annotations

import hashlib
import json
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from adapterhub.errors import IntegrityError, LocalIOError
from adapterhub.weights import fingerprint, open_checkpoint, tensor_table_digest
from adapterhub.weights.fingerprints import BUFFERS, TIED_NAMES

RANDOM = np.random.default_rng(3)
Arrays = dict[str, np.ndarray]


def store(folder: Path, *shards: Arrays, metadata: dict[str, str] | None = None) -> Path:
    folder.mkdir(parents=True)
    if len(shards) == 1:
        save_file(shards[0], folder / "model.safetensors", metadata=metadata)
        return folder
    weight_map = {}
    for number, arrays in enumerate(shards):
        name = f"model-{number}.safetensors"
        save_file(arrays, folder / name, metadata=metadata)
        weight_map |= dict.fromkeys(arrays, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def of(folder: Path):
    return fingerprint(open_checkpoint(folder))


def some(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(dtype)


@pytest.fixture
def arrays() -> Arrays:
    return {"model.embed_tokens.weight": some(8, 4), "h.é.weight": some(4, 4), "b": some(3, dtype=np.float16)}


NUMPY_NAMES = {"float32": "F32", "float16": "F16"}


def test_the_canonical_encoding(tmp_path, arrays):
    found = of(store(tmp_path / "x", arrays))
    weights, tensors = b"adapterhub weights 1\n", b"adapterhub tensors 1\n"
    for name in sorted(arrays):
        dtype, shape = NUMPY_NAMES[str(arrays[name].dtype)], ",".join(map(str, arrays[name].shape))
        digest = hashlib.sha256(arrays[name].tobytes()).hexdigest()
        weights += f'["{name}","{dtype}",[{shape}],"{digest}"]\n'.encode()
        tensors += f'["{name}","{dtype}",[{shape}]]\n'.encode()
    assert found.weights == hashlib.sha256(weights).hexdigest()
    assert found.tensors == hashlib.sha256(tensors).hexdigest()
    raw = (tmp_path / "x" / "model.safetensors").read_bytes()
    assert found.files == {"model.safetensors": hashlib.sha256(raw).hexdigest()}


def test_a_recorded_fingerprint_stays_what_it_is(tmp_path):
    """The encoding is part of the format, so these may never change; made with printf and sha256sum."""
    found = of(store(tmp_path / "x", {"a": np.arange(6, dtype=np.float32).reshape(2, 3)}))
    assert found.weights == "343517fbebd34339a4707979697275a88b2a5bb2beb871a28e87abacd5e4e13f"
    assert found.tensors == "ec21b134d669685562cf137d97339bb3b57a3a089a51024883ec64a15dd4daf5"


def test_sharding_order_and_metadata_change_only_the_files(tmp_path, arrays):
    whole = of(store(tmp_path / "whole", arrays))
    first, *rest = arrays.items()
    cut = of(store(tmp_path / "cut", dict(rest), dict([first]), metadata={"format": "pt"}))
    assert (cut.weights, cut.tensors) == (whole.weights, whole.tensors)
    assert list(cut.files) == ["model-0.safetensors", "model-1.safetensors"]
    for name, digest in cut.files.items():
        assert digest == hashlib.sha256((tmp_path / "cut" / name).read_bytes()).hexdigest()
    named = of(store(tmp_path / "named", arrays, metadata={"format": "np"}))
    assert named.weights == whole.weights
    assert named.files != whole.files


def test_one_bit_one_name_one_dtype_one_shape(tmp_path, arrays):
    whole = of(store(tmp_path / "whole", arrays))
    bit = {name: item.copy() for name, item in arrays.items()}
    bit["b"].view(np.uint16)[1] ^= 1
    changed = of(store(tmp_path / "bit", bit))
    assert changed.weights != whole.weights
    assert changed.tensors == whole.tensors
    renamed = {("c" if name == "b" else name): item for name, item in arrays.items()}
    retyped = {**arrays, "b": arrays["b"].view(np.int16)}
    reshaped = {**arrays, "b": arrays["b"].reshape(3, 1)}
    fewer = {name: item for name, item in arrays.items() if name != "b"}
    for label, other in {"renamed": renamed, "retyped": retyped, "reshaped": reshaped, "fewer": fewer}.items():
        found = of(store(tmp_path / label, other))
        assert found.weights != whole.weights, label
        assert found.tensors != whole.tensors, label


BUFFER_EXAMPLES = {
    "model.layers.0.self_attn.rotary_emb.inv_freq": (4,),
    "rotary_emb.inv_freq": (4,),
    "h.0.attn.masked_bias": (),
    "h.0.attn.bias": (1, 1, 4, 4),
    "gpt_neox.layers.0.attention.bias": (1, 1, 4, 4),
    "embeddings.position_ids": (1, 4),
    "bert.embeddings.position_ids": (1, 4),
}


def test_every_buffer_rule_has_an_example():
    for end, _ in BUFFERS:
        assert any(name == end or name.endswith("." + end) for name in BUFFER_EXAMPLES)


@pytest.mark.parametrize("name", BUFFER_EXAMPLES)
def test_buffers_are_left_out(tmp_path, arrays, name):
    whole = of(store(tmp_path / "without", arrays))
    found = of(store(tmp_path / "with", {**arrays, name: some(*BUFFER_EXAMPLES[name])}))
    assert (found.weights, found.tensors) == (whole.weights, whole.tensors)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("h.0.attn.c_attn.bias", (12,)),  # a learned bias whose name ends in the same letters
        ("h.0.attn.bias", (12,)),
        ("encoder.attention.bias", (4,)),
        ("x_attn.bias", (1, 1, 4, 4)),
        ("unmasked_bias", (4,)),
        ("model.position_ids", (4,)),
    ],
)
def test_learned_tensors_of_like_names_are_kept(tmp_path, arrays, name, shape):
    whole = of(store(tmp_path / "without", arrays))
    found = of(store(tmp_path / "with", {**arrays, name: some(*shape)}))
    assert found.weights != whole.weights
    assert found.tensors != whole.tensors


@pytest.mark.parametrize(("copy", "original"), TIED_NAMES)
def test_a_tied_copy_counts_once_and_an_untied_one_twice(tmp_path, copy, original):
    table = some(8, 4)
    once = of(store(tmp_path / "once", {original: table, "x": np.zeros(2)}))
    tied = of(store(tmp_path / "tied", {original: table, "x": np.zeros(2), copy: table.copy()}))
    untied = of(store(tmp_path / "untied", {original: table, "x": np.zeros(2), copy: table + 1}))
    other = of(store(tmp_path / "other", {original: table, "x": np.zeros(2), copy: table + 2}))
    assert tied.weights == once.weights
    assert len({once.weights, untied.weights, other.weights}) == 3
    assert once.tensors == tied.tensors == untied.tensors


def test_a_head_of_another_shape_or_name_is_no_copy(tmp_path):
    table = some(8, 4)
    once = of(store(tmp_path / "once", {"model.embed_tokens.weight": table}))
    flat = of(store(tmp_path / "flat", {"model.embed_tokens.weight": table, "lm_head.weight": table.reshape(4, 8)}))
    assert flat.weights != once.weights
    assert flat.tensors != once.tensors
    twin = of(store(tmp_path / "twin", {"model.embed_tokens.weight": table, "twin.weight": table}))
    assert twin.weights != once.weights
    alone = of(store(tmp_path / "alone", {"lm_head.weight": table}))
    assert alone.weights != of(store(tmp_path / "none", {})).weights


def test_the_table_needs_no_weights(tmp_path, arrays):
    folder = store(tmp_path / "x", arrays)
    assert tensor_table_digest(open_checkpoint(folder).tensors) == of(folder).tensors


@given(
    sizes=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4), min_size=1, max_size=3),
    chunk=st.integers(1, 40),
)
@settings(deadline=None, max_examples=80)
def test_tensors_are_cut_out_of_chunks_of_any_size(tmp_path_factory, sizes, chunk):
    shards = [
        {f"t{number}.{position}": RANDOM.integers(0, 256, size).astype(np.uint8) for position, size in enumerate(row)}
        for number, row in enumerate(sizes)
    ]
    folder = store(tmp_path_factory.mktemp("chunks") / "x", *shards)
    lines = b"adapterhub weights 1\n"
    for name, item in sorted((name, item) for shard in shards for name, item in shard.items()):
        lines += f'["{name}","U8",[{len(item)}],"{hashlib.sha256(item.tobytes()).hexdigest()}"]\n'.encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("adapterhub.weights.fingerprints.CHUNK_BYTES", chunk)
        found = of(folder)
    assert found.weights == hashlib.sha256(lines).hexdigest()
    for name, digest in found.files.items():
        assert digest == hashlib.sha256((folder / name).read_bytes()).hexdigest()


class Recorder:
    def __init__(self) -> None:
        self.total = self.done = 0
        self.unit = ""

    @contextmanager
    def task(self, label: str, *, total: int | None, unit: str = ""):
        self.total, self.unit = total, unit
        yield self

    def advance(self, amount: int = 1) -> None:
        self.done += amount

    def update(self, **fields: object) -> None: ...

    def note(self, text: str) -> None: ...


def test_progress_counts_every_byte_of_every_file(tmp_path, arrays):
    first, *rest = arrays.items()
    folder = store(tmp_path / "x", dict([first]), dict(rest))
    recorder = Recorder()
    fingerprint(open_checkpoint(folder), progress=recorder)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert (recorder.done, recorder.total, recorder.unit) == (size, size, "B")


def test_a_file_that_changed_since_it_was_opened(tmp_path, arrays):
    folder = store(tmp_path / "x", arrays)
    checkpoint = open_checkpoint(folder)
    save_file({"a": some(3)}, folder / "model.safetensors")
    with pytest.raises(IntegrityError, match="changed"):
        fingerprint(checkpoint)
    (folder / "model.safetensors").unlink()
    with pytest.raises(LocalIOError):
        fingerprint(checkpoint)


def test_a_file_that_shrinks_while_it_is_read(tmp_path, monkeypatch):
    folder = store(tmp_path / "x", {"a": some(1000)})
    path = folder / "model.safetensors"
    monkeypatch.setattr("adapterhub.weights.fingerprints.CHUNK_BYTES", 1024)

    class Cutter(Recorder):
        def advance(self, amount: int = 1) -> None:
            with path.open("r+b") as handle:
                handle.truncate(2000)

    with pytest.raises(IntegrityError, match="changed while it was being read"):
        fingerprint(open_checkpoint(folder), progress=Cutter())


def test_a_fault_in_one_shard_is_the_fault_of_all(tmp_path, arrays):
    first, *rest = arrays.items()
    folder = store(tmp_path / "x", dict([first]), dict(rest))
    checkpoint = open_checkpoint(folder)
    path = folder / "model-1.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(IntegrityError):
        fingerprint(checkpoint)
