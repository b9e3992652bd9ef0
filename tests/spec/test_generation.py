"""Generation options: checked once, every fault at once."""

from __future__ import annotations

import pytest

from adapterhub.errors import UsageError
from adapterhub.spec.generation import Generation


def test_the_default_is_greedy() -> None:
    assert Generation.checked() == Generation()
    assert str(Generation()) == "greedy, max_new_tokens=256"


@pytest.mark.parametrize("option", [{"temperature": 0.7}, {"top_p": 0.9}, {"top_k": 40}, {"seed": 0}])
def test_an_option_of_sampling_asks_for_sampling(option: dict) -> None:
    assert Generation.checked(**option).do_sample is True
    with pytest.raises(UsageError) as caught:
        Generation.checked(do_sample=False, **option)
    assert caught.value.details[0].startswith(next(iter(option)))


def test_a_repetition_penalty_is_no_sampling() -> None:
    assert Generation.checked(repetition_penalty=1.1) == Generation(repetition_penalty=1.1)


@pytest.mark.parametrize(
    "option",
    [
        {"max_new_tokens": 0},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"top_p": float("nan")},
        {"top_k": -1},
        {"repetition_penalty": 0.0},
        {"seed": -1},
        {"seed": 2**63},
    ],
    ids=str,
)
def test_a_value_out_of_range_is_refused(option: dict) -> None:
    with pytest.raises(UsageError) as caught:
        Generation.checked(**option)
    assert [detail.split(":")[0] for detail in caught.value.details] == list(option)


def test_a_temperature_of_zero_is_told_what_it_means() -> None:
    with pytest.raises(UsageError) as caught:
        Generation.checked(temperature=0.0)
    assert caught.value.hint == "leave temperature out to decode greedily"


def test_every_fault_is_reported() -> None:
    with pytest.raises(UsageError) as caught:
        Generation.checked(max_new_tokens=-1, top_p=2.0, top_k=-3)
    assert len(caught.value.details) == 3


def test_options_are_shown_by_their_names() -> None:
    options = Generation.checked(max_new_tokens=5, temperature=0.5, repetition_penalty=1.2, seed=7)
    assert str(options) == "sampling, max_new_tokens=5, temperature=0.5, repetition_penalty=1.2, seed=7"
    assert Generation.checked(**options.to_data()) == options
