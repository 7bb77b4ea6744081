"""How far is the measuring of a model that somebody ordered over HTTP? One at a time.

The engine measures (calibrate) and writes what won to STATE_DIR (tuning); here is what it says of
it meanwhile. What was written is there after a restart; an order that was under way is not.
Not covered: what is measured, and undoing it.
"""

import time
from dataclasses import asdict, dataclass
from typing import Any, Literal

from wan_worker.errors import UnexpectedError, public

Status = Literal["running", "completed", "failed", "canceled"]


@dataclass
class Order:
    """The measuring of one model. Times are seconds since 1970."""

    model: str
    status: Status
    done: int
    of: int | None
    """Clips; None before the first one."""
    started_at: float
    ended_at: float | None = None
    calibration: dict[str, Any] | None = None
    """What came of it (tuning)."""
    error: dict[str, Any] | None = None

    def public(self) -> dict[str, Any]:
        return asdict(self)


class Calibrations:
    """For the event loop's thread alone."""

    def __init__(self) -> None:
        self.latest: Order | None = None

    @property
    def running(self) -> Order | None:
        latest = self.latest
        return latest if latest is not None and latest.status == "running" else None

    def begin(self, model: str) -> Order:
        self.latest = Order(model, "running", 0, None, time.time())
        return self.latest

    def heard(self, message: dict[str, Any]) -> None:
        """What the engine says of it: ``done`` clips ``of`` so many, or how it ended."""
        order = self.running
        if order is None:
            return
        if "done" in message:
            order.done, order.of = message["done"], message["of"]
            return
        order.calibration, order.error = message.get("calibration"), message.get("error")
        code = (order.error or {}).get("code")
        order.status = (
            "completed" if code is None else "canceled" if code == "CANCELED" else "failed"
        )
        order.ended_at = time.time()

    def lost(self) -> None:
        """The engine is gone."""
        gone = UnexpectedError("The process that measured ended; order it again")
        self.heard({"error": public(gone, "denoise")})
