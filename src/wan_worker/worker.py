"""What do all jobs share? It also plans a request and estimates its time.

One ``Worker`` is made when the process starts. What can change while it runs is asked again for
each job: which weights are installed, and how much of the GPU others hold.
Not covered: the order of a job's stages (job).
"""

import logging
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from wan_worker.catalog import components
from wan_worker.catalog.components import Component
from wan_worker.catalog.models import MODELS, Installed
from wan_worker.clips import ClipContext
from wan_worker.delivery import deliver
from wan_worker.errors import ConfigInvalid, ModelCorrupt, ModelUnavailable, WorkerError
from wan_worker.inputs import references
from wan_worker.inputs.dialing import Policy
from wan_worker.machine import hardware
from wan_worker.machine.hardware import Hardware
from wan_worker.machine.tuning import Tuning
from wan_worker.media import encode
from wan_worker.pipelines.compiling import Compiler
from wan_worker.pipelines.pool import Pool
from wan_worker.planning import enhancer as enhancing
from wan_worker.planning import memory, segments
from wan_worker.planning.deployment import Deployment
from wan_worker.planning.plan import Plan
from wan_worker.planning.speedups import CompilePolicy
from wan_worker.prompts import enhance
from wan_worker.reports import info, model_advice
from wan_worker.request import schema
from wan_worker.request.fallback import fewer_pictures
from wan_worker.request.parse import Request
from wan_worker.request.schema import Contract
from wan_worker.settings import Settings
from wan_worker.timing import estimate, work
from wan_worker.timing.estimate import Estimate
from wan_worker.timing.progress import Control
from wan_worker.timing.record import Record
from wan_worker.weights import lora_files, store
from wan_worker.weights.lora_files import LoraFile

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Worker:
    """What all jobs share. The pool changes, only under the GPU lock; the record has its own."""

    settings: Settings
    contract: Contract
    hardware: Hardware
    policy: Policy
    pool: Pool
    ffmpeg: str
    tuning: Tuning
    record: Record = field(default_factory=Record)
    gpu: threading.Lock = field(default_factory=threading.Lock)


def make(settings: Settings) -> Worker:
    """Everything that is ready before the first job.

    Raises:
        ConfigInvalid: the schemas are broken, or DEFAULT_MODEL or PRELOAD_MODELS name no model.
    """
    named = {"DEFAULT_MODEL": [settings.default_model], "PRELOAD_MODELS": settings.preload_models}
    unknown = [
        variable
        for variable, names in named.items()
        if any(name is not None and name not in MODELS for name in names)
    ]
    if unknown:
        raise ConfigInvalid(f"{' and '.join(unknown)}: must be one of {', '.join(MODELS)}")
    machine = hardware.detect()
    others = (components.enhancer(settings.enhancer_model),)
    for line in store.explain(settings.models_dir, settings.volume_dir, *others):
        log.info("weights: %s", line)
    return Worker(
        settings=settings,
        contract=schema.load(),
        hardware=machine,
        policy=Policy(allow_private=settings.allow_private_urls),
        pool=Pool(machine, compiler=Compiler(settings.compile_cache_dir)),
        ffmpeg=encode.find_ffmpeg(),
        tuning=Tuning(settings.state_dir),
    )


def planned(asked: Request, worker: Worker) -> tuple[Request, Plan]:
    """What is to be done for a request, on this machine as it is now.

    Returns:
        The request, and its plan. With ``reference_fallback`` and no model here for its pictures:
        the request with fewer of them.

    Raises:
        WorkerError: the planner's refusal. ModelCorrupt: installed weights were damaged since.
    """
    try:
        return asked, _plan(asked, worker)
    except ModelUnavailable as problem:
        if not asked.references or asked.model != "auto" or not asked.reference_fallback:
            raise
        return planned_without("last_image_url", asked, problem, worker=worker)


def planned_without(
    field: str, asked: Request, problem: WorkerError, *, worker: Worker
) -> tuple[Request, Plan]:
    """Plan the request without the picture of one field, else without any picture.

    Raises:
        WorkerError: ``problem`` itself, where neither can be planned.
    """
    for fewer in fewer_pictures(asked, field, problem):
        with suppress(WorkerError):
            return fewer, _plan(fewer, worker)
    raise problem


def _plan(asked: Request, worker: Worker) -> Plan:
    settings = worker.settings
    try:
        here, machine = installed(worker), worker.tuning.known(hardware.refresh(worker.hardware))
        deployment = Deployment(
            machine,
            here,
            settings.default_model,
            extras(worker),
            settings.placement,
            settings.weight_type,
            CompilePolicy(settings.compile, settings.compile_cache_dir is not None),
        )
        plan = segments.make(asked, deployment)
        if not asked.enhance_prompt:
            return plan
        component, found = enhancer(worker)
        weights = None if found is None else _weights_of(component, found)
        return enhancing.decide(plan, here[plan.model.id], machine, component, weights)
    except ModelUnavailable:
        broken = store.damaged(settings.models_dir)
        if broken:
            raise ModelCorrupt(
                f"{', '.join(broken)}: files are missing or cut short; install the model again "
                "with download_weights.py"
            ) from None
        raise


