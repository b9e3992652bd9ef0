"""`adapt init`: what the columns are taken for, what is measured, and that what is written builds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from adapterhub.bases import BaseStore, read_base
from adapterhub.cli.main import main
from adapterhub.documents import parse_yaml, read_recipe
from adapterhub.errors import (
    AdapterHubError,
    IncompatibleError,
    InvalidFileError,
    LocalIOError,
    UnsatisfiedError,
    UsageError,
)
from adapterhub.ops._guess import guess_source
from adapterhub.ops.build import plan_build
from adapterhub.ops.init import InitPlan, init, plan_init
from adapterhub.schemas import check
from adapterhub.settings import Settings
from adapterhub.spec.base_model import BaseModelRef
from adapterhub.spec.recipe import Recipe
from tests.cli.terminal import on_terminal
from tests.factory import edit_json, tiny_llama

CHAT = {"user": "{question}", "assistant": "{answer}"}


def write(folder: Path, rows: list[dict[str, object]], name: str = "faq.jsonl") -> Path:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / name


GUESSES: tuple[tuple[dict[str, object], dict[str, Any]], ...] = (
    ({"messages": [], "id": 1}, {"says": "chats"}),
    ({"conversations": []}, {"says": "chats in ShareGPT's form"}),
    ({"prompt": "a", "completion": "b"}, {"says": "prompts with completions"}),
    ({"instruction": "a", "output": "b"}, {"says": "instructions in Alpaca's form"}),
    ({"instruction": "a", "input": "", "output": "b", "text": "c"}, {"format": "alpaca"}),
    ({"text": "a", "url": "b"}, {"says": "plain text"}),
    ({"question": "a", "answer": "b", "id": 3}, {"template": CHAT, "says": "'question' asked, 'answer' learned"}),
    ({"Input": "a", "Target": "b"}, {"template": {"user": "{Input}", "assistant": "{Target}"}}),
    ({"Frage": "a", "prompt": "b", "response": "c"}, {"template": {"user": "{prompt}", "assistant": "{response}"}}),
    ({"body": "a", "title": "b"}, {"columns": {"text": "body"}}),
    ({"whatever": "a", "n": 1}, {"columns": {"text": "whatever"}}),
)


@pytest.mark.parametrize(("row", "expected"), GUESSES, ids=lambda item: " ".join(item))
def test_columns_are_recognised(tmp_path: Path, row: dict[str, object], expected: dict[str, Any]) -> None:
    path = write(tmp_path, [row, {**row, "more": "x"}])
    guess = guess_source(tmp_path, path.name, chats=True)
    for key, value in expected.items():
        assert (guess.says if key == "says" else getattr(guess.source, key)) == value
    if "format" not in expected:
        assert guess.source.format is None


def test_a_base_without_a_chat_template_gets_prompts(tmp_path: Path) -> None:
    def template(row: dict[str, object]) -> dict[str, str]:
        source = guess_source(tmp_path, write(tmp_path, [row]).name, chats=False).source
        return dict(source.template or {})

    assert template({"question": "a", "answer": "b"}) == {"prompt": "{question}\n", "completion": "{answer}"}
    found = template({"instruction": "a", "input": "b", "output": "c"})
    assert found["prompt"] == "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
    assert "Input" not in template({"instruction": "a", "output": "c"})["prompt"]


def test_names_that_a_template_cannot_write_are_renamed(tmp_path: Path) -> None:
    (tmp_path / "faq.csv").write_text("Question ,qa.answer,answer\na,b,c\n")
    assert guess_source(tmp_path, "faq.csv", chats=True).source.template == {
        "user": "{Question}", "assistant": "{answer}"
    }  # fmt: skip
    (tmp_path / "faq.csv").write_text("question:,response\na,b\n")
    with pytest.raises(UsageError, match="do not tell"):
        guess_source(tmp_path, "faq.csv", chats=True)
    (tmp_path / "faq.csv").write_text("source,translation!\na,b\n")
    with pytest.raises(UsageError, match="'source', 'translation!'"):
        guess_source(tmp_path, "faq.csv", chats=True)


def test_labels_are_named_and_text_files_told_apart(tmp_path: Path) -> None:
    path = write(tmp_path, [{"text": "a", "Label": "good"}])
    (warning,) = guess_source(tmp_path, path.name, chats=True).warnings
    assert "'Label' is left alone" in warning
    (tmp_path / "a.txt").write_text("one\ntwo\nthree\n")
    assert guess_source(tmp_path, "a.txt", chats=True).source.sample_by == "line"
    (tmp_path / "a.txt").write_text("one\ntwo\n\nthree\n")
    assert guess_source(tmp_path, "a.txt", chats=True).source.sample_by == "paragraph"


# --- the recipe -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def home(settings: Settings, base_folder: Path) -> Settings:
    BaseStore(settings).add(read_base(base_folder, BaseModelRef(id="tiny-llama"), "folder"))
    return settings


def faq(folder: Path, count: int = 40, name: str = "Clinic FAQ.csv") -> Path:
    lines = [f'"What, {n}?",{"yes " * (n % 7 + 1)}' for n in range(count)]
    (folder / name).write_text("question,answer\n" + "\n".join(lines) + "\n")
    return folder / name


def planned(data: Path, home: Settings, **options: Any) -> InitPlan:
    return plan_init(data, out=data.parent / "recipe.yaml", settings=home, **options)


@pytest.mark.engine
def test_the_recipe_builds_as_it_is(tmp_path: Path, home: Settings) -> None:
    data = faq(tmp_path)
    plan = planned(data, home)
    assert not plan.path.exists()
    assert init(plan) == plan.path
    assert check("recipe", parse_yaml(plan.path.read_bytes(), where="x"), where="x") == ()
    recipe = read_recipe(plan.path)
    assert (recipe.name, recipe.base_model, recipe.method, recipe.task) == (
        "clinic-faq-lora", "tiny-llama", "lora", "CAUSAL_LM"
    )  # fmt: skip
    assert recipe.data.template == CHAT
    build = plan_build(plan.path, settings=home, out=tmp_path / "out")
    assert (build.train.truncated, build.held_out.truncated) == (0, 0)
    assert build.train.rows + build.held_out.rows == 40
    text = plan.path.read_text()
    assert f"# {build.held_out.rows} rows are held out" in text
    # By hand: the longest row is 7 times "yes ", and every mark of a turn is one token.
    longest = max(len(f"[user\nWhat, {n}?]\n[assistant\n{'yes ' * (n % 7 + 1)}]\n") for n in range(40))
    assert f"the longest {longest}" in text
    assert recipe.data.max_length == -(-longest // 64) * 64
    assert recipe.training.per_device_train_batch_size * recipe.training.gradient_accumulation_steps == 8
    assert "k_proj" in text  # the defaults of the family are named
    assert any("rows are held out: what they measure" in warning for warning in plan.warnings)
    with pytest.raises(LocalIOError, match="already exists"):
        planned(data, home)
    with pytest.raises(LocalIOError, match="already exists"):
        init(plan)


@pytest.mark.engine
def test_long_rows_are_cut_and_batches_shrink(tmp_path: Path, settings: Settings) -> None:
    folder = tiny_llama(tmp_path / "base")
    edit_json(folder / "config.json", max_position_embeddings=1 << 14)
    BaseStore(settings).add(read_base(folder, BaseModelRef(id="long"), "folder"))
    rows: list[dict[str, object]] = [{"text": f"{n} " + "x" * 2000} for n in range(200)]
    data = write(tmp_path, [*rows, {"text": "y" * 9000}])
    plan = planned(data, settings)
    recipe = parse_yaml(plan.text.encode(), where="x")
    assert isinstance(recipe, dict)
    # 2000 letters, a number with its blank and the end: at most 2005 tokens; the one of 9001 would be in the way.
    assert recipe["data"]["max_length"] == 2048
    assert (plan.proposal.most, plan.proposal.longest, plan.proposal.cut) == (2005, 9001, 1)
    training = recipe["training"]
    assert (training["per_device_train_batch_size"], training["gradient_accumulation_steps"]) == (4, 2)
    assert "1 of the measured are cut" in plan.text


@pytest.mark.engine
def test_odd_names_and_texts_are_written_so_that_they_are_read(tmp_path: Path, home: Settings) -> None:
    folder = tmp_path / "no"
    folder.mkdir()
    data = write(folder, [{'ein: "Wort" #x': f"a {n}"} for n in range(30)], "train.jsonl")
    plan = planned(data, home)
    recipe = parse_yaml(plan.text.encode(), where="x")
    assert isinstance(recipe, dict)
    assert recipe["name"] == "no-lora"
    assert recipe["data"]["columns"] == {"text": 'ein: "Wort" #x'}
    lines = tmp_path / "true.txt"
    lines.write_text("one\ntwo\nthree\n" * 10)
    found = planned(lines, home)
    assert "path: true.txt" in found.text and "sample_by: line" in found.text
    init(found)
    assert plan_build(found.path, settings=home, out=tmp_path / "out").train.rows > 10


@pytest.mark.engine
def test_rows_that_cannot_be_split_are_all_trained_on(tmp_path: Path, home: Settings) -> None:
    data = write(tmp_path, [{"prompt": "p", "completion": f"c{n}"} for n in range(9)])
    plan = init(planned(data, home))
    assert read_recipe(plan).data.eval_split == 0
    assert plan_build(plan, settings=home, out=tmp_path / "out").train.rows == 9


def test_malformed_rows_are_named_and_nothing_is_written(tmp_path: Path, home: Settings) -> None:
    data = write(tmp_path, [{"text": "a"}, {"text": 1}, {"text": ""}])
    with pytest.raises(InvalidFileError) as caught:
        planned(data, home)
    assert {"faq.jsonl:2", "faq.jsonl:3"} == {line.split(": ")[0] for line in caught.value.details}
    assert not (tmp_path / "recipe.yaml").exists()
    with pytest.raises(InvalidFileError, match="holds no rows"):
        planned(write(tmp_path, [], "empty.jsonl"), home)
    body = (
        "import sys; from adapterhub.cli.main import main\n"
        f"code = main(['init', {str(data)!r}, '--out', {str(tmp_path / 'recipe.yaml')!r}])\n"
        "print(sorted({'torch', 'transformers', 'numpy'} & sys.modules.keys())); sys.exit(code)"
    )
    env = {**os.environ, "ADAPTERHUB_HOME": str(home.home)}
    done = subprocess.run([sys.executable, "-c", body], capture_output=True, text=True, env=env, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (2, "[]")
    assert "faq.jsonl:3: text: is empty" in done.stderr


def test_what_is_refused_before_anything_heavy(tmp_path: Path, home: Settings, base_folder: Path) -> None:
    data = faq(tmp_path)

    def refused(kind: type[AdapterHubError], word: str, **options: Any) -> AdapterHubError:
        with pytest.raises(kind, match=word) as caught:
            plan_init(**{"data": data, "out": tmp_path / "recipe.yaml", "settings": home, **options})
        return caught.value

    refused(UnsatisfiedError, "no such file", data=tmp_path / "none.csv")
    found = refused(UsageError, "below its folder", out=tmp_path / "sub" / "recipe.yaml")
    assert str(tmp_path / "recipe.yaml") in str(found.hint)
    refused(UnsatisfiedError, "there is no base model other", base="other")
    refused(UnsatisfiedError, "there is no base model here", settings=Settings(home=tmp_path / "none"))
    odd = tiny_llama(tmp_path / "odd", seed=2)
    edit_json(odd / "config.json", architectures=["BertModel"])
    BaseStore(home).add(read_base(odd, BaseModelRef(id="encoder"), "folder"))
    refused(IncompatibleError, r"encoder \(BertModel\) cannot do CAUSAL_LM", base="encoder")
    BaseStore(home).add(read_base(base_folder, BaseModelRef(id="second"), "folder"))
    found = refused(UsageError, "several base models")
    assert "second, tiny-llama" in str(found.hint) and "encoder" not in str(found.hint)


@pytest.mark.engine
def test_the_command(
    tmp_path: Path, home: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ADAPTERHUB_HOME", str(home.home))
    monkeypatch.chdir(tmp_path)
    faq(tmp_path)
    assert main(["init", "Clinic FAQ.csv", "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert isinstance(parse_yaml(out.encode(), where="x"), dict)
    assert "nothing was written" in err
    assert not Path("recipe.yaml").exists()
    assert main(["init", "Clinic FAQ.csv", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert Path("recipe.yaml").read_text() == data["recipe"] == out
    assert main(["init", "Clinic FAQ.csv"]) == 9
    assert "already exists" in capsys.readouterr().err
    assert main(["build", "recipe.yaml", "--dry-run"]) == 0


def test_the_base_is_asked_for_on_a_terminal() -> None:
    code = (
        "import io, sys; from pathlib import Path\n"
        "from adapterhub.cli import init\n"
        "class Typed(io.StringIO):\n    def isatty(self): return True\n"
        "sys.stdin = Typed('nope\\ntiny-llama\\n')\n"
        "print(); print('chosen', init._ask(('second', 'tiny-llama')))\n"
    )
    shown = on_terminal(code)
    assert "Base model (second, tiny-llama) [second]" in shown
    assert "'nope' is not one of" in shown
    assert shown.endswith("chosen tiny-llama\n")


# --- other tasks ------------------------------------------------------------------------------------------------------

WORDS = ("good", "bad", "film", "the", "rome", "met")


def rows_of(task: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    for number in range(30):
        words = [WORDS[(number * 7 + k) % 6] for k in range(number % 5 + 3)]
        text = " ".join(words)
        found.append(
            {
                "SEQ_CLS": {"review": text, "sentiment": "ab"[number % 2]},
                "TOKEN_CLS": {"words": words, "ner_tags": ["B-X" if word == "rome" else "O" for word in words]},
                "QUESTION_ANS": {
                    "question": "who?",
                    "context": f"{text} anna",
                    "answers": {"text": ["anna"], "answer_start": [len(text) + 1]},
                },
                "FEATURE_EXTRACTION": {"anchor": f"{number} {text}", "positive": f"{text} {number}"},
                "SEQ_2_SEQ_LM": {"source": f"one two {number}", "target": "uno dos"},
            }[task]
        )
    return found


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from tests.engine.tasks.tiny_bert import tiny_bert
    from tests.engine.tasks.tiny_seq_2_seq import tiny_t5

    folder = tmp_path_factory.mktemp("small")
    (folder / "t5").mkdir()
    return {"tiny-bert": tiny_bert(folder / "bert"), "tiny-t5": tiny_t5(folder / "t5")}


@pytest.mark.engine
@pytest.mark.parametrize("task", ["SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION", "SEQ_2_SEQ_LM"])
def test_rows_of_every_task_are_recognised_and_build(
    tmp_path: Path, home: Settings, small: dict[str, Path], task: str
) -> None:
    from adapterhub.ops.build import build

    for name, folder in small.items():
        BaseStore(home).add(read_base(folder, BaseModelRef(id=name), "folder"))
    data = write(tmp_path, rows_of(task))
    # Columns of a source and a target fit a decoder as well: which base is meant has to be said.
    plan = planned(data, home, **({"base": "tiny-t5"} if task == "SEQ_2_SEQ_LM" else {}))
    init(plan)
    recipe = read_recipe(plan.path)
    assert recipe.task == task
    assert recipe.base_model == ("tiny-t5" if task == "SEQ_2_SEQ_LM" else "tiny-bert")
    result = build(plan.path, settings=home, out=tmp_path / "out", overrides=["training.max_steps=1"])
    assert (result.path / "adapter_config.json").is_file()


@pytest.mark.engine
def test_a_task_and_a_method_that_are_named(tmp_path: Path, home: Settings) -> None:
    data = write(tmp_path, rows_of("SEQ_CLS"))
    plan = planned(data, home, method="ia3")
    assert any("an encoder learns SEQ_CLS as well" in warning for warning in plan.warnings)
    recipe = Recipe.from_data(parse_yaml(plan.text.encode(), where="x"), where="x")
    assert (recipe.method, recipe.task, recipe.base_model) == ("ia3", "SEQ_CLS", "tiny-llama")
    both = write(tmp_path, [{"text": f"film {n}", "label": "ab"[n % 2]} for n in range(30)], "both.jsonl")
    tasks = [planned(both, home, **options).proposal.task for options in ({}, {"task": "CAUSAL_LM"})]
    assert tasks == ["SEQ_CLS", "CAUSAL_LM"]
    with pytest.raises(InvalidFileError):
        planned(data, home, task="TOKEN_CLS")
    with pytest.raises(UsageError, match="not a task"):
        planned(data, home, task="SEQ_CLASS")
