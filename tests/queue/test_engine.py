"""The engine's own loop, with a worker in this process: what it is told while a job ends."""

import io
import json
from pathlib import Path

from tests.conftest import QUICK
from wan_worker.job import Worker
from wan_worker.queue.engine import Engine
from wan_worker.queue.json_lines import JsonLines
from wan_worker.queue.ledger import FILE, Ledger
from wan_worker.timing.progress import Control


class Ending(dict[str, Control]):
    """The controls, where each job ends just after it was looked for."""

    def __contains__(self, job_id: object) -> bool:
        found = super().__contains__(job_id)
        self.pop(str(job_id), None)
        return found


def test_a_job_that_ends_while_it_is_cancelled_does_not_end_the_engine(
    worker: Worker, tmp_path: Path
) -> None:
    heard = io.BytesIO()
    with Ledger(tmp_path / FILE) as ledger:
        ledger.submit("next", QUICK, 1)
        engine = Engine(worker, ledger, JsonLines(heard))
        engine._controls = Ending(gone=Control())
        commands = [{"do": "cancel", "id": "gone"}, {"do": "run", "id": "next"}]
        engine.listen(io.BytesIO(b"\n".join(json.dumps(each).encode() for each in commands)))
    assert "next" in heard.getvalue().decode()
