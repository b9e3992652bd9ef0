"""Licences: the table is whole, and an adapter's licence against its base's and its data's says what it should."""

from __future__ import annotations

import re

import pytest

from adapterhub.catalog.licence_checks import LICENCE_CHECKS, Subject, compare_licences
from adapterhub.catalog.licences import LICENCES, ROWS, Commerce, licence_named, licence_of_text
from adapterhub.errors import ExitCode
from adapterhub.spec.report import Finding, Severity


def findings(licence: str | None, base: str | None = None, *, name: str = "acme/Llama-legal", **more) -> list[Finding]:
    subject = Subject(name=name, licence=licence, base="org/model", base_licence=base, **more)
    return list(compare_licences(subject))


def codes(*args, **more) -> list[tuple[str, str]]:
    return [(item.code, item.severity.value) for item in findings(*args, **more)]


def test_the_table_is_whole():
    assert len(LICENCES) == len(ROWS) > 60
    names = [name for row in ROWS for name in (row.id, *row.aliases)]
    assert len(names) == len(set(names))
    for row in ROWS:
        assert row.id == row.id.casefold() and all(name == name.casefold() for name in row.aliases)
        assert row.url.startswith("https://")
        assert set(row.passes_to) <= set(LICENCES)
        assert row.takes(row)
        # What a name or a notice asks of others are terms that go with the work.
        assert row.terms or not (row.notice or row.name_begins)
        assert row.heading is None or re.compile(row.heading)


def test_the_checks_are_whole():
    for code, check in LICENCE_CHECKS.items():
        assert code == check.code and re.fullmatch("ADP6[0-9]{2}", code)
        assert check.why.endswith(".") and check.hint
        assert check.exit_code is (ExitCode.UNSATISFIED if check.severity is Severity.ERROR else ExitCode.OK)


@pytest.mark.parametrize(
    ("text", "id"),
    [
        ("Apache-2.0", "apache-2.0"),
        ("MIT", "mit"),
        ("CC-BY-NC-4.0", "cc-by-nc-4.0"),
        ("GPL-3.0-or-later", "gpl-3.0"),
        (" llama3.1 ", "llama3.1"),
        ("Tongyi-Qianwen", "tongyi-qianwen"),
        ("mistral-ai-research-license", "mrl"),
        ("my-own", None),
        ("other", None),
        (None, None),
    ],
)
def test_a_licence_goes_by_its_hub_and_spdx_ids(text, id):
    row = licence_named(text)
    assert (row.id if row else None) == id


@pytest.mark.parametrize(
    ("text", "id"),
    [
        (
            "                                 Apache License\n                           Version 2.0, January",
            "apache-2.0",
        ),
        ("MIT License\n\nCopyright (c) 2024 Acme", "mit"),
        ("Copyright (c) Acme\n\nPermission is hereby granted, free of charge, to any person", "mit"),
        ("LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\nLlama 3.1 Version Release Date: July 23, 2024", "llama3.1"),
        ("LLAMA 2 COMMUNITY LICENSE AGREEMENT\t\nLlama 2 Version Release Date: July 18, 2023", "llama2"),
        ("META LLAMA 3 COMMUNITY LICENSE AGREEMENT\nMeta Llama 3 Version Release Date", "llama3"),
        ("Gemma Terms of Use\n\nLast modified: April 1, 2024", "gemma"),
        ("Qwen RESEARCH LICENSE AGREEMENT\n\nQwen RESEARCH LICENSE AGREEMENT Release Date", "qwen-research"),
        ("Qwen LICENSE AGREEMENT\n\nQwen LICENSE AGREEMENT Release Date: September 19, 2024", "qwen"),
        ("Tongyi Qianwen LICENSE AGREEMENT\n\nTongyi Qianwen Release Date", "tongyi-qianwen"),
        ("# Mistral AI Research License", "mrl"),
        ("GNU LESSER GENERAL PUBLIC LICENSE\n  Version 3, 29 June 2007\n GNU General Public License", "lgpl-3.0"),
        ("                    GNU GENERAL PUBLIC LICENSE\n                       Version 3, 29", "gpl-3.0"),
        ("Creative Commons Attribution-NonCommercial 4.0 International\n=====", "cc-by-nc-4.0"),
        ("Attribution-NonCommercial-ShareAlike 4.0 International\n=======", "cc-by-nc-sa-4.0"),
        ("Attribution 4.0 International", "cc-by-4.0"),
        ("Acme Model License 1.0\n\nAll rights reserved.", None),
        ("", None),
    ],
)
def test_a_licence_file_is_known_by_its_heading(text, id):
    row = licence_of_text(text)
    assert (row.id if row else None) == id


@pytest.mark.parametrize(
    ("licence", "base"),
    [
        ("apache-2.0", "apache-2.0"),
        ("mit", "apache-2.0"),
        ("apache-2.0", "cc-by-4.0"),
        ("cc-by-nc-4.0", "apache-2.0"),  # stricter than the base: the author's own choice
        ("cc-by-nc-4.0", "cc-by-nc-4.0"),
        ("cc-by-sa-4.0", "cc-by-sa-3.0"),
        ("gpl-3.0", "lgpl-3.0"),
        ("llama2", "llama2"),
        ("apache-2.0", None),
    ],
)
def test_what_agrees_is_not_spoken_of(licence, base):
    assert codes(licence, base) == []


