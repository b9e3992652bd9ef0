"""Which part of which data set a recipe names, by the words of the datasets library's load_dataset."""

from __future__ import annotations

from typing import TypedDict

from adapterhub.spec._decode import Reader
from adapterhub.spec.digest import check_relative_path
from adapterhub.spec.refs import check_part

DATASET_KEYS = ("dataset", "name", "split", "revision")
# What is said of a file alone.
FILE_KEYS = ("path", "type", "sample_by")
DEFAULT_SPLIT = "train"
_WORD = r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,127}"
# A split may be cut as the library cuts it: train[:10%], validation[100:200].
_SPLIT = rf"{_WORD}(\[(-?[0-9]{{1,12}}%?)?:(-?[0-9]{{1,12}}%?)?\])?"
# Of git's names for branches, tags and commits those that need no quoting.
_REVISION = r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9_./-]{0,199}"


class DatasetKeys(TypedDict):
    """What a source says of a data set; all None where it is a file."""

    dataset: str | None
    name: str | None
    split: str | None
    revision: str | None


def check_dataset(text: str) -> str:
    """Return a data set's id on the Hub, `org/name`, or a folder of one, `./folder`.

    Raises:
        ValueError: it is neither.
    """
    if text.startswith("./"):
        return f"./{check_relative_path(text[2:].removesuffix('/'))}"
    owner, slash, name = text.partition("/")
    if not slash:
        raise ValueError(f"{text[:100]!r} is no data set: org/name on the Hub, or ./folder beside the recipe")
    check_part(owner, "the owner of a data set")
    check_part(name, "the name of a data set")
    return text


def read_dataset_keys(r: Reader) -> DatasetKeys:
    """Read them out of a source's mapping; what is for files stands beside none of them."""
    if "dataset" not in r:
        for key in DATASET_KEYS[1:]:
            if r.raw(key, None) is not None:
                r.fault(key, "is for a data set: name it with dataset")
        return {"dataset": None, "name": None, "split": None, "revision": None}
    for key in FILE_KEYS:
        if key in r:
            r.fault(key, "is for a file; leave it or dataset out")
    found: DatasetKeys = {
        "dataset": r.parse("dataset", check_dataset),
        "name": r.optional_string("name", pattern=_WORD, shape="a configuration of a data set"),
        "split": r.optional_string("split", pattern=_SPLIT, shape="a split such as train or train[:10%]"),
        "revision": r.optional_string("revision", pattern=_REVISION, shape="a branch, tag or commit"),
    }
    if r.clean and str(found["dataset"]).startswith("./"):
        for key, value in (("name", found["name"]), ("revision", found["revision"])):
            if value is not None:
                r.fault(key, "is for a data set on the Hub; a folder has none")
        if "[" in (found["split"] or ""):
            r.fault("split", "of a folder is a name alone, without a part of it in brackets")
    return found
