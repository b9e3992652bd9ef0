"""Data sets of the datasets library: their rows, classes by name, places and digests, and what is refused."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from adapterhub.engine.row_files import read_records
from adapterhub.engine.rows import RowSet, read_row_files
from adapterhub.errors import InvalidFileError, NetworkError, UnsatisfiedError, UsageError
from adapterhub.spec.data import DataSpec, SourceSpec

TEXTS = [f"sentence {index}" for index in range(6)]


@pytest.fixture(scope="module")
def datasets() -> Any:
    return pytest.importorskip("datasets", reason="needs the datasets library: pip install 'adapterhub[data]'")


def table(datasets: Any, classes: list[int], texts: list[str] = TEXTS) -> Any:
    features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=["no", "yes"]))
    return datasets.Dataset.from_dict({"text": texts, "label": classes}, features=features)


def records(folder: Path, **keys: Any) -> tuple[list[tuple[str, Any]], str]:
    state = hashlib.sha256()
    found = [tuple(record) for record in read_records(folder, SourceSpec(**keys), state)]
    return found, state.hexdigest()


def rows(folder: Path, task: str = "SEQ_CLS", **keys: Any) -> RowSet:
    return read_row_files(folder, DataSpec(train=(SourceSpec(**keys),)), task=task)[0]


def test_a_saved_data_set(datasets: Any, tmp_path: Path) -> None:
    table(datasets, [0, 1, 1, 0, 1, 0]).save_to_disk(tmp_path / "set")
    (file,) = rows(tmp_path, dataset="./set").files
    assert (file.name, len(file.rows)) == ("./set", 6)
    assert [row.label for row in file.rows] == ["no", "yes", "yes", "no", "yes", "no"]
    assert (file.rows[4].place, file.rows[4].text) == ("./set:5", "sentence 4")
    digest = records(tmp_path, dataset="./set")[1]
    assert str(file.digest) == f"sha256:{digest}"
    lines = [f'{{"label":"{row.label}","text":"{row.text}"}}' for row in file.rows]
    assert digest == hashlib.sha256("\n".join(['{"revision":null}', *lines, ""]).encode()).hexdigest()
    with pytest.raises(UnsatisfiedError, match="holds a single data set"):
        records(tmp_path, dataset="./set", split="test")


def test_the_digest_is_of_the_rows_and_not_of_the_files(datasets: Any, tmp_path: Path) -> None:
    whole = table(datasets, [0, 1, 1, 0, 1, 0])
    whole.save_to_disk(tmp_path / "a")
    whole.save_to_disk(tmp_path / "b", num_shards=3)
    # A view of the rows in another order, so that the files hold what is not to be read.
    whole.select([5, 4, 3, 2, 1, 0]).select([5, 4, 3, 2, 1, 0]).save_to_disk(tmp_path / "c")
    table(datasets, [0, 1, 1, 0, 1, 1]).save_to_disk(tmp_path / "d")
    digests = {name: records(tmp_path, dataset=f"./{name}")[1] for name in "abcd"}
    assert digests["a"] == digests["b"] == digests["c"] != digests["d"]
    shutil.rmtree(tmp_path / "a")
    table(datasets, [1, 1, 1, 0, 1, 0]).save_to_disk(tmp_path / "a")
    assert records(tmp_path, dataset="./a")[1] != digests["a"]


def test_saved_splits(datasets: Any, tmp_path: Path) -> None:
    parts = {"train": table(datasets, [0, 1], TEXTS[:2]), "test": table(datasets, [1], TEXTS[:1])}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "set")
    assert len(rows(tmp_path, dataset="./set").rows) == 2
    (row,) = rows(tmp_path, dataset="./set", split="test").rows
    assert (row.place, row.label) == ("./set[test]:1", "yes")
    with pytest.raises(UnsatisfiedError, match="no split 'dev'") as caught:
        records(tmp_path, dataset="./set", split="dev")
    assert caught.value.hint == "it has train, test"


def test_a_folder_of_parquet_files(datasets: Any, tmp_path: Path) -> None:
    (tmp_path / "set" / "data").mkdir(parents=True)
    for name, classes in {
        "train-00000-of-00002": [0, 1],
        "train-00001-of-00002": [1],
        "test-00000-of-00001": [0],
    }.items():
        table(datasets, classes, TEXTS[: len(classes)]).to_parquet(tmp_path / "set" / "data" / f"{name}.parquet")
    found = rows(tmp_path, dataset="./set").rows
    assert [(row.place.rpartition("/")[2], row.label) for row in found] == [
        ("train-00000-of-00002.parquet:1", "no"),
        ("train-00000-of-00002.parquet:2", "yes"),
        ("train-00001-of-00002.parquet:1", "yes"),
    ]
    assert [row.label for row in rows(tmp_path, dataset="./set", split="test").rows] == ["no"]
    with pytest.raises(UnsatisfiedError, match="no Parquet file of the split"):
        records(tmp_path, dataset="./set", split="validation")
    (tmp_path / "set" / "data" / "train-00001-of-00002.parquet").write_bytes(b"PAR1")
    with pytest.raises(InvalidFileError, match="cannot be read as a data set"):
        records(tmp_path, dataset="./set")


def test_files_that_name_no_split_are_for_training(datasets: Any, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    table(datasets, [0, 1], TEXTS[:2]).to_parquet(tmp_path / "set" / "rows.parquet")
    assert len(rows(tmp_path, dataset="./set").rows) == 2
    with pytest.raises(UnsatisfiedError, match="of the split 'test'"):
        records(tmp_path, dataset="./set", split="test")


def test_classes_within_lists_and_records_come_by_name_and_none_as_a_fault(datasets: Any, tmp_path: Path) -> None:
    tags = datasets.ClassLabel(names=["O", "B-PER"])
    features = datasets.Features(
        tokens=datasets.List(datasets.Value("string")),
        ner_tags=datasets.List(tags),
        inside={"tag": tags, "raw": datasets.Value("binary")},
    )
    data = {"tokens": [["Ann", "ran"]], "ner_tags": [[1, 0]], "inside": [{"tag": 1, "raw": b"\xff"}]}
    datasets.Dataset.from_dict(data, features=features).save_to_disk(tmp_path / "tags")
    ((_, record),) = records(tmp_path, dataset="./tags")[0]
    assert (record["ner_tags"], record["inside"]) == (["B-PER", "O"], {"tag": "B-PER", "raw": b"\xff"})
    (row,) = rows(tmp_path, "TOKEN_CLS", dataset="./tags").rows
    assert row.tags == ("B-PER", "O")
    # GLUE's test rows have the class -1: none.
    table(datasets, [0, -1], TEXTS[:2]).save_to_disk(tmp_path / "unlabelled")
    with pytest.raises(InvalidFileError, match=r"\./unlabelled:2: label: expected a name"):
        rows(tmp_path, dataset="./unlabelled")


def test_what_is_no_data_set(datasets: Any, tmp_path: Path) -> None:
    with pytest.raises(UnsatisfiedError, match="no such folder"):
        records(tmp_path, dataset="./nothing")
    (tmp_path / "set").mkdir()
    with pytest.raises(UsageError, match="did not write"):
        records(tmp_path, dataset="./set")
    (tmp_path / "set" / "state.json").write_text("{}")
    with pytest.raises(InvalidFileError, match="is not what"):
        records(tmp_path, dataset="./set")


def test_a_folder_of_the_same_name_is_not_taken_for_the_hub_s(
    datasets: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="in this folder lies"):
        records(tmp_path, dataset="org/name")


def test_offline_and_not_here(datasets: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NetworkError) as caught:
        records(tmp_path, dataset="org/name", revision="v1")
    assert caught.value.where == "org/name[train]@v1"


def test_without_the_library_the_command_that_installs_it_is_told(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['datasets'] = None\n"
        "import hashlib; from pathlib import Path\n"
        "from adapterhub.engine.row_files import read_records; from adapterhub.spec.data import SourceSpec\n"
        "from adapterhub.errors import UnsatisfiedError\n"
        "try: list(read_records(Path(), SourceSpec(dataset='org/name'), hashlib.sha256()))\n"
        "except UnsatisfiedError as error: print(error.where, error.hint)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "org/name[train] pip install 'adapterhub[data]'\n"
