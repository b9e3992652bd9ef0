"""Many prompts answered in batches by transformers' generate: each as it would be alone, but for rounding.

Prompts are padded on the left and masked, and transformers counts positions by the mask. Where padding could be told
from nothing (a repetition penalty sees it, some models count no positions) only prompts of one length go together.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from adapterhub.engine import generate as one
from adapterhub.errors import UnsatisfiedError
from adapterhub.spec.generation import Generation

if TYPE_CHECKING:
    import torch
    from transformers import LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase

# Settings of generation that look at the tokens before, which padding would then be among, with what leaves them out.
_LOOK_BACK = {
    "repetition_penalty": (None, 1.0),
    "no_repeat_ngram_size": (None, 0),
    "sequence_bias": (None,),
    "bad_words_ids": (None,),
    "exponential_decay_length_penalty": (None,),
    "watermarking_config": (None,),
}
# Models that tell positions by the mask itself.
_BY_MASK = ("bloom", "falcon", "mpt")


def room_for(model: PreTrainedModel, prompt: one.Prompt, options: Generation) -> int:
    """Return how many new tokens a prompt may get.

    Raises:
        UsageError: prompt and answer do not fit in the model's context.
    """
    return one.room_of(model.config, len(prompt.ids), options.max_new_tokens, taken=one.trained_prompt(model))


def batches_of(
    model: PreTrainedModel, prompts: Sequence[one.Prompt], options: Generation, *, batch_size: int
) -> list[list[int]]:
    """Return which prompts go together, as indices: of like length, the longest first, with the same room to answer.

    A trained prompt (PEFT's model over the base) takes one at a time.
    """
    if one.trained_prompt(model):
        batch_size = 1
    padded = _takes_padding(model, options)
    keys = []
    for prompt in prompts:
        stops = tuple(sorted(prompt.stops))
        keys.append((room_for(model, prompt, options), stops, 0 if padded else len(prompt.ids)))
    batches: list[list[int]] = []
    for index in sorted(range(len(prompts)), key=lambda index: (keys[index], -len(prompts[index].ids), index)):
        if batches and len(batches[-1]) < batch_size and keys[batches[-1][0]] == keys[index]:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def _takes_padding(model: PreTrainedModel, options: Generation) -> bool:
    """Say whether padding on the left changes nothing for this model and these options."""
    config = model.generation_config
    for name, off in _LOOK_BACK.items():
        value = getattr(options, name, None)
        if (getattr(config, name, None) if value is None else value) not in off:
            return False
    if model.config.model_type in _BY_MASK:
        return True
    return "position_ids" in inspect.signature(model.forward).parameters


def generate_many(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[one.Prompt],
    options: Generation,
    *,
    seeds: Sequence[int] = (),
) -> tuple[one.Generated, ...]:
    """Answer a batch as `batches_of` makes them; each prompt draws by a seed of its own, whoever goes with it.

    seeds: one a prompt, where `options` samples. Sampled tokens are not those that `generate` draws with that seed:
    that one draws for the batch as a whole, this adds Gumbel noise to each row's scores and takes the largest
    (https://arxiv.org/abs/1611.01144), which samples the same distribution.

    Raises:
        UsageError: prompt and answer do not fit in the model's context. UnsatisfiedError: memory is too small.
    """
    import torch

    try:
        return _generated(model, tokenizer, prompts, options, seeds)
    except torch.OutOfMemoryError as error:
        if len(prompts) == 1:
            raise UnsatisfiedError(
                "the device's memory is too small for this prompt and its answer",
                hint="--max-new-tokens with a lower number, or --device-map cpu",
            ) from error
    half = (len(prompts) + 1) // 2
    return (
        *generate_many(model, tokenizer, prompts[:half], options, seeds=seeds[:half]),
        *generate_many(model, tokenizer, prompts[half:], options, seeds=seeds[half:]),
    )


def _generated(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[one.Prompt],
    options: Generation,
    seeds: Sequence[int],
) -> tuple[one.Generated, ...]:
    import torch

    room = min(room_for(model, prompt, options) for prompt in prompts)
    stops = one.stop_ids(model.generation_config.eos_token_id, prompts[0].stops)
    pad = one.padding_id(tokenizer, stops)
    width = max(len(prompt.ids) for prompt in prompts)
    ids = torch.full((len(prompts), width), pad)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt.ids) :] = torch.tensor(prompt.ids)
        mask[row, width - len(prompt.ids) :] = 1
    penalty = {} if options.repetition_penalty is None else {"repetition_penalty": options.repetition_penalty}
    output = model.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=room,
        num_beams=1,
        use_cache=True,
        do_sample=False,
        eos_token_id=list(stops) or None,
        pad_token_id=pad,
        logits_processor=_drawing(model, options, seeds) if options.do_sample else [],
        **penalty,
    )
    made = output[:, width:].tolist()
    return tuple(_answer(tokenizer, prompt, tokens, stops) for prompt, tokens in zip(prompts, made, strict=True))


def _answer(
    tokenizer: PreTrainedTokenizerBase, prompt: one.Prompt, tokens: Sequence[int], stops: Sequence[int]
) -> one.Generated:
    """Cut a row where its answer ends, and make text of it as `generate` does."""
    end = next((index for index, token in enumerate(tokens) if token in stops), None)
    told = tokens if end is None else tokens[:end]
    text = one.TokenText(tokenizer, prompt.context)
    pieces = [text.push(token) for token in told]
    return one.Generated(
        text="".join((*pieces, text.finish())),
        prompt_tokens=len(prompt.ids),
        new_tokens=len(tokens) if end is None else end + 1,
        finish_reason="length" if end is None else "stop",
    )


def _drawing(model: PreTrainedModel, options: Generation, seeds: Sequence[int]) -> list[LogitsProcessor]:
    """Return what makes greedy decoding sample: transformers' warpers in its order, then each row's noise."""
    from transformers import LogitsProcessor
    from transformers.generation import logits_process as warpers

    config, defaults = model.generation_config, {"temperature": 1.0, "top_k": 50, "top_p": 1.0}

    def value(name: str) -> Any:
        given = getattr(options, name, None)
        own = getattr(config, name, None) if given is None else given
        return defaults.get(name) if own is None else own

    chain: list[LogitsProcessor] = []
    if value("temperature") != 1.0:
        chain.append(warpers.TemperatureLogitsWarper(float(value("temperature"))))
    if value("top_k"):
        chain.append(warpers.TopKLogitsWarper(value("top_k")))
    if value("top_p") < 1.0:
        chain.append(warpers.TopPLogitsWarper(float(value("top_p"))))
    if value("min_p") is not None:
        chain.append(warpers.MinPLogitsWarper(value("min_p")))
    if (value("typical_p") or 1.0) < 1.0:
        chain.append(warpers.TypicalLogitsWarper(value("typical_p")))
    if value("epsilon_cutoff"):
        chain.append(warpers.EpsilonLogitsWarper(value("epsilon_cutoff")))

    class RowNoise(LogitsProcessor):
        """Add Gumbel noise by a generator a row: the largest sum is a sample of the scores' softmax."""

        def __init__(self) -> None:
            import torch

            # On the CPU, so that a seed draws the same on every device.
            self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            import torch

            del input_ids
            noise = torch.empty(scores.shape, dtype=torch.float32)
            for row, generator in enumerate(self.generators):
                noise[row].exponential_(generator=generator)
            return scores.float() - noise.log().to(scores.device)

    return [*chain, RowNoise()]
