"""The records of a data set of the datasets library: an id on the Hub, a folder that it saved, or one of Parquet files.

What is on the Hub is fetched by the library into its own cache, from which it is read without a network. A folder is
read as it lies: no copy of it is kept, so that an edited file is seen.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from adapterhub.documents import parse_json
from adapterhub.errors import InvalidFileError, LocalIOError, NetworkError, UnsatisfiedError, UsageError
from adapterhub.spec._dataset import DEFAULT_SPLIT
from adapterhub.spec.data import SourceSpec

INSTALL = "pip install 'adapterhub[data]'"
# Since this version the library runs no script of a repository.
_OLDEST = (4, 0)
# The library's own readers whose records are columns of texts and numbers; `cache` is what it keeps of one of these.
_BUILDERS = ("parquet", "arrow", "json", "csv", "text", "cache")
_BATCH_ROWS = 1000
# A file is one of a split where its path names the split, as the library tells them apart.
_PARTED = re.compile(r"[-._ /]+")
_SPLIT_NAMES = {"train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval", "evaluation"}


def read_dataset(
    folder: Path, source: SourceSpec, state: hashlib._Hash
) -> Iterator[tuple[str, Mapping[str, object] | str]]:
    """Yield each record of a data set with its place, `org/name[train]:17`.

    Classes come by their names, and no class (the library's -1) as None. `state` takes the revision that the source
    names, and each record as a line of canonical JSON.

    Raises:
        UnsatisfiedError: the library is not installed, or the data set, configuration or split is not there.
        NetworkError: the Hub cannot be reached. InvalidFileError: a file is broken, or is not for reading as rows.
        UsageError: a folder that is no data set.
    """
    datasets = _library(source.title)
    state.update(_line({"revision": source.revision}))
    read = _read_hub if source.folder is None else _read_folder
    from pyarrow import ArrowException

    known, named = None, {}
    try:
        for place, features, row in read(datasets, folder, source):
            if features is not known:
                known, named = features, _changes(features, datasets.ClassLabel)
            record = {column: named[column](value) if column in named else value for column, value in row.items()}
            state.update(_line(record))
            yield place, record
    except ArrowException as error:
        raise InvalidFileError(f"cannot be read as a data set: {_first(error)}", where=source.title) from error
    except OSError as error:
        raise LocalIOError(f"cannot read the data set: {_first(error)}", where=source.title) from error


def _library(where: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UnsatisfiedError(
            "reading a data set needs the datasets library, which is not installed", where=where, hint=INSTALL
        ) from error
    version = tuple(int(part) for part in re.findall(r"\d+", datasets.__version__)[:2])
    if version < _OLDEST:
        raise UnsatisfiedError(
            f"reading a data set needs datasets {_OLDEST[0]}.{_OLDEST[1]} or newer, not {datasets.__version__}",
            where=where,
            hint=INSTALL,
        )
    # All printing is the command line's.
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    return datasets


_Rows = Iterator[tuple[str, Any, dict[str, Any]]]


def _read_hub(datasets: Any, _: Path, source: SourceSpec) -> _Rows:
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    where, name = source.source_name, str(source.dataset)
    if Path(name).exists():
        raise UsageError(
            f"names a data set on the Hub, and in this folder lies {name} too, which the library would take",
            where=where,
            hint=f"write dataset: ./{name} for the folder (beside the recipe), or call it from another folder",
        )
    try:
        builder = datasets.load_dataset_builder(name, name=source.name, revision=source.revision)
        if builder.name not in _BUILDERS:
            raise InvalidFileError(
                f"is made of {builder.name} files, and those read are {', '.join(_BUILDERS[:-1])}", where=where
            )
        builder.download_and_prepare()
        # Asked here, so that what is said of a split that is not there names those that are.
        table = builder.as_dataset(split=source.split or DEFAULT_SPLIT)
    except ConnectionError as error:
        raise NetworkError(
            f"cannot fetch this data set: {_first(error)}",
            where=where,
            hint="check the network, or unset HF_HUB_OFFLINE",
        ) from error
    except (DatasetsError, HfHubHTTPError, FileNotFoundError, ValueError) as error:
        raise UnsatisfiedError(
            f"cannot have this data set: {_first(error)}",
            where=where,
            hint="check dataset, name, split and revision; for a private or gated one: adapt login",
        ) from error
    yield from _rows(table, source.title)


def _first(error: BaseException) -> str:
    told = error.__cause__ or error  # the library wraps what happened into what it was doing
    return (str(told).splitlines() or [type(told).__name__])[0][:300]


def _rows(table: Any, title: str) -> _Rows:
    features, number = table.features, 0
    # As Arrow: images and sounds stay bytes, which no library has to decode.
    for batch in table.with_format("arrow").iter(batch_size=_BATCH_ROWS):
        for row in batch.to_pylist():
            number += 1
            yield f"{title}:{number}", features, row


def _read_folder(datasets: Any, folder: Path, source: SourceSpec) -> _Rows:
    place = folder / str(source.folder)
    if not place.is_dir():
        raise UnsatisfiedError("no such folder of a data set", where=str(place))
    if (place / "dataset_dict.json").is_file():
        yield from _rows(_of_saved_splits(datasets, place, source), source.title)
    elif (place / "state.json").is_file():
        table = _saved(datasets, place)
        if source.split is not None and source.split != str(table.split):
            held = "one whose split has no name" if table.split is None else f"{str(table.split)!r}"
            raise UnsatisfiedError(
                f"holds a single data set, {held}, not {source.split!r}", where=str(place), hint="leave split out"
            )
        yield from _rows(table, source.title)
    else:
        yield from _read_parquet(datasets, place, source)


def _of_saved_splits(datasets: Any, place: Path, source: SourceSpec) -> Any:
    listed = parse_json((place / "dataset_dict.json").read_bytes(), where=str(place / "dataset_dict.json"))
    splits = [name for name in listed.get("splits", ()) if isinstance(name, str)] if isinstance(listed, Mapping) else []
    wanted = source.split or DEFAULT_SPLIT
    if wanted not in splits:
        raise UnsatisfiedError(
            f"has no split {wanted!r}", where=str(place), hint=f"it has {', '.join(splits) or 'none'}"
        )
    return _saved(datasets, place / wanted)


def _saved(datasets: Any, place: Path) -> Any:
    try:
        return datasets.load_from_disk(str(place))
    except (FileNotFoundError, KeyError, TypeError, ValueError) as error:
        raise InvalidFileError(f"is not what Dataset.save_to_disk wrote: {_first(error)}", where=str(place)) from error


def _read_parquet(datasets: Any, place: Path, source: SourceSpec) -> _Rows:
    """Read a folder's Parquet files in the order of their names; a place is of the file."""
    from pyarrow.parquet import ParquetFile

    found = sorted(_parquet_names(place))
    if not found:
        raise UsageError(
            "is a folder that Dataset.save_to_disk did not write, and in which no Parquet file is",
            where=str(place),
            hint="name single files of rows with path",
        )
    for name in _files_of_split(found, source, place):
        file = ParquetFile(place / name)
        features = datasets.Features.from_arrow_schema(file.schema_arrow)
        number = 0
        for batch in file.iter_batches(batch_size=_BATCH_ROWS):
            for row in batch.to_pylist():
                number += 1
                yield f"{source.folder}/{name}:{number}", features, row


def _parquet_names(place: Path) -> Iterator[str]:
    for root, folders, names in os.walk(place):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.endswith(".parquet") and not name.startswith("."):
                yield (Path(root) / name).relative_to(place).as_posix()


def _files_of_split(names: list[str], source: SourceSpec, place: Path) -> list[str]:
    """Return the files whose paths name a split; all of them where none names any, for the first split is `train`."""
    words = {name: set(_PARTED.split(name.removesuffix(".parquet").lower())) for name in names}
    wanted = (source.split or DEFAULT_SPLIT).lower()
    chosen = [name for name in names if wanted in words[name]]
    if not chosen and wanted == DEFAULT_SPLIT and not any(found & _SPLIT_NAMES for found in words.values()):
        return names
    if not chosen:
        raise UnsatisfiedError(
            f"has no Parquet file of the split {wanted!r}", where=str(place), hint=f"it has {', '.join(names[:10])}"
        )
    return chosen


def _changes(features: Mapping[str, Any], class_label: type) -> dict[str, Callable[[Any], Any]]:
    return {column: change for column, feature in features.items() if (change := _change(feature, class_label))}


def _change(feature: Any, class_label: type) -> Callable[[Any], Any] | None:
    """Return what turns the classes of a column, or those deep inside of it, into their names; None where none are."""
    if isinstance(feature, class_label):
        names = feature.names
        return lambda value: names[value] if isinstance(value, int) and 0 <= value < len(names) else None
    if isinstance(feature, Mapping):
        inner = _changes(feature, class_label)
        if not inner:
            return None
        return lambda value: value and {key: inner[key](item) if key in inner else item for key, item in value.items()}
    below = feature[0] if isinstance(feature, list) and feature else getattr(feature, "feature", None)
    change = None if below is None else _change(below, class_label)
    return None if change is None else lambda value: value and [change(item) for item in value]


def _line(data: Mapping[str, Any]) -> bytes:
    text = json.dumps(data, ensure_ascii=False, sort_keys=True, separators=(",", ":"), default=_told)
    return f"{text}\n".encode("utf-8", errors="surrogatepass")


def _told(value: object) -> list[str]:
    """Return what stands in a digest for a value that JSON has no form of."""
    if isinstance(value, bytes):
        return ["bytes", hashlib.sha256(value).hexdigest()]
    return [type(value).__name__, str(value)]
