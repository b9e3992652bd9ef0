"""Sources and targets: what is encoded, losses held against transformers' own, and what is written and measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adapterhub.engine.data import IGNORED
from adapterhub.engine.row_kinds import Row
from adapterhub.engine.tasks import seq_2_seq_lm, task_engine
from adapterhub.engine.tasks.seq_2_seq_lm import TextPair
from adapterhub.spec.data import DataSpec
from tests.engine.tasks.tiny_seq_2_seq import tiny_bart, tiny_t5

pytestmark = pytest.mark.engine
TASK = task_engine("SEQ_2_SEQ_LM")
SPEC = DataSpec(train="r.jsonl")
ROWS = [
    Row(place="r.jsonl:1", prompt="one two three", text="uno dos tres"),
    Row(place="r.jsonl:2", prompt="six", text="seis"),
]


@pytest.fixture(scope="module", params=[tiny_t5, tiny_bart])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    folder: Path = request.param(tmp_path_factory.mktemp("base"))
    return AutoModelForSeq2SeqLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def test_both_sides_end_as_the_tokenizer_ends_them(base: Any) -> None:
    _, tokenizer = base
    found = TASK.encode(ROWS, tokenizer, SPEC, max_length=16)
    pair = found.items[0]
    assert isinstance(pair, TextPair)
    assert tokenizer.convert_ids_to_tokens(list(pair.input_ids)) == ["one", "two", "three", "</s>"]
    assert tokenizer.convert_ids_to_tokens(list(pair.target)) == ["uno", "dos", "tres", "</s>"]
    assert (pair.trained, found.tokens, found.trained, pair.decode(pair.target)) == (4, 6, 6, "uno dos tres")
    cut = TASK.encode(ROWS, tokenizer, SPEC, max_length=3)
    assert isinstance(cut.items[0], TextPair)
    assert tokenizer.convert_ids_to_tokens(list(cut.items[0].input_ids)) == ["one", "two", "</s>"]
    assert tokenizer.convert_ids_to_tokens(list(cut.items[0].target)) == ["uno", "dos", "</s>"]
    assert cut.truncated == ("r.jsonl:1",)


def test_losses_are_transformers_own(base: Any) -> None:
    import torch

    model, tokenizer = base
    batch = TASK.collate(TASK.encode(ROWS, tokenizer, SPEC, max_length=16).items, pad_id=0)
    assert batch["labels"].tolist()[1][2:] == [IGNORED, IGNORED]
    with torch.inference_mode():
        losses = TASK.losses(model, batch)
        whole = model(**{name: batch[name] for name in ("input_ids", "attention_mask", "labels")}).loss
    assert losses.shape == (6,)
    assert float(losses.mean()) == pytest.approx(float(whole), abs=1e-6)


@pytest.mark.parametrize("model_type", ["m2m_100", "blenderbot", "blenderbot-small"])
def test_decoders_without_a_method_for_what_they_read_are_given_the_same(model_type: str) -> None:
    import torch
    import transformers

    sides = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in
             (("layers", 1), ("ffn_dim", 16), ("attention_heads", 2), ("layerdrop", 0.0))}  # fmt: skip
    special = {"pad_token_id": 1, "decoder_start_token_id": 2, "eos_token_id": 2, "bos_token_id": 0}
    config = transformers.AutoConfig.for_model(
        model_type, vocab_size=32, d_model=8, max_position_embeddings=32, **sides, **special
    )
    model = transformers.AutoModelForSeq2SeqLM.from_config(config).eval()
    labels = torch.tensor([[5, 6, 7, 2], [8, 2, IGNORED, IGNORED]])
    batch = {"input_ids": torch.randint(3, 32, (2, 6)), "attention_mask": torch.ones(2, 6, dtype=torch.long)}
    with torch.inference_mode():
        losses = TASK.losses(model, {**batch, "labels": labels})
        whole = model(**batch, labels=labels).loss
    assert float(losses.mean()) == pytest.approx(float(whole), abs=1e-6)


def test_what_is_written_is_measured_and_the_rest_is_not(base: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    model, tokenizer = base
    monkeypatch.setattr(seq_2_seq_lm, "WRITTEN_ROWS", 1)
    examples = TASK.encode(ROWS, tokenizer, SPEC, max_length=16).items
    with torch.inference_mode():
        judged = TASK.judge(model, TASK.collate(examples, pad_id=0))
        told = model.generate(
            **{name: torch.tensor([value]) for name, value in (("input_ids", examples[0].input_ids),)},
            max_new_tokens=16,
            num_beams=1,
            do_sample=False,
        )
    assert judged.counts.tolist() == [4, 2]
    ((written,), nothing) = judged.predictions
    assert nothing == ()
    assert tokenizer.decode(list(written), skip_special_tokens=True) == tokenizer.decode(
        told[0], skip_special_tokens=True
    )


def test_scores_of_texts_that_are_known(base: Any) -> None:
    _, tokenizer = base
    examples = TASK.encode(ROWS, tokenizer, SPEC, max_length=16).items
    ids = {word: tokenizer.convert_tokens_to_ids(word) for word in ("uno", "dos", "seis")}
    half = ((ids["uno"], ids["dos"]),)
    found = TASK.scores([half, ((ids["seis"], 2),)], examples, ())
    # Two of three words, and one of one: 2·2/(2+3) and 1.
    assert found["rouge_l"] == pytest.approx((0.8 + 1) / 2)
    assert found["exact_match"] == 0.5
    assert TASK.scores([(), ((ids["seis"], 2),)], examples, ())["exact_match"] == 1.0
    parts = TASK.main_measure([half, ()], examples, ()).parts  # type: ignore[attr-defined]
    assert parts == (pytest.approx((0.8, 1.0)), (0.0, 0.0))
