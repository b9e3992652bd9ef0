"""`adapt data inspect`: what is shown as learned is what a build learns; the statistics are counted by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adapterhub.bases import BaseStore, read_base
from adapterhub.cli.main import main
from adapterhub.errors import BuildError, InvalidFileError, UnsatisfiedError
from adapterhub.ops.build import plan_build
from adapterhub.ops.data import DataInspection, inspect_data, percentile, spread
from adapterhub.settings import Settings
from adapterhub.spec.base_model import BaseModelRef
from adapterhub.spec.digest import digest_file
from tests.factory import tiny_llama, write_json

ROWS = [{"question": f"Q{n}?", "answer": "yes\n" + "!" * n} for n in range(20)]
TEMPLATE = {"user": "{question}", "assistant": "{answer}"}


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def home(settings: Settings, base_folder: Path) -> Settings:
    BaseStore(settings).add(read_base(base_folder, BaseModelRef(id="tiny-llama"), "folder"))
    return settings


def project(folder: Path, *, task: str = "CAUSAL_LM", **data: object) -> Path:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    recipe = {
        "recipe_version": "1.1",
        "name": "x",
        "version": "1.0.0",
        "base_model": "tiny-llama",
        "task": task,
        "data": {"train": "rows.jsonl", "template": TEMPLATE, "eval_split": 0.25, **data},
    }
    write_json(folder / "recipe.yaml", recipe)
    return folder / "recipe.yaml"


def rendered(row: dict[str, str]) -> list[tuple[str, bool]]:
    return [
        (f"<|im_start|>user\n{row['question']}<|im_end|>\n<|im_start|>assistant\n", False),
        (f"{row['answer']}<|im_end|>", True),
        ("\n", False),
    ]


def tokens(row: dict[str, str]) -> int:
    """Count tokens by hand: a byte is one, and so is each of the four marks."""
    return len(f"[user\n{row['question']}]\n[assistant\n{row['answer']}]\n")


@pytest.mark.engine
def test_rows_are_shown_as_they_are_learned(tmp_path: Path, home: Settings) -> None:
    path = project(tmp_path)
    found = inspect_data(path, rows=4, settings=home)
    assert len(found.shown) == 4
    places = [int(row.place.removeprefix("rows.jsonl:")) for row in found.shown]
    for place, row in zip(places, found.shown, strict=True):
        assert list(row.pieces) == rendered(ROWS[place - 1])
        assert (row.tokens, row.cut) == (tokens(ROWS[place - 1]), False)
        assert row.trained == len(ROWS[place - 1]["answer"]) + 1
    assert (found.train.rows, found.held_out.rows) == (15, 5)
    together = found.train.tokens + found.held_out.tokens
    assert together == sum(tokens(row) for row in ROWS)
    learned = sum(len(row["answer"]) + 1 for row in ROWS)
    assert found.train.trained + found.held_out.trained == learned
    sizes = dict(found.train.lengths)
    assert sizes[0] >= tokens(ROWS[0]) and sizes[100] <= tokens(ROWS[-1])
    assert list(sizes.values()) == sorted(sizes.values())
    assert [(source.name, source.rows) for source in found.sources] == [("rows.jsonl", 20)]


@pytest.mark.engine
def test_it_counts_what_a_build_counts(tmp_path: Path, home: Settings) -> None:
    path = project(tmp_path, max_length=40)
    found = inspect_data(path, rows=30, settings=home)
    plan = plan_build(path, settings=home, out=tmp_path / "out")
    for counted, planned in ((found.train, plan.train), (found.held_out, plan.held_out)):
        assert (counted.tokens, counted.trained) == (planned.tokens, planned.trained)
        assert (len(counted.truncated), len(counted.dropped)) == (planned.truncated, planned.dropped)
    assert found.length == 40
    assert found.train.truncated
    assert len(found.shown) == found.train.rows
    by_place = {row.place: row for row in found.shown}
    cut = by_place[found.train.truncated[0]]
    text = "".join(text for text, _ in cut.pieces)
    assert cut.cut and cut.tokens > 40 == len(text.replace("<|im_start|>", "[").replace("<|im_end|>", "]"))
    assert sum(row.cut for row in found.shown) == len(found.train.truncated)


@pytest.mark.engine
def test_texts_and_characters_of_several_tokens(tmp_path: Path, home: Settings) -> None:
    path = project(tmp_path, template={"prompt": "{question}ü", "completion": "{answer}ñ"}, eval_split=0)
    (row,) = inspect_data(path, rows=1, settings=home).shown
    assert row.pieces == (("Q0?ü", False), ("yes\nñ<|im_end|>", True))
    (row,) = inspect_data(path, rows=1, overrides=["data.train_on=all"], settings=home).shown
    # Nothing predicts the first token, so that it is not learned.
    assert row.pieces == (("Q", False), ("0?üyes\nñ<|im_end|>", True))
    (row,) = inspect_data(path, rows=1, overrides=["data.max_length=9"], settings=home).shown
    assert row.cut and row.pieces == (("Q0?ü", False), ("yes\n", True))
    (row,) = inspect_data(path, rows=1, overrides=["data.max_length=10"], settings=home).shown
    assert row.pieces[1] == ("yes\n\ufffd", True)  # half of a character


@pytest.mark.engine
def test_the_audit_stops_where_nothing_is_learned(tmp_path: Path, home: Settings, base_folder: Path) -> None:
    folder = tiny_llama(tmp_path / "mute", seed=1)
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}"
    )
    BaseStore(home).add(read_base(folder, BaseModelRef(id="mute"), "folder"))
    path = project(tmp_path)
    with pytest.raises(BuildError, match="no token of this row"):
        inspect_data(path, overrides=["base_model=mute"], settings=home)


@pytest.mark.engine
def test_a_build_of_several_sources(tmp_path: Path, home: Settings) -> None:
    """Rows are counted as often as their weights say, and every file is told once, under its own digest."""
    (tmp_path / "more.csv").write_text("q;a\n" + "".join(f"more {n}?;no\n" for n in range(10)))
    (tmp_path / "prose.txt").write_text("One.\n\nTwo.\n\nThree.\n\nFour.\n")
    more = {"path": "more.csv", "weight": 3, "columns": {"question": "q", "answer": "a"}}
    again = {"path": "more.csv", "template": {"prompt": "{q} ", "completion": "{a}"}}
    path = project(
        tmp_path,
        train=["rows.jsonl", more, again, {"path": "prose.txt", "format": "text", "weight": 0.5}],
        eval_split=0,
    )
    plan = plan_build(path, settings=home, out=tmp_path / "out")
    assert plan.train.rows == 20 + 3 * 10 + 10 + 2
    assert [(source.name, source.rows) for source in plan.data] == [
        ("rows.jsonl", 20),
        ("more.csv", 10),
        ("prose.txt", 4),
    ]
    assert [source.digest for source in plan.data] == [digest_file(tmp_path / source.name)[0] for source in plan.data]
    found = inspect_data(path, rows=100, settings=home)
    assert (found.train.rows, found.train.tokens) == (plan.train.rows, plan.train.tokens)
    shown = [("".join(text for text, _ in row.pieces), row.place) for row in found.shown]
    assert shown.count(("more 0? no<|im_end|>", "more.csv:2")) == 1
    chat = "<|im_start|>user\nmore 0?<|im_end|>\n<|im_start|>assistant\nno<|im_end|>\n"
    assert shown.count((chat, "more.csv:2")) == 3


def test_what_cannot_be_shown(tmp_path: Path, home: Settings) -> None:
    with pytest.raises(InvalidFileError, match="has none of 'text' with 'label' for SEQ_CLS"):
        inspect_data(project(tmp_path, task="SEQ_CLS", template=None), settings=home)
    with pytest.raises(UnsatisfiedError, match="no base model"):
        inspect_data(project(tmp_path), overrides=["base_model=other"], settings=home)


@pytest.mark.engine
def test_the_command(
    tmp_path: Path, home: Settings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAPTERHUB_HOME", str(home.home))
    path = project(tmp_path, max_length=40)
    assert main(["data", "inspect", str(path), "--rows", "1"]) == 0
    out, err = capsys.readouterr()
    assert "assistant\n⟦yes↵\n" in out and "⟧\n" in out
    assert "rows (train) are cut at 40 tokens, rows.jsonl:" in err
    assert "held out" in out
    assert main(["data", "inspect", str(path), "--rows", "2", "--set", "data.max_length=500", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["max_length"] == 500 and data["train"]["truncated"] == []
    assert [len(row["pieces"]) for row in data["rows"]] == [3, 3]
    assert data["train"]["trained_share"] == pytest.approx(data["train"]["trained"] / data["train"]["tokens"], abs=1e-6)
    assert set(data) == set(DataInspection.__dataclass_fields__) - {"base", "length", "shown"} | {
        "base_model", "max_length", "rows"
    }  # fmt: skip


def test_percentiles_are_of_the_nearest_rank() -> None:
    ordered = list(range(1, 11))
    assert [percentile(ordered, share) for share in (0, 50, 90, 95, 99, 100)] == [1, 5, 9, 10, 10, 10]
    assert percentile([7], 50) == 7


def test_rows_are_spread_over_all() -> None:
    assert spread(10, 3) == (0, 4, 9)
    assert spread(2, 5) == (0, 1)
    assert (spread(5, 0), spread(5, 1), spread(0, 3)) == ((), (0,), ())
    assert len(set(spread(1000, 999))) == 999
