"""A tiny T5 and a tiny BART with a tokenizer of words: what the tests of sequence to sequence train on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
SOURCE = ("one", "two", "three", "four", "five", "six")
TARGET = ("uno", "dos", "tres", "cuatro", "cinco", "seis")


def words(folder: Path) -> int:
    """Write a tokenizer whose tokens are words, and which ends every text with `</s>`; return its size."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate((*SPECIAL, *SOURCE, *TARGET))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", vocabulary["</s>"])]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.save_pretrained(folder)
    return len(vocabulary)


def tiny_t5(folder: Path, *, seed: int = 0, **config: Any) -> Path:
    """Write a T5 of two layers a side, its embeddings tied."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(seed)
    given = {
        "vocab_size": words(folder),
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 64,
        "num_layers": 2,
        "num_heads": 4,
        "dropout_rate": 0.0,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 2,
        **config,
    }
    T5ForConditionalGeneration(T5Config(**given)).save_pretrained(folder)
    return folder


def tiny_bart(folder: Path, *, seed: int = 0, **config: Any) -> Path:
    """Write a BART of two layers a side."""
    import torch
    from transformers import BartConfig, BartForConditionalGeneration

    torch.manual_seed(seed)
    given = {
        "vocab_size": words(folder),
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "max_position_embeddings": 64,
        "dropout": 0.0,
        "init_std": 0.2,
        "bos_token_id": 1,
        "pad_token_id": 0,
        "eos_token_id": 2,
        "decoder_start_token_id": 2,
        "forced_eos_token_id": None,
        **config,
    }
    BartForConditionalGeneration(BartConfig(**given)).save_pretrained(folder)
    return folder
