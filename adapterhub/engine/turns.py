"""The turns of a conversation in tokens, by the base's chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from adapterhub.engine import generate as one
from adapterhub.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_turns(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]]) -> one.Prompt:
    """Turn a conversation (`role` and `content` a turn) into the tokens that the assistant's next turn follows.

    Raises:
        UsageError: the tokenizer has no chat template, or the template refuses the turns.
    """
    if not tokenizer.chat_template:
        raise UsageError("the base model's tokenizer has no chat template, so turns have no place", hint="use prompts")
    rendered = one.render_turns(tokenizer, [dict(message) for message in messages])
    # The template writes the special tokens itself.
    ids = tuple(tokenizer(rendered, add_special_tokens=False).input_ids)
    if not ids:
        raise UsageError("the conversation is empty: the tokenizer makes no token of it")
    ends = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
    return one.Prompt(ids=ids, stops=tuple(dict.fromkeys((*ends, *one.turn_ends(tokenizer)))))
