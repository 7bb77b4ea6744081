"""Plans on machines and with models that need not be there."""

from collections.abc import Mapping
from typing import Any

from wan_worker.catalog.models import EXTRAS, MODELS, Installed
from wan_worker.machine.hardware import Hardware
from wan_worker.planning import plan
from wan_worker.planning.deployment import Deployment
from wan_worker.planning.plan import Plan
from wan_worker.request import parse
from wan_worker.request import schema as contract

CONTRACT = contract.load()
T2V, I2V = "wan2.1-t2v-1.3b", "wan2.1-i2v-14b-480p"
CPU = Hardware("cpu", "CPU, 4 cores", 256 * 1024**3, None, "no NVIDIA driver")


def gpu(gib: float) -> Hardware:
    size, ram = int(gib * 1024**3), 256 * 1024**3
    return Hardware("cuda", f"GPU {gib:g}", size, (9, 0), "nvidia-smi lists it", ram_bytes=ram)


WEIGHTS = {
    "umt5-tokenizer": 0,
    "umt5-xxl": 11_400_000_000,
    "wan2.1-vae": 500_000_000,
    "clip-image-processor": 0,
    "clip-vit-h": 1_300_000_000,
    f"{T2V}.transformer": 2_900_000_000,
    f"{I2V}.transformer": 32_800_000_000,
}


def store(*model_ids: str, tiny: bool = False) -> dict[str, Installed]:
    return {
        name: Installed({c: WEIGHTS[c] for c in MODELS[name].component_names}, tiny)
        for name in model_ids
    }


BOTH = store(T2V, I2V)


def make(
    fields: Mapping[str, Any] | None = None,
    /,
    installed: Mapping[str, Installed] = BOTH,
    hardware: Hardware = CPU,
    default_model: str | None = None,
    **more: Any,
) -> Plan:
    """The plan for a video of a cat, changed; with a job_type, that preset's plan."""
    given = {"prompt": "a cat", **(fields or {}), **more}
    if "job_type" not in given:
        given.setdefault("mode", "video")
    asked = parse.request({"id": "job-1", "input": given}, CONTRACT)
    return plan.make(asked, Deployment(hardware, installed, default_model))


def codes(made: Plan) -> list[str]:
    return [notice.code for notice in made.notices]


def reasons_about(made: Plan, word: str) -> list[str]:
    return [reason for reason in made.reasons if word in reason]


GPU = Hardware("cuda", "NVIDIA H200", 150 * 10**9, (9, 0), "for a test", ram_bytes=10**12)
HERE = {
    model.id: Installed({c.name: c.stored_bytes for c in model.components}, tiny=False)
    for model in MODELS.values()
}


def cached(**changes: Any) -> Plan:
    """A plan with the step cache, where every model is installed on a large GPU."""
    given = {"mode": "video", "prompt": "x", "acceleration": "cached"} | changes
    return plan.make(parse.request({"input": given}, CONTRACT), Deployment(GPU, HERE))


TURBO_EXTRAS = {name: Installed({name: 1}, False) for name in EXTRAS}


def turbo(extras: dict[str, Installed] | None = None, **changes: Any) -> Plan:
    """A plan with distilled weights, on the same GPU."""
    given = {"mode": "video", "prompt": "x", "acceleration": "turbo"} | changes
    asked = parse.request({"input": given}, CONTRACT)
    return plan.make(
        asked, Deployment(GPU, HERE, extras=TURBO_EXTRAS if extras is None else extras)
    )


def with_solver(solver: str, flow_shift: float) -> Plan:
    """A plan for a solver on its schedule, on a CPU."""
    given = {"mode": "video", "prompt": "x", "solver": solver, "flow_shift": flow_shift}
    asked = parse.request({"input": given}, CONTRACT)
    here = dict.fromkeys(MODELS, Installed({"a": 1}, True))
    return plan.make(asked, Deployment(Hardware("cpu", "CPU", 1024**3, None, "for a test"), here))
