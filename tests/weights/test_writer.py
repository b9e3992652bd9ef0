"""The streaming writer: the library's bytes, or nothing at all."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterhub.errors import IntegrityError, LocalIOError, UsageError
from adapterhub.weights import (
    DTYPE_BITS,
    SafetensorsWriter,
    TensorSpec,
    aligned_order,
    iter_chunks,
    open_checkpoint,
    parse_header,
    read_header,
)

PAIR = [TensorSpec(name="a", dtype="U8", shape=(3,)), TensorSpec(name="b", dtype="F32", shape=(2,))]


def test_in_aligned_order_the_file_is_the_librarys_byte_for_byte(tmp_path):
    arrays = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a": np.ones(3, np.float16),
        "é": np.zeros((0, 3), np.int64),
        "c": np.array([True, False]),
        "d": np.array(2.5),
    }
    names = {"float32": "F32", "float16": "F16", "int64": "I64", "bool": "BOOL", "float64": "F64"}
    specs = [TensorSpec(name=name, dtype=names[str(item.dtype)], shape=item.shape) for name, item in arrays.items()]
    order = aligned_order(specs)
    path = tmp_path / "x.safetensors"
    with SafetensorsWriter(path, order, metadata={"format": "pt"}) as writer:
        for spec in order:
            writer.write(spec.name, arrays[spec.name].tobytes())
    assert path.read_bytes() == safetensors.numpy.save(arrays, metadata={"format": "pt"})
    assert writer.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert writer.header == read_header(path)


specs = st.lists(
    st.builds(
        lambda name, dtype, shape: TensorSpec(name=name, dtype=dtype, shape=tuple(shape)),
        st.text(max_size=5),
        st.sampled_from([name for name, bits in DTYPE_BITS.items() if bits >= 8]),
        st.lists(st.integers(0, 3), max_size=3),
    ),
    max_size=6,
    unique_by=lambda spec: spec.name,
).filter(lambda items: all(item.name != "__metadata__" for item in items))


@given(tensors=specs, metadata=st.none() | st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=3))
@settings(deadline=None, max_examples=150)
def test_what_is_written_is_read_by_the_library(tmp_path_factory, tensors, metadata):
    path = tmp_path_factory.mktemp("writer") / "x.safetensors"
    written: dict[str, bytes] = {}
    with SafetensorsWriter(path, tensors, metadata=metadata) as writer:
        for position, spec in enumerate(tensors):
            info = writer.header.tensors[spec.name]
            written[spec.name] = bytes([position + 1]) * info.nbytes
            half = info.nbytes // 2
            writer.write(spec.name, [written[spec.name][:half], memoryview(written[spec.name])[half:]])
    raw = path.read_bytes()
    theirs = {
        name: (item["dtype"], tuple(item["shape"]), bytes(item["data"])) for name, item in safetensors.deserialize(raw)
    }
    assert theirs == {spec.name: (spec.dtype, spec.shape, written[spec.name]) for spec in tensors}
    assert int.from_bytes(raw[:8], "little") % 8 == 0
    assert writer.header == read_header(path)
    assert writer.header.metadata == (metadata or {})
    assert writer.sha256 == hashlib.sha256(raw).hexdigest()


def test_aligned_order_aligns(tmp_path):
    odd = [
        TensorSpec(name=f"{dtype}{n}", dtype=dtype, shape=(n,))
        for n in (1, 3)
        for dtype in DTYPE_BITS
        if dtype[:2] not in ("F4", "F6")
    ]
    with SafetensorsWriter(tmp_path / "x", aligned_order(odd)) as writer:
        for spec in aligned_order(odd):
            writer.write(spec.name, bytes(writer.header.tensors[spec.name].nbytes))
    for info in writer.header.tensors.values():
        assert info.start % (DTYPE_BITS[info.dtype] // 8) == 0


def test_tensors_are_copied_from_file_to_file_in_chunks(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    safetensors.numpy.save_file(
        {"a": np.arange(999, dtype=np.float32), "b": np.ones(5, np.uint8)}, source / "model.safetensors"
    )
    checkpoint = open_checkpoint(source)
    tensors = list(checkpoint.tensors.values())
    with SafetensorsWriter(tmp_path / "copy.safetensors", tensors) as writer:
        for tensor in tensors:
            writer.write(tensor.name, iter_chunks(source, tensor, chunk_bytes=100))
    copied = safetensors.numpy.load_file(tmp_path / "copy.safetensors")
    np.testing.assert_array_equal(copied["a"], np.arange(999))
    np.testing.assert_array_equal(copied["b"], np.ones(5))


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([("a", b"ab")], "'a' has 2 bytes, its shape needs 3"),
        ([("a", b"abcd")], "'a' is longer than the 3 bytes"),
        ([("a", [b"ab", b"cd"])], "'a' is longer than the 3 bytes"),
        ([("b", bytes(8))], "'a' is next"),
        ([("a", b"abc"), ("a", b"abc")], "'b' is next"),
        ([("a", b"abc"), ("b", bytes(8)), ("c", b"")], "all tensors are written"),
        ([("a", b"abc")], "1 tensors were not written, first 'b'"),
        ([], "2 tensors were not written, first 'a'"),
    ],
)
def test_wrong_tensors_are_refused_and_the_old_file_stays(tmp_path, steps, message):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(IntegrityError) as caught, SafetensorsWriter(path, PAIR) as writer:
        for name, data in steps:
            writer.write(name, data)
    assert message in caught.value.message
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.safetensors"]
    assert path.read_bytes() == b"old"
    with pytest.raises(UsageError):
        writer.sha256  # noqa: B018


def test_an_exception_of_the_caller_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), SafetensorsWriter(tmp_path / "x", PAIR) as writer:
        writer.write("a", b"abc")
        assert len(list(tmp_path.iterdir())) == 1
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "tensors",
    [
        [PAIR[0], PAIR[0]],
        [TensorSpec(name="__metadata__", dtype="U8", shape=(1,))],
        [TensorSpec(name="a", dtype="F31", shape=(1,))],
        [TensorSpec(name="a", dtype="U8", shape=(-1,))],
        [TensorSpec(name="a", dtype="U8", shape=(-1, -1))],
        [TensorSpec(name="a", dtype="F4", shape=(3,))],
        [TensorSpec(name="a", dtype="U8", shape=(2**32, 2**32))],
        [TensorSpec(name="\ud800", dtype="U8", shape=(1,))],
        [TensorSpec(name="a", dtype="U8", shape=(1,) * 40_000)],
    ],
)
def test_what_no_reader_could_read_is_not_begun(tmp_path, tensors):
    with pytest.raises(UsageError):
        SafetensorsWriter(tmp_path / "x", tensors)
    assert list(tmp_path.iterdir()) == []


def test_a_writer_is_used_once_and_inside_its_block(tmp_path):
    writer = SafetensorsWriter(tmp_path / "x", [])
    with pytest.raises(UsageError, match="inside"):
        writer.write("a", b"")
    with writer:
        pass
    assert parse_header((tmp_path / "x").read_bytes(), file_size=16, file="x").tensors == {}
    with pytest.raises(UsageError, match="once"):
        writer.__enter__()


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(LocalIOError, match="cannot be written"):
        SafetensorsWriter(tmp_path / "none" / "x", []).__enter__()


LIMITED = """
import json, pathlib, resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5_000_000, 5_000_000))
from adapterhub.errors import LocalIOError
from adapterhub.weights import SafetensorsWriter, TensorSpec
try:
    with SafetensorsWriter(pathlib.Path(sys.argv[1]), [TensorSpec(name="a", dtype="U8", shape=(8_000_000,))]) as writer:
        writer.write("a", (bytes(1_000_000) for _ in range(8)))
except LocalIOError as error:
    print(json.dumps([error.message, error.hint]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no file size limits here")
def test_a_disk_that_takes_no_more_is_a_local_fault_and_leaves_nothing(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "x")],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    message, hint = json.loads(result.stdout)
    assert "too large" in message
    assert "8,000" in hint
    assert list(tmp_path.iterdir()) == []
