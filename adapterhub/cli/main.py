"""The entry point of `adapt`: a table of commands that are imported when used, and the one place that catches errors.

How a command is written. The verb `x` has its logic in `ops/x.py` and its command line in `cli/x.py`:

    import click

    from adapterhub.cli import console, options
    from adapterhub.cli.progress import open_progress
    from adapterhub.errors import ExitCode
    from adapterhub.ops import x                      # light: an operation imports engine/ inside its functions
    from adapterhub.settings import read_settings


    @click.command("x")
    @click.argument("package", type=options.FOLDER)
    @options.dry_run_option
    @options.json_option
    def command(package: Path, dry_run: bool, as_json: bool) -> ExitCode | None:
        \"\"\"One sentence, in the imperative, as `adapt x --help` shows it.\"\"\"
        plan = x.plan_x(package, settings=read_settings())
        if dry_run:
            console.print_plan(plan, as_json=as_json)
            return None
        with open_progress() as progress:
            result = x.x(plan, progress=progress)
        if as_json:
            console.print_json(result.to_data())
        else:
            console.say(f"wrote {result.path}")
        return None

The callback returns None for success, or the exit code (`return report.exit_code`). It raises AdapterHubError (or lets
one pass) for what goes wrong, catches nothing, and prints through `console` alone. Its row in COMMANDS below carries
the line of the top-level help, so that `adapt --help` imports no command; the row may stand before the file exists.

Errors go to stderr as text, with --json too: stdout then holds one JSON value, or nothing (as gh and uv do); the exit
code tells which. A report that found faults is data: it is printed, and the exit code says the worst.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any, NamedTuple, NoReturn

import click

from adapterhub import __version__
from adapterhub.cli import console
from adapterhub.errors import AdapterHubError, ExitCode

PROGRAM = "adapt"
COMPLETION_VARIABLE = "_ADAPT_COMPLETE"


class Row(NamedTuple):
    """One command: its name, where it is defined, the section and the line of the top-level help."""

    name: str
    target: str
    section: str
    help: str


COMMANDS: tuple[Row, ...] = (
    Row("plan", "adapterhub.cli.plan:command", "Make", "Estimate what a training takes in memory and time."),
    Row("init", "adapterhub.cli.init:command", "Make", "Write a recipe for a file of rows."),
    Row("data", "adapterhub.cli.data:command", "Make", "Show the rows a recipe trains on, and what is learned."),
    Row("build", "adapterhub.cli.build:command", "Make", "Train an adapter from a recipe."),
    Row("sweep", "adapterhub.cli.sweep:command", "Make", "Train a recipe with several values, and compare them."),
    Row("compare", "adapterhub.cli.compare:command", "Make", "Measure LoRA against QLoRA and full fine-tuning."),
    Row("validate", "adapterhub.cli.validate:command", "Make", "Check that a package is sound and fits its base."),
    Row("pack", "adapterhub.cli.pack:command", "Make", "Write the manifest of a plain PEFT folder."),
    Row("compress", "adapterhub.cli.compress:command", "Make", "Lower an adapter's rank, and report the error."),
    Row("extract", "adapterhub.cli.extract:command", "Make", "Make an adapter of a full fine-tune and its base."),
    Row("convert", "adapterhub.cli.convert:command", "Make", "Rewrite an old adapter as a plain LoRA of today."),
    Row("publish", "adapterhub.cli.publish:command", "Make", "Put a package into a registry."),
    Row("yank", "adapterhub.cli.yank:command", "Make", "Mark a published version as not to be chosen any more."),
    Row("search", "adapterhub.cli.search:command", "Find", "Search a registry for adapters."),
    Row("info", "adapterhub.cli.info:command", "Find", "Show what a registry knows of a package."),
    Row("install", "adapterhub.cli.install:command", "Use", "Install adapters by name, and lock what was installed."),
    Row("uninstall", "adapterhub.cli.uninstall:command", "Use", "Take an installed adapter out again."),
    Row("update", "adapterhub.cli.update:command", "Use", "Move to the newest versions that adapters.yaml allows."),
    Row("outdated", "adapterhub.cli.outdated:command", "Use", "List the adapters that have newer versions."),
    Row("lock", "adapterhub.cli.lock:command", "Use", "Write adapters.lock without installing anything."),
    Row("sync", "adapterhub.cli.sync:command", "Use", "Make what is installed exactly what is locked."),
    Row("list", "adapterhub.cli.list:command", "Use", "List the installed adapters."),
    Row("show", "adapterhub.cli.show:command", "Use", "Show what a package is."),
    Row("inspect", "adapterhub.cli.inspect:command", "Use", "Show what an adapter changes, module by module."),
    Row("diff", "adapterhub.cli.diff:command", "Use", "Compare two adapters: facts, settings and weights."),
    Row("tree", "adapterhub.cli.tree:command", "Use", "Show which package brought which."),
    Row("why", "adapterhub.cli.why:command", "Use", "Tell why a package is installed."),
    Row("run", "adapterhub.cli.run:command", "Use", "Use a stack: text, labels, entities, answers, vectors."),
    Row("eval", "adapterhub.cli.eval:command", "Use", "Measure a stack on held-out rows, or gate a new version."),
    Row("merge", "adapterhub.cli.merge:command", "Use", "Merge a stack into its base model, as a full checkpoint."),
    Row("base", "adapterhub.cli.base:command", "Manage", "Manage the base models that adapters are trained on."),
    Row("verify", "adapterhub.cli.verify:command", "Manage", "Compare every installed byte with its digest."),
    Row("gc", "adapterhub.cli.gc:command", "Manage", "Remove from the store what no project uses."),
    Row("cache", "adapterhub.cli.cache:command", "Manage", "Show what adapterhub keeps on this disk."),
    Row(
        "export", "adapterhub.cli.export:command", "Manage", "Pack what is locked, or hand adapters to another engine."
    ),
    Row("import", "adapterhub.cli.import_:command", "Manage", "Take in what `adapt export` packed."),
    Row("migrate", "adapterhub.cli.migrate:command", "Manage", "Rewrite files of older formats in the present one."),
    Row("login", "adapterhub.cli.login:command", "Manage", "Log in to the Hugging Face Hub."),
    Row("whoami", "adapterhub.cli.whoami:command", "Manage", "Show who the Hugging Face Hub takes you for."),
    Row("completion", "adapterhub.cli.completion:command", "Manage", "Print the completion script of a shell."),
)


class LazyGroup(click.Group):
    """A group whose commands are imported when they are used; help and completion read the table alone."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names whose module exists, in the order of the table."""
        del ctx
        return [row.name for row in COMMANDS if _exists(row)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None when there is none of this name."""
        del ctx
        for row in COMMANDS:
            if row.name == cmd_name and _exists(row):
                module, _, attribute = row.target.partition(":")
                command: click.Command = getattr(importlib.import_module(module), attribute)
                return command
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command of `args[0]`, or say which one may have been meant."""
        if self.get_command(ctx, args[0]) is None and not ctx.resilient_parsing and not args[0].startswith("-"):
            from adapterhub.cli.usage import no_such_command

            raise no_such_command(args[0], self.list_commands(ctx), PROGRAM)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands by section, from the table."""
        known = set(self.list_commands(ctx))
        rows = [row for row in COMMANDS if row.name in known]
        width = max((len(row.name) for row in rows), default=0)
        for section in dict.fromkeys(row.section for row in rows):
            with formatter.section(section):
                formatter.write_dl([(row.name.ljust(width), row.help) for row in rows if row.section == section])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        """Complete a command's name from the table, an option as click does."""
        from click.shell_completion import CompletionItem

        if incomplete.startswith("-"):
            return click.Command.shell_complete(self, ctx, incomplete)
        known = set(self.list_commands(ctx))
        return [
            CompletionItem(row.name, help=row.help)
            for row in COMMANDS
            if row.name in known and row.name.startswith(incomplete)
        ]


def _exists(row: Row) -> bool:
    """Say whether a command's module is there, without importing it."""
    return importlib.util.find_spec(row.target.partition(":")[0]) is not None


@click.command(
    PROGRAM,
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="`adapt COMMAND --help` says more. Exit codes are listed in docs/errors.md.",
    no_args_is_help=False,
    invoke_without_command=True,
)
@click.version_option(__version__, "--version", prog_name="adapterhub", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help="Show tracebacks; ADAPTERHUB_DEBUG=1 does the same.")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Build, share, stack, run and merge model adapters (LoRA and its kin)."""
    ctx.obj = debug
    if ctx.invoked_subcommand is None:
        # No command is no fault: the reader wants to know what there is.
        console.write(ctx.get_help() + "\n")


class _Terminated(BaseException):
    """SIGTERM or SIGHUP arrived; raised so that every `finally` on the way out runs."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return the exit code; nothing escapes but through here."""
    args = list(sys.argv[1:] if arguments is None else arguments)
    console.prepare_streams()
    if completion := os.environ.get(COMPLETION_VARIABLE):
        from click.shell_completion import shell_complete

        return shell_complete(cli, {}, PROGRAM, COMPLETION_VARIABLE, completion)
    previous = _catch_endings()
    try:
        code = _run(args)
        console.flush()
        return code
    except console.OutputClosedError:
        # The reader of our output left (`| head`): it has what it wanted.
        return ExitCode.OK
    except KeyboardInterrupt:
        console.say("interrupted")
        return ExitCode.INTERRUPTED
    except _Terminated:
        console.say("terminated")
        return ExitCode.TERMINATED
    except Exception as error:  # the one place that catches everything
        return _report(error, args)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _run(args: list[str]) -> int:
    try:
        with cli.make_context(PROGRAM, [*args]) as ctx:
            code = cli.invoke(ctx)
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except click.exceptions.Abort:
        # click's prompts turn Ctrl-C and end of input into this.
        raise KeyboardInterrupt from None
    return code if isinstance(code, int) else ExitCode.OK


def _report(error: Exception, args: list[str]) -> int:
    """Print an error and return its exit code."""
    from adapterhub.cli.usage import as_expected, command_path

    if _debugging(args):
        import traceback

        console.say_block("".join(traceback.format_exception(error)).rstrip())
    expected = as_expected(error, command_path(cli, PROGRAM, args) if isinstance(error, click.ClickException) else "")
    if expected is None:
        import shlex

        again = shlex.join([PROGRAM, "--debug", *args])
        expected = AdapterHubError(
            f"this is a bug in adapterhub: {type(error).__name__}: {error}",
            hint="report it with what is printed above"
            if _debugging(args)
            else f"report it with the output of `{again}` (or of ADAPTERHUB_DEBUG=1)",
        )
    console.print_error(expected)
    return expected.exit_code


def _debugging(args: list[str]) -> bool:
    """Say whether tracebacks are wanted; asked when anything may be broken, so it looks at the words alone."""
    options = [word for word in args[:2] if word.startswith("-")]
    return "--debug" in options or os.environ.get("ADAPTERHUB_DEBUG", "").strip().lower() in ("1", "true", "yes", "on")


def _raise_terminated(number: int, frame: FrameType | None) -> NoReturn:
    del number, frame
    raise _Terminated


def _catch_endings() -> dict[int, Any]:
    """Have SIGTERM, and SIGHUP of a closed terminal, raise _Terminated; return the handlers there were.

    A signal that is ignored, as SIGHUP is under nohup, stays so; a thread that may set no handlers sets none.
    """
    previous: dict[int, Any] = {}
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is None or signal.getsignal(number) in (signal.SIG_IGN, None):
            continue
        try:
            previous[number] = signal.signal(number, _raise_terminated)
        except ValueError:
            break
    return previous


if __name__ == "__main__":
    sys.exit(main())
