"""A process that has the libraries and a tiny base loaded, and trains in children that it forks: quick to kill.

It reads one JSON object a line and answers each with one: how the child ended (`status`, as os.waitpid has it).
Run as `python -m tests.engine.training_child BASE`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

from adapterhub.engine import adapters
from adapterhub.engine.train import HeldOut, train
from adapterhub.spec.training import TrainingSpec
from tests.engine.tiny import Recorder, examples, hyperparameters, load

# Every kind of thing that a checkpoint draws on: dropout, accumulation, ragged last steps, measuring, the best step.
SPEC = TrainingSpec(
    learning_rate=1e-2, seed=3, num_train_epochs=8, per_device_train_batch_size=2, gradient_accumulation_steps=2,
    lr_scheduler_type="cosine", warmup_steps=2, max_grad_norm=0.5, weight_decay=0.1, logging_steps=3, save_steps=1,
    eval_strategy="steps", eval_steps=4, load_best_model_at_end=True,
)  # fmt: skip
ROWS = 10


def one_training(base: Any, order: dict[str, Any], steps: int = -1) -> None:
    """Train as an order says, and write what came of it to the folder `out`."""
    out, place = Path(order["out"]), order["checkpoints"]
    number = getattr(signal, order["signal"]) if order.get("signal") else None
    recorder = Signalling(out / "notes.json", at=order.get("at_step", -1), number=number)
    if order.get("kill_at"):
        kill_at_event(Path(place), order["kill_at"])
    if order.get("kill_after") is not None:
        threading.Timer(order["kill_after"], os.kill, (os.getpid(), signal.SIGKILL)).start()
    rows = examples(base, ROWS)
    model = adapters.attach(base, hyperparameters(lora_dropout=0.2), task="CAUSAL_LM", seed=SPEC.seed)
    result = train(
        model, base, rows, replace(SPEC, max_steps=steps), pad_id=0, log=out / "log.jsonl", progress=recorder,
        held_out=HeldOut(examples=rows[:3], batch_size=2),
        checkpoints=Path(place) if place else None, identity="one",
    )  # fmt: skip
    adapters.save(model, out, base_id="tiny", base_revision=None)
    found = {"loss": result.loss, "tokens": result.tokens, "steps": result.steps, "best": result.best_step}
    (out / "result.json").write_text(json.dumps(found))


class Signalling(Recorder):
    """A Progress that writes its notes to a file, and sends this process a signal after a step."""

    def __init__(self, file: Path, *, at: int, number: int | None) -> None:
        super().__init__([], [], [])
        self.file, self.left, self.number = file, at, number
        file.write_text("[]")

    def note(self, text: str) -> None:
        super().note(text)
        self.file.write_text(json.dumps(self.notes))

    def update(self, **fields: object) -> None:
        super().update(**fields)
        self.left -= "loss" in fields
        if not self.left and self.number is not None:
            os.kill(os.getpid(), self.number)


def kill_at_event(folder: Path, number: int) -> None:
    """Kill this process before the `number`-th thing that it does to the files below a folder."""
    left = [number]

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event not in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "os.scandir"):
            return
        if any(isinstance(arg, str | Path) and str(arg).startswith(str(folder)) for arg in args):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def main() -> None:
    """Answer orders until there are no more."""
    import torch

    torch.set_num_threads(1)
    base = load(Path(sys.argv[1]))
    # The libraries import much with the first step; no child has to.
    with tempfile.TemporaryDirectory() as folder:
        one_training(base, {"out": folder, "checkpoints": None}, steps=2)
    base = load(Path(sys.argv[1]))
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            code = 70
            try:
                one_training(base, json.loads(line))
                code = 0
            except KeyboardInterrupt:
                code = 130
            finally:
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(child, 0)
        print(json.dumps({"status": status}), flush=True)


if __name__ == "__main__":
    main()
