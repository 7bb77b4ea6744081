"""Put finished files where they go, with the manifest that lists them; also when the job fails.

- The job completes: every file is put, then the manifest.
- The job fails after some files were finished: they are delivered all the same. The manifest says
  ``status: failed``, with the error.
- The bucket refuses: files and manifest are kept in OUTPUT_DIR.
- The job fails and its files were meant for the response: they are kept in OUTPUT_DIR too, since a
  response with an error can't carry files.
- The job is cancelled: nothing is kept, since nobody waits for it. Nothing is kept either of files
  that are too large for a response: the disk would fill with files that nobody can fetch.

A finished file holds minutes of GPU time. It is not thrown away for somebody else's fault.
Not covered: how a file gets to its place (storage, s3).
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from wan_worker.delivery import response, s3, storage
from wan_worker.delivery.s3 import S3
from wan_worker.delivery.storage import Destination, Folder, Inline, StoredAsset
from wan_worker.errors import Canceled, OutputTooLarge, StorageFailed, WorkerError
from wan_worker.faults import classify
from wan_worker.inputs import net
from wan_worker.inputs.dialing import Policy
from wan_worker.media.artifact import Artifact
from wan_worker.planning.plan import Plan
from wan_worker.request.parse import Request
from wan_worker.settings import Settings
from wan_worker.timing.progress import Control

log = logging.getLogger(__name__)

SAVE_SECONDS = 30.0
"""Seconds beyond its deadline that a failed job gets to save its finished files."""


def destination(asked: Request, settings: Settings, policy: Policy) -> Destination:
    """Where the assets go. A caller's endpoints pass the address guard before the work.

    Raises:
        UrlBlocked: the callback or the job's own bucket is at no public address.
    """
    if asked.callback_url is not None:
        net.check(asked.callback_url, policy, field="/input/callback_url")
    if asked.bucket is not None:
        net.check(asked.bucket.endpoint_url, policy, field=s3.ENDPOINT, https_only=True)
    return _choose(asked, settings, policy)


def place(asked: Request, settings: Settings) -> str:
    """The kind of destination, for estimates. Whether it may be reached is not asked."""
    to = _choose(asked, settings, Policy())
    if isinstance(to, S3):
        return "bucket" if to.policy is None else "caller"
    return "folder" if isinstance(to, Folder) else "inline"


def _choose(asked: Request, settings: Settings, policy: Policy) -> Destination:
    return storage.choose(
        job_bucket=asked.bucket,
        bucket=settings.bucket,
        url_expiry_seconds=settings.url_expiry_seconds,
        output_dir=settings.output_dir,
        response_format=asked.response_format,
        on_platform=settings.on_platform,
        policy=policy,
    )


def artifacts(
    made: Sequence[Artifact], asked: Request, planned: Plan, to: Destination, control: Control
) -> list[StoredAsset]:
    """Put every file, then the manifest.

    Raises:
        OutputTooLarge: together they do not fit into a response.
        StorageFailed: the bucket would not take them.
        Canceled: the files that were already put are removed.
    """
    control.enter("upload")
    storage.check_fits(made, to)
    stored = _put(made, asked, planned, to, control)
    for asset in stored:
        where = asset.url if isinstance(to, Folder) else asset.key or "the response"
        log.info("job %s: %s %dx%d, %d frame(s), seed %d -> %s",
                 storage.job_folder(asked.job_id), planned.model.id, asset.artifact.width,
                 asset.artifact.height, asset.artifact.num_frames, asset.output.seed,
                 where)  # fmt: skip
    control.close_stage()
    return stored


@contextmanager
def saved_on_failure(
    made: Sequence[Artifact],
    asked: Request,
    planned: Plan,
    to: Destination,
    output_dir: Path,
    control: Control,
) -> Iterator[None]:
    """If the block fails: add the output's number to the error, and save the files in ``made``."""
    try:
        yield
    except (Exception, SystemExit) as problem:  # noqa: BLE001 (every one is raised again)
        error = problem if isinstance(problem, WorkerError) else classify(problem)
        if control.parts:
            where = ", ".join(map(str, control.parts)).capitalize()
            error.message = f"{where}: {error.message}"
        if made and not isinstance(error, Canceled | OutputTooLarge):
            error.message += _save(made, asked, planned, to, output_dir, control, error)
        raise error from None


def _save(
    made: Sequence[Artifact],
    asked: Request,
    planned: Plan,
    to: Destination,
    output_dir: Path,
    control: Control,
    error: WorkerError,
) -> str:
    """Save what a failed job has finished. Returns where, as the end of the error's message."""
    control.extend(SAVE_SECONDS)
    name, count = storage.job_folder(asked.job_id), f"{len(made)} file(s)"
    refused = isinstance(error, StorageFailed) or isinstance(to, Inline)
    for place in [Folder(output_dir)] if refused else [to, Folder(output_dir)]:
        try:
            _put(made, asked, planned, place, control, error)
        except WorkerError as problem:
            log.warning("job %s: %s could not be saved: %s", name, count, problem.message)
        else:
            log.warning("job %s: %s saved in %s", name, count, type(place).__name__)
            where = f"{name}/{storage.MANIFEST}"
            return f" ({count} saved: see {where}{'' if place is to else ' in OUTPUT_DIR'})"
    return ""


def _put(
    made: Sequence[Artifact],
    asked: Request,
    planned: Plan,
    to: Destination,
    control: Control,
    error: WorkerError | None = None,
) -> list[StoredAsset]:
    stored: list[StoredAsset] = []
    try:
        for index, artifact in enumerate(made):
            output = planned.outputs[index]
            stored.append(storage.put(artifact, index, output, asked.job_id, to, control))
    except Canceled:
        for asset in stored:
            storage.remove(asset, to)
        raise
    record = response.manifest(asked, planned, stored, control, error)
    storage.put_manifest(record, asked.job_id, to)
    return stored
