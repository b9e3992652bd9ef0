"""The command line as a process: exit codes, streams, the voice of errors, and how little `--help` loads."""

from __future__ import annotations

import json
import keyword
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from adapterhub.errors import ExitCode

BOOM = """
    import errno, os, signal, time
    import click
    from adapterhub import errors
    from adapterhub.cli import console, options
    from adapterhub.cli.progress import open_progress

    class Broken(Exception):
        pass

    @click.command("boom")
    @click.argument("what")
    @options.json_option
    @click.option("--count", type=int, default=1)
    def command(what, as_json, count):
        if what == "bug":
            raise Broken("the flux\\x1b[31m capacitor")
        if what == "disk":
            raise OSError(errno.ENOSPC, "No space left on device", "/mnt/full/file")
        if what == "gone":
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", "x")
        if what == "interrupt":
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(30)
        if what == "wait":
            try:
                print("ready", flush=True)
                time.sleep(30)
            finally:
                console.say("cleaned up")
        if what == "abort":
            raise click.Abort
        if what == "code":
            console.print_json({"ok": False})
            return errors.ExitCode.INCOMPATIBLE
        if what == "flood":
            for number in range(100_000):
                console.print_lines([f"line {number}"])
            return
        if what == "deaf":
            for number in range(2_000):
                console.say("still at work " * 20)
            console.print_json({"finished": True})
            return
        if what == "nested":
            raise click.BadParameter("is odd", param_hint="--count")
        raise getattr(errors, what)(
            "it \\x1b[31mfailed", where="recipe.yaml: r", hint="try again", details=("first", "second"), code="ADP001"
        )
"""

DRIVER = """
    import sys
    from adapterhub.cli import main
    main.COMMANDS += (main.Row("boom", "boom:command", "Use", "Fail in the way that is asked for."),)
    sys.exit(main.main())
"""


