"""One training, in one process or in as many as torchrun starts: `-m tests.engine.distributed_child BASE OUT [eva]`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from adapterhub.engine import adapters, eva
from adapterhub.engine.distributed import Group
from adapterhub.engine.tasks import task_engine
from adapterhub.engine.train import HeldOut, train
from adapterhub.spec.training import TrainingSpec
from tests.engine.tiny import Recorder, examples, hyperparameters, load

# 13 rows: steps of 8 and 5, whose labels two processes share unevenly.
SPEC = TrainingSpec(
    learning_rate=1e-2, seed=3, max_steps=6, per_device_train_batch_size=4, gradient_accumulation_steps=2,
    global_batch_size=8, warmup_steps=1, max_grad_norm=0.5, weight_decay=0.1, logging_steps=1, save_steps=2,
    eval_strategy="steps", eval_steps=3, load_best_model_at_end=True,
)  # fmt: skip


def main(place: str, target: str, start: str = "") -> None:
    """Train, and have the process that writes write what came of it; the others tell that they ended."""
    import torch

    torch.set_num_threads(1)
    rank = int(os.environ.get("RANK", "0"))
    base, out = load(Path(place)), Path(target)
    rows = examples(base, 13)
    given = {"init_lora_weights": start} if start else {}
    # By rows that only the first process has: it computes the start for all.
    read = eva.StartRows(examples=rows if rank == 0 else (), spec=SPEC, task=task_engine("CAUSAL_LM"), pad_id=0)
    group = Group(base.device)
    model = adapters.attach(base, hyperparameters(**given), task="CAUSAL_LM", seed=SPEC.seed, rows=read)
    if rank:
        with torch.no_grad():  # as if this process had begun elsewhere
            for parameter in (p for p in model.parameters() if p.requires_grad):
                parameter.add_(1.0)
    recorder: Any = Recorder.new()
    result = train(
        model, base, rows, SPEC, pad_id=0, log=out / f"log-{rank}.jsonl", progress=recorder,
        held_out=HeldOut(examples=rows[:3]), checkpoints=out / "checkpoints", identity="one",
    )  # fmt: skip
    group.close()
    if rank == 0:
        adapters.save(model, out, base_id="tiny", base_revision=None)
    told = {"loss": result.loss, "tokens": result.tokens, "notes": recorder.notes, "tasks": recorder.tasks}
    (out / f"result-{rank}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
