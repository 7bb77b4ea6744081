"""A job's own temp folder, and those that killed workers left behind.

The folder's name holds the process id, so that the next start can tell whose it was: a process that
is gone, or an earlier one of our own number (in a container the worker mostly has the same one).
Not covered: workers in two containers that share one temp folder, whose numbers mean nothing to
each other; RunPod gives each container its own.
"""

import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

PREFIX: Final = "wan-job-"

log = logging.getLogger(__name__)


@contextmanager
def folder() -> Iterator[Path]:
    """A fresh folder for one job, gone with everything in it when the job is."""
    prefix = f"{PREFIX}{os.getpid()}-"
    with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as path:
        yield Path(path)


def sweep() -> None:
    """Remove the folders of workers that were killed. For the start, before the first job."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        named = re.fullmatch(rf"{PREFIX}(\d+)-\w+", path.name)
        if named is None or path.is_symlink() or not path.is_dir():
            continue
        process = int(named[1])
        if process == os.getpid() or not _alive(process):
            shutil.rmtree(path, ignore_errors=True)
            log.info("removed %s, left by a worker that was killed", path.name)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # somebody else's, or not one of this system
        return True
    return True
