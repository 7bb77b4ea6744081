"""Several outputs in one job: each as if made alone, all delivered, and none lost to a fault."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.builders.answers import codes, files, hashes, manifest, sha256_of
from tests.builders.faults import break_pipeline, failing_at
from tests.builders.files import path_of, read
from tests.builders.pictures import picture
from tests.conftest import QUICK, Answer, error_of
from wan_worker import job as jobs
from wan_worker.delivery import storage
from wan_worker.errors import (
    DeadlineExceeded,
    EncodeFailed,
    GenerationFailed,
    StorageFailed,
)
from wan_worker.media import artifact
from wan_worker.pipelines import generate
from wan_worker.pipelines.pool import Pool
from wan_worker.planning import plan
from wan_worker.timing.progress import Control

Serve = Callable[..., Answer]

UNREACHABLE = {
    "accessId": "id",
    "accessSecret": "secret",
    "bucketName": "bucket",
    "endpointUrl": "http://127.0.0.1:9",
}


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Denoise so many outputs in one call, as a GPU would."""

    def force(size: int) -> None:
        monkeypatch.setattr(plan, "batch_size", lambda *_: (size, "batch_size: forced"))

    return force


# --- Each output is what it would be alone ---


@pytest.mark.parametrize("with_image", [False, True], ids=["text", "image"])
def test_an_output_made_in_turn_has_the_bytes_that_it_has_alone(
    serve: Serve, with_image: bool
) -> None:
    start = {"image_url": picture()} if with_image else {}
    answer = serve({"num_outputs": 3} | start)
    assert [asset["seed"] for asset in answer["assets"]] == [7, 8, 9]
    alone = [sha256_of(serve({"seed": seed} | start)) for seed in (7, 8, 9)]
    assert hashes(answer) == alone
    assert len(set(alone)) == 3


def test_a_list_of_prompts_makes_each_prompts_own_video(serve: Serve) -> None:
    prompts = ["a red circle", "a blue square", "a red circle"]
    answer = serve({"prompt": prompts})
    assert [asset["prompt"] for asset in answer["assets"]] == prompts
    assert [asset["seed"] for asset in answer["assets"]] == [7, 8, 9]
    assert answer["metadata"]["prompt"] == "a red circle"
    alone = [sha256_of(serve({"prompt": p, "seed": 7 + i})) for i, p in enumerate(prompts)]
    assert hashes(answer) == alone


def test_several_images_are_made_too(serve: Serve) -> None:
    still = {k: v for k, v in QUICK.items() if k != "num_frames"} | {"mode": "image"}
    answer = serve(still | {"num_outputs": 2, "num_frames": 1})
    assert [asset["key"] for asset in answer["assets"]] == ["job-1/0.png", "job-1/1.png"]
    assert len(set(hashes(answer))) == 2


@pytest.mark.parametrize("with_image", [False, True], ids=["text", "image"])
def test_an_output_made_in_a_batch_has_the_content_that_it_has_alone(
    serve: Serve, together: Callable[[int], None], with_image: bool
) -> None:
    start = {"image_url": picture()} if with_image else {}
    alone = serve({"num_outputs": 3, "prompt": "a red circle"} | start, job_id="alone")
    together(2)
    batched = serve({"num_outputs": 3, "prompt": "a red circle"} | start, job_id="batched")
    assert batched["metadata"]["plan"]["batch_size"] == 2
    clips = [
        [read(path_of(asset["url"])).frames.astype(int) for asset in answer["assets"]]
        for answer in (alone, batched)
    ]
    for one, other in zip(*clips, strict=True):
        # A batch sums in another order: levels may round differently, and the codec with them.
        assert np.abs(one - other).mean() < 0.5
    assert np.abs(clips[0][0] - clips[0][1]).mean() > 2  # while other seeds are other pictures


