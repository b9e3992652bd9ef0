"""What import statements ran: `import adapterhub`, the help and the light verbs load nothing heavy."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from adapterhub.cli.main import cli

ENGINE = {"torch", "transformers", "peft", "bitsandbytes", "accelerate", "gguf", "tokenizers", "datasets"}
HEAVY = ENGINE | {"numpy", "rich", "huggingface_hub", "jsonschema", "yaml", "ruamel", "safetensors", "packaging"}

PROBE = """
import json, sys
code = 0
try:
    {body}
except SystemExit as leave:
    code = leave.code or 0
print(json.dumps([code, sorted({{name.split(".")[0] for name in sys.modules}}), sorted(sys.modules)]), file=sys.stderr)
"""


def loaded(body: str) -> tuple[set[str], set[str]]:
    """Run a statement in a process of its own; return the top-level packages and all modules it left loaded."""
    done = subprocess.run([sys.executable, "-c", PROBE.format(body=body)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    code, packages, names = json.loads(done.stderr.splitlines()[-1])
    assert code == 0, done.stderr
    return set(packages), set(names)


def adapt(*args: str) -> str:
    return f"from adapterhub.cli.main import main; code = main({list(args)!r})"


def test_import_adapterhub_is_light() -> None:
    packages, names = loaded("import adapterhub; adapterhub.__version__")
    assert packages & (HEAVY | {"click", "dataclasses", "pathlib", "platformdirs"}) == set()
    assert {name for name in names if name.startswith("adapterhub.")} == set()


@pytest.mark.parametrize("args", [("--help",), ("--version",), ()])
def test_the_help_imports_no_command(args: tuple[str, ...]) -> None:
    packages, names = loaded(adapt(*args))
    assert packages & HEAVY == set()
    allowed = {"adapterhub.cli", "adapterhub.cli.main", "adapterhub.cli.console", "adapterhub.errors"}
    assert {name for name in names if name.startswith("adapterhub.")} == allowed


def test_the_probe_sees_what_is_loaded() -> None:
    packages, _ = loaded("import numpy")
    assert "numpy" in packages


@pytest.mark.parametrize("name", cli.list_commands(cli.make_context("adapt", [], resilient_parsing=True)))
def test_a_command_s_help_loads_no_engine(name: str) -> None:
    packages, names = loaded(adapt(name, "--help"))
    assert packages & (ENGINE | {"numpy", "rich", "huggingface_hub", "jsonschema"}) == set()
    assert {item for item in names if item.startswith("adapterhub.engine")} == set()
