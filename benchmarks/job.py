"""A whole job, ours against stock diffusers: where the time goes, and what overlaps.

    python benchmarks/job.py [--json benchmarks/job.json]

Both ways run the same tiny weights in this process, in turn, and deliver to the same S3 server on
loopback, which checks signatures. Stock is ``stock.py``; ours is ``job.run``. Counted by the same
clocks in both: the text encoder, the transformer and the decoder's network. What is left after the
latents is everything that either way adds to the decoder: conversion, encoding, checking, upload.

1. stages: 416x240, 161 frames.
2. overhead: small jobs; a job's time less that inside pipeline, decoder and encoder.
3. overlap: two jobs at once, as with WORKER_CONCURRENCY=2, against the same two in turn, with a
   store so slow that the upload is a third of a job.

One torch thread (OMP_NUM_THREADS=1): more gain nothing on tensors this small.
"""

import argparse
import json
import os
import socket
import statistics
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from benchmarks import rounds, stock
from tests.integration.s3 import S3Server

from wan_worker import job as jobs
from wan_worker.delivery import deliver
from wan_worker.media import artifact, encode
from wan_worker.pipelines import generate
from wan_worker.settings import Bucket, Secret, Settings
from wan_worker.timing.progress import Control
from wan_worker.weights import tiny

MODEL = "wan2.1-t2v-1.3b"
PROMPT = "a red circle moving right on a white background"
Clip = dict[str, float]
# One step without guidance: on a CPU the transformer takes most of the time, and it is not the
# subject.
CLIP: Clip = {
    "width": 416,
    "height": 240,
    "num_frames": 161,
    "num_inference_steps": 1,
    "guidance_scale": 1.0,
}
SMALL: Clip = {"width": 64, "height": 48, "num_frames": 5, "num_inference_steps": 2}
OVERLAPPED: Clip = {"width": 128, "height": 96, "num_frames": 33, "num_inference_steps": 8}
FPS = 16
EXCLUSIVE = ("prompt", "denoise", "decoder", "convert", "encoder", "check", "upload")
"""Stages of ours that can't overlap."""


def prompt(count: int) -> str:
    """A new one each time: ours remembers the embeddings of those before."""
    return f"{PROMPT}, take {count}"


def networks() -> dict[str, tuple[Any, str]]:
    """The three networks' forwards; our way through the decoder is ``_Pictures``."""
    from diffusers import WanTransformer3DModel
    from diffusers.models.autoencoders.autoencoder_kl_wan import WanDecoder3d
    from transformers import UMT5EncoderModel

    return {
        "text_encoder": (UMT5EncoderModel, "forward"),
        "transformer": (WanTransformer3DModel, "forward"),
        "decoder": (WanDecoder3d, "forward"),
    }


class Ours:
    """``job.run`` with a worker on the tiny weights."""

    def __init__(self, models: Path, server: S3Server, folder: Path) -> None:
        self.bucket = Bucket(
            server.endpoint_url,
            Secret(server.access_key),
            Secret(server.secret_key),
            server.bucket,
        )
        self.models, self.folder, self.count = models, folder, 0
        self.worker = self.make_worker(self.bucket)

    def make_worker(self, bucket: Bucket) -> jobs.Worker:
        return jobs.make_worker(
            Settings(
                models_dir=self.models,
                default_model=MODEL,
                bucket=bucket,
                output_dir=self.folder,
                allow_private_urls=True,
            )
        )

    def request(self, clip: Clip) -> dict[str, Any]:
        self.count += 1
        given = {"mode": "video", "prompt": prompt(self.count), "fps": FPS, "seed": 7, **clip}
        return {"id": f"bench-{self.count}", "input": given}

    def __call__(self, clip: Clip) -> rounds.Seconds:
        seconds: rounds.Seconds = {}
        answer, total = self._run(clip, seconds)
        stages = answer["metadata"]["timings"]
        return seconds | {
            "total": total,
            "after_latents": stages["decode_encode"] + stages["upload"],
        }

    def _run(self, clip: Clip, seconds: rounds.Seconds) -> tuple[dict[str, Any], float]:
        stages = {
            "write": (encode, "write"),
            "frames": (_Frames, "next"),
            "decoder": (_Pictures, "next"),
            "check": (artifact, "check"),
            "upload": (deliver, "deliver"),
            "prompt": (generate, "encode_prompts"),
            "denoise": (generate, "denoise"),
        }
        started = time.perf_counter()
        with (
            rounds.clocked(seconds, **networks() | stages),
            _stepwise("frames", _Frames),
            _stepwise("pictures", _Pictures),
        ):
            answer = jobs.run(self.request(clip), self.worker, Control())
        total = time.perf_counter() - started
        assert "error" not in answer, answer
        # Frames are made inside the encoder's loop: what is left of it is waiting for ffmpeg.
        seconds["encoder"] = seconds.pop("write") - seconds["frames"]
        seconds["convert"] = seconds.pop("frames") - seconds["decoder"]
        assert sum(seconds[stage] for stage in EXCLUSIVE) <= total, (seconds, total)
        return answer, total


