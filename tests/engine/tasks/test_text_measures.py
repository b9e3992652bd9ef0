"""Measures of text: the figures of sacrebleu 2.6.0, rouge-score 0.1.2, and SQuAD's script counted by hand."""

from __future__ import annotations

import pytest

from adapterhub.engine.tasks import _text_measures as measures

TOLD = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him.", ""]
TRUTH = ["The dog bit the man.", "It was not unexpected.", "The man bit him first.", "A word"]


def test_chrf_is_sacrebleus() -> None:
    assert measures.chrf(TOLD, TRUTH) == pytest.approx(0.4782538755352923, abs=1e-12)
    by_row = (1.0, 0.2473801947679657, 0.3484006733201161, 0.0)
    for told, truth, value in zip(TOLD, TRUTH, by_row, strict=True):
        assert measures.chrf([told], [truth]) == pytest.approx(value, abs=1e-12)
    assert measures.chrf(["ab"], ["ac"]) == pytest.approx(0.25)
    assert measures.chrf(["a"], ["abc"]) == pytest.approx(0.3846153846153846)


def test_rouge_l_is_rouge_scores() -> None:
    found = [measures.rouge_l(told, truth) for told, truth in zip(TOLD, TRUTH, strict=True)]
    assert found == pytest.approx([1.0, 0.25, 0.5454545454545454, 0.0])
    one, other = "The quick brown dog jumps on the log.", "The quick brown fox jumps over the lazy dog"
    assert measures.rouge_l(one, other) == pytest.approx(0.5882352941176471)
    # Words of all scripts count, which rouge-score's own tokenizer takes apart.
    assert measures.rouge_l("niño pequeño", "niño grande") == 0.5


def test_answers_are_compared_as_squad_does() -> None:
    assert measures.plain_answer("  The Eiffel-Tower,  a sight! ") == "eiffeltower sight"
    assert measures.answer_exact("the Rome.", ["Paris", "rome"]) == 1.0
    # Two of three words of the answer, two of the two told.
    assert measures.answer_f1("Marie Curie", ["Madame Marie Curie"]) == pytest.approx(0.8)
    assert measures.answer_f1("in in Rome", ["in Rome"]) == pytest.approx(0.8)
    assert (measures.answer_f1("", []), measures.answer_f1("x", []), measures.answer_f1("", ["x"])) == (1.0, 0.0, 0.0)
    assert measures.answer_exact("", ["the"]) == 1.0


def test_exact_match_reads_over_blanks() -> None:
    assert measures.exact("uno  dos\n", "uno dos") and not measures.exact("Uno dos", "uno dos")
