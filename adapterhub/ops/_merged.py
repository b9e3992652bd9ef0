"""What lies beside merged weights: the base's config and tokenizer, and a card that says what was merged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub import __version__
from adapterhub.algebra.reports import LOW_KEPT
from adapterhub.catalog.methods import METHODS
from adapterhub.catalog.tasks import TASKS
from adapterhub.documents import read_json
from adapterhub.files import local_io, write_atomic
from adapterhub.fingerprints import OLD_TEMPLATE_FILE, TEMPLATE_FILE, TOKENIZER_CONFIG_FILE, chat_template_digest
from adapterhub.package import PAYLOAD_FILES
from adapterhub.spec.base_model import BaseModelRef
from adapterhub.spec.manifest import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE

if TYPE_CHECKING:
    from adapterhub.algebra.delta import Truncation
    from adapterhub.algebra.reports import FuseReport
    from adapterhub.catalog.combinations import Rule
    from adapterhub.engine.agreement import Agreement
    from adapterhub.environment import ActiveLayer

# What a plain transformers user needs of the base; weights, cards and code are left behind.
TOKENIZER_FILES = tuple(name for name in PAYLOAD_FILES if name not in (CONFIG_FILE, WEIGHTS_FILE))
OTHER_FILES = ("generation_config.json", "preprocessor_config.json", "processor_config.json", "spm.model")
LICENSE_BEGINNINGS = ("license", "licence", "notice", "copying", "use_policy")
TEMPLATES_FOLDER = "additional_chat_templates"


def write_config(
    config: Mapping[str, object], folder: Path, *, untied: bool, dtype: str | None, vocabulary: int | None = None
) -> None:
    """Write config.json as the base has it, but for what the merge changed; `vocabulary`: rows of new embeddings."""
    changed = dict(config)
    if vocabulary is not None:
        changed["vocab_size"] = vocabulary
    if untied:
        changed["tie_word_embeddings"] = False
        if config.get("model_type") == "t5":
            # transformers takes untied for T5 1.1, whose decoder's outputs are not scaled, unless this says otherwise.
            changed.setdefault("scale_decoder_outputs", config.get("tie_word_embeddings") is not False)
    if dtype is not None:
        changed.pop("torch_dtype", None)
        changed["dtype"] = dtype
    write_atomic(folder / "config.json", (json.dumps(changed, indent=2, ensure_ascii=False) + "\n").encode())


def side_files(base: Path) -> tuple[str, ...]:
    """Return the names, in the base's folder, that go with the merged weights unchanged."""
    names = {name for name in (*OTHER_FILES, *TOKENIZER_FILES) if (base / name).is_file()}
    names |= {
        path.name for path in base.iterdir() if path.name.lower().startswith(LICENSE_BEGINNINGS) and path.is_file()
    }
    templates = base / TEMPLATES_FOLDER
    if templates.is_dir():
        names |= {f"{TEMPLATES_FOLDER}/{path.name}" for path in templates.glob("*.jinja")}
    return tuple(sorted(names))


def copy_side_files(base: Path, folder: Path, *, tokenizer: Path | None = None) -> None:
    """Copy the base's tokenizer, template, generation config and licence; `tokenizer` replaces the first two.

    A tokenizer that an adapter brings without a chat template keeps the base's.
    """
    own_template = tokenizer is None or chat_template_digest(tokenizer) is not None
    template = (TEMPLATE_FILE, OLD_TEMPLATE_FILE)
    for name in side_files(base):
        words = name in TOKENIZER_FILES and name not in template
        speech = name in template or name.startswith(TEMPLATES_FOLDER)
        if tokenizer is None or not (words or (speech and own_template)):
            _copy(base / name, folder / name)
    if tokenizer is None:
        return
    copy_tokenizer(tokenizer, folder)
    if not own_template and not (folder / TEMPLATE_FILE).exists():
        text = _template_in_config(base)
        if text is not None:
            write_atomic(folder / TEMPLATE_FILE, text.encode())


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy a folder's tokenizer and chat template."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            _copy(source / name, folder / name)


def _template_in_config(base: Path) -> str | None:
    path = base / TOKENIZER_CONFIG_FILE
    value = read_json(path) if path.is_file() else None
    text = value.get("chat_template") if isinstance(value, dict) else None
    return text if isinstance(text, str) else None


