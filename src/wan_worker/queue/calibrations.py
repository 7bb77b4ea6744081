"""How far is the measuring of a model that was ordered over HTTP? There is one order at a time.

The engine measures (calibrate) and writes the result to STATE_DIR (machine.tuning). This module
keeps its progress. After a restart the written result is still there; a running order is not.
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
    """Clips in all; None before the first one is made."""
    started_at: float
    ended_at: float | None = None
    calibration: dict[str, Any] | None = None
    """The result (machine.tuning)."""
    error: dict[str, Any] | None = None

    def public(self) -> dict[str, Any]:
        return asdict(self)


class Calibrations:
    """Used only by the event loop's thread."""

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
        """Take a message of the engine: ``done`` clips ``of`` a total, or how the order ended."""
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
        """The engine has died: the running order fails."""
        error = UnexpectedError("The process that measured ended; order it again")
        self.heard({"error": public(error, "denoise")})