class Adapt:
    """Runs `adapt` with one more command, which fails as it is told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "boom.py").write_text(textwrap.dedent(BOOM))
        (folder / "driver.py").write_text(textwrap.dedent(DRIVER))

    def start(self, *args: str, **environment: str) -> subprocess.Popen[str]:
        kept = {k: v for k, v in os.environ.items() if k not in ("ADAPTERHUB_DEBUG", "NO_COLOR", "TERM")}
        return subprocess.Popen(
            [sys.executable, str(self.folder / "driver.py"), *args],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**kept, "PYTHONPATH": str(self.folder), **environment},
        )

    def __call__(self, *args: str, **environment: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*args, **environment)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(args, process.returncode, out, err)


@pytest.fixture(scope="module")
def adapt(tmp_path_factory: pytest.TempPathFactory) -> Adapt:
    return Adapt(tmp_path_factory.mktemp("driver"))


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("UnsatisfiedError", 1),
        ("UsageError", 2),
        ("InvalidFileError", 2),
        ("IntegrityError", 3),
        ("IncompatibleError", 4),
        ("NetworkError", 5),
        ("AuthorizationError", 6),
        ("BuildError", 7),
        ("UndecidedError", 8),
        ("LocalIOError", 9),
    ],
)
def test_an_expected_failure_has_its_exit_code_and_says_what_where_and_what_to_do(
    adapt: Adapt, name: str, code: int
) -> None:
    done = adapt("boom", name, "--json")
    assert done.returncode == code
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        r"error [ADP001]: it \x1b[31mfailed",
        "  where: recipe.yaml: r",
        "  - first",
        "  - second",
        "  hint: try again",
    ]


def test_a_bug_ends_with_70_without_a_traceback_and_says_how_to_see_one(adapt: Adapt) -> None:
    done = adapt("boom", "bug", "--count", "3")
    assert done.returncode == ExitCode.INTERNAL
    assert done.stderr.splitlines() == [
        r"error: this is a bug in adapterhub: Broken: the flux\x1b[31m capacitor",
        "  hint: report it with the output of `adapt --debug boom bug --count 3` (or of ADAPTERHUB_DEBUG=1)",
    ]


@pytest.mark.parametrize("how", ["option", "variable"])
def test_debug_shows_the_traceback(adapt: Adapt, how: str) -> None:
    done = adapt("--debug", "boom", "bug") if how == "option" else adapt("boom", "bug", ADAPTERHUB_DEBUG="1")
    assert done.returncode == ExitCode.INTERNAL
    assert "Traceback (most recent call last)" in done.stderr
    assert 'raise Broken("the flux' in done.stderr
    assert "\x1b" not in done.stderr
    assert done.stderr.splitlines()[-1] == "  hint: report it with what is printed above"


def test_the_disk_s_refusal_is_no_bug_but_a_missing_file_that_nobody_foresaw_is(adapt: Adapt) -> None:
    full = adapt("boom", "disk")
    assert (full.returncode, full.stderr) == (9, "error: No space left on device\n  where: /mnt/full/file\n")
    assert adapt("boom", "gone").returncode == 70


@pytest.mark.parametrize("what", ["interrupt", "abort"])
def test_an_interrupt_ends_with_130(adapt: Adapt, what: str) -> None:
    done = adapt("boom", what)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_an_ending_runs_what_cleans_up_and_ends_with_143(adapt: Adapt, number: signal.Signals) -> None:
    process = adapt.start("boom", "wait")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (143, "cleaned up\nterminated\n")


def test_a_reader_that_leaves_is_no_error(adapt: Adapt) -> None:
    process = adapt.start("boom", "flood")
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "line 0\n"
    process.stdout.close()
    assert process.wait(timeout=30) == 0
    assert process.stderr.read() == ""
    process.stderr.close()


def test_work_goes_on_when_nobody_reads_the_messages(adapt: Adapt) -> None:
    process = adapt.start("boom", "deaf")
    assert process.stdout is not None and process.stderr is not None
    process.stderr.close()
    assert json.loads(process.stdout.read()) == {"finished": True}
    assert process.wait(timeout=30) == 0
    process.stdout.close()


def test_a_command_may_end_with_a_code_of_its_own(adapt: Adapt) -> None:
    done = adapt("boom", "code", "--json")
    assert (done.returncode, json.loads(done.stdout), done.stderr) == (4, {"ok": False}, "")


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (("lis",), "error: no such command: lis|  where: adapt|  hint: "),
        (("bom",), "error: no such command: bom|  where: adapt|  hint: did you mean `adapt boom`?"),
        (("--debgu",), "error: no such option: --debgu|  where: adapt|  hint: did you mean --debug?"),
        (
            ("boom", "x", "--cuont", "1"),
            "error: no such option: --cuont|  where: adapt boom|  hint: did you mean --count?",
        ),
        (
            ("boom", "x", "--debug"),
            "error: no such option: --debug|  where: adapt boom|"
            "  hint: it stands before the command: `adapt --debug boom …`",
        ),
        (
            ("boom",),
            "error: missing argument WHAT|  where: adapt boom|"
            "  hint: `adapt boom --help` lists the arguments and options",
        ),
        (
            ("boom", "x", "--count", "many"),
            "error: 'many' is not a valid integer|  where: adapt boom --count|"
            "  hint: `adapt boom --help` lists the arguments and options",
        ),
        (
            ("boom", "x", "--count"),
            "error: option '--count' requires an argument|  where: adapt boom|"
            "  hint: `adapt boom --help` lists the arguments and options",
        ),
        (
            ("boom", "x", "y"),
            "error: got unexpected extra argument (y)|  where: adapt boom|"
            "  hint: `adapt boom --help` lists the arguments and options",
        ),
        (
            ("boom", "nested"),
            "error: is odd|  where: adapt boom --count|  hint: `adapt boom --help` lists the arguments and options",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_usage_ends_with_2_in_the_same_voice(adapt: Adapt, args: tuple[str, ...], error: str) -> None:
    done = adapt(*args)
    assert done.returncode == 2
    assert done.stdout == ""
    expected = error.split("|")
    found = done.stderr.splitlines()
    assert found[:-1] == expected[:-1]
    assert found[-1].startswith(expected[-1])


def test_help_lists_only_commands_whose_file_exists(adapt: Adapt) -> None:
    from adapterhub.cli.main import COMMANDS

    shown = adapt("--help").stdout
    folder = Path(sys.modules["adapterhub.cli"].__path__[0])
    for row in COMMANDS:
        module = f"{row.name}_" if keyword.iskeyword(row.name) else row.name
        exists = (folder / f"{module}.py").exists()
        assert (f"  {row.name} " in shown) is exists, row.name
        assert row.target == f"adapterhub.cli.{module}:command"


def test_every_listed_command_answers_help_and_tells_the_same_as_its_row(adapt: Adapt) -> None:
    import click

    from adapterhub.cli.main import COMMANDS, cli

    context = click.Context(cli, info_name="adapt")
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None and command.help, name
        row = next(row for row in COMMANDS if row.name == name)
        assert row.help.endswith(".") and len(row.help) <= 60, name
    assert adapt("completion", "--help").returncode == 0


def test_no_command_shows_the_help_and_is_no_fault(adapt: Adapt) -> None:
    assert adapt().returncode == 0
    assert adapt().stdout == adapt("--help").stdout


def test_the_version_is_the_package_s(adapt: Adapt) -> None:
    from adapterhub import __version__

    assert adapt("--version").stdout == f"adapterhub {__version__}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_call_adapt_back(adapt: Adapt, shell: str) -> None:
    assert f"_ADAPT_COMPLETE={shell}_complete" in adapt("completion", shell).stdout


def test_completion_offers_commands_and_options(adapt: Adapt) -> None:
    done = adapt(_ADAPT_COMPLETE="bash_complete", COMP_WORDS="adapt compl", COMP_CWORD="1")
    assert done.stdout == "plain,completion\n"
    done = adapt(_ADAPT_COMPLETE="bash_complete", COMP_WORDS="adapt boom --co", COMP_CWORD="2")
    assert done.stdout == "plain,--count\n"


def test_help_costs_at_most_twice_an_import_of_click() -> None:
    """The fastest of several runs each: what else the machine does only ever adds."""

    def fastest(*command: str) -> float:
        times = []
        for _ in range(7):
            started = time.perf_counter()
            subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
            times.append(time.perf_counter() - started)
        return min(times)

    ratios = []
    for _ in range(3):
        ratios.append(fastest("-m", "adapterhub.cli.main", "--help") / fastest("-c", "import click"))
        if ratios[-1] <= 2:
            return
    pytest.fail(f"`adapt --help` took {min(ratios):.2f} times as long as `import click`")
