"""The model card of a built package: README.md with the Hub's front matter."""

from __future__ import annotations

import json
from collections.abc import Mapping

from adapterhub.spec._decode import thaw
from adapterhub.spec.manifest import Manifest


def model_card(manifest: Manifest, training: Mapping[str, object]) -> str:
    """Write the card: what the adapter is, how to load it, how it was trained, what was measured.

    training: the recipe's settings by name. Front matter: https://huggingface.co/docs/hub/model-cards.
    """
    base, name = manifest.base_model.id, manifest.name
    lines = [*_front_matter(manifest), "", f"# {name} {manifest.version}", ""]
    lines += [manifest.summary or f"A {manifest.method} adapter for {base}.", ""]
    lines += [
        "## Use",
        "",
        "With [adapterhub](https://pypi.org/project/adapterhub/), from a registry that carries it:",
        "",
        f"    adapt install ORG/{name}@{manifest.version}",
        f'    adapt run --stack {name} "…"',
        "",
        "With PEFT alone:",
        "",
        "    from peft import PeftModel",
        "    from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'    base = "{base}"  # or a folder that holds it',
        "    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), THIS_FOLDER)",
        "    tokenizer = AutoTokenizer.from_pretrained(base)",
        "",
    ]
    lines += _base_section(manifest)
    lines += ["## Training", "", *_table(("Setting", "Value"), _settings(manifest, training)), ""]
    if manifest.metrics:
        lines += ["## Held-out rows", "", *_results(manifest.metrics), ""]
    return "\n".join(lines)


def _front_matter(manifest: Manifest) -> list[str]:
    fields: dict[str, object] = {
        "base_model": manifest.base_model.id,
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "license": manifest.license.lower() if manifest.license else None,
        "language": list(manifest.languages),
        "tags": ["adapterhub", manifest.method, *manifest.domains, *manifest.keywords],
    }
    # JSON is YAML, and quotes whatever needs it.
    told = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in fields.items() if value]
    return ["---", *told, "---"]


def _base_section(manifest: Manifest) -> list[str]:
    base = manifest.base_model
    facts = [("id", base.id), ("architecture", base.architecture or "")]
    facts += [("revision", base.revision)] if base.revision else []
    facts += [("weights", f"`{base.fingerprints.weights}`")] if base.fingerprints.weights else []
    facts += [("made by", base.derived_from.how)] if base.derived_from else []
    return ["## Base model", "", *_table(("Field", "Value"), facts), ""]


def _settings(manifest: Manifest, training: Mapping[str, object]) -> list[tuple[str, str]]:
    data = ", ".join(f"{source.name} ({source.rows} rows)" for source in manifest.built_from.data)
    rows = [("method", manifest.method or ""), ("task", manifest.task or ""), ("data", data)]
    rows += [(name, _value(thaw(value))) for name, value in sorted(manifest.hyperparameters.items())]
    rows += [(name, _value(value)) for name, value in training.items()]
    return [*rows, *((f"version of {tool}", version) for tool, version in sorted(manifest.built_from.tools.items()))]


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _results(metrics: Mapping[str, float]) -> list[str]:
    if "eval_loss" not in metrics:
        return _table(("Measure", "Value"), [(name, f"{value:g}") for name, value in sorted(metrics.items())])
    return [
        f"Mean loss of a token over {metrics['eval_rows']:.0f} rows ({metrics['eval_tokens']:.0f} tokens) that training"
        " did not see:",
        "",
        *_table(
            ("Model", "Loss"),
            [("base", f"{metrics['eval_loss_base']:.4f}"), ("base with this adapter", f"{metrics['eval_loss']:.4f}")],
        ),
        "",
        f"The adapter lowers it by {metrics['eval_loss_reduction']:.1%} (95 % interval of a paired bootstrap: "
        f"{metrics['eval_loss_reduction_low']:.1%} to {metrics['eval_loss_reduction_high']:.1%}).",
    ]


def _table(head: tuple[str, str], rows: list[tuple[str, str]]) -> list[str]:
    escaped = [(left, right.replace("|", "\\|").replace("\n", " ")) for left, right in rows]
    return [f"| {head[0]} | {head[1]} |", "|---|---|", *(f"| {left} | {right} |" for left, right in escaped)]
