"""Makes a temp folder for each job, and removes the folders that killed workers left behind.

The folder's name contains the process id, so that the next start knows its owner: a process that
is gone, or an earlier one with our own id (in a container the worker mostly gets the same id).
Not covered: workers in two containers with one temp folder, which can't see each other's processes;
RunPod gives each container its own folder.
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
    """A new folder for one job. It is removed with its contents when the job ends."""
    prefix = f"{PREFIX}{os.getpid()}-"
    with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as path:
        yield Path(path)


def sweep() -> None:
    """Remove the folders of killed workers. Call it at the start, before the first job."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        match = re.fullmatch(rf"{PREFIX}(\d+)-\w+", path.name)
        if match is None or path.is_symlink() or not path.is_dir():
            continue
        process = int(match[1])
        if process == os.getpid() or not _alive(process):
            shutil.rmtree(path, ignore_errors=True)
            log.info("removed %s, left by a worker that was killed", path.name)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # another user's process, or no id of this system
        return True
    return True
