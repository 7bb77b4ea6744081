"""Build the Dockerfile, push and pull the image, and let its container serve one job.

    make image-test        as root, where buildah, debootstrap and docker-registry are installed

No container engine, GPU, real weights or access to Docker Hub is needed: buildah builds with chroot
isolation on a stand-in for the official Python image (debootstrap's Debian 12, whose Python is 3.11
too), the weights are the tiny ones, and the job goes through RunPod's production loop (the real SDK
in the container, tests/integration/platform.py on this side).

Packages come from wherever this machine's pip takes them: its settings, from files and environment
alike, are merged into one file that the build sees as /etc/pip.conf, beside the local folders and
the certificates that they name. None of it is in the image, and that is checked.

Work and caches stay in IMAGE_TEST_DIR (default: a folder in the temporary one) and may be deleted.
Rebuilding takes buildah longer than BuildKit, since it reads what is copied between stages again.
Not covered: CUDA, the real base image, BuildKit.
"""

import argparse
import base64
import configparser
import hashlib
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from tests.integration.platform import Platform
from tests.integration.worker import Child, answers_http, free_port

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("buildah", "debootstrap", "docker-registry")
MODELS = "wan2.1-t2v-1.3b wan2.1-i2v-14b-480p"
JOB = {
    "mode": "video",
    "prompt": "a red circle moving right",
    "size": "64x48",
    "num_frames": 5,
    "num_inference_steps": 2,
    "seed": 7,
    "response_format": "base64",
}


class Store:
    """One buildah storage; a second one makes a pull a real pull."""

    def __init__(self, folder: Path, driver: str) -> None:
        self._base = (
            *("buildah", "--storage-driver", driver),
            *("--root", str(folder / "root"), "--runroot", str(folder / "run")),
        )

    def command(self, *arguments: str) -> list[str]:
        return [*self._base, *arguments]

    def do(self, *arguments: str) -> None:
        subprocess.run(self.command(*arguments), check=True, cwd=ROOT)

    def ask(self, *arguments: str) -> str:
        done = subprocess.run(
            self.command(*arguments), check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        return done.stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--keep", action="store_true", help="keep the images, so that a next run builds less"
    )
    options = parser.parse_args()
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        print(f"SKIPPED: {', '.join(missing)} not installed (apt-get install them)")
        return 0
    if os.geteuid() != 0:
        print("SKIPPED: debootstrap and chroot isolation need root")
        return 0
    work = Path(os.environ.get("IMAGE_TEST_DIR") or Path(tempfile.gettempdir()) / "wan-image-test")
    work.mkdir(parents=True, exist_ok=True)
    driver = os.environ.get("STORAGE_DRIVER") or _storage_driver(work)
    built, pulled = Store(work / "built", driver), Store(work / "pulled", driver)
    try:
        base = _stand_in_base(built, work)
        with _pip_settings() as (mounts, traces), tempfile.TemporaryDirectory() as private:
            token = f"hf_{secrets.token_hex(16)}"
            secret = Path(private) / "token"
            secret.write_text(token)
            seconds = _build(built, ROOT, base, mounts, secret)
            print(f"\nbuilt in {seconds:.0f} s")
            with tempfile.TemporaryDirectory() as other:
                changed = _changed_checkout(Path(other))
                again = _build(built, changed, base, mounts, secret, tag="changed")
                print(f"\nbuilt again after a code change in {again:.0f} s")
            _check_layers(built)
        with _registry(work) as address:
            built.do("push", "--tls-verify=false", "wan-worker:test", f"{address}/wan-worker:test")
            pulled.do("pull", "--tls-verify=false", f"docker://{address}/wan-worker:test")
            _report_size(address)
            container = pulled.ask("from", f"{address}/wan-worker:test")
        _check_no_traces(pulled, container, [token, *traces])
        _serve_one_job(pulled, container)
    finally:
        if not options.keep:
            for store in (built, pulled):
                subprocess.run(store.command("rm", "--all"), check=False, stdout=subprocess.DEVNULL)
            shutil.rmtree(work / "pulled", ignore_errors=True)
            shutil.rmtree(work / "built", ignore_errors=True)
            shutil.rmtree(work / "registry", ignore_errors=True)
    print("\nThe image builds, travels and serves.")
    return 0


