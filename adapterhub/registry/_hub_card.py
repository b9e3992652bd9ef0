"""The model card: what the Hub's search and widgets read of it, and what a person does.

Header: https://huggingface.co/docs/hub/model-cards and huggingface_hub's ModelCardData.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from adapterhub.catalog.licences import licence_named
from adapterhub.catalog.tasks import TASKS
from adapterhub.documents import edit_card
from adapterhub.spec._decode import thaw
from adapterhub.spec.manifest import LOSS_PLOT_FILE, Manifest
from adapterhub.spec.refs import PackageName

# What lies between the marks tells how to use the package; publishing writes it anew, under the name it then has.
_USE_BEGINS, _USE_ENDS = "<!-- adapterhub: use -->", "<!-- adapterhub: end of use -->"
_USE = re.compile(re.escape(_USE_BEGINS) + ".*?" + re.escape(_USE_ENDS), re.DOTALL)
_GENERATED = "<!-- adapterhub: written from the manifest; a README.md of the package's own takes its place -->"
# Metrics that measure the training or the measure, not the adapter.
_NO_RESULTS = ("eval_rows", "eval_tokens", "train_loss", "train_steps")
_LOSSES = {
    "eval_loss": "loss of a token",
    "eval_loss_base": "loss of a token, bare base model",
    "eval_loss_reduction": "reduction of the loss",
    "eval_loss_reduction_low": "reduction of the loss, low end of the 95 % interval",
    "eval_loss_reduction_high": "reduction of the loss, high end of the 95 % interval",
}


def published_card(text: str | None, manifest: Manifest, name: PackageName, *, where: str, plot: bool) -> str:
    """Return the card to publish: the person's own with the Hub's keys set in its header, or one of the manifest.

    text: README.md as the package has it. plot: whether the package brings a plot of the loss.

    Raises:
        InvalidFileError: the header is no YAML mapping.
    """
    if text is None:
        text = card_body(manifest, name=name, plot=plot) + _GENERATED + "\n"
    use = "\n".join(_use(manifest, name))
    return with_header(_USE.sub(lambda _: use, text), manifest, where=where)


def is_generated(text: str) -> bool:
    """Say whether a card was written from a manifest when it was published, and by nobody else since."""
    return text.rstrip().endswith(_GENERATED)


def with_header(text: str, manifest: Manifest, *, where: str) -> str:
    """Return a card with the Hub's keys set in its header; other keys, comments and the body stay.

    Raises:
        InvalidFileError: the header is no YAML mapping.
    """
    return edit_card(text, lambda header: hub_fields(manifest, header), where=where)


def hub_fields(manifest: Manifest, header: Mapping[str, object]) -> dict[str, object]:
    """Return the keys that a card's header has to carry; what the manifest does not say is left as it is.

    header: what the card says already, which is kept in lists.
    """
    task = TASKS.get(manifest.task or "")
    pipeline = task.pipeline if task else header.get("pipeline_tag")
    fields: dict[str, object] = {
        "base_model": _base_of(manifest, header),
        "base_model_relation": "adapter",
        "library_name": "peft" if manifest.kind == "adapter" else None,
        "pipeline_tag": task.pipeline if task else None,
        **_license(manifest, header),
        "language": list(manifest.languages),
        "tags": _tags(manifest, header),
        "model-index": _model_index(manifest, header, str(pipeline)) if pipeline else None,
    }
    return {key: value for key, value in fields.items() if value}


def _base_of(manifest: Manifest, header: Mapping[str, object]) -> object:
    """Return the base model as the Hub knows it: a name without an organisation is one of this machine."""
    base = manifest.base_model
    source = base.derived_from.id if base.derived_from else None
    if "/" in base.id or (source and "/" in source):
        return base.id if "/" in base.id else source
    return header.get("base_model") or base.id


def _license(manifest: Manifest, header: Mapping[str, object]) -> dict[str, object]:
    """Return the license by the Hub's id; one that it has no id for is `other`, with its name."""
    text = manifest.license
    if text is None:
        return {}
    if (row := licence_named(text)) is not None:
        if row.on_hub:
            return {"license": row.id}
        return {"license": "other", "license_name": row.id, "license_link": row.url}
    if text.casefold() == str(header.get("license", "")).casefold():
        return {}  # it came from this card
    return {"license": "other", "license_name": text.lower()}


def _tags(manifest: Manifest, header: Mapping[str, object]) -> list[str]:
    there = header.get("tags")
    own = [there] if isinstance(there, str) else [item for item in there or () if isinstance(item, str)]  # type: ignore[attr-defined]
    kind = "stack" if manifest.kind == "stack" else manifest.method
    wanted = ["adapterhub", *([kind] if kind else []), *manifest.domains, *manifest.keywords]
    return list(dict.fromkeys([*map(str, own), *wanted]))


def _model_index(manifest: Manifest, header: Mapping[str, object], pipeline: str) -> list[object] | None:
    """Return the metrics as the Hub's model-index, beside those that the card has of other models."""
    measured = {name: value for name, value in sorted(manifest.metrics.items()) if name not in _NO_RESULTS}
    if not measured:
        return None
    from huggingface_hub.repocard_data import EvalResult, eval_results_to_model_index

    sources = manifest.built_from.data
    data = sources[-1].name if len(sources) > 1 else "held-out rows"
    results = [
        EvalResult(
            task_type=pipeline,
            dataset_type="custom",
            dataset_name=data,
            metric_type="loss" if name in ("eval_loss", "eval_loss_base") else name,
            metric_name=_LOSSES.get(name, name),
            metric_value=value,
        )
        for name, value in measured.items()
    ]
    there = header.get("model-index")
    others = [
        item
        for item in (there if isinstance(there, list) else [])
        if not (isinstance(item, Mapping) and item.get("name") == manifest.name)
    ]
    return [*others, *eval_results_to_model_index(manifest.name, results)]


