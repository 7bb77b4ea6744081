"""Files of LoRAs: found by name, fetched by URL, safetensors only, kept within bounds."""

import errno
import fcntl
import hashlib
import json
import logging
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.builders.answers import sha256_of
from tests.conftest import QUICK, Answer, error_of
from wan_worker import job as jobs
from wan_worker.errors import (
    Canceled,
    DiskFull,
    FetchFailed,
    InvalidRequest,
    Unsupported,
    UrlBlocked,
    WorkerError,
)
from wan_worker.inputs import net
from wan_worker.inputs.dialing import Policy
from wan_worker.request import loras as adapters
from wan_worker.request.loras import Lora
from wan_worker.settings import Settings
from wan_worker.timing.progress import Control
from wan_worker.weights import lora_files

Serve = Callable[..., Answer]

CYAN = Path(__file__).resolve().parents[2] / "weights" / "tiny-loras" / "cyan.safetensors"
T2V = {"model": "wan2.1-t2v-1.3b"}
LOCAL = Policy(allow_private=True)
SECRET = "Kq7SignedQueryValue"


def safetensors(names: dict[str, int], *, prefix: bytes = b"") -> bytes:
    """A file of float32 vectors; ``names`` are their lengths."""
    header, offset = {}, 0
    for name, length in names.items():
        header[name] = {
            "dtype": "F32",
            "shape": [length],
            "data_offsets": [offset, offset + 4 * length],
        }
        offset += 4 * length
    encoded = prefix + json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + bytes(offset)


def lora_bytes(length: int = 4) -> bytes:
    return safetensors({"transformer.proj_out.lora_A.weight": length})


class Server:
    """Answers GET with ``files[path]``, bytes or a function of the handler; counts requests."""

    def __init__(self) -> None:
        self.files: dict[str, bytes | Callable[[BaseHTTPRequestHandler], None]] = {}
        self.asked: list[str] = []

    def url(self, path: str = "/a.safetensors", query: str = "") -> str:
        return f"http://127.0.0.1:{self.port}{path}{query}"

    port = 0


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            made.asked.append(path)
            answer = made.files.get(path)
            if callable(answer):
                answer(self)
                return
            self.send_response(404 if answer is None else 200)
            self.send_header("Content-Length", str(len(answer or b"")))
            self.end_headers()
            self.wfile.write(answer or b"")

        def log_message(self, *_: Any) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.port = listening.server_address[1]
    served = {"poll_interval": 0.02}  # what its end waits for
    thread = threading.Thread(target=listening.serve_forever, kwargs=served, daemon=True)
    thread.start()
    yield made
    listening.shutdown()
    listening.server_close()
    thread.join()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "models" / "loras").mkdir(parents=True)
    return Settings(
        models_dir=tmp_path / "models",
        volume_dir=tmp_path / "volume",
        lora_cache_dir=tmp_path / "cache",
    )


def put(settings: Settings, content: bytes, name: str = "a.safetensors") -> Path:
    path = settings.models_dir / "loras" / name
    path.write_bytes(content)
    return path


def cached(settings: Settings) -> list[str]:
    """Names in the cache, its lock left out."""
    if not settings.lora_cache_dir.is_dir():
        return []
    return sorted(p.name for p in settings.lora_cache_dir.iterdir() if p.name != ".lock")


@contextmanager
def fetched(
    settings: Settings, *sources: str, control: Control | None = None
) -> Iterator[tuple[lora_files.LoraFile, ...]]:
    loras = tuple(Lora(source, field=f"/input/loras/{i}") for i, source in enumerate(sources))
    with lora_files.fetched(loras, settings, LOCAL, control or Control()) as files:
        yield files


def refusal(settings: Settings, source: str) -> WorkerError:
    with pytest.raises(WorkerError) as caught, fetched(settings, source):
        pytest.fail("it was taken")
    return caught.value


# Names.


@pytest.mark.parametrize("name", ["a", "a.safetensors"])
def test_a_name_is_found_with_and_without_its_suffix(settings: Settings, name: str) -> None:
    path = put(settings, lora_bytes())
    loras = adapters.parse([{"source": name}])
    lora_files.check(loras, settings, LOCAL)
    with lora_files.fetched(loras, settings, LOCAL, Control()) as (file,):
        assert file.path == path
        assert (file.lora.name, file.sha256) == ("a", None)


