"""Readers of strangers' bytes under hypothesis: only AdapterHubErrors escape, in bounded time and memory."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapterhub.errors import AdapterHubError
from tests.fuzz.bombs import BOMBS
from tests.fuzz.mutate import mutated
from tests.fuzz.targets import TARGETS, Target, safetensors_file

# Milliseconds for an input of some kilobytes, hundreds of times what it takes: machines are busy.
DEADLINE = 5000
# What reading may take at most: this many times the input, and a fixed amount besides.
MEMORY_MULTIPLE, MEMORY_BYTES = 128, 48 << 20
CPU_SECONDS = 8

every_target = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())
quiet = settings(deadline=DEADLINE, suppress_health_check=list(HealthCheck), database=None)


@every_target
def test_the_seeds_are_valid(target: Target) -> None:
    assert all(target.accepts(seed) for seed in target.seeds)


@every_target
@settings(quiet, max_examples=60)
@given(data=st.binary(max_size=300))
def test_arbitrary_bytes(target: Target, data: bytes) -> None:
    target.accepts(data)
    if target.syntax == "safetensors":
        target.accepts(len(data).to_bytes(8, "little") + data)


@every_target
@settings(quiet, max_examples=80)
@given(seed=st.integers(0, 2**64 - 1))
def test_mutations_of_valid_inputs(target: Target, seed: int) -> None:
    target.accepts(mutated(target, Random(seed)))


@settings(quiet, max_examples=150)
@given(
    rows=st.lists(
        st.tuples(
            st.sampled_from(["F32", "BF16", "U8", "F4", "X9", "f32"]),
            st.lists(st.sampled_from([0, 1, 2, 3, 2**31, 2**32, 2**63, 2**64]), max_size=4),
            st.integers(-1, 40) | st.sampled_from([2**63 - 1, 2**64 - 1, 2**64]),
            st.integers(-1, 40) | st.sampled_from([2**63 - 1, 2**64 - 1, 2**64]),
        ),
        max_size=4,
    ),
    body=st.integers(0, 40),
)
def test_offsets_that_overlap_leave_gaps_and_overflow(rows: list[tuple[str, list[int], int, int]], body: int) -> None:
    entries = [
        f'"t{index}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{start},{end}]}}'
        for index, (dtype, shape, start, end) in enumerate(rows)
    ]
    data = safetensors_file("{" + ",".join(entries) + "}", bytes(body))
    accepted = TARGETS["safetensors"].accepts(data)
    # By the format's own words: the tensors' ranges, in order, tile the bytes after the header.
    spans = sorted((start, end) for _, _, start, end in rows)
    tiles = [0, *[end for _, end in spans]] == [*[start for start, _ in spans], body]
    assert not accepted or tiles


@pytest.mark.skipif(sys.platform != "linux", reason="limits of a process are set as Linux sets them")
@pytest.mark.parametrize(("name", "what"), BOMBS, ids=[" ".join(key).replace(" ", "-") for key in BOMBS])
def test_what_is_made_to_cost_costs_little(name: str, what: str) -> None:
    data = BOMBS[name, what]()
    target = TARGETS[name]
    child = os.fork()
    if child == 0:
        os._exit(_limited(target, data))
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code == 0, {1: "something else than an AdapterHubError escaped", 2: "out of memory"}.get(code, "out of time")


def _limited(target: Target, data: bytes) -> int:
    """Read an input in this process with little memory and time left; the exit code says how it went."""
    import resource

    now = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    memory = now + MEMORY_MULTIPLE * len(data) + MEMORY_BYTES
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    cpu = int(used) + CPU_SECONDS
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        target.accepts(data)
    except MemoryError:
        return 2
    except BaseException:
        return 1
    return 0


# What fuzzing found, kept small: (target, input, what is said of it now).
FOUND = [
    ("json", b'"\\ud800"', "half a surrogate pair"),
    ("json", b'{"a": ["\\udfff\\ud800"]}', "half a surrogate pair"),
    ("json", b'{"\\ud800": 0}', "half a surrogate pair"),
    ("yaml", b'a: "\\ud800"', "half a surrogate pair"),
    ("yaml", b'"\\ud800": 1', "half a surrogate pair"),
    ("yaml", b'a: "\\UFFFFFFFF"', "is not YAML"),
    ("manifest", b'{"summary": "\\ud800"}', "half a surrogate pair"),
    (
        "adapter_config",
        b'{"peft_type": "LORA", "alpha_pattern": {"x": 1%s}}' % (b"0" * 400),
        "expected a finite number",
    ),
    (
        "adapter_config",
        b'{"peft_type": "LORA", "rank_pattern": {"q_proj": 1%s}}' % (b"0" * 400),
        "expected a whole number of at least 1",
    ),
    ("project", b'project_version: "1.0"\nadapters: {a: "a/b@%s"}' % (b" " * 2000), "longer than 1024"),
    ("project", b'project_version: "1.0"\nstacks: {a: "%s"}' % (b"a," * 3000), "longer than 4096"),
    ("adapter_config", b'{"peft_type": "LORA", "target_modules": "x{e<=2}"}', "a brace that repeats nothing"),
    ("adapter_config", b'{"peft_type": "LORA", "target_modules": "(.|[a-z]|[a-z._0-9])*[!?]"}', "takes too long"),
    ("card", b"---\na: !!set x\n---\n", "the header is no YAML"),
    ("card", b'---\na: "\\UFFFFFFFF"\n---\n', "the header is no YAML"),
    ("yaml", b"[" + b"0," * 26_000 + b"0]", "more than 25000 values"),
]


@pytest.mark.parametrize(("name", "data", "message"), FOUND, ids=range(len(FOUND)))
def test_what_was_found_stays_mended(name: str, data: bytes, message: str) -> None:
    with pytest.raises(AdapterHubError, match=message):
        TARGETS[name].run(data)


def test_very_many_faults_are_counted_and_the_first_are_told() -> None:
    data = b"{" + b",".join(b'"k%d": 0' % index for index in range(5000)) + b"}"
    with pytest.raises(AdapterHubError) as caught:
        TARGETS["manifest"].run(data)
    assert len(caught.value.details) == 101
    assert caught.value.details[-1] == f"… and {int(caught.value.message.split()[0]) - 100} more"
