"""Models are in memory before the first job asks for them, and nothing else changes."""

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import handler
import pytest

from tests.builders.answers import sha256_of
from tests.conftest import QUICK, Answer
from wan_worker import job as jobs
from wan_worker import preload
from wan_worker.catalog.models import MODELS
from wan_worker.errors import ConfigInvalid
from wan_worker.pipelines.pool import Pool
from wan_worker.settings import Settings, from_env
from wan_worker.timing.progress import Control

T2V, I2V = "wan2.1-t2v-1.3b", "wan2.1-i2v-14b-480p"


def with_models(worker: jobs.Worker, *names: str) -> jobs.Worker:
    settings = replace(worker.settings, preload_models=names)
    return replace(worker, settings=settings, pool=Pool(worker.hardware), gpu=threading.Lock())


def test_what_is_named_is_in_memory_and_the_rest_is_not(worker: jobs.Worker) -> None:
    fresh = with_models(worker, T2V)
    preload.run(fresh)
    assert set(fresh.pool.loaded) == set(MODELS[T2V].component_names)


@pytest.mark.parametrize("name", list(MODELS))
def test_every_model_can_be_named(every_worker: jobs.Worker, name: str) -> None:
    fresh = with_models(every_worker, name)
    preload.run(fresh)
    assert set(fresh.pool.loaded) == set(MODELS[name].component_names)


def test_the_first_job_loads_nothing_more_and_is_the_same(
    worker: jobs.Worker, serve: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = sha256_of(serve({}))
    fresh = with_models(worker, T2V)
    preload.run(fresh)
    loads: list[str] = []
    monkeypatch.setattr(
        fresh.pool, "_load", lambda component, *_: loads.append(component.name) or 1 / 0
    )
    answer = jobs.run({"id": "first", "input": QUICK}, fresh, Control())
    assert sha256_of(answer) == plain
    assert loads == []


def test_a_model_that_is_not_there_is_a_line_in_the_log_and_the_next_is_loaded(
    worker: jobs.Worker, caplog: pytest.LogCaptureFixture
) -> None:
    fresh = with_models(worker, "wan2.2-t2v-a14b", T2V)
    with caplog.at_level(logging.INFO):
        preload.run(fresh)
    assert "preload: wan2.2-t2v-a14b: MODEL_UNAVAILABLE" in caplog.text
    assert set(fresh.pool.loaded) == set(MODELS[T2V].component_names)


def test_it_waits_for_the_gpu_as_a_job_does(worker: jobs.Worker) -> None:
    fresh = with_models(worker, T2V)
    with fresh.gpu:
        thread = preload.begin(fresh)
        assert thread is not None
        thread.join(0.3)
        assert fresh.pool.loaded == ()
    thread.join(60)
    assert fresh.pool.loaded != ()


def test_nothing_is_loaded_where_nothing_is_named(worker: jobs.Worker) -> None:
    assert preload.begin(with_models(worker)) is None


def test_the_handler_begins_it(
    models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Any] = []
    monkeypatch.setattr(preload, "begin", lambda worker: begun.append(worker.settings))
    settings = Settings(models_dir=models_dir, output_dir=tmp_path, preload_models=(T2V,))
    handler.make_handler(settings)
    assert begun == [settings]


def test_names_come_with_commas_or_spaces_and_must_be_models(models_dir: Path) -> None:
    settings = from_env({"PRELOAD_MODELS": f" {T2V}, {I2V} {T2V}", "MODELS_DIR": str(models_dir)})
    assert settings.preload_models == (T2V, I2V)
    with pytest.raises(ConfigInvalid, match="PRELOAD_MODELS"):
        jobs.make_worker(replace(settings, preload_models=("wan-9",)))