def test_a_name_is_looked_for_on_the_volume_too(settings: Settings) -> None:
    folder = settings.volume_dir / "models" / "loras"
    folder.mkdir(parents=True)
    (folder / "b.safetensors").write_bytes(lora_bytes())
    with fetched(settings, "b") as (file,):
        assert file.path == folder / "b.safetensors"


@pytest.mark.parametrize(
    "source",
    [
        *("../a", "..", "/etc/passwd", "a/b", "a\\b", "%2e%2e%2fa", "a%00", ".hidden", "~a", " a"),
        *("a\n", "a\u2028", "ä", "a:b", "file:a", "x" * 201, "C:\\a", "a?b", "-rf"),
    ],
)
def test_what_is_no_plain_name_is_refused_before_any_work(serve: Serve, source: str) -> None:
    error = error_of(serve({"loras": [{"source": "cyan"}, {"source": source}]}))
    assert (error["code"], error["stage"]) == ("INVALID_REQUEST", "plan")
    assert error["field"].startswith("/input/loras/1/source")


def test_an_unknown_name_lists_what_is_here(settings: Settings) -> None:
    put(settings, lora_bytes(), "night.safetensors")
    put(settings, lora_bytes(), "winter.ckpt")
    error = refusal(settings, "nacht")
    assert isinstance(error, InvalidRequest)
    assert "night" in error.message
    assert "winter" not in error.message
    assert "nacht" not in error.message


@pytest.mark.parametrize(
    "entry",
    [
        *({}, {"source": ""}, {"source": 7}, {"source": "a", "scale": 4.1}, "a"),
        *({"source": "a", "scale": -4.1}, {"source": "a", "scale": "1"}, {"source": "a", "w": 1}),
        *({"source": "a", "stage": "middle"}, {"source": "a", "prompt": "a known field's name"}),
        {"source": "a", "scale": float("nan")},
    ],
)
def test_an_entry_that_breaks_the_schema_is_refused(serve: Serve, entry: Any) -> None:
    error = error_of(serve({"loras": [entry]}))
    assert error["code"] == "INVALID_REQUEST"
    assert error["field"].startswith("/input/loras/0")


@pytest.mark.parametrize("count", [0, 5])
def test_a_job_takes_one_to_four_loras(serve: Serve, count: int) -> None:
    error = error_of(serve({"loras": [{"source": "cyan"}] * count}))
    assert (error["code"], error["field"]) == ("INVALID_REQUEST", "/input/loras")


# What is in a file.