def test_a_batch_is_denoised_in_one_call(
    serve: Serve, together: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []

    def counted(pipeline: Any, batch: plan.Plan, *rest: Any) -> Any:
        counts.append(len(batch.outputs))
        return denoise(pipeline, batch, *rest)

    denoise = generate.denoise
    monkeypatch.setattr(generate, "denoise", counted)
    serve({"num_outputs": 3})
    together(2)
    serve({"num_outputs": 3})
    assert counts == [1, 1, 1, 2, 1]


def test_a_prompt_is_encoded_once_however_many_outputs_share_it(
    worker: jobs.Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = []
    pipeline_of = Pool.pipeline

    def listening(*args: Any) -> Any:
        pipeline = pipeline_of(*args)
        encode = pipeline.encode_prompt

        def note(**named: Any) -> Any:
            if named["prompt"] is not None:  # not the pipeline's own call, with embeddings at hand
                encoded.append(named["prompt"])
            return encode(**named)

        pipeline.encode_prompt = note
        return pipeline

    monkeypatch.setattr(Pool, "pipeline", listening)
    fresh = replace(worker, pool=Pool(worker.hardware))  # which has read nothing before
    request = QUICK | {"prompt": ["a cat", "a dog", "a cat"], "negative_prompt": "a bird"}
    assert "error" not in jobs.run({"id": "e", "input": request}, fresh, Control())
    assert encoded == ["a cat", "a dog", "a bird"]


def test_a_prompt_that_is_cut_is_told_by_its_place(serve: Serve) -> None:
    answer = serve({"prompt": ["a cat", "red circle " * 300]})
    assert codes(answer) == ["PROMPT_TRUNCATED"]
    assert answer["warnings"][0]["message"].startswith("Prompt 2 has")


# --- All of them are delivered ---


def test_every_output_has_its_key_and_the_manifest_lists_them_all(
    serve: Serve, worker: jobs.Worker
) -> None:
    answer = serve({"num_outputs": 2})
    folder = worker.settings.output_dir / "job-1"
    assert [asset["key"] for asset in answer["assets"]] == ["job-1/0.mp4", "job-1/1.mp4"]
    assert files(folder) == ["0.mp4", "1.mp4", "manifest.json"]
    record = manifest(folder)
    assert record["status"] == "completed"
    assert [a["sha256"] for a in record["assets"]] == hashes(answer)
    assert [a["seed"] for a in record["assets"]] == [7, 8]


def test_the_inline_limit_is_for_all_files_together(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = serve({"num_outputs": 2, "response_format": "base64"})
    size = sum(asset["bytes"] for asset in both["assets"])
    monkeypatch.setattr(storage, "INLINE_BYTES", size)
    assert hashes(serve({"num_outputs": 2, "response_format": "base64"})) == hashes(both)
    monkeypatch.setattr(storage, "INLINE_BYTES", size - 1)
    error = error_of(serve({"num_outputs": 2, "response_format": "base64"}))
    assert error["code"] == "OUTPUT_TOO_LARGE"
    assert "2 files" in error["message"]
    assert "error" not in serve({"response_format": "base64"})


def test_progress_says_which_output(worker: jobs.Worker) -> None:
    control, messages = Control(), []
    control._notify = lambda: messages.append(control.latest.public().get("message"))
    jobs.run({"id": "p", "input": QUICK | {"num_outputs": 2}}, worker, control)
    assert "denoise, output 1 of 2: step 2 of 2" in messages
    assert "decode_encode, output 2 of 2: step 1 of 2" in messages
    assert messages[-1] is None  # the upload is of all of them


# --- A fault loses nothing that was finished ---


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (GenerationFailed("The model produced NaN"), "GENERATION_FAILED"),
        (RuntimeError("CUDA error: an illegal memory access"), "GPU_FAULT"),
        (DeadlineExceeded("The job's time was up"), "DEADLINE"),
    ],
    ids=["nan", "gpu fault", "deadline"],
)
def test_a_failure_names_its_output_and_delivers_those_before_it(
    serve: Serve,
    worker: jobs.Worker,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: str,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(generate, "denoise", failing_at(3, error, generate.denoise))
        failed = error_of(serve({"num_outputs": 4}))
    assert (failed["code"], failed["stage"]) == (code, "denoise")
    assert failed["message"].startswith("Output 3 of 4: ")
    assert failed["message"].endswith("(2 file(s) saved: see job-1/manifest.json)")
    folder = worker.settings.output_dir / "job-1"
    assert files(folder) == ["0.mp4", "1.mp4", "manifest.json"]
    record = manifest(folder)
    assert record["status"] == "failed"
    assert record["error"]["code"] == code
    assert [asset["key"] for asset in record["assets"]] == ["job-1/0.mp4", "job-1/1.mp4"]
    alone = [sha256_of(serve({"seed": seed}, job_id="alone")) for seed in (7, 8)]
    assert [asset["sha256"] for asset in record["assets"]] == alone


def test_a_file_that_fails_its_check_is_not_among_the_finished(
    serve: Serve, worker: jobs.Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = failing_at(2, EncodeFailed("does not decode"), artifact.check)
    monkeypatch.setattr(artifact, "check", broken)
    failed = error_of(serve({"num_outputs": 2}))
    assert (failed["code"], failed["stage"]) == ("ENCODE_FAILED", "check")
    assert failed["message"].startswith("Output 2 of 2: ")
    assert files(worker.settings.output_dir / "job-1") == ["0.mp4", "manifest.json"]


def test_a_failure_at_the_first_output_leaves_nothing(
    serve: Serve, worker: jobs.Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    for count, message in ((2, "Output 1 of 2: NaN"), (1, "NaN")):
        monkeypatch.setattr(generate, "denoise", break_pipeline(GenerationFailed("NaN")))
        assert error_of(serve({"num_outputs": count}))["message"] == message
    assert files(worker.settings.output_dir) == []


def test_what_was_to_go_into_the_response_is_kept_on_disk(
    serve: Serve, worker: jobs.Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = failing_at(2, GenerationFailed("NaN"), generate.denoise)
    monkeypatch.setattr(generate, "denoise", broken)
    failed = error_of(serve({"num_outputs": 2, "response_format": "base64"}))
    assert "OUTPUT_DIR" in failed["message"]
    assert files(worker.settings.output_dir / "job-1") == ["0.mp4", "manifest.json"]


@pytest.mark.usefixtures("no_retry_pauses")
def test_all_files_that_a_bucket_refuses_are_kept_with_their_manifest(worker: jobs.Worker) -> None:
    job = {"id": "kept", "input": QUICK | {"num_outputs": 2}, "s3Config": UNREACHABLE}
    failed = error_of(jobs.run(job, worker, Control()))
    assert (failed["code"], failed["stage"]) == ("STORAGE_FAILED", "upload")
    folder = worker.settings.output_dir / "kept"
    assert files(folder) == ["0.mp4", "1.mp4", "manifest.json"]
    assert manifest(folder)["error"]["code"] == "STORAGE_FAILED"
    assert "OUTPUT_DIR" in failed["message"]


def test_a_deadline_in_the_upload_does_not_cost_the_files(
    serve: Serve, worker: jobs.Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = failing_at(1, DeadlineExceeded("late"), storage.put)
    monkeypatch.setattr(storage, "put", late)
    assert error_of(serve())["code"] == "DEADLINE"
    record = manifest(worker.settings.output_dir / "job-1")
    assert (record["status"], len(record["assets"])) == ("failed", 1)


def test_where_nothing_takes_the_files_the_error_is_still_the_jobs_own(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = failing_at(2, GenerationFailed("NaN"), generate.denoise)
    with monkeypatch.context() as patch:
        patch.setattr(generate, "denoise", broken)
        patch.setattr(storage, "put", break_pipeline(StorageFailed("no")))
        assert error_of(serve({"num_outputs": 2}))["message"] == "Output 2 of 2: NaN"
    assert "error" not in serve()


@pytest.mark.parametrize("stage", ["denoise", "decode_encode", "check"])
def test_cancel_between_and_within_outputs_leaves_nothing_and_the_next_job_passes(
    worker: jobs.Worker, serve: Serve, stage: str
) -> None:
    control = Control()

    def cancel_in_the_second() -> None:
        event = control.latest
        if event.stage == stage and [part.first for part in event.parts] == [2]:
            control.cancel()

    control._notify = cancel_in_the_second
    job = {"id": "gone", "input": QUICK | {"num_outputs": 3}}
    error = error_of(jobs.run(job, worker, control))
    assert (error["code"], error["stage"]) == ("CANCELED", stage)
    assert files(worker.settings.output_dir) == []
    assert "error" not in serve()


def test_cancel_in_the_upload_takes_back_what_was_already_there(
    worker: jobs.Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = Control()

    def put(*args: Any) -> Any:
        if args[1] == 1:
            control.cancel()
            control.check()
        return original(*args)

    original = storage.put
    monkeypatch.setattr(storage, "put", put)
    job = {"id": "gone", "input": QUICK | {"num_outputs": 2}}
    assert error_of(jobs.run(job, worker, control))["code"] == "CANCELED"
    assert files(worker.settings.output_dir / "gone") == []


def test_a_job_of_several_outputs_leaves_no_trace_in_the_next(serve: Serve) -> None:
    before = sha256_of(serve())
    serve({"prompt": ["a cat", "a dog"], "seed": 99})
    assert sha256_of(serve()) == before


def test_the_disk_of_a_worker_is_not_filled_with_what_nobody_can_fetch(
    worker: jobs.Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "INLINE_BYTES", 100)
    platform = replace(worker, settings=replace(worker.settings, on_platform=True))
    error = error_of(jobs.run({"id": "x", "input": QUICK}, platform, Control()))
    assert error["code"] == "OUTPUT_TOO_LARGE"
    assert files(worker.settings.output_dir) == []
