"""EVA: LoRA's A begins with the directions in which a module's own inputs vary most, over the rows to be trained on.

PEFT computes them (peft.tuners.lora.eva): forward passes of the bare base over batches of the training rows, an
incremental SVD of what goes into each module until its directions have settled, and ranks that go where they explain
most (https://arxiv.org/abs/2410.07170). What is here feeds it: the batches of the training in their order, which of
their positions count, and an end where PEFT has none. What comes out is a LoRA like any other, B zero.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adapterhub.engine.base import LoadedBase
from adapterhub.engine.checkpoints import Checkpoint
from adapterhub.engine.data import IGNORED, Example
from adapterhub.engine.distributed import Group
from adapterhub.engine.loss import autocast
from adapterhub.engine.memory import memory_errors
from adapterhub.engine.steps import StepRows, shared_batches
from adapterhub.engine.tasks import TaskEngine
from adapterhub.engine.tasks import _classes as classes
from adapterhub.engine.tasks.seq_2_seq_lm import SequenceToSequence, decoder_inputs
from adapterhub.errors import IncompatibleError
from adapterhub.progress import Progress
from adapterhub.spec.training import TrainingSpec

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

_WHERE = "hyperparameters.init_lora_weights"
MOST_BATCHES = 1000
"""PEFT goes round the rows until every direction has settled; what has not by then is not going to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartRows:
    """What a start is computed from: the rows of a training, and how that makes batches of them.

    ranks: of each module's A by its name in the model, where an interrupted training has found them before; its weights
    replace those of the start, and no row is looked at.
    """

    examples: Sequence[Example]
    spec: TrainingSpec
    task: TaskEngine
    pad_id: int
    ranks: Mapping[str, int] | None = None


def begin(model: PeftModel, base: LoadedBase, rows: StartRows | None, progress: Progress) -> None:
    """Give a fresh LoRA with `init_lora_weights: eva` its start: ranks and A in float32, B zero.

    A module that gets no rank is the base's own again. The first of several processes computes it for all.

    Raises:
        IncompatibleError: the rows are too few, a module is too narrow or is fed otherwise than with tokens, or the
            directions do not settle. BuildError: memory ran out.
    """
    import torch
    from peft import initialize_lora_eva_weights

    if rows is None:
        raise IncompatibleError("eva begins with the rows of a training, and there is none here", where=_WHERE)
    group = Group(base.device)
    state: dict[str, Any] | None = None
    if group.first and rows.ranks is not None:
        widths = {name: module.in_features for name, module in _adapted(model).items()}
        state = {name: torch.zeros(rows.ranks.get(name, 0), width) for name, width in widths.items()}
    elif group.first:
        with memory_errors("lower training.per_device_train_batch_size"):
            found = _directions(model, base, rows, progress)
            # In the order in which a checkpoint's lie: products differ in the last digit by it.
            state = {name: a.float().cpu().contiguous() for name, a in found.items()}
    state = group.tell(state)
    targets = model.active_peft_config.target_modules
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of modules that EVA passes over: embeddings, which begin as usual
        before = _adapted(model)
        initialize_lora_eva_weights(model, eva_state_dict={name: a.to(base.device) for name, a in state.items()})
    for name, module in before.items():
        if not len(state[name]):
            # A bias that was to be trained beside its A and B would not be saved without them.
            _freeze_bias(module.get_base_layer(), model.active_peft_config.bias)
    if all(map(len, state.values())):
        # PEFT lists every module by its full name; the words of the recipe say the same.
        model.active_peft_config.target_modules = targets
    for name, module in _adapted(model).items():
        # PEFT rounds a new A to the dtype of the base's weights.
        module.lora_A["default"].weight.data = state[name].to(base.device, copy=True)


def _freeze_bias(layer: Any, trained: str) -> None:
    if trained == "lora_only" and getattr(layer, "bias", None) is not None:
        layer.bias.requires_grad_(False)


def ranks_of(checkpoint: Checkpoint | None) -> Mapping[str, int] | None:
    """Return the ranks of the modules of an interrupted training (StartRows.ranks); None without one."""
    if checkpoint is None:
        return None
    trained: Mapping[str, torch.Tensor] = checkpoint.state["weights"]["trained"]
    end = ".lora_A.default.weight"
    return {name.removesuffix(end): len(tensor) for name, tensor in trained.items() if name.endswith(end)}


def _adapted(model: PeftModel) -> dict[str, Any]:
    """Return the modules that EVA gives a start to, by their names in the model."""
    from peft.tuners.lora import LoraLayer
    from peft.tuners.lora.eva import UNSUPPORTED_LORA_MODULES

    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer) and not isinstance(module, UNSUPPORTED_LORA_MODULES)
    }


def _directions(model: PeftModel, base: LoadedBase, rows: StartRows, progress: Progress) -> Mapping[str, torch.Tensor]:
    """Return each module's new A, (rank, in_features), as PEFT computes it over the rows."""
    from peft import get_eva_state_dict

    feed = _Feed(model, rows)
    with progress.task("finding directions (eva)", total=None, unit="batches") as bar, _tidied(model):

        def forward(_: Any, inputs: Mapping[str, Any]) -> None:
            bar.advance()
            feed.passes += 1
            if feed.passes > MOST_BATCHES:
                raise IncompatibleError(
                    f"the directions have not settled after {MOST_BATCHES} batches of the training rows",
                    where="hyperparameters.eva_config.tau",
                    hint="lower eva_config.tau, or r",
                )
            with autocast(base.device, base.dtype):
                feed.called(**{name: value for name, value in inputs.items() if name != "labels"})

        try:
            found: Mapping[str, torch.Tensor] = get_eva_state_dict(
                model,
                feed,
                forward_fn=forward,
                prepare_model_inputs_fn=feed.counted,
                prepare_layer_inputs_fn=feed.inputs_of_layer,
                gather_distributed_inputs=False,
                show_progress_bar=False,
            )
        except IndexError as error:
            # PEFT asks each module for the first batch it saw.
            raise IncompatibleError(
                "a module to be adapted is not called when the base reads the training rows, so there is nothing that "
                "it could begin with",
                where=_WHERE,
                hint="leave it out by exclude_modules, or init_lora_weights: true",
            ) from error
    return found


