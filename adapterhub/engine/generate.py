"""Text out of a model, piece by piece: the prompt encoded, transformers' generate, tokens turned into text."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub.errors import UsageError
from adapterhub.spec.generation import DEFAULT_MAX_NEW_TOKENS, Generation

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_HALF = "\ufffd"  # what a tokenizer decodes the bytes of an unfinished character to
_CONTEXT = 8  # tokens of a raw prompt before the new ones; a word's leading space is in the join
Write = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A prompt in tokens. stops: tokens that end the answer. context: the prompt's last tokens, where text goes on."""

    ids: tuple[int, ...]
    stops: tuple[int, ...]
    context: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """An answer without its end token. finish_reason: `stop` (the model ended it) or `length` (max_new_tokens did)."""

    text: str
    prompt_tokens: int
    new_tokens: int
    finish_reason: str


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, text: str, *, system: str | None = None, raw: bool = False
) -> Prompt:
    """Turn a prompt into tokens: a user's turn by the chat template, or, `raw` or without a template, as it stands.

    Raises:
        UsageError: a system prompt has no place, the template refuses the turns, or nothing is left of the text.
    """
    stops = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
    if raw or not tokenizer.chat_template:
        if system is not None:
            why = "--raw leaves the chat template out" if raw else "the base model's tokenizer has no chat template"
            raise UsageError(f"a system prompt has no place: {why}", hint="write it into the prompt")
        ids = tuple(tokenizer(text).input_ids)
        prompt = Prompt(ids=ids, stops=stops, context=ids[-_CONTEXT:])
    else:
        messages = [{"role": "system", "content": system}] if system is not None else []
        rendered = render_turns(tokenizer, [*messages, {"role": "user", "content": text}])
        # The template writes the special tokens itself.
        ids = tuple(tokenizer(rendered, add_special_tokens=False).input_ids)
        prompt = Prompt(ids=ids, stops=tuple(dict.fromkeys((*stops, *turn_ends(tokenizer)))))
    if not prompt.ids:
        raise UsageError("the prompt is empty: the tokenizer makes no token of it")
    return prompt


