"""Encoders with a decoder, for sequence to sequence."""

from __future__ import annotations

from adapterhub.catalog.families._family import QKV_OUT, Family

ENCODER_DECODERS: tuple[Family, ...] = (
    # wi in T5, wi_0 and wi_1 where feed_forward_proj is gated (T5 1.1, mT5).
    Family(
        name="t5",
        model_types=("t5", "mt5", "umt5"),
        prefix="",
        attention=("q", "k", "v", "o"),
        mlp=("wi", "wi_0", "wi_1", "wo"),
        default_targets=("q", "v"),
        embeddings=("shared", "encoder.embed_tokens", "decoder.embed_tokens", "relative_attention_bias"),
        head="lm_head",
        layers=("encoder.block", "decoder.block"),
        encoder_decoder=True,
    ),
    Family(
        name="bart",
        model_types=("bart", "mbart", "pegasus", "marian", "m2m_100", "blenderbot", "blenderbot-small"),
        prefix="model",
        attention=QKV_OUT,
        mlp=("fc1", "fc2"),
        default_targets=("q_proj", "v_proj"),
        embeddings=(
            "model.shared",
            "model.encoder.embed_tokens",
            "model.decoder.embed_tokens",
            "model.encoder.embed_positions",
            "model.decoder.embed_positions",
        ),
        head="lm_head",
        layers=("model.encoder.layers", "model.decoder.layers"),
        encoder_decoder=True,
    ),
)
