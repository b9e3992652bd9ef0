"""At least 200 kills at random moments, a Hub on loopback included: `python -m tests.benchmarks.kill_stress`.

No race against anything, so no row of the table: it prints the seed and what was killed, and ends with 1 when a promise
was not kept; the folder with the logs of every command is then kept and named.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

KILLS = 200
VERBS = "install,sync,publish,publish-hub,gc"


def main() -> int:
    """Run the harness of tests/stress.py in a process of its own; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.kill_stress", description=__doc__)
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--verbs", default=VERBS)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="adapt-kills-"))
    seed = [] if options.seed is None else ["--seed", str(options.seed)]
    words = [str(folder / "shop"), "--kills", str(options.kills), "--verbs", options.verbs, *seed]
    done = subprocess.run([sys.executable, "-m", "tests.stress", *words], cwd=Path(__file__).parents[2])
    if done.returncode == 0:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        print(f"the logs are kept in {folder}")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
