"""What the command-line tests of the package manager share: a folder to work in, and `adapt` run in it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from adapterhub.cli.main import main
from tests.factory import tiny_lora

LOADED = "import json, sys; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})), file=sys.stderr)"


class Shelf:
    """Runs `adapt` where the test stands; keeps what the last run printed."""

    def __init__(self, folder: Path, base: Path, capsys: Any) -> None:
        self.folder = folder
        self.base = base
        self.out = ""
        self.err = ""
        self._capsys = capsys

    def __call__(self, *words: str) -> int:
        """Run one command line in this process; return its exit code."""
        self._capsys.readouterr()
        code = main(list(words))
        self.out, self.err = self._capsys.readouterr()
        assert "Traceback" not in self.err
        return code

    @property
    def data(self) -> Any:
        """What the last run printed, which has to be one JSON value."""
        return json.loads(self.out)

    def build(self, name: str, version: str = "1.0.0", *, seed: int = 0) -> Path:
        """Return the folder of a new package, as it is typed."""
        tiny_lora(self.folder / "out" / name, self.base, name=name, version=version, seed=seed)
        return Path("out") / name

    def publish(self, name: str, version: str = "1.0.0", *, seed: int = 0) -> None:
        """Publish a new package as acme/NAME into ./registry."""
        folder = self.build(name, version, seed=seed)
        assert self("publish", str(folder), "--to", f"acme/{name}", "--registry", "registry") == 0, self.err

    def loaded_by(self, *words: str) -> set[str]:
        """Return the packages that a process of its own has loaded after one command line."""
        body = f"from adapterhub.cli.main import main; code = main({list(words)!r}); assert code == 0, code; {LOADED}"
        done = subprocess.run([sys.executable, "-c", body], cwd=self.folder, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return set(json.loads(done.stderr.splitlines()[-1]))
