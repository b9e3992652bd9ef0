"""`adapt pack`."""

from __future__ import annotations

from pathlib import Path

import click

from adapterhub.cli import completing, console, options
from adapterhub.errors import UsageError
from adapterhub.ops import pack
from adapterhub.ops._facts import Facts
from adapterhub.settings import read_settings
from adapterhub.spec.quantization import Quantization


@click.command(
    "pack",
    epilog="Examples:  adapt pack ./my-lora --version 1.0.0 --base tiny  ·  "
    "adapt pack ./clinic --stack clinic --version 1.0.0",
)
@click.argument("folder", metavar="DIR", type=options.FOLDER)
@click.option("--name", help="The package's name, without an organisation. Default: the folder's.")
@click.option("--version", metavar="X.Y.Z", help="The version. Default: 0.0.0+g and the payload's digest.")
@click.option(
    "--base",
    metavar="NAME",
    shell_complete=completing.bases,
    help="The base model it was trained on; one of `adapt base list` is fingerprinted.",
)
@click.option("--summary", help="One line on what the adapter does.")
@click.option("--license", "license_", metavar="SPDX", help="The license. Default: the model card's.")
@click.option("--keyword", "keywords", multiple=True, help="A word to find it by; may be repeated.")
@click.option("--domain", "domains", multiple=True, help="A field it is for (medical, legal); may be repeated.")
@click.option("--language", "languages", multiple=True, metavar="TAG", help="A BCP 47 tag (es); may be repeated.")
@click.option("--label", "labels", multiple=True, help="A classifier's label, in the order of its outputs; repeated.")
@click.option("--load-in-4bit", is_flag=True, help="It was trained on a 4-bit (NF4) base.")
@click.option("--load-in-8bit", is_flag=True, help="It was trained on an 8-bit (LLM.int8) base.")
@click.option(
    "--stack",
    metavar="NAME",
    shell_complete=completing.stacks,
    help="Make a stack package: the stack of that name in adapters.yaml.",
)
@click.option("--force", is_flag=True, help="Replace a manifest that says otherwise.")
@options.dry_run_option
@options.json_option
def command(
    folder: Path,
    name: str | None,
    version: str | None,
    base: str | None,
    summary: str | None,
    license_: str | None,
    keywords: tuple[str, ...],
    domains: tuple[str, ...],
    languages: tuple[str, ...],
    labels: tuple[str, ...],
    load_in_4bit: bool,
    load_in_8bit: bool,
    stack: str | None,
    force: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Write the manifest of a plain PEFT folder, or with --stack that of a stack package.

    It says what adapter_config.json and the model card say, and what the options add; the files are hashed. A manifest
    that is there is brought up to date with the files, with --force where that changes it.
    """
    if load_in_4bit and load_in_8bit:
        raise UsageError("--load-in-4bit and --load-in-8bit exclude each other")
    facts = Facts(
        name=name,
        version=version,
        base=base,
        summary=summary,
        license=license_,
        keywords=keywords,
        domains=domains,
        languages=languages,
        labels=labels,
        quantization=Quantization(load_in_4bit=load_in_4bit, load_in_8bit=load_in_8bit)
        if load_in_4bit or load_in_8bit
        else None,
    )
    if stack is None:
        plan = pack.plan_pack(folder, facts, force=force, settings=read_settings())
    else:
        from adapterhub.environment import find_environment

        plan = pack.plan_pack_stack(folder, stack, facts, environment=find_environment(), force=force)
    if dry_run:
        console.print_plan(plan, as_json=as_json)
        return
    manifest = pack.pack(plan)
    for warning in plan.warnings:
        console.warn(warning)
    if as_json:
        console.print_json({**plan.to_data(), "digest": str(manifest.digest)})
    elif plan.changes:
        console.say(f"wrote {plan.steps[0].subject}: {manifest.name} {manifest.version} ({manifest.digest.short})")
    else:
        console.say(f"nothing to do: {manifest.name} {manifest.version} ({manifest.digest.short})")
