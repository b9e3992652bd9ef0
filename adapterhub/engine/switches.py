"""What is switched on in a model, or in torch, for the length of a training and off again after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from adapterhub.engine.fused_layers import fused
from adapterhub.errors import BuildError
from adapterhub.spec.training import TrainingSpec

_DETERMINISM = ("CUDA_LAUNCH_BLOCKING", "CUBLAS_WORKSPACE_CONFIG", "ASCEND_LAUNCH_BLOCKING", "HCCL_DETERMINISTIC")


@contextmanager
def switched_on(model: Any, spec: TrainingSpec, *, rank: int = 0) -> Iterator[None]:
    """Seed every source of chance, and switch on what a recipe asks for.

    rank: of several processes, which drop out different things.

    Raises:
        BuildError: an operation has no deterministic form and full_determinism asks for one.
    """
    from transformers import set_seed

    set_seed(spec.seed + rank)
    if getattr(model, "config", None) is not None:
        model.config.use_cache = False
    if spec.gradient_checkpointing:
        _checkpoint_activations(model)
    with _deterministic(spec.full_determinism), _noisy_embeddings(model, spec.neftune_noise_alpha), fused(model):
        yield


def _checkpoint_activations(model: Any) -> None:
    # transformers 5.23 calls it activation checkpointing and warns at the word that all of 5 knows.
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


@contextmanager
def _noisy_embeddings(model: Any, alpha: float | None) -> Iterator[None]:
    """Add uniform noise to the embeddings while training (NEFTune, https://arxiv.org/abs/2310.05914)."""
    if not alpha:
        yield
        return
    from transformers.integrations.neftune import activate_neftune, deactivate_neftune

    hook = activate_neftune(model, alpha)
    try:
        yield
    finally:
        deactivate_neftune(model, hook)


@contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    """Have torch use deterministic algorithms alone, as transformers' enable_full_determinism sets them."""
    if not wanted:
        yield
        return
    import os

    import torch

    names = (*_DETERMINISM, "FLASH_ATTENTION_DETERMINISTIC")
    before = {name: os.environ.get(name) for name in names}
    flags = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    strict = torch.are_deterministic_algorithms_enabled()
    # As transformers.trainer_utils.enable_full_determinism, but for the seeds, which are set already.
    os.environ.update({**dict.fromkeys(names, "1"), "CUBLAS_WORKSPACE_CONFIG": ":16:8"})
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        raise BuildError(
            f"not everything has a deterministic form: {str(error).splitlines()[0][:300]}",
            where="training.full_determinism",
            hint="set it to false, or --device cpu",
        ) from error
    finally:
        torch.use_deterministic_algorithms(strict)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = flags
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
