"""Draws what rounding takes of every module's change: the picture of docs/merging.md.

adapt merge --stack medical,spanish=0.5 --out merged --json > merged.json
python -m tests.benchmarks.merge_picture merged.json docs/merging.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from adapterhub.ops._heat_map import draw, heat_map


def main() -> None:
    """Read what `adapt merge --json` printed and write a PNG."""
    result, picture = map(Path, sys.argv[1:])
    found = json.loads(result.read_text("utf-8"))
    # More than all of a change can be kept by chance; nothing is lost then.
    lost = {module["module"]: max(0.0, 1.0 - module["kept"]) for module in found["report"]["modules"]}
    stack = ", ".join(f"{layer['weight']:g} {layer['name']}" for layer in found["stack"])
    heading = f"{stack} in {found['base']}, {found['dtype']}"
    picture.write_bytes(draw(heat_map("share of the change that rounding takes", lost), heading=heading))


if __name__ == "__main__":
    main()
