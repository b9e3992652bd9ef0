"""Stacks as they are written on a command line and in adapters.yaml."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub import schemas
from adapterhub.errors import InvalidFileError
from adapterhub.spec.project import Project
from adapterhub.spec.stack import Parameters, Stack, StackLayer

WORDS = st.from_regex(r"[a-z][a-z0-9_/-]{0,8}", fullmatch=True)
LAYERS = st.lists(
    st.builds(lambda w, x: StackLayer(word=w, weight=x), WORDS, st.sampled_from([1.0, 0.5, -1.0, 2.25, 0.0, 1e-3])),
    min_size=1,
    max_size=4,
    unique_by=lambda layer: layer.word,
)


@given(LAYERS)
def test_stacks_round_trip(layers: list[StackLayer]) -> None:
    stack = Stack(layers=tuple(layers))
    assert Stack.parse(str(stack)) == stack


def test_weights_are_used_as_they_stand() -> None:
    assert Stack.parse("medical, spanish=0.5").layers == (
        StackLayer(word="medical"),
        StackLayer(word="spanish", weight=0.5),
    )


@pytest.mark.parametrize("text", ["", ",", "a,", "a,,b", "=1", "a=x", "a=nan", "a=inf", "a,a", "a=1,a=2"])
def test_bad_stacks(text: str) -> None:
    with pytest.raises(ValueError):
        Stack.parse(text)


def test_a_stack_in_a_project_names_known_adapters_only() -> None:
    data = {"project_version": "1.0", "adapters": {"a": "o/a"}, "stacks": {"default": "a,b"}}
    with pytest.raises(InvalidFileError, match=r"stacks\.default: 'b' is no adapter"):
        Project.from_data(data)


def test_a_stack_with_a_combination_round_trips() -> None:
    layers = [{"adapter": "a", "weight": 0.7}]
    data = {
        "project_version": "1.0",
        "adapters": {"a": "o/a"},
        "stacks": {"s": {"layers": layers, "combination": "ties"}},
    }
    project = Project.from_data(data)
    assert project.stacks["s"].combination == "ties"
    assert Project.from_data(project.to_data()) == project


def test_the_parameters_of_a_combination_round_trip() -> None:
    said = {"density": 0.5, "rank": 16, "seed": 0, "lambda": 1.5, "normalize": False}
    stack = {"layers": [{"adapter": "a", "weight": 1.0}], "combination": "dare_ties"}
    data = {"project_version": "1.0", "adapters": {"a": "o/a"}, "stacks": {"s": stack | said}}
    project = Project.from_data(data)
    parameters = project.stacks["s"].parameters
    assert parameters == Parameters(density=0.5, rank=16, seed=0, scale=1.5, normalize=False)
    assert project.to_data()["stacks"] == data["stacks"]
    assert Project.from_data(project.to_data()) == project
    assert not schemas.check("project", data, where="adapters.yaml")
    assert Parameters(rank=4).over(parameters) == Parameters(density=0.5, rank=4, seed=0, scale=1.5, normalize=False)
    # Parameters of the exact sum are kept as well: a rank is a limit for it too.
    limited = {"s": {"layers": [{"adapter": "a", "weight": 1.0}], "combination": "sum", "rank": 3}}
    assert Project.from_data(data | {"stacks": limited}).to_data()["stacks"] == limited


@pytest.mark.parametrize(
    "said", [{"density": 0}, {"density": 1.5}, {"rank": 0}, {"seed": -1}, {"lambda": "x"}, {"normalize": 1}, {"k": 1}]
)
def test_parameters_out_of_their_range(said: dict[str, object]) -> None:
    stack = {"layers": [{"adapter": "a"}], "combination": "dare_ties"} | said
    with pytest.raises(InvalidFileError, match=f"stacks.s.{next(iter(said))}"):
        Project.from_data({"project_version": "1.0", "adapters": {"a": "o/a"}, "stacks": {"s": stack}})
    assert schemas.check("project", {"project_version": "1.0", "stacks": {"s": stack}}, where="adapters.yaml")
