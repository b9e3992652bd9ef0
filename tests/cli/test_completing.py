"""Completion of words of this machine, in processes as bash, zsh and fish start them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from adapterhub.bases import BaseRecord, BaseStore
from adapterhub.documents import write_lockfile
from adapterhub.settings import Settings
from adapterhub.spec.base_model import BaseModelRef
from adapterhub.spec.lockfile import LockedPackage, Lockfile
from adapterhub.spec.refs import PackageRef

HEAVY = {"torch", "numpy", "huggingface_hub", "jsonschema", "rich", "resolvelib", "httpx2"}
YAML = """project_version: "1.0"
adapters: {legal: acme/legal-lora, clinic: acme/clinic, wanted: acme/wanted>=2}
stacks: {both: "legal=0.5,clinic"}
"""


def locked(text: str, alias: str | None) -> LockedPackage:
    ref = PackageRef.parse(text)
    return LockedPackage(alias=alias, name=ref.name, version=ref.version, registry="hub")


class Shell:
    """A folder to stand in, and TAB pressed there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, **variables: str) -> subprocess.CompletedProcess[str]:
        code = (
            "import sys\nfrom adapterhub.cli.main import main\ntry:\n    code = main([])\nexcept SystemExit as e:\n"
            "    code = e.code\nprint(*sorted({n.split('.')[0] for n in sys.modules}), file=sys.stderr)\nsys.exit(code)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=self.folder,
            env=os.environ | variables,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
        return done

    def bash(self, *words: str) -> list[str]:
        """Return what bash is offered for the last word."""
        line, number = " ".join(("adapt", *words)), str(len(words))
        done = self.run(_ADAPT_COMPLETE="bash_complete", COMP_WORDS=line, COMP_CWORD=number)
        assert HEAVY & set(done.stderr.split()) == set()
        return [line.partition(",")[2] for line in done.stdout.splitlines() if line]


@pytest.fixture
def shell(tmp_path: Path, settings: Settings) -> Shell:
    project, user = tmp_path / "project", settings.user_environment
    project.mkdir()
    user.mkdir(parents=True)
    (project / "adapters.yaml").write_text(YAML)
    entries = (
        locked("acme/legal-lora@1.2.0", "legal"),
        locked("acme/clinic@2.0.0", "clinic"),
        locked("acme/member@1.0.0", None),
    )
    write_lockfile(project, Lockfile(entries=entries))
    write_lockfile(user, Lockfile(entries=(locked("zed/spanish@1.0.0", "spanish"),)))
    for name in ("org/tiny", "smollm2"):
        record = BaseRecord(
            ref=BaseModelRef(id=name), path=tmp_path, source="folder", dtype="float32", parameters=1, size=4
        )
        BaseStore(settings).add(record)
    return Shell(project)


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("uninstall", ""), ["clinic", "legal", "wanted"]),
        (("uninstall", "le"), ["legal"]),
        (("update", "legal", ""), ["clinic", "wanted"]),
        (("show", ""), ["clinic", "legal", "spanish"]),
        (("why", ""), ["clinic", "legal", "wanted", "acme/member"]),
        (("run", "--stack", ""), ["both", "clinic", "legal", "spanish"]),
        (("run", "--stack", "legal,"), ["legal,both", "legal,clinic", "legal,spanish"]),
        (("merge", "--stack", "legal=0.5,cl"), ["legal=0.5,clinic"]),
        (("run", "--base", ""), ["org/tiny", "smollm2"]),
        (("base", "show", "sm"), ["smollm2"]),
        (("base", "remove", "org/"), ["org/tiny"]),
        (("search", "--task", "SEQ_C"), ["SEQ_CLS"]),
        (("search", "--method", "lor"), ["lora"]),
        (("pack", ".", "--stack", ""), ["both"]),
        (("uninstall", "nothing"), []),
    ],
)
def test_bash_is_offered_what_is_here(shell: Shell, words: tuple[str, ...], offered: list[str]) -> None:
    assert shell.bash(*words) == offered


def test_zsh_and_fish_are_told_what_each_word_stands_for(shell: Shell) -> None:
    zsh = shell.run(_ADAPT_COMPLETE="zsh_complete", COMP_WORDS="adapt uninstall l", COMP_CWORD="2")
    assert zsh.stdout.split("\n")[:3] == ["plain", "legal", "acme/legal-lora@1.2.0"]
    fish = shell.run(_ADAPT_COMPLETE="fish_complete", COMP_WORDS="adapt uninstall l", COMP_CWORD="l")
    assert "legal" in fish.stdout and "acme/legal-lora@1.2.0" in fish.stdout
    zsh = shell.run(_ADAPT_COMPLETE="zsh_complete", COMP_WORDS="adapt run --stack b", COMP_CWORD="3")
    assert zsh.stdout.split("\n")[:3] == ["plain", "both", "stack: legal=0.5,clinic"]


def test_a_path_is_left_to_the_shell(shell: Shell) -> None:
    done = shell.run(_ADAPT_COMPLETE="bash_complete", COMP_WORDS="adapt show ./o", COMP_CWORD="2")
    assert done.stdout == "dir,./o\n"


def test_outside_a_project_the_user_s_own_adapters_are_offered(shell: Shell, tmp_path: Path) -> None:
    shell.folder = tmp_path
    assert shell.bash("uninstall", "") == ["spanish"]
    assert shell.bash("run", "--stack", "") == ["spanish"]


def test_broken_files_offer_nothing_and_say_nothing(shell: Shell, settings: Settings) -> None:
    (shell.folder / "adapters.lock").write_text("{")
    assert shell.bash("uninstall", "") == []
    assert shell.bash("run", "--stack", "") == []
    (shell.folder / "adapters.yaml").write_text("adapters: [\n")
    assert shell.bash("update", "") == []
    for record in (settings.bases / "records").iterdir():
        record.write_text("nonsense")
    assert shell.bash("base", "show", "") == []


@pytest.mark.skipif(not Path("/bin/bash").exists(), reason="needs bash")
def test_the_script_works_in_a_real_bash(shell: Shell, tmp_path: Path) -> None:
    """The script that `adapt completion bash` prints, loaded by bash, fills COMPREPLY."""
    program = tmp_path / "bin" / "adapt"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m adapterhub.cli.main "$@"\n')
    program.chmod(0o755)
    typed = (
        'eval "$(adapt completion bash)"\n'
        "COMP_WORDS=(adapt uninstall c); COMP_CWORD=2\n"
        '_adapt_completion adapt\nprintf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(
        ["/bin/bash", "--norc", "-c", typed],
        cwd=shell.folder,
        env=os.environ | {"PATH": f"{program.parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "clinic\n", done.stderr
