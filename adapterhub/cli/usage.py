"""Foreign exceptions in our voice: click's usage errors, and the disk's refusals that nobody foresaw."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

import click

from adapterhub.errors import AdapterHubError, LocalIOError, UsageError

_GLOBAL_OPTIONS = ("--debug", "--version")
_DISK_REFUSALS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.EFBIG,
}


def as_expected(error: Exception, path: str) -> AdapterHubError | None:
    """Return an error as one that users understand, or None when it is a fault of the program.

    `path` is the command that was called (`adapt base add`), for the errors that click gives no context.
    """
    if isinstance(error, AdapterHubError):
        return error
    if isinstance(error, click.FileError):
        return LocalIOError(f"cannot open the file: {error.message}", where=error.ui_filename)
    if isinstance(error, click.UsageError):
        return _usage_error(error, error.ctx.command_path if error.ctx is not None else path)
    if isinstance(error, click.ClickException):
        return UsageError(_sentence(error.message))
    if isinstance(error, OSError) and error.errno in _DISK_REFUSALS:
        where = str(error.filename) if error.filename is not None else None
        return LocalIOError(error.strerror or str(error), where=where)
    return None


def no_such_command(name: str, known: Iterable[str], path: str) -> UsageError:
    """Return the error for a command that does not exist, naming the nearest one that does."""
    near = get_close_matches(name, list(known), n=1)
    hint = f"did you mean `{path} {near[0]}`?" if near else f"`{path} --help` lists the commands"
    return UsageError(f"no such command: {name}", where=path, hint=hint)


def command_path(group: click.Group, program: str, args: Sequence[str]) -> str:
    """Return the words of a command line that name its command: `adapt base add` of `adapt --debug base add x`."""
    path, command = [program], group
    for word in args:
        if word.startswith("-"):
            continue
        found = command.get_command(click.Context(command), word)
        if found is None:
            break
        path.append(word)
        if not isinstance(found, click.Group):
            break
        command = found
    return " ".join(path)


def _usage_error(error: click.UsageError, path: str) -> UsageError:
    see_help = f"`{path} --help` lists the arguments and options"
    if isinstance(error, click.NoSuchOption):
        return UsageError(f"no such option: {error.option_name}", where=path, hint=_option_hint(error, path, see_help))
    if isinstance(error, click.MissingParameter):
        kind = error.param.param_type_name if error.param is not None else "parameter"
        return UsageError(f"missing {kind} {_parameter(error)}".rstrip(), where=path, hint=see_help)
    if isinstance(error, click.BadParameter):
        return UsageError(_sentence(error.message), where=f"{path} {_parameter(error)}".rstrip(), hint=see_help)
    # click before 8.4 has no class for an unknown command, and above the top level the message is all there is.
    name, context = getattr(error, "command_name", None), error.ctx
    if isinstance(name, str) and context is not None and isinstance(context.command, click.Group):
        return no_such_command(name, context.command.list_commands(context), path)
    return UsageError(_sentence(error.format_message()), where=path, hint=see_help)


def _parameter(error: click.BadParameter) -> str:
    """Return how the parameter at fault is written on the command line."""
    if error.param is None:
        return " / ".join([error.param_hint] if isinstance(error.param_hint, str) else error.param_hint or ())
    return error.param.opts[-1] if error.param.param_type_name == "option" else error.param.human_readable_name.upper()


def _option_hint(error: click.NoSuchOption, path: str, otherwise: str) -> str:
    if error.option_name in _GLOBAL_OPTIONS:
        command = path.partition(" ")[2]
        return f"it stands before the command: `adapt {error.option_name} {command} …`"
    known: list[str] = []
    if error.ctx is not None:
        for parameter in error.ctx.command.get_params(error.ctx):
            known += [*parameter.opts, *parameter.secondary_opts]
    near = get_close_matches(error.option_name, [name for name in known if name.startswith("--")], n=1)
    return f"did you mean {near[0]}?" if near else otherwise


def _sentence(text: str) -> str:
    """Return a message as our errors are written: a small first letter, no full stop at its end."""
    text = text.strip().rstrip(".")
    return text[:1].lower() + text[1:] if text[1:2].islower() or text[1:2] == " " else text
