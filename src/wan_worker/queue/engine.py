"""The engine: the process that generates for the HTTP API. Its parent process is the server.

    python -m wan_worker.queue.engine      started by dispatch, with src on PYTHONPATH

It is a separate process, because requests for a job's progress must not take the generating
thread's interpreter lock. Also, a crash, the kernel's out-of-memory killer or a broken GPU must not
end the server or its queue. Jobs run through job, as on RunPod.

Both sides send JSON, one message per line. In: ``run`` and ``cancel`` a job by its id; ``watch`` it
or not (previews are drawn only for watchers); ``ask`` a question (``mode: info``), which is
answered while jobs run; ``measure`` a model or ``stop measuring`` it. Out: ``ready``, ``unfit``,
``progress``, ``preview``, ``ended``, ``answer``, ``measured``. A job's answer is in the ledger
before ``ended`` is sent, so that it survives the loss of the message. When the input closes, the
parent is dead or wants this process to end: it cancels its jobs and exits.
Not covered: the queue and the restarts (dispatch).
"""

import base64
import json
import logging
import os
import signal
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, BinaryIO, Final

from wan_worker import calibrate, logs, preload, scratch
from wan_worker import job as jobs
from wan_worker.errors import Canceled, ConfigInvalid, WorkerError, public, public_json
from wan_worker.faults import classify
from wan_worker.job import Worker
from wan_worker.queue.json_lines import JsonLines, take_stdout
from wan_worker.queue.ledger import FILE, Ledger
from wan_worker.settings import Settings, from_env
from wan_worker.timing.progress import Control, Preview, Viewer

log = logging.getLogger(__name__)

QUESTIONS: Final = 4
"""Questions that are answered at the same time."""

STOP_SECONDS: Final = 5.0
"""Time for the running jobs to end, when the input closes."""


class Engine:
    """Does what the parent process orders."""

    def __init__(self, worker: Worker, ledger: Ledger, line: JsonLines) -> None:
        self._worker = worker
        self._ledger = ledger
        self._line = line
        self._controls: dict[str, Control] = {}
        self._watched: set[str] = set()
        self._stopping = False
        concurrency = worker.settings.worker_concurrency
        self._jobs = ThreadPoolExecutor(concurrency, thread_name_prefix="job")
        self._questions = ThreadPoolExecutor(QUESTIONS, thread_name_prefix="question")
        self._measuring = ThreadPoolExecutor(1, thread_name_prefix="measuring")
        self._measured = Control()

    def listen(self, commands: BinaryIO) -> None:
        """Follow the command in each line until the input ends; then stop."""
        running = set()
        for text in commands:
            message = json.loads(text)
            match message["do"]:
                case "run":
                    control = self._control(message["id"])
                    running.add(self._jobs.submit(self._run, message["id"], control))
                case "cancel":
                    running_control = self._controls.get(
                        message["id"]
                    )  # the job's thread may remove it
                    if running_control is not None:
                        running_control.cancel()
                case "watch" if message["on"]:
                    self._watched.add(message["id"])
                case "watch":
                    self._watched.discard(message["id"])
                case "ask":
                    self._questions.submit(self._ask, message["number"], message["input"])
                case "measure":
                    control = self._measured = Control()
                    running.add(self._measuring.submit(self._measure, message["model"], control))
                case "stop measuring":
                    self._measured.cancel()
            running = {future for future in running if not future.done()}
        self._stopping = True
        for control in [self._measured, *self._controls.values()]:
            control.cancel()
        wait(running, STOP_SECONDS)

    def _control(self, job_id: str) -> Control:
        def notify() -> None:
            self._line.say("progress", id=job_id, event=control.latest.public())

        def show(preview: Preview) -> None:
            data = base64.b64encode(preview.data).decode("ascii")
            about = {"number": preview.number, "step": preview.step, "data": data}
            self._line.say("preview", id=job_id, content_type="image/jpeg", **about)

        viewer = Viewer(show, lambda: job_id in self._watched)
        limit = self._worker.settings.job_timeout_seconds
        control = Control(limit, notify=notify, viewer=viewer)
        self._controls[job_id] = control
        return control

    def _run(self, job_id: str, control: Control) -> None:
        refresh = False
        try:
            request = self._ledger.request(job_id)
            answer = jobs.run({"id": job_id, "input": request}, self._worker, control)
            refresh = bool(answer.pop("refresh_worker", False))
            if "error" not in answer:
                self._ledger.complete(job_id, answer)
            else:
                error = json.loads(answer["error"])
                # If only this process's end cancelled it, the server records the true cause.
                if not (self._stopping and error["code"] == Canceled.code):
                    self._ledger.fail(job_id, error)
        except Exception as problem:  # for example, the ledger's disk is full
            log.exception("job %s: its answer could not be recorded", job_id, exc_info=problem)
        finally:
            self._controls.pop(job_id, None)
            self._watched.discard(job_id)
            self._line.say("ended", id=job_id, refresh=refresh)

    def _ask(self, number: int, question: Mapping[str, Any]) -> None:
        answer = jobs.run({"id": "question", "input": question}, self._worker, Control())
        self._line.say("answer", number=number, answer=answer)

    def _measure(self, model: str, control: Control) -> None:
        """Measure a model between the jobs; the result is in the file before it is reported."""
        try:
            calibration = calibrate.run(
                self._worker,
                model,
                control,
                lambda done, of: self._line.say("measured", done=done, of=of),
            )
            self._worker.tuning.add(calibration)
        except Exception as problem:  # noqa: BLE001 (every failure is reported)
            error = problem if isinstance(problem, WorkerError) else classify(problem)
            self._line.say("measured", error=public(error, control.stage))
        else:
            self._line.say("measured", calibration=calibration.public())


def main() -> int:
    # Ctrl-C in a terminal reaches the whole process group; the server decides about the jobs.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    line = take_stdout()
    try:
        settings: Settings = from_env(os.environ)
        logs.start(settings.log_level, settings.log_format)
        scratch.sweep()
        worker = jobs.make_worker(settings)
    except ConfigInvalid as problem:
        line.say("unfit", error=json.loads(public_json(problem, "start")))
        return 1
    preload.begin(worker)
    status = 1
    try:
        with Ledger(settings.state_dir / FILE) as ledger:
            engine = Engine(worker, ledger, line)
            line.say("ready", hardware=worker.hardware.name)
            engine.listen(sys.stdin.buffer)
        status = 0
    except Exception:
        log.exception("the engine can't go on")
    # Exit at once: a step that does not end would hold its thread, and so the process.
    os._exit(status)


if __name__ == "__main__":
    sys.exit(main())
