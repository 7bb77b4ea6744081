"""Weights from a loopback Hub, through huggingface_hub's own client, on its good and bad days."""

import errno
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from safetensors.torch import load_file

from tests.conftest import QUICK
from tests.integration import repositories
from tests.integration.hub import Fault, HubServer, until
from tests.integration.repositories import I2V, T2V, TI2V_5B
from wan_worker import job
from wan_worker.catalog.components import CLIP, ENHANCER, UMT5, UMT5_TOKENIZER, VAE_2_1
from wan_worker.catalog.models import MODELS, components_of
from wan_worker.errors import DiskFull, ModelCorrupt, ModelUnavailable, WorkerError
from wan_worker.settings import Secret, Settings
from wan_worker.timing.progress import Control
from wan_worker.weights import download, safetensors_file, tiny
from wan_worker.weights import store as weights
from wan_worker.weights.hub import MAX_WAIT_SECONDS, Hub, Stopped

ROOT = Path(__file__).resolve().parents[2]
TRANSFORMER = next(c for c in T2V.components if c.role == "transformer")
CANARY = "hf_canaryCANARYcanaryCANARYcanary"

Files = dict[str, dict[str, bytes]]


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return repositories.build(tmp_path_factory.mktemp("repositories"))


@pytest.fixture
def server(files: Files) -> Iterator[HubServer]:
    with HubServer(files) as server:
        yield server


