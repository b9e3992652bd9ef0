"""`python -m adapterhub`: the command `adapt`, by the interpreter that has the package."""

from __future__ import annotations

import sys

from adapterhub.cli.main import main

sys.exit(main())