class Trap:
    """Unpickling it would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


WRONG = {
    "an html page": b"<!doctype html><html>sign in</html>" * 40,
    "nothing": b"",
    "cut short": lora_bytes(400)[:-4],
    "too long": lora_bytes() + b"x",
    "a huge header": safetensors({"a.lora_A.weight": 1}, prefix=b" " * (8 * 1024**2)),
    "a header longer than the file": (2**40).to_bytes(8, "little") + b"{}" * 50,
    "nested deeply": (200_000).to_bytes(8, "little") + b"[" * 200_000,
    "no layers of a LoRA": safetensors({"blocks.0.attn1.to_q.weight": 8}),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("way", ["name", "url"])
def test_what_is_no_lora_in_safetensors_is_refused(
    settings: Settings, server: Server, case: str, way: str
) -> None:
    put(settings, WRONG[case])
    server.files["/a.safetensors"] = WRONG[case]
    if way == "name":
        with pytest.raises(Unsupported) as caught:
            lora_files.check((Lora("a"),), settings, LOCAL)
        error: WorkerError = caught.value
    else:
        error = refusal(settings, server.url())
    assert (error.code, error.field) == ("UNSUPPORTED", "/input/loras/0/source")
    assert cached(settings) == []


def test_a_pickle_is_refused_unopened(
    worker: jobs.Worker, settings: Settings, server: Server, tmp_path: Path
) -> None:
    sprung = tmp_path / "sprung"
    server.files["/a.safetensors"] = pickle.dumps({"lora": Trap(sprung)})
    put(settings, pickle.dumps({"lora": Trap(sprung)}))
    for source in ("a", server.url()):
        error = refusal(settings, source) if "://" in source else None
        if error is None:
            with pytest.raises(Unsupported) as caught:
                lora_files.check((Lora(source),), settings, LOCAL)
            error = caught.value
        assert "pickled files" in error.message
    assert not sprung.exists()


def test_a_bad_file_costs_no_model_and_no_gpu(
    serve: Serve, worker: jobs.Worker, models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> Any:
        pytest.fail("a model was loaded")

    (models_dir / "loras" / "broken.safetensors").write_bytes(b"not one")
    monkeypatch.setattr(worker.pool, "pipeline", never)
    with worker.gpu:  # a job that wanted it would wait for ever
        error = error_of(serve(T2V | {"loras": [{"source": "broken"}]}))
    assert (error["code"], error["stage"]) == ("UNSUPPORTED", "plan")


# URLs.


def test_a_url_is_downloaded_once_and_reported_without_its_secret(
    worker: jobs.Worker, server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.files["/cyan.safetensors"] = CYAN.read_bytes()
    worker = replace(worker, settings=replace(worker.settings, lora_cache_dir=tmp_path / "cache"))
    url = server.url("/cyan.safetensors", f"?token={SECRET}")
    request = QUICK | T2V | {"loras": [{"source": url, "scale": 0.5}]}
    first = jobs.run({"id": "u", "input": request}, worker, Control())
    second = jobs.run({"id": "u", "input": request}, worker, Control())
    by_name = QUICK | T2V | {"loras": [{"source": "cyan", "scale": 0.5}]}
    named = jobs.run({"id": "u", "input": by_name}, worker, Control())
    assert sha256_of(first) == sha256_of(second) == sha256_of(named)
    assert server.asked == ["/cyan.safetensors"]
    (told,) = first["metadata"]["plan"]["loras"]
    assert told["name"] == "127.0.0.1"
    assert told["sha256"] == hashlib.sha256(CYAN.read_bytes()).hexdigest()
    everything = json.dumps([first, second]) + caplog.text + "".join(cached(worker.settings))
    assert SECRET not in everything
    assert "token" not in everything


def test_plain_http_is_refused_before_any_work(settings: Settings) -> None:
    guarded = Policy(resolve=lambda _: ("93.184.215.14",), proxies=dict)
    loras = (Lora("http://example.com/a.safetensors"),)
    with pytest.raises(UrlBlocked, match="https") as caught:
        lora_files.check(loras, settings, guarded)
    assert caught.value.field == "/input/loras/0/source"
    lora_files.check((Lora("https://example.com/a.safetensors"),), settings, guarded)


@pytest.mark.parametrize(
    "source", ["https://127.0.0.1/a", "https://169.254.169.254/a", "ftp://example.com/a", "://"]
)
def test_a_url_that_may_not_be_dialled_is_refused(settings: Settings, source: str) -> None:
    with pytest.raises(UrlBlocked):
        lora_files.check(adapters.parse([{"source": source}]), settings, Policy(proxies=dict))


def test_a_file_over_the_limit_is_refused_and_leaves_nothing(
    settings: Settings, server: Server
) -> None:
    server.files["/a.safetensors"] = lora_bytes(1000)
    error = refusal(replace(settings, max_lora_bytes=2000), server.url())
    assert isinstance(error, FetchFailed)
    assert "2000 bytes" in error.message
    assert cached(settings) == []


def test_a_second_try_starts_afresh(settings: Settings, server: Server) -> None:
    content, tries = lora_bytes(100_000), []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        tries.append(1)
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content if len(tries) > 1 else content[:300_000])

    server.files["/a.safetensors"] = answer
    with fetched(settings, server.url()) as (file,):
        assert file.path.read_bytes() == content
        assert file.sha256 == hashlib.sha256(content).hexdigest()
    assert len(tries) == 2


def test_a_download_reports_its_mebibytes_and_can_be_cancelled(
    settings: Settings, server: Server
) -> None:
    server.files["/a.safetensors"] = lora_bytes(2 * 1024**2)
    control = Control()
    steps = []

    def note() -> None:
        steps.append((control.latest.step, control.latest.steps))
        if control.latest.step == 3:
            control.cancel()

    control._notify = note
    with pytest.raises(Canceled), fetched(settings, server.url(), control=control):
        pytest.fail("it was taken")
    assert steps == [(1, 9), (2, 9), (3, 9)]
    assert cached(settings) == []


def test_a_download_ends_with_the_jobs_time(
    settings: Settings, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []

    def watched(*_: Any, seconds: float, **__: Any) -> None:
        given.append(seconds)
        raise FetchFailed("enough")

    monkeypatch.setattr(net, "fetch_into", watched)
    refusal(settings, server.url())
    with (
        pytest.raises(FetchFailed),
        fetched(settings, server.url(), control=Control(seconds=7, clock=lambda: 0.0)),
    ):
        pass
    assert given == [lora_files.DOWNLOAD_SECONDS, 7]


# The cache.


def test_the_least_recently_used_file_goes_first(settings: Settings, server: Server) -> None:
    for name in "abc":
        server.files[f"/{name}"] = lora_bytes(200 + ord(name))
    small = replace(settings, lora_cache_bytes=2 * len(lora_bytes(400)))
    for number, name in enumerate("ab"):
        with fetched(small, server.url(f"/{name}")) as (file,):
            pass
        os.utime(file.path, (number, number))  # a, then b
    with fetched(small, server.url("/a")):
        pass  # now b is the one that was used least recently
    with fetched(small, server.url("/c")):
        pass
    with fetched(small, server.url("/a")):
        pass
    assert server.asked == ["/a", "/b", "/c"]
    assert len(cached(small)) == 2


def test_a_file_that_a_job_uses_stays(settings: Settings, server: Server) -> None:
    for name in "abc":
        server.files[f"/{name}"] = lora_bytes(200)
    small = replace(settings, lora_cache_bytes=len(lora_bytes(200)))
    with fetched(small, server.url("/a")) as (first,):
        with fetched(small, server.url("/a")) as (again,):
            assert again.path == first.path
        error = refusal(small, server.url("/b"))
        assert isinstance(error, DiskFull)
        assert first.path.exists()
        assert len(cached(small)) == 1
    with fetched(small, server.url("/c")) as (third,):
        assert not first.path.exists()
        assert cached(small) == [third.path.name]


def test_what_a_killed_worker_left_is_swept_and_a_live_download_is_not(
    settings: Settings, server: Server
) -> None:
    settings.lora_cache_dir.mkdir()
    dead, live = (settings.lora_cache_dir / f"{n}.part" for n in ("dead", "live"))
    dead.write_bytes(b"x" * 100)
    server.files["/a"] = lora_bytes()
    with live.open("x+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with fetched(settings, server.url("/a")) as (file,):
            assert cached(settings) == sorted([file.path.name, live.name])


def test_two_workers_that_want_the_same_file_both_get_it(
    settings: Settings, server: Server
) -> None:
    content, together = lora_bytes(50_000), threading.Barrier(2, timeout=20)

    def answer(handler: BaseHTTPRequestHandler) -> None:
        together.wait()  # both are downloading
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    server.files["/a"] = answer
    got: list[bytes] = []

    def work() -> None:
        with fetched(settings, server.url("/a")) as (file,):
            got.append(file.path.read_bytes())

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert got == [content, content]
    assert len(cached(settings)) == 1


def test_one_url_twice_in_a_job_is_one_download(settings: Settings, server: Server) -> None:
    server.files["/a"] = lora_bytes()
    with fetched(settings, server.url("/a"), server.url("/a")) as (one, two):
        assert one.path == two.path
    assert server.asked == ["/a"]


def test_a_full_disk_is_not_blamed_on_the_server(
    settings: Settings, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["/a"] = lora_bytes(100_000)

    class Full:
        def seek(self, _: int = 0) -> int:
            return 0

        truncate = seek

        def write(self, _: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    plain = lora_files._Disk
    monkeypatch.setattr(lora_files, "_Disk", lambda _: plain(Full()))  # type: ignore[arg-type]
    error = refusal(settings, server.url("/a"))
    assert isinstance(error, DiskFull)
    assert server.asked == ["/a"]
    assert cached(settings) == []


def test_a_cache_that_can_not_be_written_is_named(settings: Settings, server: Server) -> None:
    settings.lora_cache_dir.write_text("a file")
    error = refusal(settings, server.url("/a"))
    assert isinstance(error, DiskFull)
    assert "LORA_CACHE_DIR" in error.message
    assert server.asked == []
