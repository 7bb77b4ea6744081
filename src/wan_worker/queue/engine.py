"""The process that generates for the HTTP API: it holds the Worker, and its parent the server.

    python -m wan_worker.queue.engine      started by dispatch, with src on PYTHONPATH

A process of its own, because whoever asks how far a job is must not take the generating thread's
interpreter lock, and because a crash, the kernel's out-of-memory killer or a broken GPU must take
neither the server nor its queue along. Jobs go through the one flow (job), as on RunPod.

Both ends speak JSON, one message a line. In: ``run`` and ``cancel`` a job by its id, ``watch`` it
or not (nobody draws previews that nobody looks at), ``ask`` a question (``mode: info``), which is
answered beside a running job, ``measure`` a model or ``stop measuring`` it. Out: ``ready``,
``unfit``, ``progress``, ``preview``, ``ended``, ``answer``, ``measured``. A job's answer is in the
ledger before ``ended`` is said, so that it is not lost with the line. Where the line in closes, the
parent is gone or wants this process gone: jobs are cancelled, and it exits.
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
"""Answered at a time."""

STOP_SECONDS: Final = 5.0
"""For the running jobs to unwind, when the line closes."""


class Engine:
    """Runs what the parent asks for."""

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
        """Do what each line says, until there are no more; then stop."""
        running = set()
        for text in commands:
            message = json.loads(text)
            match message["do"]:
                case "run":
                    control = self._control(message["id"])
                    running.add(self._jobs.submit(self._run, message["id"], control))
                case "cancel":
                    running_one = self._controls.get(message["id"])  # its thread takes it out
                    if running_one is not None:
                        running_one.cancel()
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
                # Nobody cancelled it but the end of this process: the server says what is true.
                if not (self._stopping and error["code"] == Canceled.code):
                    self._ledger.fail(job_id, error)
        except Exception as problem:  # a full disk, under the ledger
            log.exception("job %s: its answer could not be recorded", job_id, exc_info=problem)
        finally:
            self._controls.pop(job_id, None)
            self._watched.discard(job_id)
            self._line.say("ended", id=job_id, refresh=refresh)

    def _ask(self, number: int, question: Mapping[str, Any]) -> None:
        answer = jobs.run({"id": "question", "input": question}, self._worker, Control())
        self._line.say("answer", number=number, answer=answer)

    def _measure(self, model: str, control: Control) -> None:
        """Measure a model between the jobs; what won is in the file before it is said."""
        try:
            found = calibrate.run(
                self._worker,
                model,
                control,
                lambda done, of: self._line.say("measured", done=done, of=of),
            )
            self._worker.tuning.add(found)
        except Exception as problem:  # noqa: BLE001 (told, whatever it is)
            error = problem if isinstance(problem, WorkerError) else classify(problem)
            self._line.say("measured", error=public(error, control.stage))
        else:
            self._line.say("measured", calibration=found.public())


def main() -> int:
    # Ctrl-C in a terminal reaches the whole group; the server decides what becomes of the jobs.
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
    # A step that does not end holds its thread; nobody waits for it.
    os._exit(status)


if __name__ == "__main__":
    sys.exit(main())