@contextmanager
def gpu(worker: Worker, control: Control) -> Iterator[None]:
    """Hold the GPU. Waiting for it is stage ``queue``; a job that is cancelled or late gives up."""
    control.enter("queue")
    while not worker.gpu.acquire(timeout=0.1):
        control.check()
    try:
        yield
    finally:
        worker.gpu.release()


def enhanced(planned: Plan, worker: Worker, control: Control) -> Plan:
    """The plan with its prompt rewritten, where it says so. Holds the GPU meanwhile.

    Where rewriting fails: the user's own prompt, with a notice.
    """
    if planned.enhancer is None:
        return planned
    with gpu(worker, control):
        component, found = enhancer(worker)
        here = installed(worker)[planned.model.id]
        tokenizer = next(c for c in planned.model.components if c.role == "tokenizer")

        def load() -> enhance.Enhancer:
            if found is None:  # it was there when the job was planned
                raise ModelUnavailable(f"{component.repository} is gone")
            sizes = memory.loaded_bytes(_weights_of(component, found), worker.hardware)
            size = sizes[component.name]
            loaded: enhance.Enhancer = worker.pool.single(
                component, found.folder, size, enhancing.CHAT_BYTES
            )
            return loaded

        def count_tokens(text: str) -> int:
            reader = worker.pool.single(tokenizer, here.folders[tokenizer.name], 0)
            return len(reader(text, verbose=False).input_ids)

        drop = partial(worker.pool.drop, component)
        return enhance.rewrite(planned, load, drop, count_tokens, control)


def clip_context(
    worker: Worker, here: Mapping[str, Installed], loras: tuple[LoraFile, ...], folder: Path
) -> ClipContext:
    """What a job's clips are made with.

    Args:
        here: the installed models, by id.
        folder: the job's own.
    """
    return ClipContext(
        worker.pool,
        worker.hardware,
        here,
        extras(worker),
        loras,
        worker.settings.placement,
        worker.ffmpeg,
        folder,
    )


def estimated(
    asked: Request,
    plan: Plan,
    worker: Worker,
    here: Mapping[str, Installed] | None = None,
) -> Estimate:
    """How long the job takes once it has the GPU, as things are now.

    Args:
        here: the installed models; None looks for them.
    """
    settings, pool = worker.settings, worker.pool
    done = work.AlreadyDone(
        loaded=pool.loaded,
        has_embedding=pool.embeddings.knows,
        imported="diffusers" in sys.modules,
        destination=deliver.place(asked, settings),
        measured=worker.record.has,
    )
    to_do = work.stages(plan, installed(worker) if here is None else here, done)
    return estimate.make(to_do, worker.record.samples, worker.hardware)


def planner(worker: Worker) -> info.Planner:
    """What ``mode: info`` plans and estimates with."""
    settings, here = worker.settings, installed(worker)
    machine = worker.tuning.known(hardware.refresh(worker.hardware))
    complete = Deployment(
        machine,
        model_advice.complete(here),
        extras=model_advice.complete_extras(extras(worker)),
        placement=settings.placement,
        weight_type=settings.weight_type,
    )
    return info.Planner(
        replan=partial(planned, worker=worker),
        plan_as_if_installed=partial(segments.make, deployment=complete),
        estimate=partial(estimated, worker=worker, here=here),
        check=partial(check, worker=worker),
    )


def check(asked: Request, worker: Worker) -> None:
    """Check LoRAs, URLs and pictures without a fetch. Planning does not check them.

    Raises:
        InvalidRequest, Unsupported: a LoRA file is missing, or is not a LoRA.
        UrlBlocked: an address that may not be dialled, or a value that can't be a picture.
    """
    deliver.destination(asked, worker.settings, worker.policy)
    lora_files.check(asked.loras, worker.settings, worker.policy)
    if not asked.reference_fallback:
        references.check(asked)


def installed(worker: Worker) -> dict[str, Installed]:
    """The installed models, by id. Asked for each job: more may come while the worker runs."""
    return store.installed(worker.settings.models_dir, worker.settings.volume_dir)


def extras(worker: Worker) -> dict[str, Installed]:
    """The installed components that no model has, by name."""
    return store.extras(worker.settings.models_dir, worker.settings.volume_dir)


def state(worker: Worker) -> info.State:
    """What ``mode: info`` tells about the worker."""
    models, volume = worker.settings.models_dir, worker.settings.volume_dir
    return info.State(
        hardware=hardware.refresh(worker.hardware),
        installed=installed(worker),
        components=store.whole(models, volume),
        damaged=store.damaged(models),
        loaded=worker.pool.loaded,
        busy=worker.gpu.locked(),
        checks=store.checks(models, volume),
        history=worker.record.history,
        process_peak_bytes=hardware.process_peak_bytes(),
    )


def enhancer(worker: Worker) -> tuple[Component, store.Found | None]:
    """The language model that was configured, and where it is."""
    settings = worker.settings
    component = components.enhancer(settings.enhancer_model)
    return component, store.locate(component, settings.models_dir, settings.volume_dir)


def _weights_of(component: Component, found: store.Found) -> Installed:
    return Installed({component.name: found.weight_bytes}, found.tiny)
