from __future__ import annotations

import pytest

from adapterhub.catalog.method_sizes import size_faults
from adapterhub.catalog.methods import METHODS, check_hyperparameters

# As in SmolLM2: q and o, and k and v.
MODULES = [("model.layers.0.self_attn.q_proj", 576, 576), ("model.layers.0.self_attn.v_proj", 576, 192)]


@pytest.mark.parametrize(
    ("method", "given", "most"),
    [
        ("c3a", {}, {"block_size": 192}),
        ("c3a", {"block_size": 64}, {}),
        ("c3a", {"block_size": 288, "block_size_pattern": {"v_proj": 96}}, {}),
        ("c3a", {"block_size": 288, "block_size_pattern": {"v_proj": 288}}, {"block_size": 192}),
        ("vblora", {}, {"vector_length": 192}),
        ("gralora", {"r": 5, "gralora_k": 5}, {"gralora_k": 192}),
        ("road", {}, {}),
        ("road", {"group_size": 128}, {"group_size": 192}),
        ("miss", {}, {}),
        ("miss", {"r": 577}, {"r": 576}),
        ("miss", {"r": 36, "init_weights": "bat"}, {"r": 192}),
        ("miss", {"r": 10, "mini_r": 5, "init_weights": "mini"}, {"mini_r": 192}),
        ("shira", {}, {}),
        ("shira", {"r": 145}, {"r": 144}),
        ("fourierft", {"n_frequency": 110_593}, {"n_frequency": 110_592}),
        ("waveft", {"n_frequency": 110_592}, {}),
        ("waveft", {"n_frequency": 200_000, "n_frequency_pattern": {"v_proj": 9}}, {}),
        ("lora", {}, {}),
    ],
)
def test_sizes_that_a_method_cannot_adapt_are_told_with_the_most_that_fits(method, given, most):
    filled = check_hyperparameters(METHODS[method], given, where="x")
    faults = size_faults(method, filled, MODULES)
    assert {fault.name: fault.most for fault in faults} == most
    # What is named fits.
    if most and "block_size_pattern" not in given:
        assert not size_faults(method, {**filled, **most}, MODULES)


def test_what_is_wrong_names_the_module():
    filled = check_hyperparameters(METHODS["c3a"], {}, where="x")
    assert size_faults("c3a", filled, MODULES)[0].text == (
        "256 does not divide the inputs and outputs of model.layers.0.self_attn.q_proj (576 to 576)"
    )
