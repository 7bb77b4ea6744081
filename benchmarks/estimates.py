"""Does the time come true that the worker tells before a job, and while it runs?

    python benchmarks/estimates.py [--json benchmarks/estimates.json] [--jobs 60]

Jobs of mixed sizes, lengths, steps and guidance, from text and from a picture, plain and
accelerated, run through ``job.run`` on the tiny weights. No two have the same size. Then, from what
was measured:

1. before: the worker's first job and k others are learned from, and all the rest are estimated;
   many draws of the k. Error: |estimated - taken| / taken.
2. while: at every report of progress, |seconds left as told - as they were| / the whole job's, by
   how much of the job had passed, for jobs after the first eight.

All of it twice: by the wall's clock, as the user gets it, and by this process's processor time.
Where a machine has other work the wall's seconds are that work's too, now more and now fewer, and
no estimate of them can be nearer than one job is to itself: that is reported beside.
"""

import argparse
import base64
import io
import os
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from benchmarks import rounds

from wan_worker import job as jobs
from wan_worker.settings import Settings
from wan_worker.timing import estimate
from wan_worker.timing.estimate import Sample, StageTime
from wan_worker.timing.progress import Control
from wan_worker.timing.record import Record
from wan_worker.timing.work import StageWork
from wan_worker.weights import tiny

