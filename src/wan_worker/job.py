"""The one flow: a RunPod job in, an answer out.

    request -> plan -> image -> generate -> encode -> artifact -> storage -> response

``run`` holds the only try/except that turns an exception into an answer, so whatever happens below
it, the platform gets a dict that is strict JSON, the temp folder goes, and the next job finds the
worker as it was. The plan is complete before anything is downloaded or the GPU is touched.
"""

import json
import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wan_worker import (
    artifact,
    callback,
    encode,
    generate,
    hardware,
    images,
    net,
    plan,
    request,
    storage,
    weights,
)
from wan_worker.catalog import MODELS
from wan_worker.errors import (
    ConfigInvalid,
    FetchFailed,
    GpuFault,
    ImageRejected,
    OutOfMemory,
    StorageFailed,
    UnexpectedError,
    UrlBlocked,
    WorkerError,
    public_json,
)
from wan_worker.hardware import Hardware
from wan_worker.pipelines import Pool
from wan_worker.plan import Plan
from wan_worker.progress import Control
from wan_worker.request import Contract, Notice, Request
from wan_worker.settings import Settings
from wan_worker.storage import StoredAsset

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

FETCH_SECONDS = 30.0
CALLBACK_SECONDS = 20.0
TEMP_PREFIX = "wan-job-"


@dataclass(frozen=True)
class Worker:
    """What all jobs share. Only the pool changes, and only under the GPU lock."""

    settings: Settings
    contract: Contract
    hardware: Hardware
    policy: net.Policy
    pool: Pool
    ffmpeg: str
    gpu: threading.Lock = field(default_factory=threading.Lock)


def make_worker(settings: Settings) -> Worker:
    """Everything that is ready before the first job.

    Raises:
        ConfigInvalid: the schemas are broken, or DEFAULT_MODEL is no model.
    """
    if settings.default_model is not None and settings.default_model not in MODELS:
        raise ConfigInvalid(f"DEFAULT_MODEL: must be one of {', '.join(MODELS)}")
    machine = hardware.detect()
    for line in weights.explain(settings.models_dir, settings.volume_dir):
        log.info("weights: %s", line)
    return Worker(
        settings=settings,
        contract=request.load_contract(),
        hardware=machine,
        policy=net.Policy(allow_private=settings.allow_private_urls),
        pool=Pool(machine),
        ffmpeg=encode.ffmpeg_path(),
    )


@dataclass
class _Known:
    """What is known of a job so far: a failure is reported with as much."""

    asked: Request | None = None
    planned: Plan | None = None


def run(job: Mapping[str, Any], worker: Worker, control: Control) -> dict[str, Any]:
    """Serve one job in this thread, and tell its callback. Never raises.

    Returns:
        The response (``schemas/response.schema.json``), or ``{"error": JSON string}``, with
        ``refresh_worker`` beside it where this process should not take another job.
    """
    known, error = _Known(), None
    folder = Path(tempfile.mkdtemp(prefix=TEMP_PREFIX))
    try:
        answer = _serve(job, worker, control, folder, known)
        json.dumps(answer, allow_nan=False)  # RunPod's SDK posts nothing at all if this fails
    except WorkerError as problem:
        error = problem
    except (Exception, SystemExit) as problem:  # noqa: BLE001 (an answer, whatever happened)
        error = _classify(problem)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if error is not None:
        log.warning("job %s: %s in stage %s: %s", storage.job_folder(str(job.get("id"))),
                    error.code, control.stage, error.message)  # fmt: skip
        answer = {"error": public_json(error, control.stage)}
        if error.refresh_worker:
            with worker.gpu:
                worker.pool.clear()
            answer["refresh_worker"] = True
    _notify(answer, error, worker, known)
    return answer


