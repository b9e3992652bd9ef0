"""`adapt verify`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from adapterhub.cli import console, options

if TYPE_CHECKING:
    from adapterhub.errors import ExitCode
    from adapterhub.ops.verify import Verification


@click.command("verify", epilog="Example:  adapt verify --fix")
@click.option("--fix", is_flag=True, help="Fetch again what is missing or damaged; changed files are kept aside.")
@click.option("--all", "everything", is_flag=True, help="Look at the whole store, and at every folder that uses it.")
@options.dry_run_option
@options.json_option
def command(fix: bool, everything: bool, dry_run: bool, as_json: bool) -> ExitCode:
    """Compare every byte of what is locked here with its digest, in the store and where it is installed.

    Without --fix nothing is changed and no connection is opened. Exit code 3 means that something is damaged, changed
    or added, 1 that something is merely missing.
    """
    from adapterhub.cli.progress import open_progress
    from adapterhub.environment import find_environment
    from adapterhub.ops.verify import verify

    with open_progress() as progress:
        found = verify(find_environment(), everything=everything, fix=fix and not dry_run, progress=progress)
    if as_json:
        console.print_json(found.to_data())
    else:
        _tell(found)
    if fix and dry_run and found.faults:
        console.say(f"nothing was done (--dry-run): --fix would see to {len(found.faults)} faults")
    return found.exit_code


def _tell(found: Verification) -> None:
    if found.faults:
        rows = [(fault.what.value, fault.ref or "", str(fault.path), fault.message) for fault in found.faults]
        console.print_table(("what", "package", "path", "message"), rows)
    for fault in found.fixed:
        console.say(f"fixed: {fault.path} ({fault.what.value})")
    for failure in found.failures:
        console.warn(f"{failure.ref} could not be brought back: {failure.error}", hint=failure.error.hint)
    packages = f"{found.packages} {'package' if found.packages == 1 else 'packages'}"
    looked = f"{packages}, {found.files} files, {console.human_size(found.size)}"
    if not found.faults:
        console.say(f"every byte is what was locked ({looked})")
        return
    console.say(
        f"{len(found.faults)} of what was looked at {'is' if len(found.faults) == 1 else 'are'} wrong ({looked})"
    )
    for hint in dict.fromkeys(fault.hint for fault in found.faults):
        console.say(f"hint: {hint}")