@contextmanager
def _tidied(model: PeftModel) -> Iterator[None]:
    """Take PEFT's hooks away again and put the model back into its mode where the start was refused half-way."""
    from peft.tuners.lora.eva import _Hook

    training = model.training
    try:
        yield
    finally:
        model.train(training)
        for module in model.modules():
            left = [key for key, hook in module._forward_hooks.items() if isinstance(hook, _Hook)]
            for key in left:
                del module._forward_hooks[key]


class _Feed:
    """Batches of the training rows, and what of them goes into the SVD: PEFT's dataloader and its two functions.

    Rows come in the order of the training's first epoch and in its batches, joined where one has too few positions that
    count. called: the part of the base that runs, without the output layer where that is not adapted.
    """

    def __init__(self, model: PeftModel, rows: StartRows) -> None:
        config = model.active_peft_config
        self.rows, self.passes = rows, 0
        self._label_mask = bool(config.eva_config.use_label_mask)
        self._needed = _directions_needed(model)
        self._whole = model.get_base_model()
        inner = self._whole.base_model
        within = set(inner.modules())
        self.called = inner if within.issuperset(_adapted(model).values()) else self._whole

    def __len__(self) -> int:
        """PEFT asks whether there is anything."""
        return len(self.rows.examples)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """Yield batches in which enough positions count; rows left over at the end are in none."""
        chosen, kept, yielded = list[int](), 0, False
        for share in self._shares():
            chosen += share
            batch = self._collated(chosen)
            kept = min(int(mask.sum()) for mask in self.counted(batch, None))
            if kept >= self._needed:
                yield batch
                chosen, yielded = [], True
        if not yielded:
            raise IncompatibleError(
                f"all training rows together have {kept} tokens that count, and r times rho directions are to be found "
                f"in them: {self._needed}",
                where=_WHERE,
                hint="add rows, lower r or eva_config.rho"
                + (", or eva_config: {use_label_mask: false}" if self._label_mask else ""),
            )

    def _shares(self) -> Iterator[Sequence[int]]:
        spec = self.rows.spec
        order = StepRows([len(example.input_ids) for example in self.rows.examples], spec)
        for step in range(order.per_epoch):
            yield from shared_batches(order.of(step), spec.per_device_train_batch_size)

    def _collated(self, chosen: Sequence[int]) -> dict[str, torch.Tensor]:
        """Return what of some rows the base reads, and their labels, which tell what counts."""
        import torch

        made = self.rows.task.collate([self.rows.examples[index] for index in chosen], pad_id=self.rows.pad_id)
        batch = {**classes.inputs_of(made), "labels": made["labels"]}
        if isinstance(self.rows.task, SequenceToSequence):
            if batch["labels"].shape[1] == batch["input_ids"].shape[1]:
                # One column of padding more, so that a width tells whose positions a module sees.
                for name, filler in (("input_ids", self.rows.pad_id), ("attention_mask", 0)):
                    batch[name] = torch.nn.functional.pad(batch[name], (0, 1), value=filler)
            batch["decoder_input_ids"] = decoder_inputs(self._whole, batch["labels"])
        return batch

    def counted(self, batch: Mapping[str, torch.Tensor], _: object) -> tuple[torch.Tensor, ...]:
        """Return which positions count, (rows, tokens): of the text, and of what it is to be turned into."""
        mask, labels = batch["attention_mask"].bool(), batch["labels"]
        if "decoder_input_ids" in batch:
            return mask, labels != IGNORED
        if self._label_mask and labels.shape == mask.shape:
            mask = mask & (labels != IGNORED)
        return (mask,)

    def inputs_of_layer(self, given: Any, masks: Sequence[torch.Tensor], name: str) -> torch.Tensor:
        """Return a module's inputs at the positions that count: (positions, in_features)."""
        states = given if not isinstance(given, tuple | list) else given[0]
        for mask in masks:
            if states.ndim == 3 and states.shape[:2] == mask.shape:
                found = states[mask]
            elif states.ndim == 2 and len(states) == mask.numel():
                found = states[mask.flatten()]
            else:
                continue
            if len(found) >= self._needed:
                return found  # type: ignore[no-any-return]
            break
        raise IncompatibleError(
            f"{name.removeprefix('base_model.model.')} is not fed with the tokens of the rows, or with too few of them "
            f"a batch: {self._needed} are needed (r times rho)",
            where=_WHERE,
            hint="leave it out by exclude_modules, or raise training.per_device_train_batch_size",
        )


def _directions_needed(model: PeftModel) -> int:
    """Return the most directions that PEFT looks for in one module's inputs: its rank times rho.

    Raises:
        IncompatibleError: a module has fewer inputs than that.
    """
    config = model.active_peft_config
    most = 0
    for name, module in _adapted(model).items():
        wanted = round(module.r["default"] * config.eva_config.rho)
        if wanted > module.in_features:
            raise IncompatibleError(
                f"{name.removeprefix('base_model.model.')} has {module.in_features} inputs, and r times rho directions "
                f"of them are to be found: {wanted}",
                where=_WHERE,
                hint="lower r or eva_config.rho",
            )
        most = max(most, wanted)
    return most
