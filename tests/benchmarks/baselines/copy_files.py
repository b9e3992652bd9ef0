"""Copy a folder's files and wait until they are on the disk, as `cp` and `sync` do: copy_files.py FROM TO"""

import os
import shutil
import sys
from pathlib import Path

source, target = map(Path, sys.argv[1:])
target.mkdir()
for path in source.iterdir():
    if path.is_file():
        # copyfile lets the kernel copy, and never shares the blocks as `cp` may.
        shutil.copyfile(path, target / path.name)
        with (target / path.name).open("rb+") as stream:
            os.fsync(stream.fileno())
