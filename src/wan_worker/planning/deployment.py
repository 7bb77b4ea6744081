"""What is a request planned for? A machine, the weights on it, and what the operator has set.

Not covered: finding them out (machine, weights, settings).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from wan_worker.catalog.models import Installed
from wan_worker.machine.hardware import Hardware
from wan_worker.planning.speedups import AUTO, CompilePolicy
from wan_worker.settings import Placement, WeightType


@dataclass(frozen=True)
class Deployment:
    """A worker, as the planner sees it."""

    hardware: Hardware
    installed: Mapping[str, Installed]
    """By model id."""
    default_model: str | None = None
    """DEFAULT_MODEL: for requests that leave the model to the worker."""
    extras: Mapping[str, Installed] = field(default_factory=lambda: MappingProxyType({}))
    """Installed components that no model has, by name."""
    placement: Placement | None = None
    """PLACEMENT, set by the operator; None leaves it to the plan."""
    weight_type: WeightType | None = None
    """WEIGHT_TYPE, set by the operator, for requests that ask for none."""
    compiling: CompilePolicy = AUTO
    """COMPILE, set by the operator."""
