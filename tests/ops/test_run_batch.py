"""A file of prompts answered: as one by one, each by its row's stack, and gone on with where it was cut off."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from adapterhub.cli.main import main
from adapterhub.errors import AdapterHubError, IncompatibleError, InvalidFileError, LocalIOError, UsageError
from adapterhub.ops._batch_answers import partial_of
from adapterhub.ops.batch import BatchPlan, batch, plan_batch
from adapterhub.ops.run import plan_run, run
from adapterhub.settings import Settings
from adapterhub.spec.generation import Generation
from adapterhub.spec.quantization import Quantization
from tests.factory import tiny_gpt2, tiny_llama
from tests.ops.world import Notes, World

GREEDY = Generation(max_new_tokens=8)
# Merged by PEFT; a prompt before the text; a model of PEFT's over the base.
OTHERS = ("ia3", "prefix_tuning", "shadow")


@pytest.fixture
def world(tmp_path: Path, settings: Settings) -> World:
    world = World(root=tmp_path, settings=settings, base=tiny_llama(tmp_path / "base"))
    world.yaml("base_model: tiny-llama\n")
    world.add_base(world.base)
    return world


def write(world: World, *rows: object) -> Path:
    path = world.root / "in.jsonl"
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def plan(world: World, *rows: object, generation: Generation = GREEDY, **options) -> BatchPlan:
    source = write(world, *rows) if rows else world.root / "in.jsonl"
    return plan_batch(
        source,
        world.root / "out.jsonl",
        generation=generation,
        settings=world.settings,
        cwd=world.project,
        device="cpu",
        dtype="float32",
        **options,
    )


def answers(world: World) -> list[dict]:
    return [json.loads(line) for line in (world.root / "out.jsonl").read_text().splitlines()]


def alone(world: World, prompt: str, stack: str | None, generation: Generation = GREEDY) -> str:
    options = {"settings": world.settings, "cwd": world.project, "device": "cpu", "dtype": "float32"}
    return run(plan_run(prompt, stack=stack, generation=generation, **options)).text


def test_every_malformed_row_is_named_by_file_and_line(world: World) -> None:
    with pytest.raises(InvalidFileError) as caught:
        plan(
            world,
            {"prompt": "fine"},
            "{broken",
            "",
            [],
            {"prompt": ""},
            {"question": "?"},
            {"prompt": "a", "messages": [{"role": "user", "content": "b"}]},
            {"messages": [{"role": "user"}]},
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            {"prompt": "a", "stack": 3},
            {"prompt": "a", "completion": "the right one"},
        )
    told = caught.value.details
    file = world.root / "in.jsonl"
    assert [detail.rpartition(f"{file}:")[2].partition(":")[0] for detail in told] == [
        *("2", "4", "5", "6", "7", "8", "9", "10", "11"),
    ]
    assert all("completion" not in detail for detail in told[:-1])


def test_stacks_that_are_not_there_are_all_named_with_their_lines(world: World) -> None:
    with pytest.raises(UsageError) as caught:
        plan(world, {"prompt": "a", "stack": ""}, {"prompt": "b", "stack": "nix"}, {"prompt": "c", "stack": "a=x"})
    first, second = caught.value.details
    assert "in.jsonl:2: 'nix'" in first
    assert "in.jsonl:3: 'a=x'" in second


def test_adapters_that_write_no_text_are_refused(world: World) -> None:
    folder = world.build("labels", task_type="SEQ_CLS")
    with pytest.raises(IncompatibleError) as caught:
        plan(world, {"prompt": "a", "stack": str(folder)})
    assert "SEQ_CLS" in str(caught.value.details)


def test_what_is_there_already_is_not_written_over(world: World) -> None:
    (world.root / "out.jsonl").write_text("mine\n")
    with pytest.raises(LocalIOError, match="already"):
        plan(world, {"prompt": "a"})
    assert (world.root / "out.jsonl").read_text() == "mine\n"


def test_a_plan_tells_the_stacks_and_their_rows(world: World) -> None:
    one = str(world.build("one"))
    found = plan(
        world, {"prompt": "a", "stack": one}, {"prompt": "b", "stack": ""}, {"prompt": "c", "stack": f"{one}=1"}
    )
    data = json.loads(json.dumps(found.to_data()))
    assert data["stacks"] == [{"stack": one, "rows": 2}, {"stack": "", "rows": 1}]
    assert [step.action for step in found.steps] == ["load", "generate", "generate", "write"]


@pytest.mark.engine
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_each_row_is_answered_as_it_would_be_alone(world: World, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from adapterhub.engine import swap

    if kind == "gpt2":
        world.base = tiny_gpt2(world.root / "gpt2")
        world.add_base(world.base, "gpt2")
        more = {"base_id": "gpt2", "prefix": "transformer.", "target_modules": ["c_attn"]}
    else:
        more = {}
    one = str(world.build("one", lora_alpha=200, **more))
    two = str(world.build("two", seed=1, lora_alpha=200, **more))
    reads = []
    read = swap.load_base
    monkeypatch.setattr(swap, "load_base", lambda *args, **named: reads.append(1) or read(*args, **named))
    rows = [
        {"prompt": "hello", "stack": one, "id": 7},
        {"prompt": "a far longer prompt than the others are", "stack": f"{one}=0.5, {two}"},
        {"prompt": "x", "stack": one, "tags": ["kept", None, {"ü": 1.5}]},
        {"prompt": "which one?", "stack": two},
        {"prompt": "a far longer prompt than the others are", "stack": one},
        {"prompt": "middling long", "stack": one},
    ]
    notes = Notes()
    result = batch(plan(world, *rows, batch_size=3), progress=notes)
    made = answers(world)
    assert (result.rows, result.kept, result.tokens) == (6, 0, sum(row["tokens"] for row in made))
    assert [{name: row[name] for name in given if name != "stack"} for row, given in zip(made, rows, strict=True)] == [
        {name: value for name, value in row.items() if name != "stack"} for row in rows
    ]
    assert made[1]["stack"] == f"{one}=0.5,{two}"
    assert len(reads) == 1
    for row, given in zip(made, rows, strict=True):
        assert row["completion"] == alone(world, given["prompt"], given["stack"])
        assert row["tokens"] == 8 or row["finish_reason"] == "stop"
    assert len({row["completion"] for row in made[1:3]}) == 2
    assert not partial_of(world.root / "out.jsonl").exists()


@pytest.mark.engine
def test_conversations_go_through_the_template_and_penalties_see_no_padding(world: World) -> None:
    turns = [{"role": "user", "content": "hello"}]
    penalty = Generation(max_new_tokens=8, repetition_penalty=1.7)
    batch(
        plan(
            world,
            {"messages": turns},
            {"prompt": "a longer one that would pad the first"},
            {"messages": [{"role": "system", "content": "be brief"}, *turns]},
            generation=penalty,
        )
    )
    made = answers(world)
    assert made[0]["completion"] == alone(world, "hello", "", penalty)
    assert made[1]["completion"] == alone(world, "a longer one that would pad the first", "", penalty)
    options = {"settings": world.settings, "cwd": world.project, "device": "cpu", "dtype": "float32"}
    assert made[2]["completion"] == run(plan_run("hello", system="be brief", generation=penalty, **options)).text


@pytest.mark.engine
def test_what_a_row_draws_depends_on_no_other_row(world: World) -> None:
    sampled = Generation(max_new_tokens=8, do_sample=True, temperature=1.5, top_k=100, seed=5)
    rows = [{"prompt": "hello"}, {"prompt": "a longer prompt"}, {"prompt": "hello"}]
    told = []
    for size in (1, 3):
        batch(plan(world, *rows, generation=sampled, batch_size=size))
        told.append([row["completion"] for row in answers(world)])
        (world.root / "out.jsonl").unlink()
    assert told[0] == told[1]
    assert told[0][0] != told[0][2]  # each row has a seed of its own


@pytest.mark.engine
def test_sampling_keeps_to_the_distribution(world: World) -> None:
    """The first token's frequencies over many seeds are those of transformers' own warped scores."""
    import torch

    from adapterhub.engine.generate import Prompt
    from adapterhub.engine.generate_many import generate_many
    from adapterhub.ops.batch import switcher_of, use

    found = plan(world, {"prompt": "x"})
    loaded = use(switcher_of(found.groups[0].load), found.groups[0].load)
    options = Generation(max_new_tokens=1, do_sample=True, temperature=0.1, top_k=60)
    prompt = Prompt(ids=(1, 2, 3), stops=())
    logits = loaded.model(torch.tensor([prompt.ids])).logits[0, -1].detach()
    best = logits.topk(60)
    expected: dict[str, float] = {}  # several bytes that are no character alone are one text
    for token, share in zip(best.indices.tolist(), (best.values / 0.1).softmax(-1).tolist(), strict=True):
        text = loaded.tokenizer.decode([token], skip_special_tokens=True)
        expected[text] = expected.get(text, 0) + share
    assert len(expected) > 10
    count = 1500
    made = generate_many(loaded.model, loaded.tokenizer, [prompt] * count, options, seeds=range(count))
    assert {row.text for row in made} <= set(expected)
    for text, share in expected.items():
        assert abs(sum(row.text == text for row in made) / count - share) < 0.052  # four standard errors at most


@pytest.mark.engine
def test_rows_that_do_not_fit_are_all_named_before_any_is_answered(world: World) -> None:
    with pytest.raises(UsageError) as caught:
        batch(
            plan(world, {"prompt": "a"}, {"prompt": "x" * 600}, {"prompt": "y" * 600, "stack": str(world.build("o"))})
        )
    assert [f"in.jsonl:{line}:" in detail for line, detail in zip((2, 3), caught.value.details, strict=True)] == [
        True
    ] * 2
    assert not (world.root / "out.jsonl").exists()


@pytest.mark.engine
def test_a_run_that_was_cut_off_goes_on_and_answers_only_what_is_left(world: World) -> None:
    rows = [{"prompt": f"row number {number}"} for number in range(5)]
    sampled = Generation(max_new_tokens=4, do_sample=True)
    out = world.root / "out.jsonl"

    class Cut(Notes):
        """Ends the run, as Ctrl-C does, when three rows are answered."""

        def task(self, label, *, total, unit=""):
            class Bar:
                def __init__(self) -> None:
                    self.done = 0

                def __enter__(self):
                    return self

                def __exit__(self, *_):
                    return None

                def advance(self, amount: int = 1) -> None:
                    self.done += amount
                    if self.done == 3:
                        raise KeyboardInterrupt

                def update(self, **_) -> None:
                    pass

            return Bar()

    notes = Cut()
    with pytest.raises(KeyboardInterrupt):
        batch(plan(world, *rows, generation=sampled, batch_size=1), progress=notes)
    assert notes.lines == ["3 of 5 rows are answered and kept; the same command goes on with the rest"]
    partial = partial_of(out)
    kept = {json.loads(line)["row"]: line for line in partial.read_text().splitlines()[1:]}
    assert len(kept) == 3
    assert not out.exists()
    with partial.open("a") as stream:
        stream.write('{"row": 4, "digest": "half a li')  # what a kill leaves
    # A changed row is answered anew, one that is new too; the seed that was drawn stays.
    changed = next(iter(kept))
    rows[changed] = {"prompt": "another"}
    again = Notes()
    result = batch(plan(world, *rows, {"prompt": "new"}, generation=sampled, batch_size=1), progress=again)
    assert (result.rows, result.kept) == (6, 2)
    assert again.lines[0].startswith("1 answers of an earlier run")
    made = answers(world)
    for number, line in kept.items():
        if number != changed:
            assert made[number]["completion"] == json.loads(line)["completion"]
    assert made[changed]["prompt"] == "another"


@pytest.mark.engine
def test_other_settings_make_every_answer_anew(world: World) -> None:
    rows = [{"prompt": "a"}, {"prompt": "b"}]
    first = plan(world, *rows)
    from adapterhub.ops import batch as module

    partial = partial_of(first.out)
    real = module.write_out
    module.write_out = lambda *_: None  # as if killed before the rename
    try:
        batch(first)
    finally:
        module.write_out = real
    assert len(partial.read_text().splitlines()) == 2
    assert batch(plan(world, generation=Generation(max_new_tokens=3))).kept == 0
    assert [row["tokens"] for row in answers(world)] == [3, 3]


@pytest.mark.engine
def test_two_processes_do_not_answer_into_one_file(world: World) -> None:
    from adapterhub.ops._batch_answers import answer_file

    found = plan(world, {"prompt": "a"})
    with answer_file(partial_of(found.out), seed=None), pytest.raises(AdapterHubError, match="another process"):
        batch(found)


@pytest.mark.engine
def test_killed_and_run_again_it_ends_with_the_answers_of_an_uncut_run(world: World) -> None:
    rows = [{"prompt": f"row {number} {'x' * number}"} for number in range(20)]
    source, out = write(world, *rows), world.root / "out.jsonl"
    command = [
        *(sys.executable, "-c"),
        "import sys\nfrom pathlib import Path\nfrom adapterhub.ops.batch import batch, plan_batch\n"
        "from adapterhub.spec.generation import Generation\n"
        "source, out = map(Path, sys.argv[1:])\n"
        "batch(plan_batch(source, out, generation=Generation(max_new_tokens=20), device='cpu', dtype='float32',"
        " batch_size=1))",
        *(str(source), str(out)),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=world.project, env=environment)
    partial = partial_of(out)
    deadline = time.monotonic() + 60
    while not (partial.is_file() and partial.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    assert not out.exists()
    result = batch(plan(world, generation=Generation(max_new_tokens=20), batch_size=1))
    assert 0 < result.kept < result.rows == 20
    told = answers(world)
    out.unlink()
    batch(plan(world, generation=Generation(max_new_tokens=20), batch_size=1))
    assert answers(world) == told


@pytest.mark.engine
def test_the_command_keeps_what_is_done_at_ctrl_c_and_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write(world, *({"prompt": f"row {number}"} for number in range(12))), world.root / "out.jsonl"
    monkeypatch.chdir(world.project)
    command = ["run", "--batch", str(source), "--out", str(out), "--batch-size", "1", "--max-new-tokens", "30"]
    command += ["--device-map", "cpu", "--dtype", "float32"]
    partial, ended = partial_of(out), threading.Event()

    def interrupt() -> None:
        while not ended.wait(0.002):
            if partial.is_file() and partial.stat().st_size:
                os.kill(os.getpid(), signal.SIGINT)
                return

    watcher = threading.Thread(target=interrupt)
    watcher.start()
    try:
        assert main(command) == 130
    finally:
        ended.set()
        watcher.join()
    assert "the same command goes on with the rest" in capsys.readouterr().err
    assert not out.exists()
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["rows"], 0 < told["kept"] < 12) == (12, True)
    assert [row["prompt"] for row in answers(world)] == [f"row {number}" for number in range(12)]


def test_options_of_a_batch_stand_together(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    source = str(write(world, {"prompt": "a"}))
    for words, told in (
        (["--batch", source], "--out out.jsonl"),
        (["--out", "x.jsonl"], "--out is for --batch"),
        (["--batch-size", "2"], "--batch-size is for --batch"),
        (["--batch", source, "--out", "x.jsonl", "a prompt"], "another has no place"),
        (["--batch", source, "--out", "x.jsonl", "--context", "c"], "a context has no place"),
    ):
        assert main(["run", *words]) == 2
        assert told in capsys.readouterr().err


@pytest.mark.engine
def test_adapters_of_other_methods_are_answered_by_a_base_read_anew(world: World, tmp_path: Path) -> None:
    from tests.engine.test_peft_adapter import adapter

    stacks = [str(world.build("lora", lora_alpha=200)), *(str(adapter(world.base, c, tmp_path / c)) for c in OTHERS)]
    rows = [{"prompt": prompt, "stack": stack} for prompt in ("hello", "a longer prompt") for stack in stacks]
    batch(plan(world, *rows))
    made = answers(world)
    assert [row["completion"] for row in made] == [alone(world, row["prompt"], row["stack"]) for row in rows]
    assert len({row["completion"] for row in made[: len(stacks)]}) > 1


@pytest.mark.engine
def test_stacks_take_turns_beside_packed_weights(tmp_path: Path, settings: Settings) -> None:
    world = World(root=tmp_path, settings=settings, base=tiny_llama(tmp_path / "base", hidden=64))
    world.yaml("base_model: tiny-llama\n")
    world.add_base(world.base)
    packed = Quantization(load_in_4bit=True)
    stacks = ["", str(world.build("one", lora_alpha=200)), str(world.build("two", seed=1, lora_alpha=200)), ""]
    batch(plan(world, *({"prompt": "hello", "stack": stack} for stack in stacks), quantization=packed, batch_size=1))
    options = {"settings": settings, "cwd": world.project, "device": "cpu", "dtype": "float32", "quantization": packed}
    told = [run(plan_run("hello", stack=stack, generation=GREEDY, **options)).text for stack in stacks]
    assert [row["completion"] for row in answers(world)] == told
    assert len(set(told)) > 1