def render_turns(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> str:
    """Return a conversation by the chat template, up to where the assistant's next turn begins.

    Raises:
        UsageError: the template refuses the turns.
    """
    from jinja2.exceptions import TemplateError

    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except (TemplateError, ValueError, TypeError, KeyError) as error:
        raise UsageError(
            f"the chat template refuses these turns: {error}", hint="leave --system out, or use --raw"
        ) from error


def turn_ends(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the token that ends the assistant's turn in the chat template; not every base calls it end of sequence."""
    from jinja2.exceptions import TemplateError

    mark = f"mark{secrets.token_hex(8)}mark"
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": mark}]
    try:
        _, found, after = tokenizer.apply_chat_template(messages, tokenize=False).partition(mark)
    except (TemplateError, ValueError, TypeError, KeyError):
        return ()
    first = tokenizer(after, add_special_tokens=False).input_ids[:1] if found and after else []
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    return tuple(token for token in first if token in special)


class TokenText:
    """Tokens turned into text as they come: every piece is final, and none ends within a character.

    A character's bytes may come in several tokens, and how a token is written may depend on the one before it, so that
    tokens are decoded together with those of the last piece. All pieces joined are what decoding all at once gives.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, context: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._ids = list(context)
        self._read = len(self._ids)
        self._shown = self._decode(self._ids)

    def push(self, token: int) -> str:
        """Take one token; return the text that it completes, often none."""
        self._ids.append(token)
        text = self._decode(self._ids)
        return "" if text.endswith(_HALF) else self._advance(text)

    def finish(self) -> str:
        """Return what is left: bytes that never became a character, as U+FFFD."""
        return self._advance(self._decode(self._ids))

    def _advance(self, text: str) -> str:
        piece = text[len(self._shown) :]
        if piece:
            # The tokens of this piece are the context of the next; those before them are settled.
            self._ids = self._ids[self._read :]
            self._read = len(self._ids)
            self._shown = self._decode(self._ids)
        return piece

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


class _Streamer:
    """What transformers' generate hands every token to (transformers.generation.streamers.BaseStreamer's protocol)."""

    def __init__(self, text: TokenText, stops: frozenset[int], write: Write | None) -> None:
        self.pieces: list[str] = []
        self._text, self._stops, self._write = text, stops, write
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt (first), then one token a call."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        for token in value.reshape(-1).tolist():
            if token not in self._stops:
                self._emit(self._text.push(token))

    def end(self) -> None:
        """Write what was held back."""
        self._emit(self._text.finish())

    def _emit(self, piece: str) -> None:
        if piece:
            self.pieces.append(piece)
            if self._write is not None:
                self._write(piece)


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    options: Generation,
    *,
    write: Write | None = None,
) -> Generated:
    """Generate an answer with transformers' own generate; `write` gets each piece of text as soon as it is final.

    Raises:
        UsageError: prompt and answer do not fit in the model's context.
    """
    import torch

    # An encoder reads the prompt; the decoder then begins with a token of its own.
    encodes = bool(model.config.is_encoder_decoder)
    if encodes:
        room_of(model.config, len(prompt.ids) - 1, 1, taken=trained_prompt(model))
    before = 1 if encodes else len(prompt.ids)
    new_tokens = room_of(model.config, before, options.max_new_tokens, taken=0 if encodes else trained_prompt(model))
    stops = stop_ids(model.generation_config.eos_token_id, prompt.stops)
    streamer = _Streamer(TokenText(tokenizer, () if encodes else prompt.context), frozenset(stops), write)
    ids = torch.tensor([prompt.ids], device=model.device)
    if options.seed is not None:
        torch.manual_seed(options.seed)
    output = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        streamer=streamer,
        max_new_tokens=new_tokens,
        num_beams=1,
        use_cache=True,
        do_sample=options.do_sample,
        eos_token_id=list(stops) or None,
        pad_token_id=padding_id(tokenizer, stops),
        **_given(options),
    )
    made = output[0, before:].tolist()
    return Generated(
        text="".join(streamer.pieces),
        prompt_tokens=len(prompt.ids),
        new_tokens=len(made),
        finish_reason="stop" if made and made[-1] in stops else "length",
    )


def trained_prompt(model: PreTrainedModel) -> int:
    """Return how many positions a trained prompt takes before the text; 0 without one."""
    config = getattr(model, "active_peft_config", None)
    return int(getattr(config, "num_virtual_tokens", None) or 0)


def room_of(config: PreTrainedConfig, prompt: int, wanted: int | None, *, taken: int = 0) -> int:
    """Return how many tokens to generate: as many as wanted, if the model has positions for them beside `taken`."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if limit is None:
        return wanted or DEFAULT_MAX_NEW_TOKENS
    limit -= taken
    if prompt < limit and prompt + (wanted or 1) <= limit:
        return wanted or min(DEFAULT_MAX_NEW_TOKENS, limit - prompt)
    if prompt >= limit:
        raise UsageError(
            f"the prompt has {prompt:,} tokens, the base model's context is {limit:,}", hint="shorten the prompt"
        )
    raise UsageError(
        f"{prompt:,} tokens of prompt and {wanted:,} new ones are more than the base model's context of {limit:,}",
        hint=f"--max-new-tokens {limit - prompt}",
    )


def stop_ids(configured: int | list[int] | None, others: Sequence[int]) -> tuple[int, ...]:
    own = [] if configured is None else [configured] if isinstance(configured, int) else configured
    return tuple(dict.fromkeys((*own, *others)))


def padding_id(tokenizer: PreTrainedTokenizerBase, stops: Sequence[int]) -> int:
    """Return a token for generate's padding, which one sequence never has; it asks for one all the same."""
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else next(iter(stops), 0)


def _given(options: Generation) -> dict[str, float | int]:
    """Return the options that were set, for generate to take instead of the base model's own defaults."""
    names = ("temperature", "top_p", "top_k") if options.do_sample else ()
    values = {name: getattr(options, name) for name in (*names, "repetition_penalty")}
    return {name: value for name, value in values.items() if value is not None}
