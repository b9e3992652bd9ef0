"""What a stack of adapters tells of texts: labels, entities, answers, text or vectors, by its task."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adapterhub.ops.load import Loaded, layer_data, load_planned
from adapterhub.ops.run import RunPlan, plan_run
from adapterhub.progress import SILENT, Progress
from adapterhub.settings import Settings
from adapterhub.spec.generation import Generation
from adapterhub.spec.predictions import Prediction
from adapterhub.spec.quantization import Quantization
from adapterhub.spec.stack import Parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """What a model made of texts, one a text, and how. seconds: without loading.

    notes: what a person should know of it. items: Classified, Tagged, Answered, Written or Embedded, by the task
    (spec/predictions.py).
    """

    items: tuple[Prediction, ...]
    notes: tuple[str, ...]
    seconds: float
    loaded: Loaded

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "task": self.loaded.task,
            "results": [item.to_data() for item in self.items],
            "notes": list(self.notes),
            "seconds": round(self.seconds, 3),
            "base": self.loaded.base.ref.id,
            "stack": [layer_data(layer) for layer in self.loaded.stack.layers],
            **self.loaded.rule.to_data(),
            "device": self.loaded.device,
            "dtype": self.loaded.dtype,
            "quantization": self.loaded.quantization.to_data() if self.loaded.quantization else None,
        }


def predict_planned(plan: RunPlan, *, loaded: Loaded | None = None, progress: Progress = SILENT) -> Predictions:
    """Return what a stack makes of all texts of a plan: labels, entities, answers, text or vectors, by its task.

    Args:
        plan: what to load and to ask.
        loaded: what `load_planned(plan.load)` gave, to ask one loaded stack more than once; default: loaded here.
        progress: who is told about loading.

    Raises:
        UsageError: a text has no token, or does not fit in the context. What `load_planned` raises.
    """
    from adapterhub.engine.infer import Predictor

    ready = loaded if loaded is not None else load_planned(plan.load, progress=progress)
    predictor = Predictor(ready.model, ready.tokenizer, task=ready.task, labels=ready.labels)
    begin = time.perf_counter()
    items = predictor.predict(
        plan.texts, context=plan.context, options=plan.generation, system=plan.system, raw=plan.raw
    )
    seconds = time.perf_counter() - begin
    return Predictions(items=items, notes=tuple(predictor.notes), seconds=seconds, loaded=ready)


def predict(
    texts: str | Sequence[str],
    *,
    context: str | None = None,
    stack: str | None = None,
    base: str | None = None,
    combination: str | None = None,
    parameters: Parameters | None = None,
    generation: Generation | None = None,
    device: str | None = None,
    dtype: str | None = None,
    quantization: Quantization | None = None,
    settings: Settings | None = None,
    cwd: Path | None = None,
    progress: Progress = SILENT,
) -> Predictions:
    """Ask a stack of what its adapters were trained for, and return one item a text; to ask again, `predict_planned`.

    texts: what is classified, tagged, rewritten or embedded, or questions. context: what questions are about, or the
    second text of a pair that is classified. The others: as `load` has them.

    Raises:
        UsageError: a text is empty or too long, or the task has no place for what is given. What `load` raises.
    """
    plan = plan_run(
        texts,
        context=context,
        stack=stack,
        base=base,
        combination=combination,
        parameters=parameters,
        generation=generation,
        device=device,
        dtype=dtype,
        quantization=quantization,
        settings=settings,
        cwd=cwd,
    )
    return predict_planned(plan, progress=progress)
