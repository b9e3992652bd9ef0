"""Tokens become text that is final when it is printed; prompts, ends of turns and limits are what they should be."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterhub.engine.generate import TokenText, encode_prompt, generate
from adapterhub.errors import UsageError
from adapterhub.spec.generation import Generation
from tests.engine.peft_reference import plain_model
from tests.factory import tiny_gpt2, tiny_llama, write_tokenizer

pytestmark = pytest.mark.engine


def load_tokenizer(folder: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama") / "base")


@pytest.fixture(scope="module")
def tokenizer(llama: Path):
    return load_tokenizer(llama)


@functools.cache
def metaspace_tokenizer():
    """A SentencePiece-like tokenizer with byte fallback: words begin with a mark, unknown characters are bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefgh", "▁a", "▁b", "de"]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(
        models.BPE(vocab, [("▁", "a"), ("▁", "b"), ("d", "e")], unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def pieces_of(tokenizer, ids: list[int], context: list[int] | None = None) -> list[str]:
    stream = TokenText(tokenizer, context or ())
    return [*(stream.push(token) for token in ids), stream.finish()]


@settings(deadline=None, max_examples=300)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_streams_whole_characters(tokenizer, text: str) -> None:
    pieces = pieces_of(tokenizer, list(text.encode()))
    assert "".join(pieces) == text
    # One token is one byte here: half a character would have been written as U+FFFD.
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@settings(deadline=None, max_examples=300)
@given(data=st.binary(max_size=60))
def test_any_bytes_stream_as_they_decode(tokenizer, data: bytes) -> None:
    assert "".join(pieces_of(tokenizer, list(data))) == tokenizer.decode(list(data)) == data.decode(errors="replace")


@settings(deadline=None, max_examples=200)
@given(
    text=st.text(st.sampled_from("abde ñ€🙂👩‍🔬\n"), max_size=30), context=st.text(st.sampled_from("ab dé"), max_size=8)
)
def test_a_sentencepiece_like_tokenizer_streams_what_it_decodes(text: str, context: str) -> None:
    tokenizer = metaspace_tokenizer()
    before, ids = tokenizer(context).input_ids, tokenizer(text).input_ids
    assert "".join(pieces_of(tokenizer, ids)) == tokenizer.decode(ids)
    joined = tokenizer.decode(before + ids)
    assert tokenizer.decode(before) + "".join(pieces_of(tokenizer, ids, before)) == joined


def test_a_character_is_shown_with_its_last_byte(tokenizer) -> None:
    assert pieces_of(tokenizer, list("a🙂b".encode())) == ["a", "", "", "", "🙂", "b", ""]


def test_bytes_that_never_become_a_character_are_shown_at_the_end(tokenizer) -> None:
    assert pieces_of(tokenizer, [0x41, 0xF0, 0x9F]) == ["A", "", "", "\ufffd"]


def test_special_tokens_are_left_out(tokenizer) -> None:
    assert "".join(pieces_of(tokenizer, [257, 0x41, 258, 0x42])) == "AB"


def test_a_chat_prompt_is_what_the_template_makes_of_it(tokenizer) -> None:
    prompt = encode_prompt(tokenizer, "hi", system="be brief")
    assert list(prompt.ids) == [
        *(257, *b"system\nbe brief", 258, *b"\n"),
        *(257, *b"user\nhi", 258, *b"\n"),
        *(257, *b"assistant\n"),
    ]
    assert prompt.stops == (258,)


def test_a_raw_prompt_goes_in_as_it_stands(tokenizer) -> None:
    assert encode_prompt(tokenizer, "hi there", raw=True).ids == tuple(b"hi there")


def test_without_a_template_the_prompt_goes_in_as_it_stands(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, chat_template=None)
    assert encode_prompt(load_tokenizer(tmp_path), "hi").ids == tuple(b"hi")


def test_a_system_prompt_needs_a_template(tokenizer, tmp_path: Path) -> None:
    write_tokenizer(tmp_path, chat_template=None)
    with pytest.raises(UsageError, match="no chat template"):
        encode_prompt(load_tokenizer(tmp_path), "hi", system="be brief")
    with pytest.raises(UsageError, match="--raw"):
        encode_prompt(tokenizer, "hi", system="be brief", raw=True)


def test_a_template_that_refuses_a_system_turn_says_so(tmp_path: Path) -> None:
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}x"
    write_tokenizer(tmp_path, chat_template=refusing)
    with pytest.raises(UsageError, match="no system role"):
        encode_prompt(load_tokenizer(tmp_path), "hi", system="be brief")


