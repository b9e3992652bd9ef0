"""The tokenizer of a GGUF file as a Hugging Face tokenizer: vocabulary, merges, pre-tokenizer, special tokens.

GGUF stores the pre-tokenizer as a name only (`tokenizer.ggml.pre`); llama.cpp maps each name to regular expressions
(`llama_vocab::impl`, src/llama-vocab.cpp). Reading the vocabulary without that split tokenizes numbers wrongly.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gguf import Keys, TokenType
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from adapterhub.engine.gguf_file import GgufFile
from adapterhub.errors import IncompatibleError, InvalidFileError

# The split of the Llama 3 tokenizer: https://github.com/meta-llama/llama3/blob/main/llama/tokenizer.py
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreTokenizer:
    """What one value of `tokenizer.ggml.pre` stands for."""

    build: Callable[[], pre_tokenizers.PreTokenizer]
    meaning: str
    ignore_merges: bool = False
    add_bos: bool = False


def _byte_level() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _digits_byte_level() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _byte_level()])


def _llama3() -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(LLAMA3_SPLIT), behavior="isolated", invert=False)
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


_GPT2 = PreTokenizer(build=_byte_level, meaning="the GPT-2 split")
_DIGITS = PreTokenizer(build=_digits_byte_level, meaning="single digits, then the GPT-2 split")
_LLAMA3 = PreTokenizer(build=_llama3, meaning="the Llama 3 split", ignore_merges=True, add_bos=True)

# "default" and an absent name are left out on purpose: there llama.cpp guesses and warns of degraded output.
PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "gpt-2": _GPT2,
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "codeshell": _DIGITS,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecialIds:
    """Token ids with a role; None where the GGUF file names none. `end_of_turn` may equal `eos`."""

    bos: int | None
    eos: int | None
    unk: int | None
    pad: int | None
    end_of_turn: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedTokenizer:
    """A tokenizer read from GGUF, ready to be written."""

    tokenizer: Tokenizer
    ids: SpecialIds
    size: int
    config: dict[str, Any]
    chat_template: str | None
    notes: tuple[str, ...]

    def files(self) -> dict[str, str]:
        """Return the text of each tokenizer file by its name, as `AutoTokenizer.from_pretrained` wants them."""
        texts = {
            "tokenizer.json": self.tokenizer.to_str(pretty=True),
            "tokenizer_config.json": json.dumps(self.config, indent=2, ensure_ascii=False, sort_keys=True) + "\n",
        }
        if self.chat_template is not None:
            texts["chat_template.jinja"] = self.chat_template
        return texts


def read_tokenizer(file: GgufFile, *, context_length: int) -> ImportedTokenizer:
    """Rebuild the byte-level BPE tokenizer that a GGUF file carries.

    Args:
        file: the opened GGUF file.
        context_length: the model's positions, written as `model_max_length`.

    Raises:
        IncompatibleError: the vocabulary is not byte-level BPE, or its pre-tokenizer is unknown.
        InvalidFileError: tokens, merges or special ids contradict each other.
    """
    pre_name, pre = _pre_tokenizer(file)
    tokens = file.array(Keys.Tokenizer.LIST, str)
    kinds = file.array(Keys.Tokenizer.TOKEN_TYPE, int) or [int(TokenType.NORMAL)] * len(tokens)
    if not tokens or len(kinds) != len(tokens):
        raise InvalidFileError(
            f"{len(tokens)} tokens, but {len(kinds)} token types in the tokenizer metadata", where=str(file.path)
        )
    # Converters fill a vocabulary up to the embedding's rows with "[PAD123]" of type UNUSED; no model knows them.
    vocabulary = {
        token: index for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind != TokenType.UNUSED
    }
    if len(vocabulary) != sum(kind != TokenType.UNUSED for kind in kinds):
        raise InvalidFileError("the tokenizer lists a token twice", where=str(file.path))
    merges = _merges(file, vocabulary)
    ids = _special_ids(file, len(tokens))

    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre.ignore_merges))
    tokenizer.pre_tokenizer = pre.build()
    tokenizer.decoder = decoders.ByteLevel()
    special_ids = {index for index in (ids.bos, ids.eos, ids.pad, ids.end_of_turn) if index is not None}
    for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True)):
        if kind == TokenType.CONTROL or index in special_ids:
            tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif kind == TokenType.USER_DEFINED:
            tokenizer.add_tokens([AddedToken(token, special=False, normalized=False)])
    notes = [f"pre-tokenizer {pre_name!r} restored as {pre.meaning}"]
    notes += _add_template(file, tokenizer, tokens, ids, default_bos=pre.add_bos)
    template = file.get(Keys.Tokenizer.CHAT_TEMPLATE, str)
    if template is None:
        notes.append("the file carries no chat template")
    return ImportedTokenizer(
        tokenizer=tokenizer,
        ids=ids,
        size=len(tokens),
        config=_tokenizer_config(tokens, ids, context_length),
        chat_template=template,
        notes=tuple(notes),
    )


def _pre_tokenizer(file: GgufFile) -> tuple[str, PreTokenizer]:
    model = file.require(Keys.Tokenizer.MODEL, str)
    if model != "gpt2":
        raise IncompatibleError(
            f"the tokenizer is of kind {model!r}; only byte-level BPE ('gpt2') can be converted",
            where=str(file.path),
            hint="use the model's Hugging Face folder instead of its GGUF file",
        )
    if file.get(Keys.Tokenizer.ADD_PREFIX, bool):
        raise IncompatibleError(
            "the tokenizer puts a space before the text, which is not supported for byte-level BPE",
            where=str(file.path),
            hint="use the model's Hugging Face folder instead of its GGUF file",
        )
    name = file.get(Keys.Tokenizer.PRE, str)
    if name is None or name not in PRE_TOKENIZERS:
        found = "is not recorded" if name is None else f"{name!r} is not known"
        raise IncompatibleError(
            f"the pre-tokenizer (tokenizer.ggml.pre) {found}, so text could be split wrongly",
            where=str(file.path),
            hint=f"known are {', '.join(PRE_TOKENIZERS)}; otherwise use the model's Hugging Face folder",
        )
    return name, PRE_TOKENIZERS[name]


def _merges(file: GgufFile, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    merges: list[tuple[str, str]] = []
    for line in file.array(Keys.Tokenizer.MERGES, str):
        left, _, right = line.partition(" ")
        if left not in vocabulary or right not in vocabulary or left + right not in vocabulary:
            raise InvalidFileError(f"the merge {line!r} names no tokens of the vocabulary", where=str(file.path))
        merges.append((left, right))
    if not merges:
        raise InvalidFileError("the GGUF metadata lacks tokenizer.ggml.merges", where=str(file.path))
    return merges


def _special_ids(file: GgufFile, count: int) -> SpecialIds:
    def read(key: str) -> int | None:
        index = file.get(key, int)
        if index is not None and not 0 <= index < count:
            raise InvalidFileError(f"{key} is {index}, but there are {count} tokens", where=str(file.path))
        return index

    return SpecialIds(
        bos=read(Keys.Tokenizer.BOS_ID),
        eos=read(Keys.Tokenizer.EOS_ID),
        unk=read(Keys.Tokenizer.UNK_ID),
        pad=read(Keys.Tokenizer.PAD_ID),
        end_of_turn=read(Keys.Tokenizer.EOT_ID),
    )


def _add_template(
    file: GgufFile, tokenizer: Tokenizer, tokens: list[str], ids: SpecialIds, *, default_bos: bool
) -> list[str]:
    """Put BOS and EOS around the text where the file asks for it; return what was decided without being told."""
    recorded = file.get(Keys.Tokenizer.ADD_BOS, bool)
    add_bos = default_bos if recorded is None else recorded
    add_eos = file.get(Keys.Tokenizer.ADD_EOS, bool) or False
    if (add_bos and ids.bos is None) or (add_eos and ids.eos is None):
        raise InvalidFileError("the tokenizer adds BOS or EOS, but names no such token", where=str(file.path))
    before = [ids.bos] if add_bos and ids.bos is not None else []
    after = [ids.eos] if add_eos and ids.eos is not None else []
    if before or after:

        def around(text: str, sequence: int) -> list[str]:
            parts = (*(tokens[index] for index in before), text, *(tokens[index] for index in after))
            return [f"{part}:{sequence}" for part in parts]

        tokenizer.post_processor = processors.TemplateProcessing(
            single=around("$A", 0),
            pair=around("$A", 0) + around("$B", 1),
            special_tokens=sorted({(tokens[index], index) for index in (*before, *after)}),
        )
    return [] if recorded is not None else [f"add_bos_token is not recorded; assumed {str(add_bos).lower()}"]


def _tokenizer_config(tokens: list[str], ids: SpecialIds, context_length: int) -> dict[str, Any]:
    config: dict[str, Any] = {
        # Named so because the model's own class would build its pre-tokenizer anew and lose the digit split;
        # transformers 4 and 5 both read tokenizer.json unchanged under this name.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context_length,
    }
    roles = {"bos_token": ids.bos, "eos_token": ids.eos, "unk_token": ids.unk, "pad_token": ids.pad}
    config.update({role: tokens[index] for role, index in roles.items() if index is not None})
    return config
