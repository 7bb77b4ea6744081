"""What do all routes of the HTTP API share? The server's parts, and asking the engine.

Not covered: the routes (routes_generation and the other families).
"""

import json
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Path

from wan_worker.catalog.models import MODELS, OTHER_NAMES
from wan_worker.queue.dispatch import Dispatcher
from wan_worker.queue.downloads import Downloads
from wan_worker.queue.engine_process import NotReady
from wan_worker.queue.ledger import Ledger
from wan_worker.queue.watchers import Watchers
from wan_worker.request.schema import Contract
from wan_worker.server.error_answers import Refusal, not_found, not_ready
from wan_worker.settings import Settings

_NAMES = {name.lower(): model_id for name, model_id in OTHER_NAMES.items()} | {
    model_id: model_id for model_id in MODELS
}


ModelType = Annotated[
    str,
    Path(
        description="An id, or Wan's own task name, in small letters or large.",
        examples=["T2V-A14B", "wan2.1-t2v-1.3b"],
    ),
]


class AnsweredError(Exception):
    """The worker has answered a question with an error; ``error`` has its fields."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(error["code"])
        self.error = error


@dataclass(frozen=True)
class Parts:
    """The parts of one server."""

    settings: Settings
    contract: Contract
    ledger: Ledger
    watchers: Watchers
    dispatcher: Dispatcher
    downloads: Downloads

    async def ask(self, report: str, **fields: Any) -> dict[str, Any]:
        """The answer of ``mode: info`` to one question.

        Raises:
            Refusal: 503 while the engine is not ready.
            AnsweredError: the answer is an error.
        """
        try:
            answer = await self.dispatcher.ask({"report": report} | fields)
        except NotReady:
            raise not_ready() from None
        if "error" in answer:
            raise AnsweredError(json.loads(answer["error"]))
        info: dict[str, Any] = answer["info"]
        return info

    async def ask_if_there(self, report: str) -> dict[str, Any] | None:
        """The same; None while the engine is not ready."""
        try:
            return await self.ask(report)
        except Refusal:
            return None

    def queue(self) -> dict[str, int]:
        """How full the queue is."""
        counts = self.ledger.counts()
        return {
            "queued": counts["queued"],
            "running": counts["running"],
            "limit": self.settings.queue_limit,
        }

    async def model(self, name: str) -> dict[str, Any]:
        """The entry of one model in ``report: models``.

        Raises:
            Refusal: 404, or 503.
        """
        wanted = model_id(name)
        info = await self.ask("models")
        found: dict[str, Any] = next(model for model in info["models"] if model["id"] == wanted)
        return found


def model_id(name: str) -> str:
    """The id of a model, from its id or Wan's own task name, in small or capital letters.

    Raises:
        Refusal: 404.
    """
    found = _NAMES.get(name.lower())
    if found is None:
        raise not_found(f"No such model; there are: {', '.join(MODELS)}")
    return found
