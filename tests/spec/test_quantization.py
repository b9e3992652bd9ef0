"""Quantization in BitsAndBytesConfig's words: what is read, what is refused, what a digest hears of."""

from __future__ import annotations

from typing import Any

import pytest

from adapterhub.errors import InvalidFileError
from adapterhub.schemas import check
from adapterhub.spec._decode import Faults, Reader
from adapterhub.spec.quantization import Quantization


def read(data: dict[str, Any]) -> Quantization:
    faults = Faults(where="test")
    value = Quantization.read(Reader(data, faults))
    faults.raise_if_any()
    assert value is not None
    return value


def recipe(quantization: object) -> dict[str, Any]:
    return {
        "recipe_version": "1.0",
        "name": "a",
        "version": "1.0.0",
        "base_model": "tiny",
        "data": {"train": "rows.jsonl"},
        "quantization": quantization,
    }


def test_every_word_is_read_and_said_again() -> None:
    words = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "fp4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": "float16",
        "bnb_4bit_quant_storage": "bfloat16",
        "llm_int8_skip_modules": ["model.layers.0", "down_proj"],
    }
    value = read(words)
    assert value.to_data() == words
    assert str(value) == "4-bit (fp4, double quantization)"
    eight = {"load_in_8bit": True, "llm_int8_threshold": 3.5, "llm_int8_skip_modules": ["q_proj"]}
    assert read(eight).to_data() == eight
    assert (value.bits, read(eight).bits, str(read(eight))) == (4, 8, "8-bit (LLM.int8)")


def test_what_says_nothing_new_is_left_out() -> None:
    assert read({"load_in_8bit": True}).to_data() == {"load_in_8bit": True}
    first = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": False,
        "bnb_4bit_compute_dtype": "bfloat16",
    }
    assert read(first).to_data() == first
    assert read(first).is_first_form and read({"load_in_8bit": True}).is_first_form
    # The first formats had no word for `as the device has it`.
    assert not read({"load_in_4bit": True}).is_first_form
    assert not read({**first, "bnb_4bit_quant_storage": "float32"}).is_first_form
    assert not read({"load_in_8bit": True, "llm_int8_threshold": 0.0}).is_first_form


def test_a_compute_dtype_is_filled_in_where_none_is_given() -> None:
    open_one = read({"load_in_4bit": True})
    assert open_one.bnb_4bit_compute_dtype is None
    assert open_one.computing_in("float32").bnb_4bit_compute_dtype == "float32"
    given = read({"load_in_4bit": True, "bnb_4bit_compute_dtype": "float16"})
    assert given.computing_in("float32") == given
    eight = read({"load_in_8bit": True})
    assert eight.computing_in("float32") == eight


@pytest.mark.parametrize(
    ("words", "field"),
    [
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "int4"}, "bnb_4bit_quant_type"),
        ({"load_in_4bit": True, "bnb_4bit_compute_dtype": "float64"}, "bnb_4bit_compute_dtype"),
        ({"load_in_4bit": True, "bnb_4bit_quant_storage": "int8"}, "bnb_4bit_quant_storage"),
        ({"load_in_8bit": True, "llm_int8_threshold": -1.0}, "llm_int8_threshold"),
        ({"load_in_8bit": True, "llm_int8_skip_modules": "q_proj"}, "llm_int8_skip_modules"),
        ({"load_in_8bit": True, "llm_int8_skip_modules": ["q_(proj"]}, "llm_int8_skip_modules[0]"),
        ({"load_in_4bit": 1}, "load_in_4bit"),
        ({"load_in_4bit": True, "bnb_4bit_qant_type": "nf4"}, "bnb_4bit_qant_type"),
    ],
)
def test_the_schema_refuses_what_is_refused_here(words: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidFileError) as caught:
        read(words)
    assert field in str(caught.value.where) or any(field in detail for detail in caught.value.details)
    assert check("recipe", recipe(words), where="test")
    assert check("recipe", recipe({"load_in_4bit": True}), where="test") == ()


@pytest.mark.parametrize(
    "words",
    [
        {"load_in_4bit": True, "llm_int8_threshold": 3.0},
        {"load_in_8bit": True, "bnb_4bit_quant_type": "nf4"},
        {"load_in_8bit": True, "bnb_4bit_use_double_quant": False},
    ],
)
def test_a_word_without_a_meaning_is_refused(words: dict[str, Any]) -> None:
    with pytest.raises(InvalidFileError, match="has no meaning with load_in_"):
        read(words)


@pytest.mark.parametrize("words", [{}, {"load_in_4bit": True, "load_in_8bit": True}, {"load_in_4bit": False}])
def test_exactly_one_width_is_wanted(words: dict[str, Any]) -> None:
    with pytest.raises(InvalidFileError, match="exactly one of"):
        read(words)