MODELS = ["wan2.1-t2v-1.3b", "wan2.1-i2v-14b-480p"]
LEARNED = (0, 1, 2, 4, 8, 16)
DRAWS = 40
REPEATED = 8
SHARES = (0.1, 0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Done:
    """One job, as it went."""

    work: tuple[StageWork, ...]
    stays: tuple[StageTime, ...]
    samples: tuple[Sample, ...]
    told: tuple[tuple[float, float, float], ...]
    """At each report: share of the job that had passed, seconds left as told, as they were."""
    error: float
    """Of the estimate in its answer."""

    @property
    def seconds(self) -> float:
        return sum(stay.seconds for stay in self.stays if stay.stage != "queue")


def requests(count: int, chance: random.Random) -> list[dict[str, Any]]:
    """Jobs of sizes that all differ; the first one is small."""
    sizes = [(16 * w, 16 * h, 4 * n + 1) for w in range(3, 21) for h in range(3, 13)
             for n in range(9)]  # fmt: skip
    chance.shuffle(sizes)
    asked = []
    for index, (width, height, frames) in enumerate(sizes[:count]):
        request: dict[str, Any] = {
            "mode": "video", "width": width, "height": height, "num_frames": frames,
            "prompt": f"a red circle moving right on a white background, take {index}",
            "num_inference_steps": chance.choice([4, 6, 8, 12]), "seed": index,
            "guidance_scale": chance.choice([5.0, 5.0, 1.0]), "model": MODELS[0],
        }  # fmt: skip
        if index % 4 == 3:
            request |= {"model": MODELS[1], "image_url": picture()}
        elif index % 5 == 4:
            request |= {"acceleration": "cached", "num_inference_steps": 30}
        asked.append(request)
    return asked


def picture() -> str:
    from PIL import Image

    drawn = Image.new("RGB", (96, 64), (240, 240, 240))
    drawn.paste((220, 40, 40), (30, 20, 60, 44))
    buffer = io.BytesIO()
    drawn.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


Clock = Callable[[], float]
CLOCKS: dict[str, Clock] = {"wall": time.monotonic, "processor": time.process_time}


def run(request: dict[str, Any], worker: jobs.Worker, clock: Clock, name: str) -> Done | None:
    """One job, or None where it failed (toy weights draw one colour now and then)."""
    seen: list[tuple[float, float]] = []

    def note() -> None:
        if control.latest.seconds_left is not None:
            seen.append((clock(), control.latest.seconds_left))

    control = Control(notify=note, clock=clock)
    answer = jobs.run({"id": name, "input": request}, worker, control)
    ended = clock()
    if "error" in answer:
        print(f"{name}: left out: {answer['error']}", file=sys.stderr)
        return None
    assert control.estimate is not None
    began = seen[0][0]
    told = tuple(((at - began) / (ended - began), left, ended - at) for at, left in seen)
    sizes = [asset["bytes"] for asset in answer["assets"]]
    work = control.estimate.work
    samples = estimate.learn(work, control.stage_times, sizes)
    assert samples, "nothing was learned"
    error = answer["metadata"]["estimate"]["error"]
    return Done(work, tuple(control.stage_times), samples, told, error)


def before(done: Sequence[Done], machine: Any, chance: random.Random) -> dict[str, Any]:
    """Errors on jobs that were not learned from, by how many were."""
    found = {}
    for count in LEARNED:
        errors = []
        for _ in range(DRAWS):
            others = [*done[1:]]
            chance.shuffle(others)
            record = Record()
            for one in (done[0], *others[:count]):
                record.add(one.samples)
            for one in others[count:]:
                if not one.work[0].once[1:]:  # nothing to load: that is learned once
                    guess = estimate.make(one.work, record.samples, machine)
                    error = estimate.error(guess, one.stays)
                    assert error is not None
                    errors.append(abs(error))
        found[str(1 + count)] = spread(errors)
    assumed = [
        abs(estimate.error(estimate.make(one.work, {}, machine), one.stays) or 0.0)
        for one in done[1:]
    ]
    return {"0": spread(assumed), **found}


def while_it_runs(done: Sequence[Done]) -> dict[str, Any]:
    """Errors of the time left, at the first report after each share of the job."""
    found = {}
    for share in SHARES:
        errors = []
        for one in done:
            later = [(left, real) for passed, left, real in one.told if passed >= share]
            if later:
                errors.append(abs(later[0][0] - later[0][1]) / one.seconds)
        found[f"{share:.0%}"] = spread(errors)
    return found


def spread(errors: Sequence[float]) -> dict[str, float]:
    ordered = sorted(errors)
    return {
        "median": round(statistics.median(ordered), 3),
        "p90": round(ordered[int(0.9 * (len(ordered) - 1))], 3),
        "of": len(ordered),
    }


def measured(asked: list[dict[str, Any]], models: Path, clock: Clock) -> dict[str, Any]:
    """Every job once, by one clock, and what the estimates were worth."""
    with tempfile.TemporaryDirectory() as folder:
        worker = jobs.make_worker(Settings(models_dir=models, output_dir=Path(folder)))
        one = partial(run, worker=worker, clock=clock)
        done = []
        for index, request in enumerate(asked):
            print(f"job {index + 1} of {len(asked)} ...", file=sys.stderr)
            done.append(one(request, name=f"estimate-{index}"))
        again = [one(asked[1], name=f"again-{index}") for index in range(REPEATED)]
    whole = [job for job in done if job is not None]
    taken = [job.seconds for job in again if job is not None]
    middle = statistics.median(taken)
    seconds = [job.seconds for job in whole]
    return {
        "jobs": len(whole),
        "seconds_of_a_job": [round(min(seconds), 2), round(max(seconds), 2)],
        "load_average": rounds.about()["load_average"],
        "before_by_jobs_learned": before(whole, worker.hardware, random.Random(2026)),
        "as_answered_after_8": spread([abs(job.error) for job in whole[8:]]),
        "left_by_share_passed": while_it_runs(whole[8:]),
        "one_job_repeated": spread([abs(seconds - middle) / middle for seconds in taken]),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--jobs", type=int, default=60)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    asked = requests(options.jobs, random.Random(2026))
    with tempfile.TemporaryDirectory() as folder:
        tiny.write(Path(folder), MODELS)
        found = {name: measured(asked, Path(folder), clock) for name, clock in CLOCKS.items()}
    what = "|estimated - taken| / taken of jobs of unseen sizes, by the clock"
    rounds.write(options.json, {**rounds.about(), "what": what, **found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
