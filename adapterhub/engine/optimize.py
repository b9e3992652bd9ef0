"""Optimizer, schedule and loggers of a training, all of them transformers', made from a recipe's words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from adapterhub.catalog.optimizers import OPTIMIZERS
from adapterhub.engine.base import without_future_warnings
from adapterhub.errors import UsageError
from adapterhub.spec._decode import suggest, thaw
from adapterhub.spec.training import TrainingSpec

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import TrainingArguments

# As Trainer.get_decay_parameter_names has them: biases and norms are not pulled towards zero.
_NOT_DECAYED = (r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)")
_LOGGER_INSTALL = {
    "tensorboard": "pip install tensorboard",
    "wandb": "pip install wandb",
    "trackio": "pip install trackio",
}


def refuse_unready(spec: TrainingSpec, *, device: str, held_out: bool, steps: int) -> None:
    """Refuse, before anything heavy is done, what this training asks for and this machine or recipe cannot give.

    device: torch's word (`cpu`, `cuda` …). held_out: there are rows to measure on. steps: of the whole training.

    Raises:
        UsageError: a library or device is missing, an argument is none of the optimizer's or schedule's, or no rows are
            held out where the training goes by them.
    """
    _refuse_optimizer(spec, device)
    for name in spec.report_to:
        if find_spec(name) is None and not (name == "tensorboard" and find_spec("tensorboardX")):
            raise UsageError(f"{name} is not installed", where="training.report_to", hint=_LOGGER_INSTALL[name])
    if spec.eval_strategy != "no" and not held_out:
        raise UsageError(
            "no rows are held out to measure on the way",
            where="training.eval_strategy",
            hint="data.eval_split: 0.1 holds a tenth of the rows out, or set training.eval_strategy to no",
        )
    import torch

    make_scheduler(spec, torch.optim.SGD([torch.zeros(1)], lr=spec.learning_rate), steps)


def _refuse_optimizer(spec: TrainingSpec, device: str) -> None:
    row = OPTIMIZERS[spec.optim]
    if row.devices and device not in row.devices:
        raise UsageError(
            f"{row.name} needs a device of the kind {', '.join(row.devices)}, this training runs on {device}",
            where="training.optim",
            hint="adamw_torch runs everywhere",
        )
    if find_spec(row.module) is None:
        raise UsageError(
            f"{row.name} needs {row.module}, which is not installed", where="training.optim", hint=row.install
        )
    for name in _pairs(spec.optim_args):
        if name not in row.arguments:
            near = suggest(name, row.arguments)
            known = f"it takes {', '.join(row.arguments)}" if row.arguments else "it takes none"
            raise UsageError(
                f"{row.name} has no argument {name}",
                where="training.optim_args",
                hint=f"did you mean {near}?" if near else known,
            )


def _pairs(text: str | None) -> Mapping[str, str]:
    return dict(pair.split("=", 1) for pair in text.split(",")) if text else {}


def training_arguments(device: torch.device, spec: TrainingSpec, *, steps: int) -> TrainingArguments:
    """Return transformers' arguments of a recipe's words: what its optimizers and loggers read."""
    from transformers import TrainingArguments

    with without_future_warnings():
        return TrainingArguments(
            output_dir=spec.logging_dir,  # nothing but loggers writes there
            learning_rate=spec.learning_rate,
            num_train_epochs=spec.num_train_epochs,
            max_steps=spec.max_steps,
            per_device_train_batch_size=spec.per_device_train_batch_size,
            gradient_accumulation_steps=spec.gradient_accumulation_steps,
            lr_scheduler_type=spec.lr_scheduler_type,
            lr_scheduler_kwargs=thaw(spec.lr_scheduler_kwargs) or None,
            warmup_steps=warmup_steps(spec, steps),
            weight_decay=spec.weight_decay,
            max_grad_norm=spec.max_grad_norm,
            optim=spec.optim,
            optim_args=spec.optim_args,
            adam_beta1=spec.adam_beta1,
            adam_beta2=spec.adam_beta2,
            adam_epsilon=spec.adam_epsilon,
            neftune_noise_alpha=spec.neftune_noise_alpha,
            seed=spec.seed,
            data_seed=spec.seed,
            logging_steps=spec.logging_steps,
            eval_strategy=spec.eval_strategy,
            eval_steps=spec.eval_steps,
            metric_for_best_model=spec.best_metric,
            greater_is_better=spec.higher_is_better,
            run_name=spec.run_name,
            project=spec.project,
            use_cpu=device.type == "cpu",
            dataloader_pin_memory=False,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )


def make_optimizer(model: PeftModel, spec: TrainingSpec, arguments: TrainingArguments) -> torch.optim.Optimizer:
    """Return the optimizer of everything trainable, in the groups that transformers' Trainer makes.

    With `loraplus_lr_ratio` the groups are LoRA+'s, as PEFT makes them.

    Raises:
        UsageError: LoRA+ is asked for and there are no factors B.
    """
    from transformers import Trainer

    trained = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
    kind, values = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    if spec.loraplus_lr_ratio is not None:
        return _loraplus(model, spec, kind, values, trained)
    decayed = _decayed_names(model)
    groups = [
        {"params": [p for name, p in trained.items() if name in decayed], "weight_decay": spec.weight_decay},
        {"params": [p for name, p in trained.items() if name not in decayed], "weight_decay": 0.0},
    ]
    optimizer = kind(groups, **values)
    _keep_embeddings_exact(model, optimizer)
    return optimizer


def _loraplus(model: Any, spec: TrainingSpec, kind: Any, values: dict[str, Any], trained: Mapping[str, Any]) -> Any:
    from peft.optimizers import create_loraplus_optimizer

    if not any("lora_B" in name for name in trained):
        raise UsageError(
            "this method has no factors B for LoRA+ to speed up",
            where="training.loraplus_lr_ratio",
            hint="use it with lora, dora, rslora, pissa or olora",
        )
    rate = values.pop("lr")
    values.pop("weight_decay", None)
    optimizer = create_loraplus_optimizer(
        model,
        kind,
        lr=rate,
        loraplus_lr_ratio=spec.loraplus_lr_ratio,
        loraplus_lr_embedding=spec.loraplus_lr_embedding,
        loraplus_weight_decay=spec.weight_decay,
        **values,
    )
    _keep_embeddings_exact(model, optimizer)
    return optimizer


def _decayed_names(model: Any) -> frozenset[str]:
    import torch
    from transformers.trainer_pt_utils import get_parameter_names

    return frozenset(get_parameter_names(model, [torch.nn.LayerNorm], list(_NOT_DECAYED)))


def _keep_embeddings_exact(model: Any, optimizer: Any) -> None:
    """Have bitsandbytes' 8-bit optimizers hold the state of embeddings in 32 bits, as the Trainer does."""
    import torch

    if "bitsandbytes" not in type(optimizer).__module__ or getattr(optimizer, "optim_bits", 32) != 8:
        return
    import bitsandbytes

    manager = bitsandbytes.optim.GlobalOptimManager.get_instance()
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            manager.register_module_override(module, "weight", {"optim_bits": 32})


def warmup_steps(spec: TrainingSpec, steps: int) -> int:
    """Return the steps of the warm-up, as transformers counts them: below 1 a share of all, rounded up."""
    return int(spec.warmup_steps) if spec.warmup_steps >= 1 else math.ceil(steps * spec.warmup_steps)


def make_scheduler(spec: TrainingSpec, optimizer: torch.optim.Optimizer, steps: int) -> Any:
    """Return transformers' schedule of the learning rate over `steps` steps.

    Raises:
        UsageError: an argument of lr_scheduler_kwargs is none of the schedule's, or one that it needs is missing.
    """
    from transformers import get_scheduler

    given: Any = thaw(spec.lr_scheduler_kwargs)
    try:
        return get_scheduler(
            spec.lr_scheduler_type,
            optimizer=optimizer,
            num_warmup_steps=warmup_steps(spec, steps),
            num_training_steps=steps,
            scheduler_specific_kwargs=given,
        )
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"{spec.lr_scheduler_type} refuses: {str(error)[:300]}",
            where="training.lr_scheduler_kwargs",
            hint="its arguments stand in transformers' documentation of learning rate schedules",
        ) from error
