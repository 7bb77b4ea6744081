"""Every URL that a job can hold goes through one policy: image, LoRA, callback, store.

Nothing here may reach the dialer, which fails the test, and no model may be loaded.
"""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.builders.network import GUARDED, PUBLIC, names
from tests.conftest import QUICK, Answer, error_of
from wan_worker import job as jobs
from wan_worker.pipelines import generate
from wan_worker.timing.progress import Control

Job = dict[str, Any]

S3 = {"accessId": "id", "accessSecret": "secret", "bucketName": "box"}

FIELDS: dict[str, Callable[[str], Job]] = {
    "/input/image_url": lambda url: {"input": QUICK | {"image_url": url}},
    "/input/image": lambda url: {"input": QUICK | {"image": url}},
    "/input/last_image_url": lambda url: {"input": QUICK | {"last_image_url": url}},
    "/input/config/first_frame": lambda url: {
        "input": QUICK | {"config": {"first_frame": url}, "reference_fallback": False}
    },
    "/input/metadata/start_reference_url": lambda url: {
        "input": QUICK | {"metadata": {"start_reference_url": url}, "reference_fallback": False}
    },
    "/input/callback_url": lambda url: {"input": QUICK | {"callback_url": url}},
    "/input/loras/0/source": lambda url: {"input": QUICK | {"loras": [{"source": url}]}},
    "/s3Config/endpointUrl": lambda url: {"input": QUICK, "s3Config": S3 | {"endpointUrl": url}},
}

ELSEWHERE = names(
    localhost="127.0.0.1",
    inside_example="10.0.0.7",
    mixed_example=f"{PUBLIC} 192.168.1.1",
    metadata_google_internal="169.254.169.254",
    mapped_example="::ffff:10.0.0.7",
    example_com=PUBLIC,
)

HOSTS = {
    "loopback": "127.0.0.1",
    "loopback in decimal": "2130706433",
    "loopback in hexadecimal": "0x7f000001",
    "loopback in octal": "0177.0.0.1",
    "loopback, short": "127.1",
    "loopback with a dot": "127.0.0.1.",
    "loopback in circled digits": "①②⑦.⓪.⓪.①",
    "loopback in full-width digits": "１２７.0.0.1",
    "loopback by name": "localhost",
    "this network": "0.0.0.0",
    "zero": "0",
    "IPv6 loopback": "[::1]",
    "IPv6 unspecified": "[::]",
    "IPv4-mapped": "[::ffff:127.0.0.1]",
    "IPv4-mapped in hexadecimal": "[::ffff:7f00:1]",
    "IPv4-compatible": "[::127.0.0.1]",
    "IPv4-translated": "[::ffff:0:7f00:1]",
    "6to4": "[2002:7f00:1::]",
    "NAT64": "[64:ff9b::7f00:1]",
    "local NAT64": "[64:ff9b:1::7f00:1]",
    "Teredo": "[2001:0:7f00:1::80ff:fffe]",
    "ISATAP": "[2606:2800::5efe:7f00:1]",
    "site-local": "[fec0::1]",
    "unique local": "[fd00:ec2::254]",
    "link-local with a zone": "[fe80::1%25eth0]",
    "metadata": "169.254.169.254",
    "metadata by name": "metadata.google.internal",
    "Azure's platform": "168.63.129.16",
    "name of a private address": "inside.example",
    "public and private": "mixed.example",
    "mapped by the resolver": "mapped.example",
    "name that is not there": "missing.example",
    "user name": "user@example.com",
    "host as user name": "example.com@127.0.0.1",
    "backslash": "example.com\\@127.0.0.1",
    "tab": "exam\tple.com",
    "escaped dot": "127.0.0%2e1",
    "port of another service": "example.com:6379",
    "port that there is not": "example.com:99999",
    "two ports": "example.com:443:80",
}


@pytest.fixture
def guarded(worker: jobs.Worker, every_model_dir: Path) -> jobs.Worker:
    """A worker that asks a resolver of our own, and fails the test where it would dial."""
    settings = replace(worker.settings, models_dir=every_model_dir)
    return replace(worker, settings=settings, policy=replace(GUARDED, resolve=ELSEWHERE))


@pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS)
@pytest.mark.parametrize("field", FIELDS)
def test_a_url_that_leads_inside_is_refused_in_every_field(
    guarded: jobs.Worker, field: str, host: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "temp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temp"))
    monkeypatch.setattr(generate, "denoise", lambda *_, **__: pytest.fail("denoised"))
    job = FIELDS[field](f"https://{host}/x")
    answer = jobs.run({"id": "u", **job}, guarded, Control())
    error = error_of(answer)
    # A store's endpoint is also held to what boto3 can take.
    codes = (
        ("URL_BLOCKED", "INVALID_REQUEST") if field.startswith("/s3Config") else ("URL_BLOCKED",)
    )
    assert error["code"] in codes
    assert error["field"] == field
    assert not error["retryable"]
    assert "10.0.0.7" not in answer["error"]
    assert list((tmp_path / "temp").iterdir()) == []


@pytest.mark.parametrize("field", FIELDS)
def test_inside_and_nowhere_are_answered_alike_in_every_field(
    guarded: jobs.Worker, field: str
) -> None:
    answers = []
    for host in ("inside.example", "missing.example", "mixed.example", "127.0.0.1"):
        job = FIELDS[field](f"https://{host}/x")
        answers.append(jobs.run({"id": "u", **job}, guarded, Control()))
    assert all(answer == answers[0] for answer in answers)


@pytest.mark.parametrize("field", ["/input/loras/0/source", "/s3Config/endpointUrl"])
def test_what_carries_keys_or_weights_is_https_alone(guarded: jobs.Worker, field: str) -> None:
    job = FIELDS[field]("http://example.com/x")
    error = error_of(jobs.run({"id": "u", **job}, guarded, Control()))
    assert (error["code"], error["field"]) == ("URL_BLOCKED", field)
    assert "https" in error["message"]


@pytest.mark.parametrize("field", FIELDS)
def test_a_proxy_in_the_environment_is_refused_in_every_field(
    guarded: jobs.Worker, field: str
) -> None:
    proxied = replace(guarded.policy, proxies=lambda: {"https": "http://proxy.internal:3128"})
    job = FIELDS[field]("https://example.com/x")
    answer = jobs.run({"id": "u", **job}, replace(guarded, policy=proxied), Control())
    assert error_of(answer)["code"] == "URL_BLOCKED"
    assert "proxy.internal" not in answer["error"]


def turning_private(checks: int) -> Callable[[str], tuple[str, ...]]:
    """A resolver whose name is public so many times, and then is not."""
    left = [(PUBLIC,)] * checks

    def resolve(_host: str) -> tuple[str, ...]:
        return left.pop() if left else ("127.0.0.1",)

    return resolve


def rebound(worker: jobs.Worker, job: Job) -> Answer:
    policy = replace(worker.policy, resolve=turning_private(1))
    return jobs.run({"id": "r", **job}, replace(worker, policy=policy), Control())


def test_a_lora_whose_host_turns_private_after_the_check_is_not_fetched(
    guarded: jobs.Worker, tmp_path: Path
) -> None:
    worker = replace(guarded, settings=replace(guarded.settings, lora_cache_dir=tmp_path / "c"))
    answer = rebound(worker, FIELDS["/input/loras/0/source"]("https://example.com/a.safetensors"))
    assert error_of(answer)["code"] == "URL_BLOCKED"
    assert [path.name for path in (tmp_path / "c").iterdir()] == [".lock"]


def test_a_store_whose_host_turns_private_after_the_check_gets_nothing_and_the_file_is_kept(
    guarded: jobs.Worker,
) -> None:
    answer = rebound(guarded, FIELDS["/s3Config/endpointUrl"]("https://example.com"))
    assert error_of(answer)["code"] == "URL_BLOCKED"
    assert (guarded.settings.output_dir / "r" / "0.mp4").is_file()


def test_a_callback_whose_host_turns_private_after_the_check_is_a_warning(
    guarded: jobs.Worker,
) -> None:
    answer = rebound(guarded, FIELDS["/input/callback_url"]("https://example.com/hook"))
    assert answer["status"] == "completed"
    assert [warning["code"] for warning in answer["warnings"]] == ["CALLBACK_FAILED"]