def test_the_end_of_a_turn_ends_the_answer_where_the_base_calls_another_token_so(tmp_path: Path) -> None:
    # Llama 3's bases: eos is <|end_of_text|>, turns end with <|eot_id|>. Here <|pad|> plays the turn's end.
    template = "{% for m in messages %}{{ m.role }}:{{ m.content }}<|pad|>{% endfor %}"
    write_tokenizer(tmp_path, chat_template=template)
    assert encode_prompt(load_tokenizer(tmp_path), "hi").stops == (258, 256)


def test_text_after_a_turn_is_no_stop(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, chat_template="{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}")
    assert encode_prompt(load_tokenizer(tmp_path), "hi").stops == (258,)


def answer(base: Path, options: Generation, *, text: str = "hello", raw: bool = True):
    """Return what is generated, the pieces written, and transformers' own answer in tokens."""
    model, tokenizer = plain_model(base), load_tokenizer(base)
    prompt = encode_prompt(tokenizer, text, raw=raw)
    pieces: list[str] = []
    made = generate(model, tokenizer, prompt, options, write=pieces.append)
    ids = torch.tensor([prompt.ids])
    plain = model.generate(ids, max_new_tokens=options.max_new_tokens or 256, do_sample=False)[0, len(prompt.ids) :]
    return made, pieces, plain.tolist()


def test_greedy_text_is_transformers_own(llama: Path) -> None:
    made, pieces, plain = answer(llama, Generation(max_new_tokens=40))
    assert made.text == "".join(pieces) == load_tokenizer(llama).decode(plain, skip_special_tokens=True)
    assert (made.prompt_tokens, made.new_tokens, made.finish_reason) == (5, 40, "length")


def test_the_token_that_ends_a_turn_is_stripped(tmp_path: Path) -> None:
    from tests.factory import edit_tensors

    base = tiny_llama(tmp_path / "base")

    def insist(tensors):
        # Every hidden state is nearest to <|im_end|>: the norm's weight is large on the direction of its head row.
        tensors["lm_head.weight"][:] = 0
        tensors["lm_head.weight"][258] = 1
        tensors["model.embed_tokens.weight"][:] = 1
        return tensors

    edit_tensors(base / "model.safetensors", insist)
    made, pieces, _ = answer(base, Generation(max_new_tokens=40))
    assert (made.text, pieces, made.new_tokens, made.finish_reason) == ("", [], 1, "stop")


def test_sampling_is_repeated_by_its_seed_alone(llama: Path) -> None:
    def draw(seed: int) -> str:
        return answer(llama, Generation.checked(max_new_tokens=30, temperature=2.0, seed=seed))[0].text

    assert draw(1) == draw(1) != draw(2)


@pytest.mark.parametrize(
    "options", [{"temperature": 0.01}, {"top_k": 1}, {"top_p": 1e-6}], ids=["temperature", "top_k", "top_p"]
)
def test_each_option_of_sampling_reaches_the_model(llama: Path, options: dict) -> None:
    made, _, plain = answer(llama, Generation.checked(max_new_tokens=20, seed=3, **options))
    free = answer(llama, Generation.checked(max_new_tokens=20, seed=3))[0].text
    greedy = load_tokenizer(llama).decode(plain, skip_special_tokens=True)
    assert made.text == greedy != free


def test_a_repetition_penalty_reaches_the_model(llama: Path) -> None:
    made, _, plain = answer(llama, Generation(max_new_tokens=20, repetition_penalty=50.0))
    assert made.text != load_tokenizer(llama).decode(plain, skip_special_tokens=True)


def test_the_context_s_end_is_kept(tmp_path: Path) -> None:
    base = tiny_gpt2(tmp_path / "base")  # its positions are a table of 512: one more would crash
    model, tokenizer = plain_model(base), load_tokenizer(base)
    prompt = encode_prompt(tokenizer, "x" * 500, raw=True)
    with pytest.raises(UsageError, match="512") as caught:
        generate(model, tokenizer, prompt, Generation(max_new_tokens=13))
    assert caught.value.hint == "--max-new-tokens 12"
    assert generate(model, tokenizer, prompt, Generation(max_new_tokens=12)).new_tokens == 12
    assert generate(model, tokenizer, prompt, Generation()).new_tokens == 12
    with pytest.raises(UsageError, match="the prompt has 512 tokens"):
        generate(model, tokenizer, encode_prompt(tokenizer, "x" * 512, raw=True), Generation())


def test_an_empty_prompt_is_refused(tokenizer) -> None:
    with pytest.raises(UsageError, match="empty"):
        encode_prompt(tokenizer, "", raw=True)
