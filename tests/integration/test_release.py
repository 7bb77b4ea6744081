"""Weights that are published as one file, from a loopback server, on its good and bad days."""

import functools
import hashlib
import json
import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training import upscaler

from tests.conftest import QUICK
from tests.integration.hub import Fault, File, HubServer
from wan_worker import job
from wan_worker.catalog import models
from wan_worker.catalog.components import UPSCALER, Component, Release
from wan_worker.catalog.models import EXTRAS
from wan_worker.errors import ModelCorrupt, ModelUnavailable
from wan_worker.settings import Secret, Settings
from wan_worker.timing.progress import Control
from wan_worker.weights import download, real_esrgan, tiny
from wan_worker.weights import store as weights
from wan_worker.weights.hub import Hub
from wan_worker.weights.real_esrgan import Shape

FILE = "RealESRGAN_x4plus.pth"
SMALL = Shape(num_feat=8, num_block=2, num_grow_ch=4)


def checkpoint(path: Path, content: Any) -> bytes:
    torch.save(content, path)
    return path.read_bytes()


class Canary:
    """A pickle that would run code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    return upscaler.make(SMALL)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The release holds a network of another size."""
    monkeypatch.setattr(real_esrgan, "convert", functools.partial(real_esrgan.convert, shape=SMALL))


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes], HubServer]]:
    """Serve a file as the upscaler's release, with its size and hash in the catalog."""
    with HubServer({}) as server:

        def serve(data: bytes) -> HubServer:
            server.repositories = {UPSCALER.repository: {FILE: File(data)}}
            release = Release(
                url=f"http://localhost:{server.port}/{UPSCALER.repository}/{FILE}",
                tag="v0.1.0",
                sha256=hashlib.sha256(data).hexdigest(),
            )
            component = replace(UPSCALER, hub_bytes=len(data), release=release)
            extras = MappingProxyType({**EXTRAS, component.name: component})
            monkeypatch.setattr(models, "EXTRAS", extras)
            return server

        yield serve


def install(store: Path, token: str | None = None) -> list[str]:
    lines: list[str] = []
    hub = Hub(Secret(token) if token else None, wait=lambda stop, seconds: None)
    download.install(store, [UPSCALER.name], hub, report=lines.append)
    return lines


def component() -> Component:
    return models.EXTRAS[UPSCALER.name]


@pytest.mark.usefixtures("small")
def test_a_released_pickle_becomes_safetensors_with_its_source(
    publish: Any, tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    server = publish(checkpoint(tmp_path / "x.pth", {"params_ema": tensors, "params": {}}))
    store = tmp_path / "models"
    install(store, token="hf_canary")
    folder = store / UPSCALER.name
    assert {path.name for path in folder.iterdir()} == {
        *("config.json", "model.safetensors", "manifest.json"),
    }
    stored = load_file(folder / "model.safetensors")
    assert all(torch.equal(stored[name], tensors[name]) for name in stored | tensors)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["repository"], manifest["revision"]) == ("xinntao/Real-ESRGAN", "v0.1.0")
    weights.verify(store, component())
    assert not weights.extras(store)[UPSCALER.name].tiny
    assert {path.name for path in store.iterdir()} == {UPSCALER.name, ".locks"}
    # The Hub's token is the Hub's, and an installed file needs no network.
    assert {seen.authorization for seen in server.seen} == {None}
    server.seen.clear()
    assert install(store) == [f"{UPSCALER.name}: already there"]
    assert server.seen == []