@pytest.fixture(scope="session")
def full(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with both models, downloaded once; tests that change it take a copy."""
    store = tmp_path_factory.mktemp("downloaded") / "models"
    with HubServer(files) as server:
        download.install(store, [T2V.id, I2V.id], Hub(endpoint=server.endpoint))
    return store


class Got(NamedTuple):
    lines: list[str]
    waits: list[float]


@pytest.fixture
def get(server: HubServer, tmp_path: Path) -> Callable[..., Got]:
    """Install models from the server into ``tmp_path/models``; waiting takes no time."""

    def run(*models: str, token: str | None = None, **options: Any) -> Got:
        got = Got([], [])
        hub = Hub(
            Secret(token) if token else None,
            server.endpoint,
            wait=lambda stop, seconds: got.waits.append(seconds),
        )
        chosen = list(models) or [T2V.id]
        download.install(tmp_path / "models", chosen, hub, report=got.lines.append, **options)
        return got

    return run


def command(server: HubServer, store: Path, *options: str, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "download_weights.py", "--dest", str(store), *options],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": str(store.parent), "OMP_NUM_THREADS": "1"}
        | {"HF_ENDPOINT": server.endpoint}
        | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def tensors_of(folder: Path) -> dict[str, Any]:
    return {name: t for path in folder.glob("*.safetensors") for name, t in load_file(path).items()}


def weights_sent(server: HubServer) -> dict[str, int]:
    return {path: n for path, n in server.sent.items() if path.endswith(".safetensors")}


# --- The good day ---


def test_the_loopback_hub_speaks_to_the_real_clients_own_downloader(
    server: HubServer, files: Files, tmp_path: Path
) -> None:
    from huggingface_hub import snapshot_download

    got = snapshot_download(
        T2V.repository, endpoint=server.endpoint, cache_dir=tmp_path, token=False
    )
    for path, data in files[T2V.repository].items():
        assert (Path(got) / path).read_bytes() == data


def test_a_downloaded_store_serves_a_job(full: Path, tmp_path: Path) -> None:
    worker = job.make_worker(Settings(models_dir=full, output_dir=tmp_path / "out"))
    answer = job.run({"id": "real", "input": QUICK}, worker, Control())
    assert answer["status"] == "completed", answer
    assert "weights" not in answer["metadata"]  # not the tiny set, as far as the store knows
    assert (tmp_path / "out" / "real" / "0.mp4").stat().st_size > 0


def test_each_component_is_there_once_with_where_it_came_from(
    full: Path, server: HubServer
) -> None:
    assert set(weights.installed(full)) == {T2V.id, I2V.id}
    for component in components_of([T2V.id, I2V.id]):
        manifest = json.loads((full / component.name / "manifest.json").read_text())
        assert manifest["component"] == component.name
        assert manifest["repository"] == component.repository
        assert manifest["revision"] == server.commit(component.repository)
        assert set(manifest["files"]) == {
            path.name for path in (full / component.name).iterdir() if path.name != "manifest.json"
        }
        weights.verify(full, component)
    stated = {
        c.name: json.loads((full / c.name / "manifest.json").read_text())["dtype"]
        for c in (UMT5, VAE_2_1, CLIP, TRANSFORMER, UMT5_TOKENIZER)
    }
    assert stated == {
        "umt5-xxl": "BF16",
        "wan2.1-vae": "F32",
        "clip-vit-h": "BF16",
        TRANSFORMER.name: "BF16",
        "umt5-tokenizer": None,
    }


def test_nothing_is_left_of_the_work(full: Path) -> None:
    assert {path.name for path in full.iterdir()} - {".locks"} == {
        c.name for c in components_of([T2V.id, I2V.id])
    }


def test_only_what_a_component_needs_is_downloaded(server: HubServer, get: Any) -> None:
    get(T2V.id, I2V.id)
    fetched = {path for path, size in server.sent.items() if size}
    assert not [p for p in fetched if p.endswith((".bin", ".mp4", ".md", "fp16.safetensors"))]
    assert not [p for p in fetched if p.startswith(T2V.repository) and "text_encoder" in p]
    assert [p for p in fetched if p.startswith(f"{TI2V_5B}/text_encoder/")]


def test_two_models_share_components_and_each_byte_comes_once(
    server: HubServer, files: Files, get: Any
) -> None:
    get(T2V.id)
    first = weights_sent(server)
    get(I2V.id)
    for path, size in weights_sent(server).items():
        repository, rest = path.rsplit("/", path.count("/") - 1)[0], path.split("/", 2)[2]
        assert size == len(files[repository][rest])
    second = weights_sent(server).keys() - first.keys()
    assert {path.split("/")[2] for path in second} == {"transformer", "image_encoder"}
    server.seen.clear()
    assert all("already there" in line for line in get(T2V.id, I2V.id).lines)
    assert server.seen == []  # an installed store needs no network


# --- The language model ---


def test_a_chat_models_repository_becomes_one_component(
    server: HubServer, files: Files, tmp_path: Path
) -> None:
    store = tmp_path / "models"
    download.install(store, [], Hub(endpoint=server.endpoint), others=[ENHANCER])
    weights.verify(store, ENHANCER)
    manifest = json.loads((store / ENHANCER.name / "manifest.json").read_text())
    assert (manifest["repository"], manifest["dtype"]) == (ENHANCER.repository, "BF16")
    names = set(manifest["files"])
    assert {"config.json", "tokenizer.json", "tokenizer_config.json"} < names
    assert "chat_template.jinja" in names
    assert len([name for name in names if name.endswith(".safetensors")]) > 1
    assert not [n for n in names if n.endswith((".bin", ".py", ".md")) or "consolidated" in n]
    for name in names - {"model.safetensors.index.json"}:
        assert (store / ENHANCER.name / name).read_bytes() == files[ENHANCER.repository][name]


def test_a_run_for_the_chat_model_that_was_cut_off_goes_on(
    server: HubServer, files: Files, tmp_path: Path
) -> None:
    held = files[ENHANCER.repository]
    shard = max((p for p in held if p.startswith("model-")), key=lambda path: len(held[path]))
    server.faults = [Fault(shard, cut_after=5000)]
    hub = Hub(endpoint=server.endpoint, wait=lambda stop, seconds: None)
    download.install(tmp_path, [], hub, others=[ENHANCER])
    assert server.sent[f"{ENHANCER.repository}/{shard}"] == len(held[shard])
    weights.verify(tmp_path, ENHANCER)


def test_a_chat_model_without_a_tokenizer_is_refused(files: Files, tmp_path: Path) -> None:
    bare = {path: d for path, d in files[ENHANCER.repository].items() if path != "tokenizer.json"}
    with (
        HubServer({ENHANCER.repository: bare}) as server,
        pytest.raises(ModelUnavailable, match="no tokenizer"),
    ):
        download.install(tmp_path, [], Hub(endpoint=server.endpoint), others=[ENHANCER])


@pytest.mark.parametrize("place", ["the store", "RunPod's cached models"])
def test_a_downloaded_chat_model_rewrites_a_prompt(
    full: Path, server: HubServer, tmp_path: Path, place: str
) -> None:
    store, volume = tmp_path / "models", tmp_path / "volume"
    shutil.copytree(full, store)
    if place == "the store":
        hub = command(server, store, "--enhancer")
        assert "Qwen/Qwen2.5-7B-Instruct (enhancer): installed" in hub.communicate()[0]
        assert hub.returncode == 0
    else:
        cached(server, volume, ENHANCER.repository)
    settings = Settings(models_dir=store, volume_dir=volume, output_dir=tmp_path / "out")
    asked = QUICK | {"prompt": "a blue square", "enhance_prompt": True}
    answer = job.run({"id": "q", "input": asked}, job.make_worker(settings), Control())
    assert answer["metadata"]["original_prompt"] == "a blue square", answer
    assert answer["metadata"]["prompt"].startswith("a blue square moving")


# --- Conversion ---


def test_weights_are_rounded_to_bfloat16_except_what_the_class_keeps(
    full: Path, files: Files, tmp_path: Path
) -> None:
    import torch
    from diffusers import WanTransformer3DModel

    kept = set(WanTransformer3DModel._keep_in_fp32_modules)
    original = tmp_path / "original"
    original.mkdir()
    for path, data in files[T2V.repository].items():
        if path.startswith("transformer/"):
            (original / Path(path).name).write_bytes(data)
    before, after = tensors_of(original), tensors_of(full / TRANSFORMER.name)
    assert before.keys() == after.keys()
    wide = {name for name in before if kept & set(name.split("."))}
    assert any("norm2" in name for name in wide)
    assert any("scale_shift_table" in name for name in wide)
    assert any("time_embedder" in name for name in wide)
    for name, tensor in before.items():
        expected = tensor if name in wide else tensor.to(torch.bfloat16)
        assert after[name].dtype == expected.dtype, name
        assert torch.equal(after[name], expected), name


def test_the_index_of_rounded_shards_states_their_size(full: Path) -> None:
    folder = full / TRANSFORMER.name
    (index,) = folder.glob("*.index.json")
    content = json.loads(index.read_text())
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 1
    assert set(content["weight_map"].values()) == {shard.name for shard in shards}
    assert content["metadata"]["total_size"] == sum(
        tensor.nbytes for tensor in tensors_of(folder).values()
    )


def test_the_vae_and_what_is_bfloat16_already_are_stored_as_they_came(
    full: Path, files: Files
) -> None:
    for component in (VAE_2_1, UMT5):
        for path in (full / component.name).glob("*.safetensors"):
            source = files[component.repository][f"{component.role}/{path.name}"]
            assert path.read_bytes() == source, path.name


def test_the_loader_keeps_in_float32_what_was_stored_so(full: Path) -> None:
    import torch
    from diffusers import WanTransformer3DModel

    # What load_component asks for on a GPU.
    model = WanTransformer3DModel.from_pretrained(
        full / TRANSFORMER.name, torch_dtype=torch.bfloat16, use_safetensors=True
    )
    stored = tensors_of(full / TRANSFORMER.name)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == stored[name].dtype, name
        assert torch.equal(parameter, stored[name]), name


# --- The bad days ---


def a_shard(files: Files) -> str:
    """A file large enough to be cut."""
    shards = {p: len(d) for p, d in files[T2V.repository].items() if p.startswith("transformer/")}
    return max(shards, key=lambda path: shards[path])


def test_a_cut_connection_is_taken_up_where_it_broke(
    server: HubServer, files: Files, get: Any
) -> None:
    shard = a_shard(files)
    server.faults = [Fault(shard, cut_after=5000), Fault(shard, cut_after=7000)]
    got = get()
    assert len(got.waits) == 2
    ranges = [seen.range for seen in server.seen if seen.path.endswith(shard)]
    assert ranges[-2:] == ["bytes=12000-", "bytes=12000-"]  # asked of the Hub, then of the network
    assert server.sent[f"{T2V.repository}/{shard}"] == len(files[T2V.repository][shard])


def test_a_server_that_ignores_the_range_starts_the_file_over(
    server: HubServer, files: Files, get: Any, tmp_path: Path
) -> None:
    shard = a_shard(files)
    server.faults = [Fault(shard, cut_after=5000), Fault(shard, ignore_range=True)]
    get()
    weights.verify(tmp_path / "models", TRANSFORMER)


def test_a_run_that_failed_is_taken_up_by_the_next(
    server: HubServer, files: Files, get: Any, tmp_path: Path
) -> None:
    shard = a_shard(files)
    server.faults = [Fault(shard, cut_after=5000), Fault(shard, status=500, times=9)]
    with pytest.raises(ModelUnavailable, match="run the same command again") as caught:
        get()
    assert caught.value.retryable
    server.faults = []
    partial = tmp_path / "models" / f"{TRANSFORMER.name}.partial"
    done = {path.name for path in partial.glob("*.safetensors")}
    assert done
    before = dict(server.sent)
    get()
    assert server.sent[f"{T2V.repository}/{shard}"] == len(files[T2V.repository][shard])
    for name in done:
        path = f"{T2V.repository}/transformer/{name}"
        assert server.sent[path] == before[path], path


def test_a_run_at_another_commit_starts_the_component_over(
    server: HubServer, files: Files, tmp_path: Path
) -> None:
    partial = tmp_path / "models" / f"{VAE_2_1.name}.partial"
    arriving = tmp_path / "models" / f"{VAE_2_1.name}.download"
    for folder in (partial, arriving):
        folder.mkdir(parents=True)
        (folder / "diffusion_pytorch_model.safetensors").write_bytes(b"of another commit")
    (arriving / download.STATE).write_text('{"repository": "x", "revision": "old"}')
    download.install(tmp_path / "models", [T2V.id], Hub(endpoint=server.endpoint))
    weights.verify(tmp_path / "models", VAE_2_1)
    assert not partial.exists()
    assert not arriving.exists()


def test_a_file_that_arrives_damaged_is_fetched_again(
    server: HubServer, files: Files, get: Any, tmp_path: Path
) -> None:
    shard = a_shard(files)
    server.faults = [Fault(shard, flip=True)]
    get()
    assert server.sent[f"{T2V.repository}/{shard}"] == 2 * len(files[T2V.repository][shard])
    weights.verify(tmp_path / "models", TRANSFORMER)


@pytest.mark.parametrize("path", ["vae/config.json", "vae/diffusion_pytorch_model.safetensors"])
def test_a_file_that_is_damaged_every_time_is_refused(
    server: HubServer, get: Any, tmp_path: Path, path: str
) -> None:
    server.faults = [Fault(path, flip=True, times=99)]
    with pytest.raises(ModelCorrupt, match=path):
        get()
    assert weights.read_manifest(tmp_path / "models" / VAE_2_1.name) is None


def test_a_file_that_is_no_safetensors_is_refused(files: Files, tmp_path: Path) -> None:
    bad = {name: dict(held) for name, held in files.items()}
    bad[T2V.repository]["vae/diffusion_pytorch_model.safetensors"] = b"\x80\x04." + b"p" * 9000
    with HubServer(bad) as server, pytest.raises(ModelCorrupt, match="no whole safetensors"):
        download.install(tmp_path / "models", [T2V.id], Hub(endpoint=server.endpoint))


def test_a_repository_with_pickles_only_is_refused(files: Files, tmp_path: Path) -> None:
    bad = {name: dict(held) for name, held in files.items()}
    held = bad[T2V.repository]
    del held["vae/diffusion_pytorch_model.safetensors"]
    held["vae/diffusion_pytorch_model.bin"] = b"\x80\x04."
    with HubServer(bad) as server, pytest.raises(ModelUnavailable, match="no safetensors"):
        download.install(tmp_path / "models", [T2V.id], Hub(endpoint=server.endpoint))


def test_an_index_that_points_elsewhere_is_refused(files: Files, tmp_path: Path) -> None:
    bad = {name: dict(held) for name, held in files.items()}
    (index,) = [p for p in bad[T2V.repository] if p.startswith("transformer/") and "index" in p]
    evil = {"metadata": {}, "weight_map": {"a": "../../umt5-xxl/model.safetensors"}}
    bad[T2V.repository][index] = json.dumps(evil).encode()
    with HubServer(bad) as server, pytest.raises(ModelCorrupt, match="no safetensors beside it"):
        download.install(tmp_path / "models", [T2V.id], Hub(endpoint=server.endpoint))


@pytest.mark.parametrize("given", [None, CANARY])
def test_a_refused_repository_says_how_to_give_a_token_and_not_which(
    server: HubServer, get: Any, given: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.token = "hf_the_right_one"
    with pytest.raises(ModelUnavailable, match="HF_TOKEN") as caught:
        get(token=given)
    assert not caught.value.retryable
    assert CANARY not in caught.value.message + caplog.text


def test_the_token_goes_to_the_hub_and_not_to_the_content_network(
    server: HubServer, get: Any
) -> None:
    server.token = CANARY
    get(token=CANARY)
    content = [seen for seen in server.seen if seen.host.startswith("localhost")]
    assert content
    assert {seen.authorization for seen in content} == {None}


@pytest.mark.parametrize("where", ["api/", "transformer/"])
def test_a_busy_hub_is_waited_for_as_long_as_it_asks(
    server: HubServer, get: Any, where: str
) -> None:
    server.faults = [Fault(where, status=429, headers={"Retry-After": "17"})]
    assert get().waits == [17.0]


def test_a_hub_that_asks_for_too_long_a_wait_is_not_waited_for(server: HubServer, get: Any) -> None:
    headers = {"Retry-After": str(int(MAX_WAIT_SECONDS) + 1)}
    server.faults = [Fault("vae/", status=429, headers=headers, times=99)]
    with pytest.raises(ModelUnavailable, match="429") as caught:
        get()
    assert caught.value.retryable


def test_a_hub_that_can_not_be_reached_is_said_so(tmp_path: Path) -> None:
    waits: list[float] = []
    hub = Hub(endpoint="http://127.0.0.1:9", wait=lambda stop, seconds: waits.append(seconds))
    with pytest.raises(ModelUnavailable, match="installed work without it") as caught:
        download.install(tmp_path / "models", [T2V.id], hub)
    assert caught.value.retryable
    assert 1 <= len(waits) <= 10


@pytest.mark.parametrize("what", ["repository", "revision"])
def test_what_the_hub_does_not_have_is_said_so(server: HubServer, get: Any, what: str) -> None:
    if what == "repository":
        del server.repositories[TI2V_5B]
        with pytest.raises(ModelUnavailable, match=TI2V_5B):
            get()
    else:
        with pytest.raises(ModelUnavailable, match="revision"):
            get(revisions={"*": "v9"})


def test_a_revision_that_is_asked_for_replaces_another(
    server: HubServer, full: Path, tmp_path: Path, get: Any
) -> None:
    shutil.copytree(full, tmp_path / "models")
    asked = {T2V.repository: server.commit(T2V.repository)}
    assert all("already there" in line for line in get(revisions=asked).lines)
    held = server.repositories[T2V.repository]
    config = held["vae/config.json"].data.replace(b"{", b"{ ", 1)
    held["vae/config.json"] = type(held["vae/config.json"])(config)
    asked = {T2V.repository: server.commit(T2V.repository)}
    get(revisions=asked)
    manifest = json.loads((tmp_path / "models" / VAE_2_1.name / "manifest.json").read_text())
    assert manifest["revision"] == asked[T2V.repository]


def test_real_weights_take_the_place_of_tiny_ones(get: Any, tmp_path: Path) -> None:
    tiny.write(tmp_path / "models", [T2V.id])
    get()
    assert not weights.installed(tmp_path / "models")[T2V.id].tiny


def test_a_download_that_is_stopped_keeps_what_has_arrived(
    server: HubServer, files: Files, tmp_path: Path
) -> None:
    shard, stop = a_shard(files), threading.Event()
    server.faults = [Fault(shard, cut_after=5000)]
    hub = Hub(endpoint=server.endpoint, wait=lambda event, seconds: event.set())
    repository = hub.repository(T2V.repository)
    file = repository.folder("transformer")[Path(shard).name]
    with pytest.raises(Stopped):
        hub.get(repository, file, tmp_path / "shard", stop)
    assert (tmp_path / "shard").read_bytes() == files[T2V.repository][shard][:5000]


# --- Disk ---


def test_a_disk_that_is_too_small_is_found_out_before_the_first_byte(
    server: HubServer, get: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    small = type(usage)(usage.total, usage.total - 1000, 1000)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: small)
    with pytest.raises(DiskFull, match="free disk"):
        get()
    assert not server.sent


def test_a_disk_that_fills_up_leaves_nothing_half_there(
    server: HubServer, get: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = safetensors_file.to_bfloat16

    def full_disk(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path))

    monkeypatch.setattr(safetensors_file, "to_bfloat16", full_disk)
    with pytest.raises(DiskFull) as caught:
        get()
    assert str(tmp_path) not in caught.value.message
    left = {path.name for path in (tmp_path / "models").iterdir()}
    assert not [name for name in left if name.endswith((".partial", ".download"))]
    assert VAE_2_1.name in left  # what was whole stays
    monkeypatch.setattr(safetensors_file, "to_bfloat16", real)
    get()
    weights.verify(tmp_path / "models", TRANSFORMER)


def test_a_store_that_can_not_be_written_is_said_so(get: Any, tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file")
    with pytest.raises(WorkerError, match="can't be written"):
        get()


# --- Other processes ---


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


def test_two_processes_on_one_volume_take_turns(
    server: HubServer, files: Files, tmp_path: Path
) -> None:
    store = tmp_path / "models"
    pair = [command(server, store, "--models", T2V.id) for _ in range(2)]
    said = [finish(process) for process in pair]
    assert all(f"{T2V.id}: installed" in out for out in said)
    for path, size in weights_sent(server).items():
        assert size == len(files[path.rsplit("/", 2)[0]][path.split("/", 2)[2]]), path
    for component in T2V.components:
        weights.verify(store, component)


def test_a_killed_download_is_completed_by_the_next(
    server: HubServer, files: Files, tmp_path: Path
) -> None:
    shard, store = a_shard(files), tmp_path / "models"
    server.faults = [Fault(shard, stall=True)]
    process = command(server, store, "--models", T2V.id)
    assert server.stalled.wait(120)
    half = len(files[T2V.repository][shard]) // 2
    arriving = store / f"{TRANSFORMER.name}.download" / Path(shard).name
    until(lambda: arriving.exists())
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    assert T2V.id not in weights.installed(store)
    kept = arriving.stat().st_size
    download.install(store, [T2V.id], Hub(endpoint=server.endpoint))
    for component in T2V.components:
        weights.verify(store, component)
    sent = server.sent[f"{T2V.repository}/{shard}"]
    assert sent == len(files[T2V.repository][shard]) + half - kept
    assert not [p.name for p in store.iterdir() if p.name.endswith((".partial", ".download"))]


def test_the_command_line_reports_and_never_shows_the_token(
    server: HubServer, tmp_path: Path
) -> None:
    server.token = "hf_the_right_one"
    process = command(server, tmp_path / "models", "--models", T2V.id, HF_TOKEN=CANARY)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.startswith("MODEL_UNAVAILABLE: ")
    assert "HF_TOKEN" in err
    assert "Traceback" not in err
    assert CANARY not in out + err


def test_offline_an_installed_store_is_enough(server: HubServer, full: Path) -> None:
    out = finish(command(server, full, "--models", T2V.id, HF_HUB_OFFLINE="1"))
    assert f"{T2V.id}: installed" in out
    missing = command(server, full.parent / "none", "--models", T2V.id, HF_HUB_OFFLINE="1")
    _, err = missing.communicate(timeout=60)
    assert missing.returncode == 1
    assert "MODEL_UNAVAILABLE" in err
    assert server.seen == []


# --- Where weights are found ---


def cached(server: HubServer, volume: Path, *repositories: str) -> None:
    """What RunPod's cached models look like: the real client's cache on the volume."""
    from huggingface_hub import snapshot_download

    for repository in repositories:
        snapshot_download(
            repository,
            endpoint=server.endpoint,
            cache_dir=volume / weights.VOLUME_CACHE,
            token=False,
            ignore_patterns=["*.bin"],
        )


def where(models_dir: Path, volume: Path) -> Mapping[str, str]:
    return dict(line.split(": ", 1) for line in weights.explain(models_dir, volume))


def test_cached_models_are_used_in_place_and_lend_what_models_share(
    server: HubServer, full: Path, tmp_path: Path
) -> None:
    volume = tmp_path / "volume"
    cached(server, volume, T2V.repository)
    found = weights.installed(tmp_path / "none", volume)
    assert set(found) == {T2V.id}
    snapshot = volume / weights.VOLUME_CACHE / f"models--{T2V.repository.replace('/', '--')}"
    assert all(folder.is_relative_to(snapshot) for folder in found[T2V.id].folders.values())
    # Its float32 weights are counted as a GPU holds them; the store keeps a few more in float32.
    stored = weights.installed(full)[T2V.id].component_bytes
    for name, size in found[T2V.id].component_bytes.items():
        assert size == pytest.approx(stored[name], rel=0.25), name
    before = len(list(volume.rglob("*")))
    worker = job.make_worker(
        Settings(models_dir=tmp_path / "none", volume_dir=volume, output_dir=tmp_path / "out")
    )
    assert job.run({"id": "a", "input": QUICK}, worker, Control())["status"] == "completed"
    assert len(list(volume.rglob("*"))) == before

    # Another model's snapshot without a text encoder of its own: the first one's serves it.
    cached(server, volume, I2V.repository)
    (other,) = (volume / weights.VOLUME_CACHE).glob("models--*I2V*/snapshots/*")
    shutil.rmtree(other / "text_encoder")
    assert set(weights.installed(tmp_path / "none", volume)) == {T2V.id, I2V.id}


def test_the_places_are_searched_in_order_and_the_log_says_which(
    server: HubServer, full: Path, tmp_path: Path
) -> None:
    volume, baked = tmp_path / "volume", tmp_path / "baked"
    cached(server, volume, T2V.repository)
    assert where(baked, volume)[TRANSFORMER.name].startswith(
        f"in the cached model {T2V.repository}"
    )
    shutil.copytree(full / TRANSFORMER.name, volume / "models" / TRANSFORMER.name)
    assert where(baked, volume)[TRANSFORMER.name] == "in the network volume"
    shutil.copytree(full / TRANSFORMER.name, baked / TRANSFORMER.name)
    assert where(baked, volume)[TRANSFORMER.name] == "in MODELS_DIR"
    assert where(baked, volume)[CLIP.name] == "not installed"


@pytest.mark.parametrize("damage", ["short", "missing", "no config", "no index"])
def test_a_cached_model_that_is_not_whole_does_not_count(
    server: HubServer, tmp_path: Path, damage: str
) -> None:
    cached(server, tmp_path, T2V.repository)
    (snapshot,) = (tmp_path / weights.VOLUME_CACHE).glob("models--*/snapshots/*")
    folder = snapshot / "transformer"
    shard = sorted(folder.glob("*.safetensors"))[0]
    if damage == "short":
        data = shard.read_bytes()
        shard.unlink()
        shard.write_bytes(data[:-1])
    elif damage == "missing":
        shard.unlink()
    elif damage == "no config":
        (folder / "config.json").unlink()
    else:
        next(folder.glob("*.index.json")).unlink()
    assert weights.installed(tmp_path / "none", tmp_path) == {}


# --- One file of a repository ---


TURBO_PART = MODELS["wan2.2-t2v-a14b"].turbo[0].component


def test_turbos_weights_are_one_file_of_a_repository_that_holds_many(tmp_path: Path) -> None:
    tiny.write(tmp_path / "tiny", [TURBO_PART.name])
    made = (tmp_path / "tiny" / TURBO_PART.name / TURBO_PART.file).read_bytes()
    others = {"README.md": b"x", "model.safetensors": made, "config.json": b"{}"}
    with HubServer({TURBO_PART.repository: {TURBO_PART.file: made} | others}) as server:
        store, hub = tmp_path / "models", Hub(endpoint=server.endpoint)
        download.install(store, [TURBO_PART.name], hub)
        assert set(weights_sent(server)) == {f"{TURBO_PART.repository}/{TURBO_PART.file}"}
    folder = store / TURBO_PART.name
    assert {path.name for path in folder.iterdir()} == {TURBO_PART.file, weights.MANIFEST}
    assert (folder / TURBO_PART.file).read_bytes() == made
    weights.verify(store, TURBO_PART)
    here = weights.extras(store)[TURBO_PART.name]
    assert (here.tiny, here.folders) == (False, {TURBO_PART.name: folder})


def test_a_file_that_a_repository_no_longer_has_is_named(tmp_path: Path) -> None:
    with (
        HubServer({TURBO_PART.repository: {"other.safetensors": b"x"}}) as server,
        pytest.raises(ModelUnavailable, match=TURBO_PART.file),
    ):
        download.install(tmp_path, [TURBO_PART.name], Hub(endpoint=server.endpoint))
