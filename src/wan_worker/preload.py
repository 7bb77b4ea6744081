"""Bring models into memory while the worker waits for its first job (``PRELOAD_MODELS``).

Otherwise the first job would wait while torch is imported and gigabytes are read. A job that comes
meanwhile waits only for the model that is being loaded: the GPU lock is released after each model.
If a model can't be loaded, the log says so, and a job that needs it gets the error.
Not covered: which model a job takes (planning.model_choice), what stays in memory (pipelines.pool).
"""

import logging
import threading
import time
from typing import Final

from wan_worker.catalog.models import MODELS, Model
from wan_worker.errors import WorkerError
from wan_worker.faults import classify
from wan_worker.job import Worker
from wan_worker.pipelines import offload
from wan_worker.planning import plan
from wan_worker.planning.deployment import Deployment
from wan_worker.planning.speedups import CompilePolicy
from wan_worker.request.outputs import Output
from wan_worker.request.parse import Request
from wan_worker.weights import store

log = logging.getLogger(__name__)

THREAD: Final = "preload"


def begin(worker: Worker) -> threading.Thread | None:
    """Start loading in the background; None if no model is named."""
    if not worker.settings.preload_models:
        return None
    thread = threading.Thread(target=run, args=(worker,), name=THREAD, daemon=True)
    thread.start()
    return thread


def run(worker: Worker) -> None:
    """Load the models one after the other, in the order of PRELOAD_MODELS."""
    for name in worker.settings.preload_models:
        started = time.monotonic()
        try:
            with worker.gpu:
                _load(worker, name)
        except Exception as problem:  # noqa: BLE001 (a job that needs it gets the error)
            error = problem if isinstance(problem, WorkerError) else classify(problem)
            log.warning("preload: %s: %s: %s", name, error.code, error.message)
        else:
            log.info("preload: %s is in memory after %.1f s", name, time.monotonic() - started)


def _load(worker: Worker, name: str) -> None:
    settings = worker.settings
    installed = store.installed(settings.models_dir, settings.volume_dir)
    deployment = Deployment(
        worker.hardware,
        installed,
        placement=settings.placement,
        weight_type=settings.weight_type,
        compiling=CompilePolicy("off"),  # compiling needs the shapes of a real job
    )
    planned = plan.make(_native(MODELS[name]), deployment)
    pipeline = worker.pool.pipeline(planned, installed[name], lambda: None)
    offload.arrange(pipeline, planned)


def _native(model: Model) -> Request:
    """The model's native request: most jobs have the same layout in memory."""
    picture = "a picture" if model.text_pipeline is None else None
    return Request(
        job_id="preload",
        mode="video",
        model=model.id,
        outputs=(Output("", 0),),
        image=picture,
        last_image=picture if model.last_image == "required" else None,
        size=model.default_size,
        size_is_explicit=True,
    )