@pytest.mark.parametrize(
    ("licence", "base", "code"),
    [
        ("apache-2.0", "cc-by-nc-4.0", "ADP601"),
        ("cc-by-4.0", "qwen-research", "ADP601"),
        ("mit", "mrl", "ADP601"),
        ("llama3.1", "cc-by-nc-4.0", "ADP601"),
        ("cc-by-nc-nd-4.0", "cc-by-nd-4.0", "ADP602"),
        ("apache-2.0", "cc-by-sa-4.0", "ADP603"),
        ("cc-by-sa-3.0", "cc-by-sa-4.0", "ADP603"),
        ("mit", "gpl-3.0", "ADP603"),
        ("cc-by-nc-4.0", "cc-by-nc-sa-4.0", "ADP603"),
        ("apache-2.0", "llama2", "ADP604"),
        ("mit", "gemma", "ADP604"),
        ("apache-2.0", "bigscience-openrail-m", "ADP604"),
        ("cc-by-nc-4.0", "qwen-research", "ADP604"),
    ],
)
def test_a_licence_that_promises_more_than_its_base_gives_is_an_error(licence, base, code):
    assert codes(licence, base) == [(code, "error")]
    found = findings(licence, base)[0]
    assert found.exit_code is ExitCode.UNSATISFIED
    assert (
        base in found.message
        and "as its card or LICENSE says" in found.message
        and LICENCES[base].url in (found.hint or "")
    )


def test_the_message_of_a_non_commercial_base():
    assert findings("apache-2.0", "cc-by-nc-4.0")[0].message == (
        "apache-2.0 is more permissive than its base allows: cc-by-nc-4.0, the licence of its base org/model as its "
        "card or LICENSE says, allows no commercial use"
    )


def test_another_version_of_the_same_terms_is_for_a_person_to_weigh():
    assert codes("llama3.2", "llama3.1") == [("ADP608", "warning")]
    assert codes("openrail++", "creativeml-openrail-m") == [("ADP608", "warning")]


@pytest.mark.parametrize("licence", [None, "other", "unknown"])
def test_no_licence_is_a_warning(licence):
    assert codes(licence, "apache-2.0") == [("ADP607", "warning")]


def test_an_unknown_licence_is_a_warning_on_either_side():
    assert codes("acme-1.0", "apache-2.0") == [("ADP608", "warning")]
    assert codes("mit", "acme-1.0") == [("ADP608", "warning")]
    assert codes("acme-1.0", "cc-by-nc-4.0") == [("ADP608", "warning")]


def test_the_name_begins_as_the_base_s_licence_asks():
    assert codes("llama3.1", "llama3.1", name="acme/legal-lora") == [("ADP606", "warning")]
    for name in ("acme/Llama-3.1-legal", "acme/llama_legal", "llama-legal"):
        assert codes("llama3.1", "llama3.1", name=name) == []
    assert codes("llama3", "llama3", name="acme/llama-legal") == [("ADP606", "warning")]
    assert codes("llama3", "llama3", name="acme/Llama-3-legal") == []


def test_the_card_shows_the_notice_where_the_card_is_known():
    assert codes("llama3.1", "llama3.1", card="# An adapter") == [("ADP606", "warning")]
    assert codes("llama3.1", "llama3.1", card="**Built  with\nLlama**") == []
    assert codes("llama3.1", "llama3.1", card=None) == []


@pytest.mark.parametrize(
    ("licence", "data", "expected"),
    [
        ("apache-2.0", "cc-by-4.0", []),
        ("apache-2.0", "cc-by-nc-4.0", [("ADP601", "error")]),
        ("cc-by-nc-4.0", "cc-by-nc-4.0", []),
        # Whether a model is derived from what it learnt from is not settled: no error.
        ("apache-2.0", "cc-by-sa-4.0", [("ADP605", "warning")]),
        ("cc-by-sa-4.0", "cc-by-sa-4.0", []),
        ("apache-2.0", "cc-by-nd-4.0", [("ADP605", "warning")]),
        ("apache-2.0", "odbl", [("ADP605", "warning")]),
        ("apache-2.0", "acme-data", [("ADP608", "warning")]),
        ("apache-2.0", None, [("ADP608", "warning")]),
    ],
)
def test_the_data_count_too(licence, data, expected):
    assert codes(licence, "apache-2.0", data={"rows.jsonl": data}) == expected


def test_only_known_non_commercial_rows_say_no():
    assert {row.id for row in ROWS if row.commerce is Commerce.NO and not row.id.startswith("cc-by-")} == {
        "qwen-research",
        "mrl",
        "mnpl",
        "apple-amlr",
        "fair-noncommercial-research-license",
    }
    for row in ROWS:
        if row.id.startswith("cc-by"):
            assert (row.commerce is Commerce.NO) == ("-nc" in row.id)
            assert (row.derivatives, row.share_alike) == ("-nd" not in row.id, "-sa" in row.id)
