"""`adapt validate`."""

from __future__ import annotations

import click

from adapterhub.cli import console, options
from adapterhub.errors import ExitCode
from adapterhub.ops import validate
from adapterhub.settings import read_settings


@click.command("validate", epilog="Examples:  adapt validate ./my-lora --base tiny    adapt validate adapters.lock")
@click.argument("package", metavar="PACKAGE")
@options.base_option
@click.option("--deep", is_flag=True, help="Read every weight too: NaN, infinity, a B that is all zero.")
@click.option(
    "--meta", is_flag=True, help="Also build the base without its weights, as PEFT would adapt it; needs torch."
)
@options.json_option
def command(package: str, base: str | None, deep: bool, meta: bool, as_json: bool) -> ExitCode:
    """Check that a package is sound and fits its base model.

    PACKAGE is a folder, the alias or name of an installed package, or a single document: a recipe, adapters.yaml,
    adapters.lock, a manifest. Files, manifest and config are checked against
    each other, and against the base by its headers and fingerprints; no weight is read but with --deep. --meta
    asks the model itself, built of shapes alone, for every method and for what headers leave open. What could not be
    answered is listed as not checked. The exit code is that of the worst fault.
    """
    report = validate.validate(package, base=base, deep=deep, meta=meta, settings=read_settings())
    console.print_report(report, as_json=as_json)
    return report.exit_code
