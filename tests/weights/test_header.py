"""Headers: what the safetensors library refuses is refused, what it accepts is accepted but for the documented few."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from adapterhub.errors import IntegrityError, InvalidFileError, LocalIOError
from adapterhub.weights import DTYPE_BITS, MAX_HEADER_BYTES, header_end, parse_header, read_header, sniff
from adapterhub.weights._header_json import MAX_ENTRY_CHARACTERS

ENTRY = '"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
FOUR = b"\0" * 4


def pack(header: str | bytes, data: bytes = b"") -> bytes:
    raw = header.encode() if isinstance(header, str) else header
    return len(raw).to_bytes(8, "little") + raw + data


def entry(fields: str, name: str = "a") -> str:
    return f'{{"{name}":{{{fields}}}}}'


def u8(name: str, first: int, last: int) -> str:
    return f'"{name}":{{"dtype":"U8","shape":[{last - first}],"data_offsets":[{first},{last}]}}'


def parse(raw: bytes):
    return parse_header(raw, file_size=len(raw), file="x.safetensors")


MALFORMED = [
    ("empty file", b"", "too few"),
    ("seven bytes", b"\0" * 7, "too few"),
    ("header past the end", pack("{}")[:-1], "past the end"),
    ("header over the limit", (MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{}", "over the limit"),
    ("header length 2^64-1", b"\xff" * 8 + b"{}", "over the limit"),
    ("no header", pack(""), "not JSON"),
    ("not JSON", pack("{nonsense}"), "string was expected"),
    ("cut off", pack('{"a":{"dtype":'), "not JSON"),
    ("not UTF-8", pack(b'{"\xff":1}'), "not UTF-8"),
    ("encoded surrogate", pack(b'{"\xed\xa0\x80":1}'), "not UTF-8"),
    ("byte order mark", pack("\ufeff{" + ENTRY + "}", FOUR), "not JSON"),
    ("a list", pack("[]"), "not JSON"),
    ("null", pack("null"), "not JSON"),
    ("trailing comma", pack("{" + ENTRY + ",}", FOUR), "string was expected"),
    ("trailing junk", pack("{" + ENTRY + "} x", FOUR), "goes on"),
    ("trailing NUL", pack("{" + ENTRY + "}\0", FOUR), "goes on"),
    ("half a surrogate pair", pack('{"__metadata__":{"a":"\\ud800"},' + ENTRY + "}", FOUR), "surrogate"),
    (
        "the same in an unknown field",
        pack(entry('"dtype":"F32","shape":[],"data_offsets":[0,4],"x":"\\udc00"'), FOUR),
        "surr",
    ),
    ("tensor twice", pack("{" + ENTRY + "," + ENTRY + "}", FOUR), "given twice"),
    ("key twice", pack(entry('"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]'), FOUR), "given twice"),
    ("metadata twice", pack('{"__metadata__":{},"__metadata__":{}}'), "given twice"),
    ("metadata key twice", pack('{"__metadata__":{"a":"1","a":"1"}}'), "given twice"),
    ("metadata a number", pack('{"__metadata__":{"a":1}}'), "not a string"),
    ("metadata a list", pack('{"__metadata__":[]}'), "not JSON"),
    ("entry a number", pack('{"a":1}'), "not an object"),
    ("entry a list", pack('{"a":["F32",[1],[0,4]]}', FOUR), "not an object"),
    ("unknown dtype", pack(entry('"dtype":"F31","shape":[1],"data_offsets":[0,4]'), FOUR), "not known"),
    ("lower-case dtype", pack(entry('"dtype":"f32","shape":[1],"data_offsets":[0,4]'), FOUR), "not known"),
    ("no dtype", pack(entry('"shape":[1],"data_offsets":[0,4]'), FOUR), "no dtype"),
    ("no shape", pack(entry('"dtype":"F32","data_offsets":[0,4]'), FOUR), "no shape"),
    ("no offsets", pack(entry('"dtype":"F32","shape":[1]'), FOUR), "no data_offsets"),
    ("negative shape", pack(entry('"dtype":"F32","shape":[-1],"data_offsets":[0,4]'), FOUR), "no shape"),
    ("minus zero", pack(entry('"dtype":"F32","shape":[-0],"data_offsets":[0,0]')), "no shape"),
    ("fractional shape", pack(entry('"dtype":"F32","shape":[1.0],"data_offsets":[0,4]'), FOUR), "no shape"),
    ("true as shape", pack(entry('"dtype":"F32","shape":[true],"data_offsets":[0,4]'), FOUR), "no shape"),
    ("string as shape", pack(entry('"dtype":"F32","shape":["1"],"data_offsets":[0,4]'), FOUR), "no shape"),
    ("leading zero", pack(entry('"dtype":"F32","shape":[01],"data_offsets":[0,4]'), FOUR), "not JSON"),
    ("dimension 2^64", pack(entry(f'"dtype":"F32","shape":[{2**64},0],"data_offsets":[0,0]')), "no shape"),
    ("5000-digit number", pack(entry(f'"dtype":"F32","shape":[{"9" * 5000}],"data_offsets":[0,4]'), FOUR), "range"),
    ("overflowing", pack(entry(f'"dtype":"F32","shape":[{2**32},{2**32}],"data_offsets":[0,4]'), FOUR), "64-bit"),
    (
        "overflow before a zero",
        pack(entry(f'"dtype":"F32","shape":[{2**32},{2**32},0],"data_offsets":[0,0]')),
        "64-bit",
    ),
    ("overflow in bits", pack(entry(f'"dtype":"F32","shape":[{2**60}],"data_offsets":[0,4]'), FOUR), "64-bit"),
    ("three halves of a byte", pack(entry('"dtype":"F4","shape":[3],"data_offsets":[0,1]'), b"0"), "whole bytes"),
    ("negative offset", pack(entry('"dtype":"F32","shape":[1],"data_offsets":[-4,0]'), FOUR), "data_offsets"),
    ("three offsets", pack(entry('"dtype":"F32","shape":[1],"data_offsets":[0,4,4]'), FOUR), "data_offsets"),
    ("backwards", pack(entry('"dtype":"F32","shape":[1],"data_offsets":[4,0]'), FOUR), "backwards"),
    ("past the end", pack(entry('"dtype":"F32","shape":[2],"data_offsets":[0,8]'), FOUR), "past the file"),
    ("offset 2^64-1", pack(entry(f'"dtype":"F32","shape":[1],"data_offsets":[0,{2**64 - 1}]'), FOUR), "past the file"),
    ("gap at the beginning", pack(entry('"dtype":"F32","shape":[1],"data_offsets":[4,8]'), FOUR * 2), "gap"),
    ("bytes at the end", pack("{" + ENTRY + "}", FOUR + b"!"), "belong to no tensor"),
    ("bytes and no tensor", pack("{}", b"!"), "belong to no tensor"),
    ("size is not shape x dtype", pack(entry('"dtype":"F32","shape":[3],"data_offsets":[0,4]'), FOUR), "is 12"),
    ("overlap", pack("{" + ENTRY + "," + ENTRY.replace('"a"', '"b"') + "}", FOUR), "overlaps"),
    ("NaN", pack(entry('"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":NaN'), FOUR), "not JSON"),
    ("1e999", pack(entry('"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1e999'), FOUR), "range"),
    (
        "126 lists deep",
        pack(entry(f'"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":{"[" * 126}{"]" * 126}'), FOUR),
        "deep",
    ),
    (
        "30000 lists deep",
        pack(entry(f'"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":{"[" * 30000}{"]" * 30000}'), FOUR),
        "deep",
    ),
    ("a million open lists", pack('{"a":' + "[" * 1_000_000), "not an object"),
    ("a million open objects", pack('{"a":' * 1_000_000), "JSON"),
]

# Refused here, accepted by the library: the exceptions that the module's docstring lists.
STRICTER = {"tensor twice", "metadata key twice", "entry a list"}

SPACED = ' \t\r\n{ "a" :\n{ "dtype" : "F32" , "shape" : [ 1 ] , "data_offsets" : [ 0 , 4 ] } } \n'
ESCAPED = '"\\u0061":{"\\u0064type":"F32","shape":[1],"data_offsets":[0,4]}'
ACCEPTED = [
    ("empty", pack("{}")),
    ("white space everywhere", pack(SPACED, FOUR)),
    (
        "json.dumps' own spacing",
        pack(json.dumps({"a": {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]}}), FOUR),
    ),
    ("other order of keys", pack(entry('"data_offsets":[0,4],"shape":[1],"dtype":"F32"'), FOUR)),
    ("unknown field", pack(entry('"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":[{"y":null}]'), FOUR)),
    ("125 lists deep", pack(entry(f'"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":{"[" * 125}{"]" * 125}'), FOUR)),
    ("long unknown field", pack(entry(f'"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":"{"y" * 60_000}"'), FOUR)),
    ("metadata null", pack('{"__metadata__":null,' + ENTRY + "}", FOUR)),
    ("metadata with escapes", pack('{"__metadata__":{"\\u0061":"\\ud83d\\ude00\\n"},' + ENTRY + "}", FOUR)),
    ("long metadata", pack(json.dumps({"__metadata__": {"a": "[{" * 200_000}}))),
    ("escaped names", pack('{"\\u005f_metadata__":{"a":"b"},' + ESCAPED + "}", FOUR)),
    ("empty name", pack(entry('"dtype":"F32","shape":[1],"data_offsets":[0,4]', name=""), FOUR)),
    ("scalar", pack(entry('"dtype":"F32","shape":[],"data_offsets":[0,4]'), FOUR)),
    ("no elements", pack(entry(f'"dtype":"F32","shape":[0,{2**64 - 1}],"data_offsets":[0,0]'))),
    ("100 dimensions", pack(entry(f'"dtype":"F32","shape":{[1] * 100},"data_offsets":[0,4]'), FOUR)),
    ("two in one byte", pack(entry('"dtype":"F4","shape":[2],"data_offsets":[0,1]'), b"0")),
    ("written out of order", pack(f"{{{u8('b', 1, 2)},{u8('a', 0, 1)}}}", b"01")),
    ("empty tensor between", pack(f"{{{u8('b', 0, 1)},{u8('a', 1, 1)},{u8('c', 1, 2)}}}", b"01")),
]


def library_accepts(raw: bytes) -> list[tuple[str, dict]] | None:
    try:
        return safetensors.deserialize(raw)
    except safetensors.SafetensorError:
        return None


@pytest.mark.parametrize(("label", "raw", "message"), MALFORMED, ids=[case[0] for case in MALFORMED])
def test_malformed_is_refused_with_place_and_hint(label, raw, message):
    with pytest.raises(IntegrityError) as caught:
        parse(raw)
    assert message in caught.value.message
    assert caught.value.where.startswith("x.safetensors")
    assert caught.value.hint
    assert (library_accepts(raw) is not None) == (label in STRICTER)


@pytest.mark.parametrize(("label", "raw"), ACCEPTED, ids=[case[0] for case in ACCEPTED])
def test_what_the_library_accepts_is_read_the_same(label, raw):
    assert_same_as_library(raw)


def assert_same_as_library(raw: bytes) -> None:
    theirs = library_accepts(raw)
    assert theirs is not None
    ours = parse(raw)
    assert list(ours.tensors) == sorted(ours.tensors)
    assert ours.file_size == len(raw)
    found = {name: (item.dtype, list(item.shape), raw[item.start : item.end]) for name, item in ours.tensors.items()}
    assert found == {name: (item["dtype"], item["shape"], bytes(item["data"])) for name, item in theirs}


def test_an_entry_over_the_limit_is_refused_though_the_library_reads_it():
    fields = f'"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":"{"y" * MAX_ENTRY_CHARACTERS}"'
    raw = pack(entry(fields), FOUR)
    assert library_accepts(raw) is not None
    with pytest.raises(IntegrityError, match="longer than 65,536"):
        parse(raw)


def test_every_dtype_of_the_library_has_its_size():
    for dtype, bits in DTYPE_BITS.items():
        raw = pack(json.dumps({"a": {"dtype": dtype, "shape": [8], "data_offsets": [0, bits]}}), b"0" * bits)
        assert_same_as_library(raw)


def test_a_tensor_knows_its_place_size_and_count():
    raw = pack(entry('"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]', name="w"), b"0" * 12)
    tensor = parse(raw).tensors["w"]
    assert (tensor.file, tensor.shape, tensor.dtype) == ("x.safetensors", (2, 3), "BF16")
    assert (tensor.start, tensor.end, tensor.nbytes, tensor.elements) == (len(raw) - 12, len(raw), 12, 6)


def test_metadata_is_returned():
    raw = safetensors.numpy.save({"a": np.zeros(2, np.float32)}, metadata={"format": "pt", "é": "\n"})
    assert parse(raw).metadata == {"format": "pt", "é": "\n"}


def test_a_prefix_that_ends_with_the_header_is_enough():
    raw = pack("{" + ENTRY + "}", FOUR)
    end = header_end(raw[:8], file_size=len(raw), file="x")
    assert end == len(raw) - 4
    assert parse_header(raw[:end], file_size=len(raw), file="x").tensors["a"].nbytes == 4
    with pytest.raises(IntegrityError, match="were given"):
        parse_header(raw[: end - 1], file_size=len(raw), file="x")


def test_control_characters_of_a_name_do_not_reach_a_message():
    with pytest.raises(IntegrityError) as caught:
        parse(pack('{"\\u001b[31mred":{"dtype":"?","shape":[],"data_offsets":[0,0]}}'))
    assert "\x1b" not in str(caught.value)
    assert "red" in str(caught.value)


# A small grammar of headers: mostly right, each part now and then wrong, in spellings that a careless reader mixes up.
numbers = st.one_of(
    st.sampled_from(["0", "1", "2", "3", "4", "8", "12", "-0", "-1", "1.0", "1e0", "true", "null", '"1"', "[]", "01"]),
    st.sampled_from([str(2**63), str(2**64 - 1), str(2**64), str(2**32), "9" * 25, "9" * 400]),
)
small = st.sampled_from(["0", "1", "2", "4"])
shapes = st.lists(st.one_of(small, small, small, numbers), max_size=3).map(lambda items: f"[{','.join(items)}]")
offsets = st.one_of(
    st.tuples(st.integers(0, 6), st.integers(0, 8)).map(lambda pair: f"[{pair[0]},{pair[0] + pair[1]}]"),
    st.lists(numbers, max_size=3).map(lambda items: f"[{','.join(items)}]"),
)
dtypes = st.sampled_from(['"U8"', '"F32"', '"F4"', '"BF16"', '"F6_E2M3"', '"F99"', '"\\u00558"', '{"U8":null}', "1"])
names = st.sampled_from(['"a"', '"b"', '"\\u0061"', '"é"', '""', '"\\ud800"', '"__metadata__"', '"a\\\\"', '"\\x"'])
extras = st.sampled_from(
    ["", "", "", ',"x":1', ',"x":1e999', ',"x":NaN', ',"x":{"x":[]}', ',"dtype":"U8"', ',"x":1,"x":2']
)
entries = st.one_of(
    st.builds(lambda d, s, o, x: f'{{"dtype":{d},"shape":{s},"data_offsets":{o}{x}}}', dtypes, shapes, offsets, extras),
    st.builds(lambda d, s, o: f'{{"shape":{s}, "data_offsets" :{o},\n"dtype":{d}}}', dtypes, shapes, offsets),
    st.sampled_from(["null", "{}", '{"a":"b"}', '{"a":1}', '["U8",[1],[0,1]]', "1"]),
)
documents = st.lists(st.tuples(names, entries), max_size=3).map(
    lambda members: "{" + ",".join(f"{name}:{value}" for name, value in members) + "}"
)


class Stricter(Exception):
    """The header holds something that only we refuse."""


def refuse_what_only_we_refuse(header: bytes) -> None:
    """Raise Stricter where a documented exception applies; written with json.loads, apart from our parser."""

    def pairs(items):
        keys = [key for key, _ in items]
        if len(keys) != len(set(keys)):
            raise Stricter
        return dict(items)

    try:
        document = json.loads(header.decode(), object_pairs_hook=pairs)
    except (ValueError, RecursionError):
        return
    for name, value in document.items() if isinstance(document, dict) else ():
        if name != "__metadata__" and (isinstance(value, list) or isinstance(value.get("dtype"), dict)):
            raise Stricter


def compare_with_library(raw: bytes) -> None:
    try:
        ours = parse(raw)
    except IntegrityError as error:
        assert error.where and error.hint
        if library_accepts(raw) is not None:
            with pytest.raises(Stricter):
                refuse_what_only_we_refuse(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
        return
    assert_same_as_library(raw)
    assert all(item.nbytes * 8 == item.elements * DTYPE_BITS[item.dtype] for item in ours.tensors.values())


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(document=documents, size=st.integers(0, 12))
@example(document=f"{{{u8('a', 0, 1)},{u8('a', 0, 1)}}}", size=1)
def test_generated_headers_fare_as_in_the_library(document, size):
    compare_with_library(pack(document, b"\0" * size))


@st.composite
def mutated_files(draw) -> bytes:
    tensors = {
        name: np.zeros(shape, dtype)
        for name, shape, dtype in draw(
            st.lists(
                st.tuples(
                    st.text(max_size=4),
                    st.lists(st.integers(0, 3), max_size=3),
                    st.sampled_from([np.float32, np.float16, np.int64, np.uint8, np.bool_]),
                ),
                max_size=4,
            )
        )
    }
    tensors.pop("__metadata__", None)
    metadata = draw(st.none() | st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2))
    raw = bytearray(safetensors.numpy.save(tensors, metadata=metadata))
    for _ in range(draw(st.integers(0, 3))):
        position = draw(st.integers(0, max(0, len(raw) - 1)))
        kind = draw(st.sampled_from(["set", "insert", "delete", "cut", "grow"]))
        character = draw(st.sampled_from(list(b'0123456789{}[]",: -.\\untrue\x00\x7f\xc3\xa9')))
        if kind == "set" and raw:
            raw[position] = character
        elif kind == "insert":
            raw.insert(position, character)
        elif kind == "delete" and raw:
            del raw[position]
        elif kind == "cut":
            del raw[position:]
        else:
            raw.append(character)
    return bytes(raw)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(raw=mutated_files(), repair_length=st.booleans())
def test_mutated_files_fare_as_in_the_library(raw, repair_length):
    if repair_length and len(raw) > 8:
        closing = raw.rfind(b"}")
        raw = max(0, closing - 7).to_bytes(8, "little") + raw[8:]
    compare_with_library(raw)


@settings(max_examples=300, deadline=None)
@given(raw=st.binary(max_size=64))
def test_arbitrary_bytes_fare_as_in_the_library(raw):
    compare_with_library(raw)


@pytest.mark.parametrize(
    "header",
    [
        '{"a":{"dtype":"F32","shape":[' + "[]," * 2_000_000 + "[]]}}",
        '{"a":{"dtype":"F32","data_offsets":[0,4],"shape":[1],"x":[' + '"xy",' * 1_000_000 + "1]}}",
        '{"__metadata__":{"a":[' + "{}," * 2_000_000 + "{}]}}",
    ],
    ids=["lists", "strings", "metadata"],
)
def test_a_hostile_header_costs_a_few_times_its_size_not_a_hundred(header):
    raw = pack(header)
    tracemalloc.start()
    try:
        with pytest.raises(IntegrityError):
            parse(raw)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * len(raw)


def test_a_claimed_length_allocates_nothing(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes((99_000_000).to_bytes(8, "little") + b"{}")
    tracemalloc.start()
    try:
        with pytest.raises(IntegrityError, match="past the end"):
            read_header(path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_read_header_reads_a_file_of_the_library(tmp_path):
    path = tmp_path / "adapter_model.safetensors"
    safetensors.numpy.save_file({"b": np.ones((2, 3), np.float16), "a": np.zeros(5, np.float32)}, path)
    header = read_header(path)
    assert [(item.name, item.dtype, item.shape, item.file) for item in header.tensors.values()] == [
        ("a", "F32", (5,), "adapter_model.safetensors"),
        ("b", "F16", (2, 3), "adapter_model.safetensors"),
    ]


class Harmful:
    def __reduce__(self):
        return os.system, ("touch harmed",)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_under_a_safetensors_name_is_named_and_not_opened(tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps(Harmful(), protocol=protocol))
    assert sniff(path) == "pickle"
    with pytest.raises(InvalidFileError, match="pickle") as caught:
        read_header(path)
    assert "safetensors" in caught.value.hint
    assert not (tmp_path / "harmed").exists()


def test_zip_and_gguf_under_a_safetensors_name_are_named(tmp_path):
    archive = tmp_path / "zip.safetensors"
    with zipfile.ZipFile(archive, "w") as handle:
        handle.writestr("archive/data.pkl", pickle.dumps({}))
    gguf = tmp_path / "gguf.safetensors"
    gguf.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(16))
    assert (sniff(archive), sniff(gguf)) == ("zip", "gguf")
    with pytest.raises(InvalidFileError, match=r"torch\.save"):
        read_header(archive)
    with pytest.raises(InvalidFileError, match="GGUF"):
        read_header(gguf)


def test_sniff_knows_safetensors_even_where_the_length_looks_like_a_pickle(tmp_path):
    path = tmp_path / "x"
    header = "{}".ljust(0x280)  # 0x280 is written 80 02: how a pickle of protocol 2 begins
    path.write_bytes(pack(header))
    assert path.read_bytes().startswith(b"\x80\x02")
    assert sniff(path) == "safetensors"
    assert read_header(path).tensors == {}
    path.write_bytes(b"hello, world")
    assert sniff(path) == "unknown"
    path.write_bytes(b"")
    assert sniff(path) == "unknown"


def test_a_missing_file_is_a_local_fault(tmp_path):
    with pytest.raises(LocalIOError, match="No such file"):
        read_header(tmp_path / "none.safetensors")


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(InvalidFileError, match="regular file"):
        read_header(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_refused_without_waiting_for_a_writer(tmp_path):
    pipe = tmp_path / "x.safetensors"
    os.mkfifo(pipe)
    faults: list[BaseException] = []

    def attempt() -> None:
        try:
            read_header(pipe)
        except BaseException as error:
            faults.append(error)

    reader = threading.Thread(target=attempt, daemon=True)
    reader.start()
    reader.join(10)
    assert not reader.is_alive()
    assert [type(fault) for fault in faults] == [InvalidFileError]


def test_reading_headers_and_hashing_import_neither_numpy_nor_torch(tmp_path):
    safetensors.numpy.save_file({"a": np.zeros(3, np.float32)}, tmp_path / "model.safetensors")
    script = (
        "import sys, pathlib, adapterhub.weights as w\n"
        "w.fingerprint(w.open_checkpoint(pathlib.Path(sys.argv[1])))\n"
        "print([name for name in ('numpy', 'torch', 'safetensors') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert result.stdout.strip() == "[]"