@pytest.mark.usefixtures("small")
def test_a_release_that_is_cut_off_goes_on_where_it_stopped(
    publish: Any, tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    data = checkpoint(tmp_path / "x.pth", {"params_ema": tensors})
    server = publish(data)
    server.faults = [Fault(FILE, cut_after=len(data) // 3, times=2), Fault(FILE, status=503)]
    install(tmp_path / "models")
    assert server.sent[f"{UPSCALER.repository}/{FILE}"] == len(data)
    ranges = [seen.range for seen in server.seen]
    assert ranges[0] is None
    assert None not in ranges[1:]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("stored", [b"another file", b""], ids=["other bytes", "nothing"])
def test_a_file_that_is_not_the_pinned_one_is_never_opened(
    publish: Any,
    tensors: dict[str, torch.Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stored: bytes,
) -> None:
    data = checkpoint(tmp_path / "x.pth", {"params_ema": tensors})
    server = publish(data)
    other = (stored * len(data))[: len(data) + 5_000_000]
    server.repositories = {UPSCALER.repository: {FILE: File(other)}}
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was opened"))
    with pytest.raises((ModelCorrupt, ModelUnavailable)):
        install(tmp_path / "models")
    assert weights.extras(tmp_path / "models") == {}
    left = [p.stat().st_size for p in (tmp_path / "models").rglob(f"{FILE}*")]
    assert max(left, default=0) <= len(data)  # a server that does not stop fills no disk


def test_a_pickle_that_would_run_code_is_refused_even_with_the_right_hash(
    publish: Any, tmp_path: Path
) -> None:
    canary = tmp_path / "it-ran"
    publish(checkpoint(tmp_path / "x.pth", {"params_ema": {"conv_first.weight": Canary(canary)}}))
    with pytest.raises(ModelCorrupt, match=r"real-esrgan-x4plus.*no checkpoint of plain tensors"):
        install(tmp_path / "models")
    assert not canary.exists()
    assert weights.extras(tmp_path / "models") == {}
    pickle.loads(pickle.dumps(Canary(canary)))
    assert canary.exists()  # and it would have


@pytest.mark.parametrize(
    "content",
    [
        {"params": {}},
        {"params_ema": {}},
        [1, 2],
        {"params_ema": {"conv_first.weight": torch.zeros(1)}},
    ],
    ids=["no params_ema", "no tensors", "a list", "another network"],
)
def test_another_checkpoint_is_refused(publish: Any, tmp_path: Path, content: Any) -> None:
    publish(checkpoint(tmp_path / "x.pth", content))
    with pytest.raises(ModelCorrupt, match="real-esrgan-x4plus"):
        install(tmp_path / "models")
    assert weights.extras(tmp_path / "models") == {}


@pytest.mark.parametrize("status", [403, 404])
def test_a_release_that_is_gone_is_told_without_the_hubs_advice(
    publish: Any, tmp_path: Path, status: int
) -> None:
    server = publish(b"x" * 99)
    server.faults = [Fault(FILE, status=status, times=9)]
    with pytest.raises(ModelUnavailable) as caught:
        install(tmp_path / "models")
    assert f"({status})" in caught.value.message
    assert "HF_TOKEN" not in caught.value.message


def test_the_catalogs_release_is_https_and_pinned() -> None:
    release = UPSCALER.release
    assert release is not None
    assert release.url.startswith("https://github.com/xinntao/Real-ESRGAN/releases/download/")
    assert f"/{release.tag}/" in release.url
    assert len(bytes.fromhex(release.sha256)) == 32


def test_the_network_at_its_full_size_serves_a_job(publish: Any, tmp_path: Path) -> None:
    publish(checkpoint(tmp_path / "x.pth", {"params_ema": upscaler.make(Shape())}))
    store = tmp_path / "models"
    tiny.write(store, ["wan2.1-t2v-1.3b"])
    install(store)
    worker = job.make_worker(Settings(models_dir=store, output_dir=tmp_path / "out"))
    request = QUICK | {"mode": "image", "num_frames": 1, "size": "32x32", "upscale": 4}
    answer = job.run({"id": "full", "input": request}, worker, Control())
    assert answer["status"] == "completed", answer
    assert (answer["assets"][0]["width"], answer["assets"][0]["height"]) == (128, 128)
    assert (store / UPSCALER.name / real_esrgan.WEIGHTS).stat().st_size > UPSCALER.stored_bytes