class _Frames:
    """Where the time goes that the encoder's loop spends on getting its next frames."""

    @staticmethod
    def next(made: Iterator[Any]) -> Any:
        return next(made, None)


class _Pictures:
    """And of that, where the decoder's goes."""

    @staticmethod
    def next(made: Iterator[Any]) -> Any:
        return next(made, None)


@contextmanager
def _stepwise(name: str, step: type[_Frames | _Pictures]) -> Iterator[None]:
    """Let a generator of ``generate`` go on by ``step.next``, which can be clocked."""
    original = getattr(generate, name)

    def steps(*args: Any) -> Iterator[Any]:
        made = original(*args)
        try:
            while (one := step.next(made)) is not None:
                yield one
        finally:
            made.close()

    setattr(generate, name, steps)
    try:
        yield
    finally:
        setattr(generate, name, original)


class Stock:
    """diffusers' pipeline on the same components."""

    def __init__(self, models: Path, server: S3Server, folder: Path) -> None:
        import diffusers
        from diffusers import UniPCMultistepScheduler
        from transformers import AutoTokenizer, UMT5EncoderModel

        self.server, self.folder, self.count = server, folder, 0
        self.client = server.client()
        self.pipeline = diffusers.WanPipeline(
            tokenizer=AutoTokenizer.from_pretrained(models / "umt5-tokenizer"),
            text_encoder=UMT5EncoderModel.from_pretrained(models / "umt5-xxl"),
            transformer=diffusers.WanTransformer3DModel.from_pretrained(
                models / f"{MODEL}.transformer"
            ),
            vae=diffusers.AutoencoderKLWan.from_pretrained(models / "wan2.1-vae"),
            scheduler=UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
            ),
        )
        self.pipeline.set_progress_bar_config(disable=True)

    def __call__(self, clip: Clip) -> rounds.Seconds:
        import torch

        seconds: rounds.Seconds = {}
        self.count += 1
        target = self.folder / f"stock-{self.count}.mp4"
        latents_at = 0.0

        def keep_time(*_: Any) -> dict[str, Any]:
            nonlocal latents_at
            latents_at = time.perf_counter()
            return {}

        stages = {
            "prompt": (self.pipeline, "encode_prompt"),
            "vae": (self.pipeline.vae, "decode"),
            "convert": (self.pipeline.video_processor, "postprocess_video"),
            "encoder": (stock, "export"),
            "upload": (stock, "upload"),
        }
        started = time.perf_counter()
        with rounds.clocked(seconds, **networks(), **stages):
            frames = self.pipeline(
                prompt=prompt(self.count),
                generator=torch.Generator("cpu").manual_seed(7),
                callback_on_step_end=keep_time,
                **clip,
            ).frames[0]
            stock.export(frames, target, FPS)
            key = f"stock/{target.name}"
            stock.upload(self.client, self.server.bucket, target, key)
        ended = time.perf_counter()
        target.unlink()
        # The VAE joins its chunks one by one: copies that ours does not make.
        seconds["convert"] += seconds.pop("vae") - seconds["decoder"]
        return seconds | {"total": ended - started, "after_latents": ended - latents_at}


def stages(ours: Ours, other: Stock, count: int) -> dict[str, Any]:
    """The 416x240 job of 161 frames."""
    for way in (other, ours):
        way(SMALL)
    ways = {"stock": lambda: other(CLIP), "ours": lambda: ours(CLIP)}
    found = rounds.alternate(ways, count, warm_up=0)
    for way in found.values():
        for seconds in way:
            seconds["outside"] = seconds["after_latents"] - seconds["decoder"]
    middle = {way: rounds.medians(seconds) for way, seconds in found.items()}
    return {
        "clip": CLIP,
        "rounds": count,
        "seconds": middle,
        "outside_per_round": {
            way: [round(s["outside"], 3) for s in seconds] for way, seconds in found.items()
        },
        "ours_to_stock_outside": ratio(middle, "outside"),
        "ours_to_stock_after_latents": ratio(middle, "after_latents"),
        "ours_to_stock_total": ratio(middle, "total"),
    }


def ratio(middle: dict[str, rounds.Seconds], stage: str) -> float:
    return round(middle["ours"][stage] / middle["stock"][stage], 3)


