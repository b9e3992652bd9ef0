"""Regenerate the labelled rows of the recipes `sentiment` and `addresses` from two source packages of the Python index.

    python recipes/prepare_labels.py --vader vaderSentiment-3.3.2.tar.gz --usaddress usaddress-0.5.16.tar.gz

The archives are read as data; nothing in them is installed or run. Which row lands where is decided by a hash of its
own words, so the files are byte-identical anywhere; no text is in both train.jsonl and heldout.jsonl.
"""

from __future__ import annotations

import argparse
import html
import io
import itertools
import json
import tarfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from prepare import fraction, key

RATINGS = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
REVIEWS = {
    "film": "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt",
    "product": "hutto_ICWSM_2014/amazonReviewSnippets_GroundTruth.txt",
}
# Mean of twenty people's ratings from -4 to 4; between these the raters do not agree on a side.
CLEAR = 1.0
LONGEST_REVIEW = 240
ADDRESSES = "usaddress-0.5.16/training/labeled.xml"
HELD_OUT_SHARE = 0.25
# Of each source and label: as many as the rarest has, so that the most frequent class is right half the time.
TRAIN_ROWS, HELD_OUT_ROWS = 300, 100

Row = dict[str, Any]


def is_held_out(text: str) -> bool:
    """Say on which side a text falls."""
    return fraction(key(text), "split") < HELD_OUT_SHARE


def read_reviews(archive: Path) -> Iterator[Row]:
    """Yield reviews of films and products that are clearly one or the other, each text once."""
    with tarfile.open(archive) as outer:
        inner = outer.extractfile(RATINGS)
        assert inner is not None
        with tarfile.open(fileobj=io.BytesIO(inner.read())) as ratings:
            for domain, name in REVIEWS.items():
                member = ratings.extractfile(name)
                assert member is not None
                for line in member.read().decode("utf-8", "replace").splitlines():
                    _, mean, text = line.split("\t", 2)
                    text = html.unescape(text).replace("''", '"').strip()
                    if abs(float(mean)) >= CLEAR and len(text) <= LONGEST_REVIEW and text.isascii():
                        yield {"text": text, "label": "positive" if float(mean) > 0 else "negative", "domain": domain}


def prepare_sentiment(archive: Path) -> tuple[list[Row], list[Row]]:
    """Return train and held-out rows with equally many of each domain and label."""
    found: dict[str, Row] = {}
    for row in read_reviews(archive):
        found.setdefault(key(row["text"]), row)
    ordered = sorted(found.values(), key=lambda row: fraction(row["text"], "order"))
    train: list[Row] = []
    held_out: list[Row] = []
    for domain, label in itertools.product(REVIEWS, ("negative", "positive")):
        rows = [row for row in ordered if row["domain"] == domain and row["label"] == label]
        train += [row for row in rows if not is_held_out(row["text"])][:TRAIN_ROWS]
        held_out += [row for row in rows if is_held_out(row["text"])][:HELD_OUT_ROWS]
    return [sorted(side, key=lambda row: fraction(row["text"], "order")) for side in (train, held_out)]  # type: ignore[return-value]


def read_addresses(archive: Path) -> Iterator[Row]:
    """Yield addresses word by word; the first word of a part is tagged B-, those that go on with it I- (IOB2)."""
    with tarfile.open(archive) as outer:
        member = outer.extractfile(ADDRESSES)
        assert member is not None
        root = ElementTree.fromstring(member.read())
    for address in root.iter("AddressString"):
        words = [(part.tag, word) for part in address for word in (part.text or "").split()]
        before = ["", *(tag for tag, _ in words)]
        tags = [f"{'I' if tag == last else 'B'}-{tag}" for (tag, _), last in zip(words, before, strict=False)]
        if words:
            yield {"tokens": [word for _, word in words], "tags": tags}


def prepare_addresses(archive: Path) -> tuple[list[Row], list[Row]]:
    """Return train and held-out rows; tags that training never shows are left out of the held-out ones."""
    found: dict[str, Row] = {}
    for row in read_addresses(archive):
        found.setdefault(key(" ".join(row["tokens"])), row)
    train = [row for text, row in found.items() if not is_held_out(text)]
    known = {tag for row in train for tag in row["tags"]}
    return train, [row for text, row in found.items() if is_held_out(text) and known >= {*row["tags"]}]


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write one JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def main() -> None:
    """Write train.jsonl and heldout.jsonl of both recipes."""
    parser = argparse.ArgumentParser(description="Regenerate the labelled rows of two recipes from source packages.")
    parser.add_argument("--vader", type=Path, required=True, help="vaderSentiment-3.3.2.tar.gz")
    parser.add_argument("--usaddress", type=Path, required=True, help="usaddress-0.5.16.tar.gz")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder that holds the recipes")
    arguments = parser.parse_args()
    for name, (train, held_out) in {
        "sentiment": prepare_sentiment(arguments.vader),
        "addresses": prepare_addresses(arguments.usaddress),
    }.items():
        write_rows(arguments.out / name / "train.jsonl", train)
        write_rows(arguments.out / name / "heldout.jsonl", held_out)
        print(f"{name}: {len(train)} rows to train on, {len(held_out)} held out")


if __name__ == "__main__":
    main()
