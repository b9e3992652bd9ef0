"""Engines that serve a base model with LoRA adapters beside it: what each takes, one row an engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingEngine:
    """One engine.

    ranks: those it reserves memory for, ascending; empty where any rank will do. gguf: it reads one GGUF file, not a
    PEFT folder. source: where that is said.
    """

    name: str
    title: str
    source: str
    ranks: tuple[int, ...] = ()
    gguf: bool = False


ENGINES: Mapping[str, ServingEngine] = MappingProxyType(
    {
        row.name: row
        for row in (
            ServingEngine(
                name="vllm",
                title="vLLM",
                source="https://docs.vllm.ai/en/latest/features/lora/",
                ranks=(1, 8, 16, 32, 64, 128, 256, 320, 512),
            ),
            ServingEngine(name="sglang", title="SGLang", source="https://docs.sglang.ai/advanced_features/lora.html"),
            ServingEngine(
                name="llama.cpp",
                title="llama.cpp",
                source="https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md",
                gguf=True,
            ),
        )
    }
)