def _copy(source: Path, target: Path) -> None:
    with local_io(target, "copy the file"):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def write_card(
    folder: Path,
    name: str,
    base: BaseModelRef,
    layers: Sequence[ActiveLayer],
    rule: Rule,
    *,
    report: FuseReport | None,
    truncation: Truncation | None,
    dtype: str,
    agreement: Agreement | None = None,
    task: str = "CAUSAL_LM",
) -> None:
    """Write README.md: what was merged into what, with digests, and what the rounding left of it.

    task: whose class of models loads it. report: of merged weights; None for a merged adapter. truncation: what a limit
    of the rank left out. agreement: how far the outputs are from the stack's, where that was measured.
    Front matter: https://huggingface.co/docs/hub/model-cards.
    """
    front: dict[str, object] = {
        "base_model": base.id,
        "base_model_relation": "merge" if report else "adapter",
        "library_name": "transformers" if report else "peft",
        "language": sorted({language for layer in layers for language in layer.package.manifest.languages}),
        "tags": ["adapterhub", "merge"],
    }
    # JSON is YAML, and quotes whatever needs it.
    told = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in front.items() if value]
    what = (
        f"{base.id} with {_count(layers)} merged into its weights"
        if report
        else f"{_count(layers)} as one, for {base.id}"
    )
    lines = ["---", *told, "---", "", f"# {name}", "", f"{what}, by adapterhub {__version__}.", ""]
    lines += ["## Adapters", "", "| Adapter | Version | Weight | Digest |", "|---|---|---|---|"]
    lines += [_row(layer) for layer in layers]
    lines += ["", f"{_how(layers, rule)}, in float32, rounded once to {dtype}.", ""]
    if truncation is not None:
        lines += [f"The rank of the combined change leaves out {truncation.error:.1%} of it.", ""]
    if report is not None:
        lines += [_survived(report), ""]
        if report.replaced:
            lines += [f"Taken whole from the adapter: {', '.join(map(_code, report.replaced))}.", ""]
    if agreement is not None:
        lines += [f"{agreement.sentence[:1].upper()}{agreement.sentence[1:]}.", ""]
    lines += ["## Base model", "", f"- id: {base.id}"]
    lines += [f"- revision: {base.revision}"] if base.revision else []
    lines += [f"- weights: `{base.fingerprints.weights}`"] if base.fingerprints.weights else []
    lines += ["", "## Use", "", *_use(report is not None, base, TASKS[task].auto_class), ""]
    write_atomic(folder / CARD_FILE, "\n".join(lines).encode())


def _how(layers: Sequence[ActiveLayer], rule: Rule) -> str:
    """Say how the adapters became a change of the weights."""
    methods = [METHODS.get(layer.package.manifest.method or "") for layer in layers]
    other = [method for method in methods if method is not None and method.peft_type != "LORA"]
    doras = len(layers) > 1 and any(method is not None and method.name == "dora" for method in methods)
    if other or doras:
        told = [f"`{method.name}` ({method.paper})" for method in methods if method is not None]
        return f"Changed by {', then '.join(told)}"
    return f"Combined by `{rule}` ({rule.row.paper})"


def _survived(report: FuseReport) -> str:
    """Say how much of the change is in the rounded weights, and where little of it is."""
    text = f"Of the adapters' change, {report.kept:.1%} is in the rounded weights."
    if not report.low:
        return text
    worst = min(report.low, key=lambda module: module.kept)
    few = f"{len(report.low)} of {len(report.modules)} modules kept less than {LOW_KEPT:.0%} of theirs"
    return f"{text} {few}, {_code(worst.module)} least ({worst.kept:.0%})."


def _code(name: str) -> str:
    return f"`{name}`"


def _count(layers: Sequence[ActiveLayer]) -> str:
    return f"{len(layers)} adapters" if len(layers) > 1 else f"the adapter {layers[0].package.manifest.name}"


def _row(layer: ActiveLayer) -> str:
    manifest = layer.package.manifest
    if layer.package.derived:  # no manifest of its own to take the digest of
        digest = next(f"weights `{entry.digest}`" for entry in manifest.files if entry.path == WEIGHTS_FILE)
    else:
        digest = f"manifest `{manifest.digest}`"
    return f"| {manifest.name} | {manifest.version} | {layer.weight:g} | {digest} |"


def _use(whole: bool, base: BaseModelRef, auto_class: str) -> list[str]:
    if whole:
        return [
            f"    from transformers import AutoTokenizer, {auto_class}",
            "",
            f"    model = {auto_class}.from_pretrained(THIS_FOLDER)",
            "    tokenizer = AutoTokenizer.from_pretrained(THIS_FOLDER)",
        ]
    return [
        "    from peft import PeftModel",
        f"    from transformers import {auto_class}",
        "",
        f'    base = "{base.id}"  # or a folder that holds it',
        f"    model = PeftModel.from_pretrained({auto_class}.from_pretrained(base), THIS_FOLDER)",
    ]
