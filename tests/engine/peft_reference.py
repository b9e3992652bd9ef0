"""What plain transformers and PEFT make of the same files: the reference that our loading is held against."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch


def plain_model(base: Path, dtype: torch.dtype = torch.float32) -> Any:
    """Load a base model as any script does."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(str(base), dtype=dtype, local_files_only=True).eval()


def active_model(base: Path, layers: Sequence[tuple[Path, float]], dtype: torch.dtype = torch.float32) -> Any:
    """Load a base with PEFT and make every adapter active at once, each scaled by its weight."""
    from peft import PeftModel

    model = None
    for index, (adapter, _) in enumerate(layers):
        if model is None:
            model = PeftModel.from_pretrained(plain_model(base, dtype), str(adapter), adapter_name=f"ad{index}x")
        else:
            model.load_adapter(str(adapter), adapter_name=f"ad{index}x")
    assert model is not None
    if len(layers) > 1:
        # PeftModel.set_adapter takes one name; the tuner below it takes several.
        model.base_model.set_adapter([f"ad{index}x" for index in range(len(layers))])
    for module in model.modules():
        scaling = getattr(module, "scaling", None)
        if isinstance(scaling, dict):
            for index, (_, weight) in enumerate(layers):
                scaling[f"ad{index}x"] = scaling.get(f"ad{index}x", 0.0) * weight
    return model.eval()


def logits_of(model: Any, ids: Sequence[int]) -> torch.Tensor:
    """Return the logits at every position, (tokens, vocabulary), in float32."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([list(ids)])).logits[0].float()


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Return the largest difference as a share of the largest logit."""
    return float((ours - theirs).abs().max() / theirs.abs().max())
