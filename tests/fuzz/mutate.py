"""Mutations of valid inputs: bytes flipped and cut, keys dropped and doubled, values exchanged for nasty ones."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from tests.fuzz.targets import Target, safetensors_file

_HUGE = 10**400
# Values that readers trip over: numbers at every edge, text of every kind, containers where none belong.
NASTY: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    0.5,
    -0.0,
    1e308,
    5e-324,
    2**31,
    2**53 + 1,
    2**63 - 1,
    2**63,
    2**64,
    2**64 - 1,
    _HUGE,
    -_HUGE,
    "",
    " ",
    "\0",
    "\ud800",
    "\udfff\ud800",
    "\u202e",
    "\x1b[31m",
    "\x9b",
    "é",
    "e\u0301",
    "../../etc/passwd",
    "/etc/passwd",
    "C:\\x",
    "NUL",
    "con.json",
    "a" * 5000,
    "9" * 5000,
    "1.0",
    "99.0",
    "1.99",
    "1.2.3",
    "0.0.0+g0123456789ab",
    "1!2.3",
    "org/name",
    "org/name>=1",
    "org/name==1.*",
    "org/name==" + "9" * 4000,
    "org/name~=1",
    "sha256:" + "0" * 64,
    "(a+)+$",
    "(",
    "=",
    ",",
    "a=nan",
    "a=1e999",
    "a,a",
    "2026-02-30T00:00:00Z",
    "0000-01-01T00:00:00Z",
    [],
    {},
    [[]],
    [None],
    {"": None},
    {"a": {"b": []}},
)
_PIECES: tuple[bytes, ...] = (
    b"\0",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\\ud800",
    b"\\u0000",
    b"\\U0011ffff",
    b"\\UFFFFFFFF",
    b"&a ",
    b"*a ",
    b"!!python/object/apply:os.system ",
    b"!!binary ",
    b"<<: ",
    b"? ",
    b"- ",
    b"---\n",
    b"...\n",
    b"%YAML 1.1\n",
    b"%TAG ! tag:x,2000:\n",
    b"|\n",
    b">-\n",
    b"#",
    b"\t",
    b"\r",
    b"\x85",
    "\u2028".encode(),
    b'"',
    b"'",
    b"{",
    b"[",
    b"}",
    b"]",
    b":",
    b",",
    b"\n",
    b"1e999",
    b"-0",
    b"0x" + b"f" * 50,
    b"NaN",
    b"Infinity",
    b".inf",
    b"9" * 500,
)


def mutated(target: Target, random: Random) -> bytes:
    """Return one input made from a target's seeds."""
    data = random.choice(target.seeds)
    if target.syntax != "card" and random.random() < 0.5:
        data = _structural(target, data, random)
    for _ in range(random.choice((0, 1, 1, 2, 4, 8))):
        data = _bytes(data, random)
    return data


def _bytes(data: bytes, random: Random) -> bytes:
    place, end = random.randrange(len(data) + 1), random.randrange(len(data) + 1)
    place, end = min(place, end), max(place, end)
    match random.randrange(8):
        case 0 if data:
            at = min(place, len(data) - 1)
            return data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :]
        case 1:
            return data[:place]
        case 2:
            return data[:place] + data[min(end, place + 20) :]
        case 3:
            return data[:end] + data[place:end][:400] + data[end:]
        case 4:
            return data[:place] + random.randbytes(random.randrange(1, 9)) + data[place:]
        case 5 if len(data) >= 8:
            return random.choice((0, 1, len(data), 2**31, 2**63, 2**64 - 1)).to_bytes(8, "little") + data[8:]
        case 6:
            return data[:place] + random.choice((b"[", b"{", b'{"a":', b"[[", b"- ")) * random.randrange(1, 300)
        case _:
            return data[:place] + random.choice(_PIECES) + data[place:]


def _structural(target: Target, data: bytes, random: Random) -> bytes:
    """Change the data that an input stands for, and write it again."""
    if target.syntax == "safetensors":
        length = int.from_bytes(data[:8], "little")
        text = _changed(data[8 : 8 + length], random)
        return safetensors_file(text, data[8 + length :])
    if target.syntax == "yaml":
        from ruamel.yaml import YAML

        data = json.dumps(YAML(typ="safe", pure=True).load(data.decode()), default=str).encode()
    return _changed(data, random).encode("utf-8", "surrogatepass")


def _changed(data: bytes, random: Random) -> str:
    value: Any = json.loads(data)
    for _ in range(random.choice((1, 1, 2, 3))):
        value = _change(value, random)
    text = json.dumps(value, ensure_ascii=random.random() < 0.5)
    if random.random() < 0.1 and text.startswith("{") and isinstance(value, dict) and value:
        key = random.choice(list(value))
        text = f"{{{json.dumps(key)}: {json.dumps(random.choice(NASTY))}, {text[1:]}"
    return text


def _change(value: Any, random: Random) -> Any:
    """Return the data with one thing changed somewhere in it."""
    if isinstance(value, dict) and value and random.random() < 0.9:
        key = random.choice(list(value))
        match random.randrange(6):
            case 0:
                return {name: item for name, item in value.items() if name != key}
            case 1:
                return value | {str(random.choice(NASTY)): random.choice(NASTY)}
            case 2:
                return {(str(random.choice(NASTY)) if name == key else name): item for name, item in value.items()}
            case _:
                return value | {key: _change(value[key], random)}
    if isinstance(value, list) and value and random.random() < 0.8:
        index = random.randrange(len(value))
        match random.randrange(4):
            case 0:
                return value[:index] + value[index + 1 :]
            case 1:
                return value + [value[index]] * random.choice((1, 3, 50))
            case _:
                return [*value[:index], _change(value[index], random), *value[index + 1 :]]
    if isinstance(value, int) and not isinstance(value, bool) and random.random() < 0.4:
        return value + random.choice((-(2**64), -1, 1, 7, 2**63, 2**64))
    return random.choice(NASTY)
