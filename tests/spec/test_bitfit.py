from __future__ import annotations

import pytest

from adapterhub.errors import IncompatibleError
from adapterhub.spec.bitfit import choose_biases

BIASES = ("h.0.attn.query.bias", "h.0.attn.query_2.bias", "h.0.mlp.bias", "norm.bias")


def test_all_or_those_of_named_modules() -> None:
    assert choose_biases(BIASES, None, model="x") == BIASES
    assert choose_biases(BIASES, ("query", "norm"), model="x") == ("h.0.attn.query.bias", "norm.bias")
    assert choose_biases(BIASES, r".*\.attn\..*", model="x") == BIASES[:2]


def test_what_has_no_bias_is_refused() -> None:
    with pytest.raises(IncompatibleError, match=r"this base model \(llama\) has none") as caught:
        choose_biases((), None, model="llama")
    assert "ln_tuning" in (caught.value.hint or "")
    with pytest.raises(IncompatibleError, match="named qury") as caught:
        choose_biases(BIASES, ("qury", "norm"), model="x")
    assert "query" in (caught.value.hint or "")
    with pytest.raises(IncompatibleError, match="named nothing"):
        choose_biases(BIASES, "nothing", model="x")