def card_body(
    manifest: Manifest,
    *,
    name: PackageName | None = None,
    training: Mapping[str, object] | None = None,
    plot: bool = False,
) -> str:
    """Write a card without its header: what the package is, how to use it, how it was made, what was measured.

    name: under which it is published, where that is known. training: the recipe's settings. plot: of the loss.
    """
    base = manifest.base_model.id
    what = f"A {manifest.method} adapter for {base}." if manifest.kind == "adapter" else f"A stack for {base}."
    lines = [f"# {name.name if name else manifest.name} {manifest.version}", "", manifest.summary or what, ""]
    lines += [*_use(manifest, name), ""]
    lines += _base_section(manifest)
    if manifest.kind == "stack":
        rows = [(str(item.requirement), f"{item.weight:g}") for item in manifest.requires]
        lines += ["## Members", "", *_table(("Package", "Weight"), rows), ""]
    lines += ["## Training" if training else "## Settings", ""]
    lines += [*_table(("Setting", "Value"), _settings(manifest, training or {})), ""]
    if plot:
        lines += [f"![Loss over the steps of the training]({LOSS_PLOT_FILE})", ""]
    if manifest.metrics:
        lines += ["## Held-out rows" if "eval_loss" in manifest.metrics else "## Results", ""]
        lines += [*_results(manifest.metrics), ""]
    return "\n".join(lines)


def _use(manifest: Manifest, name: PackageName | None) -> list[str]:
    full, version = name or f"ORG/{manifest.name}", manifest.version
    word = (name or PackageName("ORG", manifest.name)).default_alias
    where = "" if name else ", from a registry that carries it"
    lines = [
        _USE_BEGINS,
        "## Use",
        "",
        f"With [adapterhub](https://pypi.org/project/adapterhub/){where}:",
        "",
        f"    adapt install {full}@{version}",
    ]
    if manifest.task == "CAUSAL_LM" or manifest.kind == "stack":
        lines += [f'    adapt run --stack {word} "…"']
    if manifest.kind == "adapter":
        lines += ["", "With PEFT alone:", "", *(f"    {line}".rstrip() for line in _with_peft(manifest, name))]
    return [*lines, "", _USE_ENDS]


def _with_peft(manifest: Manifest, name: PackageName | None) -> list[str]:
    """Return the lines of Python that load the adapter without adapterhub."""
    base, task = manifest.base_model, TASKS.get(manifest.task or "")
    auto = task.auto_class if task else "AutoModel"
    options = f', revision="{base.revision}"' if base.revision else ""
    told = manifest.labels if task and task.labels else ()
    labels = [f"labels = {json.dumps(list(told), ensure_ascii=False)}"] if told else []
    options += ", num_labels=len(labels), id2label=dict(enumerate(labels))" if labels else ""
    adapter = f'"{name}", revision="v{manifest.version}"' if name else "THIS_FOLDER"
    own_tokenizer = any(entry.path == "tokenizer_config.json" for entry in manifest.files)
    return [
        "from peft import PeftModel",
        f"from transformers import {auto}, AutoTokenizer",
        "",
        f'base = "{base.id}"  # or a folder that holds it',
        *labels,
        f"model = {auto}.from_pretrained(base{options})",
        f"model = PeftModel.from_pretrained(model, {adapter})",
        f"tokenizer = AutoTokenizer.from_pretrained({adapter if own_tokenizer else 'base'})",
        *(["model.config.pad_token_id = tokenizer.pad_token_id"] if task and task.name == "SEQ_CLS" else []),
    ]


def _base_section(manifest: Manifest) -> list[str]:
    base = manifest.base_model
    facts = [("id", base.id), ("architecture", base.architecture or "")]
    facts += [("revision", base.revision)] if base.revision else []
    facts += [("weights", f"`{base.fingerprints.weights}`")] if base.fingerprints.weights else []
    facts += [("made by", base.derived_from.how)] if base.derived_from else []
    return ["## Base model", "", *_table(("Field", "Value"), facts), ""]


def _settings(manifest: Manifest, training: Mapping[str, object]) -> list[tuple[str, str]]:
    data = ", ".join(f"{source.name} ({source.rows} rows)" for source in manifest.built_from.data)
    if manifest.kind == "stack":
        return [("combination", manifest.combination or "sum")]
    rows = [("method", manifest.method or ""), ("task", manifest.task or "")]
    rows += [("data", data)] if data else []
    rows += [(name, _value(thaw(value))) for name, value in sorted(manifest.hyperparameters.items())]
    rows += [(name, _value(value)) for name, value in training.items()]
    return [*rows, *((f"version of {tool}", version) for tool, version in sorted(manifest.built_from.tools.items()))]


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _results(metrics: Mapping[str, float]) -> list[str]:
    if not {"eval_rows", "eval_tokens", *_LOSSES} <= metrics.keys():
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


def _table(head: tuple[str, str], rows: Sequence[tuple[str, str]]) -> list[str]:
    escaped = [(left, right.replace("|", "\\|").replace("\n", " ")) for left, right in rows]
    return [f"| {head[0]} | {head[1]} |", "|---|---|", *(f"| {left} | {right} |" for left, right in escaped)]