def overhead(ours: Ours, other: Stock, count: int) -> dict[str, Any]:
    """Small jobs: the networks take little, so what surrounds them shows."""
    found = rounds.alternate(
        {"stock": lambda: other(SMALL), "ours": lambda: ours(SMALL)}, count, warm_up=3
    )
    middle = {way: rounds.medians(seconds) for way, seconds in found.items()}
    own = [
        s["total"] - s["prompt"] - s["denoise"] - s["decoder"] - s["encoder"] for s in found["ours"]
    ]
    return {
        "clip": SMALL,
        "rounds": count,
        "seconds": middle,
        "overhead_ms": round(statistics.median(own) * 1000, 1),
        # Nearer to a machine that does nothing else.
        "least_overhead_ms": round(min(own) * 1000, 1),
        "of_which_ms": {
            stage: round(middle["ours"][stage] * 1000, 1)
            for stage in ("convert", "check", "upload")
        },
        "ours_to_stock_total": ratio(middle, "total"),
    }


class SlowStore:
    """A relay in front of the store that takes ``bytes_per_second`` of what is sent to it."""

    PIECE = 4096

    def __init__(self, endpoint_url: str) -> None:
        parts = urlsplit(endpoint_url)
        self._store = (parts.hostname, parts.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint_url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.bytes_per_second = float("inf")
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                store = socket.create_connection(self._store)  # type: ignore[arg-type]
                for source, sink, slow in ((client, store, True), (store, client, False)):
                    threading.Thread(
                        target=self._relay, args=(source, sink, slow), daemon=True
                    ).start()

    def _relay(self, source: socket.socket, sink: socket.socket, slow: bool) -> None:
        due = time.monotonic()
        with suppress(OSError), source, sink:
            while piece := source.recv(self.PIECE):
                if slow:
                    # Its own time table, so that what a sleep takes too long doesn't add up.
                    due = max(due, time.monotonic() - 0.05) + len(piece) / self.bytes_per_second
                    time.sleep(max(0.0, due - time.monotonic()))
                sink.sendall(piece)

    def close(self) -> None:
        self._listener.close()


CALIBRATED = 6
"""Jobs by which the slow store finds its rate, which then stays."""


def overlap(ours: Ours, server: S3Server, count: int) -> dict[str, Any]:
    """Two jobs in two threads, as the handler runs them, against the same two in turn."""
    store = SlowStore(server.endpoint_url)
    bucket = Bucket(
        store.endpoint_url, ours.bucket.access_key_id, ours.bucket.secret_access_key, server.bucket
    )
    worker = ours.make_worker(bucket)

    def run(_: int) -> dict[str, Any]:
        answer = jobs.run(ours.request(OVERLAPPED), worker, Control())
        assert "error" not in answer, answer
        return answer

    def timed(work: Callable[[], object]) -> rounds.Seconds:
        started = time.perf_counter()
        work()
        return {"total": time.perf_counter() - started}

    shares: list[float] = []

    def in_turn() -> None:
        for index in range(2):
            answer = run(index)
            timings = answer["metadata"]["timings"]
            shares.append(timings["upload"] / timings["total"])
            # Half of what the rest takes is a third of both together; an upload is more than its
            # bytes, so the rate is corrected by how long it took.
            wanted = (timings["total"] - timings["upload"]) / 2
            if len(shares) > CALIBRATED:
                continue
            if store.bytes_per_second == float("inf"):
                store.bytes_per_second = answer["assets"][0]["bytes"] / wanted
            else:
                store.bytes_per_second *= timings["upload"] / wanted

    run(0)
    for _ in range(CALIBRATED // 2 + 1):
        in_turn()
    del shares[:CALIBRATED]
    with ThreadPoolExecutor(2) as threads:
        found = rounds.alternate(
            {
                "in_turn": lambda: timed(in_turn),
                "overlapped": lambda: timed(lambda: list(threads.map(run, range(2)))),
            },
            count,
        )
    store.close()
    middle = {way: rounds.medians(seconds)["total"] for way, seconds in found.items()}
    return {
        "clip": OVERLAPPED,
        "rounds": count,
        "seconds_for_two": middle,
        "upload_share_of_a_job": round(statistics.median(shares), 3),
        "overlapped_to_in_turn": round(middle["overlapped"] / middle["in_turn"], 3),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("stages", "overhead", "overlap"))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder, S3Server(Path(folder)) as server:
        # This model alone: with one that starts from a picture beside it, 161 frames are planned as
        # two segments, which stock has no like of.
        models = Path(folder) / "models"
        tiny.write(models, [MODEL], others=())
        ours = Ours(models, server, Path(folder))
        other = Stock(models, server, Path(folder))
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "overhead": lambda: overhead(ours, other, 6 * options.rounds),
            "overlap": lambda: overlap(ours, server, options.rounds),
            "stages": lambda: stages(ours, other, options.rounds),
        }
        report: dict[str, Any] = {"what": "a whole job on tiny weights, ours against stock"}
        if options.only and options.json.exists():
            report |= json.loads(options.json.read_text("utf-8"))
        for name in [options.only] if options.only else parts:
            report[name] = parts[name]() | rounds.about()
            rounds.write(options.json, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
