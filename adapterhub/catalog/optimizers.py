"""The optimizers that a training can use: one row a name of transformers' OptimizerNames, with what it needs.

The optimizers themselves are made by transformers (Trainer.get_optimizer_cls_and_kwargs).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimizer:
    """One optimizer. module: what has to be importable; install: how it is had, None where adapterhub brings it.

    devices: torch's words, empty for all. arguments: the names that `training.optim_args` may give it.
    """

    name: str
    module: str = "torch"
    install: str | None = None
    devices: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()


_BNB = "bitsandbytes"
_ADEMAMIX = ("beta1", "beta2", "beta3", "alpha", "eps", "t_alpha", "t_beta3")
_FREE, _FREE_INSTALL = "schedulefree", "pip install schedulefree"
_FREE_ARGUMENTS = ("weight_lr_power", "r")
_AO, _AO_INSTALL = "torchao", "pip install torchao"
_AO_ARGUMENTS = ("bf16_stochastic_round",)

_ROWS = (
    Optimizer(name="adamw_torch"),
    Optimizer(name="adamw_torch_fused"),
    Optimizer(name="adamw_torch_xla", module="torch_xla", install="pip install torch_xla", devices=("xla",)),
    Optimizer(name="adamw_torch_npu_fused", module="torch_npu", install="pip install torch_npu", devices=("npu",)),
    Optimizer(name="adafactor"),
    Optimizer(
        name="adamw_anyprecision",
        module="torchdistx",
        install="build https://github.com/pytorch/torchdistx",
        arguments=("use_kahan_summation", "momentum_dtype", "variance_dtype", "compensation_buffer_dtype"),
    ),
    Optimizer(name="adamw_torch_4bit", module=_AO, install=_AO_INSTALL, arguments=_AO_ARGUMENTS),
    Optimizer(name="adamw_torch_8bit", module=_AO, install=_AO_INSTALL, arguments=_AO_ARGUMENTS),
    Optimizer(name="ademamix", module=_BNB, arguments=_ADEMAMIX),
    Optimizer(name="sgd", arguments=("momentum", "dampening", "nesterov")),
    Optimizer(name="adagrad", arguments=("lr_decay", "eps")),
    Optimizer(name="adamw_bnb_8bit", module=_BNB),
    Optimizer(name="adamw_8bit", module=_BNB),
    Optimizer(name="ademamix_8bit", module=_BNB, arguments=_ADEMAMIX),
    Optimizer(name="lion_8bit", module=_BNB),
    Optimizer(name="lion_32bit", module=_BNB),
    # Pages are CUDA's: elsewhere bitsandbytes would quietly take the optimizer without them.
    Optimizer(name="paged_adamw_32bit", module=_BNB, devices=("cuda",)),
    Optimizer(name="paged_adamw_8bit", module=_BNB, devices=("cuda",)),
    Optimizer(name="paged_ademamix_32bit", module=_BNB, devices=("cuda",), arguments=_ADEMAMIX),
    Optimizer(name="paged_ademamix_8bit", module=_BNB, devices=("cuda",), arguments=_ADEMAMIX),
    Optimizer(name="paged_lion_32bit", module=_BNB, devices=("cuda",)),
    Optimizer(name="paged_lion_8bit", module=_BNB, devices=("cuda",)),
    Optimizer(name="rmsprop", arguments=("momentum", "alpha", "eps", "centered")),
    Optimizer(name="rmsprop_bnb", module=_BNB),
    Optimizer(name="rmsprop_bnb_8bit", module=_BNB),
    Optimizer(name="rmsprop_bnb_32bit", module=_BNB),
    Optimizer(
        name="grokadamw",
        module="grokadamw",
        install="pip install grokadamw",
        arguments=("alpha_init", "lamb", "gamma", "grokking_signal_decay_rate", "gradient_clipping"),
    ),
    Optimizer(name="schedule_free_radam", module=_FREE, install=_FREE_INSTALL, arguments=_FREE_ARGUMENTS),
    Optimizer(name="schedule_free_adamw", module=_FREE, install=_FREE_INSTALL, arguments=_FREE_ARGUMENTS),
    Optimizer(name="schedule_free_sgd", module=_FREE, install=_FREE_INSTALL, arguments=_FREE_ARGUMENTS),
    Optimizer(name="stable_adamw", module="optimi", install="pip install torch-optimi", arguments=("max_lr",)),
)

OPTIMIZERS: Mapping[str, Optimizer] = MappingProxyType({row.name: row for row in _ROWS})
