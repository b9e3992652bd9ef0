"""What a task's measures of held-out rows say to a person, beside those of what needs no model or no adapter."""

from __future__ import annotations

from collections.abc import Mapping

from adapterhub.catalog.tasks import TASKS

# What a measure is held against, by the end of its name in a manifest.
_RIVALS: Mapping[str, str] = {"_naive": "without a model", "_base": "by the bare base"}
# Measures that are no share of anything.
_PLAIN = ("matthews", "mrr", "spearman")
_TITLES: Mapping[str, str] = {
    "f1": "F1",
    "f1_macro": "F1, mean of classes",
    "f1_micro": "F1, all classes together",
    "matthews": "Matthews correlation",
    "rouge_l": "ROUGE-L",
    "chrf": "chrF",
    "mrr": "mean reciprocal rank",
    "accuracy_at_1": "accuracy at 1",
    "spearman": "rank correlation",
}


def measure_facts(metrics: Mapping[str, float], task: str) -> tuple[tuple[str, str], ...]:
    """Return a line for each of a task's measures that a manifest records, the first with its 95 % interval."""
    found = []
    for name in TASKS[task].measures if task in TASKS else ():
        if (value := metrics.get(f"eval_{name}")) is None:
            continue
        text = _shown(name, value)
        low, high = metrics.get(f"eval_{name}_low"), metrics.get(f"eval_{name}_high")
        if low is not None and high is not None:
            text += f" (95 % interval {_shown(name, low)} to {_shown(name, high)})"
        text += "".join(
            f", {_shown(name, metrics[f'eval_{name}{end}'])} {words}"
            for end, words in _RIVALS.items()
            if f"eval_{name}{end}" in metrics
        )
        found.append((f"held-out {_TITLES.get(name, name.replace('_', ' '))}", text))
    return tuple(found)


def measure_doubts(metrics: Mapping[str, float], task: str) -> tuple[str, ...]:
    """Return what a person should not miss: a main measure that what needs no model, or no adapter, may reach too."""
    for name in TASKS[task].measures if task in TASKS else ():
        low = metrics.get(f"eval_{name}_low")
        for end, words in _RIVALS.items():
            rival = metrics.get(f"eval_{name}{end}")
            if low is not None and rival is not None and low <= rival:
                title = _TITLES.get(name, name.replace("_", " "))
                return (
                    f"the adapter may not help: {title} is {_shown(name, metrics[f'eval_{name}'])}, the 95 % interval "
                    f"begins at {_shown(name, low)}, and {words} it is {_shown(name, rival)}",
                )
    return ()


def measure_title(name: str) -> str:
    """Return a measure's name as people read it."""
    return _TITLES.get(name, name.replace("_", " "))


def shown_measure(name: str, value: float) -> str:
    """Return a measure's value as people read it."""
    return f"{value:.4f}" if name == "loss" else _shown(name, value)


def _shown(name: str, value: float) -> str:
    return f"{value:.3f}" if name in _PLAIN else f"{value:.1%}"