def _serve(
    job: Mapping[str, Any], worker: Worker, control: Control, folder: Path, known: _Known
) -> dict[str, Any]:
    control.enter("plan")
    settings = worker.settings
    asked = known.asked = request.parse(job, worker.contract)
    destination = _destination(asked, worker)
    installed = weights.installed(settings.models_dir, settings.volume_dir)
    planned = plan.make(asked, worker.hardware, installed, settings.default_model)
    known.planned = planned
    control.enter("fetch")
    planned, image = _with_image(asked, planned, worker, control)
    known.planned = planned

    target = folder / f"0.{encode.EXTENSIONS[planned.output_format]}"
    spec = _spec(planned)
    control.enter("queue")
    with _exclusive(worker.gpu, control):
        control.enter("load")
        pipeline = worker.pool.pipeline(planned, installed[planned.model.id], control.check)
        control.enter("prompt")
        embeds, negative_embeds, notices = generate.encode_prompts(pipeline, planned)
        control.enter("denoise")
        latents = generate.denoise(pipeline, planned, embeds, negative_embeds, image, control)
        control.enter("decode_encode")
        frames = generate.frames(pipeline.vae, latents, planned, control)
        encode.write(frames, target, spec, control, worker.ffmpeg)
    control.enter("check")
    made = artifact.check(target, spec, control, worker.ffmpeg)
    control.close_stage()
    seconds = time.monotonic() - control.started

    control.enter("upload")
    try:
        stored = storage.put(made, 0, planned.seed, asked.job_id, destination, control)
        planned = replace(planned, notices=(*planned.notices, *notices))
        manifest = _response(asked, planned, [stored], seconds, control, public=False)
        storage.put_manifest(manifest, asked.job_id, destination)
    except StorageFailed:
        kept = storage.keep(made, 0, asked.job_id, settings.output_dir)
        log.warning("job %s: the finished file is kept at %s", kept.parent.name, kept)
        raise
    control.close_stage()
    where = stored.url if isinstance(destination, storage.Folder) else stored.key or "the response"
    log.info("job %s: %s %dx%d, %d frame(s), seed %d, %.1f s -> %s",
             storage.job_folder(asked.job_id), planned.model.id, spec.width, spec.height,
             spec.num_frames, planned.seed, seconds, where)  # fmt: skip
    return _response(asked, planned, [stored], seconds, control, public=True)


def _destination(asked: Request, worker: Worker) -> storage.Destination:
    """Where the assets go. A caller's endpoints pass the address guard before the work."""
    if asked.callback_url is not None:
        net.check(asked.callback_url, worker.policy, field="/input/callback_url")
    if asked.bucket is not None:
        net.check(
            asked.bucket.endpoint_url,
            worker.policy,
            field="/s3Config/endpointUrl",
            https_only=True,
        )
    settings = worker.settings
    return storage.choose(
        job_bucket=asked.bucket,
        bucket=settings.bucket,
        url_expiry_seconds=settings.url_expiry_seconds,
        output_dir=settings.output_dir,
        response_format=asked.response_format,
        on_platform=settings.on_platform,
    )


def _with_image(
    asked: Request, planned: Plan, worker: Worker, control: Control
) -> tuple[Plan, "Image | None"]:
    """The plan with its size settled, and the first frame at that size.

    With ``reference_fallback`` an image that can't be used means plain generation and a warning.
    """
    if not planned.has_image or asked.image is None:
        return planned, None
    try:
        decoded = _fetch_image(asked, worker, control)
    except (UrlBlocked, ImageRejected, FetchFailed) as problem:
        if not asked.reference_fallback or not asked.prompt:
            raise
        plain = asked.without_image(
            Notice(
                "REFERENCE_UNUSABLE",
                f"Made from the prompt alone; the reference image failed with "
                f"{problem.code}: {problem.message}",
            )
        )
        settings = worker.settings
        installed = weights.installed(settings.models_dir, settings.volume_dir)
        try:
            return plan.make(plain, worker.hardware, installed, settings.default_model), None
        except WorkerError:
            raise problem from None  # the image is what to mend
    planned = plan.fit_to_image(planned, decoded.image.size)
    notices = tuple(Notice(code, message) for code, message in decoded.warnings)
    image = images.cover(decoded.image, *planned.generated_size)
    return replace(planned, notices=(*planned.notices, *notices)), image


def _fetch_image(asked: Request, worker: Worker, control: Control) -> images.Decoded:
    assert asked.image is not None  # noqa: S101 (the caller's condition, for the type checker)
    settings, where = worker.settings, asked.image_field
    if images.kind(asked.image, where) == "inline":
        data = images.decode_inline(asked.image, where, settings.max_image_bytes)
    else:
        data = net.fetch(
            asked.image,
            worker.policy,
            max_bytes=settings.max_image_bytes,
            seconds=min(FETCH_SECONDS, control.seconds_left or FETCH_SECONDS),
            field=where,
            canceled=control.check,
        )
    return images.decode(data, where, settings.max_image_pixels)