def _storage_driver(work: Path) -> str:
    """Overlay where the kernel and the folder allow it; vfs, which copies, works anywhere."""
    probe = work / "probe"
    command = ["buildah", "--storage-driver", "overlay", "--root", str(probe / "root")]
    command += ["--runroot", str(probe / "run"), "info"]
    works = subprocess.run(command, capture_output=True, check=False).returncode == 0
    shutil.rmtree(probe, ignore_errors=True)
    return "overlay" if works else "vfs"


def _stand_in_base(store: Store, work: Path) -> str:
    """Debian 12 with what the official Python image has: Python 3.11, its headers, certificates."""
    packages = "python3,python3-venv,python3-dev,ca-certificates"
    archive = work / f"base-{hashlib.sha256(packages.encode()).hexdigest()[:8]}.tar"
    if not archive.exists():
        with tempfile.TemporaryDirectory(dir=work) as folder:
            subprocess.run(
                ["debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", folder],
                check=True,
            )
            partial = archive.with_suffix(".partial")
            subprocess.run(["tar", "-C", folder, "-cf", str(partial), "."], check=True)
            partial.rename(archive)
    container = store.ask("from", "scratch")
    store.do("add", container, str(archive), "/")
    # A fixed time, or every run's base would be a new one and nothing above it would be cached.
    store.do("commit", "--quiet", "--timestamp", "0", "--rm", container, "stand-in")
    return "localhost/stand-in"


@contextmanager
def _pip_settings() -> Iterator[tuple[list[str], list[str]]]:
    """Mounts that give the build this machine's pip settings, and strings that must not stay."""
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    # Later lines win, and the environment comes last: the order in which pip applies them.
    found: dict[str, str] = {}
    for name, value in re.findall(r"^([\w:.-]+)='(.*)'$", listing.replace("\\n", " "), re.M):
        section, _, key = name.rpartition(".")
        if section in ("global", "install", ":env:"):
            found[key] = value
    with tempfile.TemporaryDirectory() as folder:
        mounts: list[str] = []
        if certificates := found.get("cert"):
            # Not at its own place: mounting over Debian's bundle breaks its package's scripts.
            mounts += ["--volume", f"{certificates}:/run/pip-certificates.pem:ro"]
            found["cert"] = "/run/pip-certificates.pem"
        for word in " ".join(v for k, v in found.items() if k != "cert").split():
            local = Path(word.removeprefix("file://"))
            if local.is_absolute() and local.exists():
                # The folder above an index: its links may lead to files beside it.
                shared = local.parent if word.startswith("file://") else local
                mounts += ["--volume", f"{shared}:{shared}:ro"]
        config = configparser.RawConfigParser()
        config["global"] = found
        merged = Path(folder) / "pip.conf"
        with merged.open("w") as file:
            config.write(file)
        mounts += ["--volume", f"{merged}:/etc/pip.conf:ro"]
        sources = [v for k, v in found.items() if "index" in k or k == "find-links"]
        yield mounts, " ".join(sources).split()


def _build(
    store: Store, context: Path, base: str, mounts: list[str], secret: Path, tag: str = "test"
) -> float:
    began = time.monotonic()
    store.do(
        *("build", "--isolation", "chroot", "--layers", "--pull-never", "--format", "docker"),
        *("--build-arg", f"BASE_IMAGE={base}"),
        *("--build-arg", f"MODELS={MODELS}", "--build-arg", "TINY=1"),
        *("--secret", f"id=HF_TOKEN,src={secret}"),
        *mounts,
        *("--ignorefile", str(context / ".dockerignore"), "--file", str(context / "Dockerfile")),
        *("--tag", f"wan-worker:{tag}", str(context)),
    )
    return time.monotonic() - began


def _changed_checkout(folder: Path) -> Path:
    """This checkout with one line of code changed."""
    names = ["Dockerfile", ".dockerignore", "requirements.txt", "download_weights.py"]
    for name in [*names, "handler.py", "test_input.json"]:
        shutil.copy2(ROOT / name, folder / name)
    for name in ("schemas", "src", "weights"):
        shutil.copytree(ROOT / name, folder / name)
    with (folder / "src" / "wan_worker" / "job.py").open("a") as file:
        file.write("\n# changed\n")
    return folder


def _layers(store: Store, tag: str) -> list[str]:
    image = json.loads(store.ask("inspect", "--type", "image", f"wan-worker:{tag}"))
    layers: list[str] = image["OCIv1"]["rootfs"]["diff_ids"]
    return layers


def _check_layers(store: Store) -> None:
    """A code change must leave every layer of libraries and weights as it was."""
    before, after = _layers(store, "test"), _layers(store, "changed")
    same = [a for a, b in zip(before, after, strict=True) if a == b]
    print(f"{len(same)} of {len(before)} layers are the same after a code change")
    if before[: len(same)] != same or len(before) - len(same) > 2:
        raise SystemExit("a code change moved more than the code's own layers")


@contextmanager
def _registry(work: Path) -> Iterator[str]:
    port = free_port()
    config = work / "registry.json"  # JSON is YAML
    config.write_text(
        json.dumps({
            "version": 0.1,
            "log": {"level": "error"},
            "storage": {"filesystem": {"rootdirectory": str(work / "registry")}},
            "http": {"addr": f"127.0.0.1:{port}"},
        })
    )  # fmt: skip
    with Child(
        ["docker-registry", "serve", str(config)],
        work / "home",
        name="registry",
        ready=lambda: answers_http(port),
    ):
        yield f"127.0.0.1:{port}"


def _report_size(address: str) -> None:
    request = Request(
        f"http://{address}/v2/wan-worker/manifests/test",
        headers={"Accept": "application/vnd.docker.distribution.manifest.v2+json"},
    )
    with urlopen(request, timeout=30) as response:
        layers = json.load(response)["layers"]
    compressed = sum(layer["size"] for layer in layers)
    print(f"{len(layers)} layers, {compressed / 1e9:.2f} GB compressed (CPU torch, toy weights)")


def _check_no_traces(store: Store, container: str, traces: Sequence[str]) -> None:
    """Nothing of this build's token or package indexes is in the image's files or its history."""
    described = store.ask("inspect", container)
    root = store.ask("mount", container)
    for trace in traces:
        if trace in described:
            raise SystemExit("the image's description holds a secret of the build")
        folders = ("app", "etc", "models", "opt", "root", "run", "tmp", "var")
        search = ["grep", "-rlsF", "--", trace, *folders]
        found = subprocess.run(search, cwd=root, capture_output=True, text=True, check=False)
        if found.stdout:
            raise SystemExit(f"files in the image hold a secret of the build:\n{found.stdout}")
    store.ask("umount", container)
    print("no token and no package index of the build is in the image")


def _serve_one_job(store: Store, container: str) -> None:
    """Run the image's own command in RunPod's production loop."""
    image: dict[str, Any] = json.loads(store.ask("inspect", container))["OCIv1"]["config"]
    with Platform() as platform, tempfile.TemporaryDirectory() as home:
        variables = [f"--env={key}={value}" for key, value in platform.env("image").items()]
        command = store.command("run", "--isolation", "chroot", *variables, container, "--")
        began = time.monotonic()
        with Child(
            [*command, *image["Cmd"]],
            Path(home),
            name="worker",
            ready=lambda: platform.seen("image"),
            ready_timeout=120,
        ) as worker:
            print(f"the container asked for a job after {time.monotonic() - began:.1f} s")
            job = platform.submit(JOB)
            answer = platform.wait(job, timeout=300)
            log = worker.log()
    output = answer.get("output", answer)
    if output.get("status") != "completed":
        raise SystemExit(f"the job failed: {answer}\n{log}")
    (asset,) = output["assets"]
    video = base64.b64decode(asset["data"])
    if hashlib.sha256(video).hexdigest() != asset["sha256"] or video[4:8] != b"ftyp":
        raise SystemExit(f"the answer's file is not the MP4 that it should be: {asset}")
    print(
        f"one job served by the container: {asset['width']}x{asset['height']}, "
        f"{asset['num_frames']} frames, {len(video)} bytes, model {output['metadata']['model']}"
    )


if __name__ == "__main__":
    sys.exit(main())