@contextmanager
def _exclusive(gpu: threading.Lock, control: Control) -> Iterator[None]:
    """Hold the GPU; give up waiting when the job is cancelled or late."""
    while not gpu.acquire(timeout=0.1):
        control.check()
    try:
        yield
    finally:
        gpu.release()


def _spec(planned: Plan) -> encode.Spec:
    if planned.size is None:
        raise ValueError("the size is not known before the image is")
    return encode.Spec(
        format=planned.output_format,
        width=planned.size[0],
        height=planned.size[1],
        num_frames=planned.num_frames,
        fps=planned.fps if planned.mode == "video" else None,
    )


def _response(
    asked: Request,
    planned: Plan,
    assets: list[StoredAsset],
    seconds: float,
    control: Control,
    *,
    public: bool,
) -> dict[str, Any]:
    """The answer, or (not ``public``) the manifest: the same without URLs, which expire."""
    wide, high = planned.generated_size
    spent = control.timings
    timings = {
        # Before the GPU was ours: waiting, planning and fetching.
        "queue": sum(spent.get(stage, 0.0) for stage in ("queue", "plan", "fetch")),
        "load": spent.get("load", 0.0),
        "prompt": spent.get("prompt", 0.0),
        "denoise": spent.get("denoise", 0.0),
        "decode_encode": spent.get("decode_encode", 0.0) + spent.get("check", 0.0),
        "upload": spent.get("upload", 0.0),
        "total": time.monotonic() - control.started,
    }
    metadata = {
        "job_type": asked.job_type,
        "mode": planned.mode,
        "model": planned.model.id,
        "wan_task": planned.model.wan_task,
        "content_type": planned.mode,
        "frame_num": planned.num_frames,
        "prompt": planned.prompt,
        "generation_time": round(seconds, 3),
        "timings": {stage: round(value, 3) for stage, value in timings.items()},
        "generated": {"width": wide, "height": high, "num_frames": planned.generated_frames},
        "plan": planned.public(),
    }
    if planned.tiny:
        metadata["weights"] = "tiny"
    return {
        "status": "completed",
        "assets": [a.public() if public else {"key": a.key} | a.facts() for a in assets],
        "metadata": metadata,
        "warnings": [{"code": n.code, "message": n.message} for n in planned.notices],
    }


def _classify(problem: BaseException) -> WorkerError:
    """A library's exception as one of ours, without its words: they may hold paths or values."""
    name = type(problem).__name__
    if name == "OutOfMemoryError" or isinstance(problem, MemoryError):
        return OutOfMemory("Out of memory; ask for fewer frames or pixels, or take a larger GPU")
    if name == "AcceleratorError" or "CUDA error" in str(problem):
        return GpuFault("The GPU failed; the worker restarts, send the job again")
    log.error("unexpected %s", name, exc_info=problem)
    return UnexpectedError(
        f"The worker failed unexpectedly ({name}); its log has the details, and the same job may "
        "succeed on another try"
    )


def _notify(
    answer: dict[str, Any], error: WorkerError | None, worker: Worker, known: _Known
) -> None:
    """Tell the callback how the job ended; what goes wrong there is a warning and no more."""
    asked, planned = known.asked, known.planned
    if asked is None or asked.callback_url is None or isinstance(error, UrlBlocked):
        return
    job_id = asked.job_id
    if error is None:
        assets = answer["assets"]
        body = callback.completed(
            job_id,
            [a["key"] for a in assets if "key" in a],
            [a["url"] for a in assets if "url" in a],
            answer["metadata"],
        )
    else:
        body = callback.failed(
            job_id,
            error.message,
            error_type=error.code,
            job_type=asked.job_type,
            wan_task=None if planned is None else planned.model.wan_task,
            timestamp=int(time.time()),
        )
    problem = callback.send(
        asked.callback_url,
        body,
        worker.settings.callback_secrets,
        worker.policy,
        seconds=CALLBACK_SECONDS,
    )
    if problem is not None:
        log.warning("job %s: callback not delivered: %s", storage.job_folder(job_id), problem)
        if error is None:
            answer["warnings"].append({"code": "CALLBACK_FAILED", "message": problem})
