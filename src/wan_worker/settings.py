"""What did the operator configure? This module alone reads the environment.

``from_env`` reports all problems together, so that an operator can fix them in one go. An empty
variable counts as unset, because RunPod's form fields send empty strings.
Not covered: RUNPOD_* variables that the SDK itself reads (log level, webhooks, fitness checks).
"""

import base64
import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from wan_worker.errors import ConfigInvalid

T = TypeVar("T")

Placement = Literal["resident", "sequential", "group"]
WeightType = Literal["bf16", "fp8", "int8"]
LogFormat = Literal["text", "json"]
Compile = Literal["on", "off"]

DAY_SECONDS = 86_400
MAX_URL_EXPIRY_SECONDS = 7 * DAY_SECONDS
"""The longest that signature version 4 allows a presigned URL to live."""


@dataclass(frozen=True)
class Secret:
    """A string that never prints itself. Call ``reveal`` only where the value is used."""

    _value: str

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    __str__ = __repr__


@dataclass(frozen=True)
class Bucket:
    """Where assets go in S3, or in another store with S3's interface."""

    endpoint_url: str
    access_key_id: Secret
    secret_access_key: Secret
    name: str
    region: str = "us-east-1"
    prefix: str = ""
    public_url: str | None = None


@dataclass(frozen=True)
class Settings:
    """The operator's choices, checked. Sizes are bytes, times are seconds."""

    models_dir: Path = Path("models")
    hub_token: Secret | None = None
    """For Hub repositories that need a token."""
    volume_dir: Path = Path("/runpod-volume")
    """RunPod's network volume; the worker also looks for weights there, if it is mounted."""
    default_model: str | None = None
    preload_models: tuple[str, ...] = ()
    """Loaded in the background at the start, in this order."""
    bucket: Bucket | None = None
    url_expiry_seconds: int = DAY_SECONDS
    output_dir: Path = Path("outputs")
    callback_secrets: tuple[Secret, ...] = ()
    enhancer_model: str = "Qwen/Qwen2.5-7B-Instruct"
    """Hub repository of the language model that rewrites prompts."""
    worker_concurrency: int = 1
    job_timeout_seconds: int | None = None
    placement: Placement | None = None
    """Placement of the weights: resident, sequential or group; None: the plan chooses."""
    weight_type: WeightType | None = None
    """Type of the transformers' weights, if a request names none: bf16, fp8 or int8."""
    compile: Compile | None = None
    """Whether the transformers' blocks are compiled; None: the plan chooses."""
    compile_cache_dir: Path | None = None
    """Folder of the compiled code; None: in the container, where it is lost."""
    max_image_bytes: int = 20 * 1024**2
    max_image_pixels: int = 40_000_000
    max_lora_bytes: int = 2 * 1024**3
    """Largest LoRA that the worker downloads, if the cache can hold it."""
    lora_cache_dir: Path = Path("lora-cache")
    lora_cache_bytes: int = 10 * 1024**3
    """Space on disk for downloaded LoRAs; the least recently used are removed first."""
    log_level: str = "INFO"
    log_format: LogFormat = "text"
    api_host: str = "127.0.0.1"
    """Address that the HTTP API listens on; if other machines can reach it, a key is needed."""
    api_port: int = 8000
    api_key: Secret | None = None
    api_admin_key: Secret | None = None
    """For requests that change the machine; None: the API key is enough."""
    api_cors_origins: tuple[str, ...] = ()
    """Origins of other hosts' web pages that may use the API."""
    api_max_body_bytes: int = 64 * 1024**2
    queue_limit: int = 100
    """Jobs that may wait at the HTTP API."""
    state_dir: Path = Path("state")
    """Folder of the HTTP API's ledger and of this machine's measurements (machine.tuning)."""
    allow_private_urls: bool = False
    on_platform: bool = False
    """True inside RunPod's serverless loop: there, callers can't read a local folder."""


def from_env(env: Mapping[str, str]) -> Settings:
    """Read and check the environment.

    Raises:
        ConfigInvalid: one line for each problem, without the values of secrets.
    """
    problems: list[str] = []

    def read(name: str, parse: Callable[[str], T], default: T) -> T:
        raw = env.get(name, "").strip()
        if not raw:
            return default
        try:
            return parse(raw)
        except ValueError as problem:
            problems.append(f"{name}: {problem}")
            return default

    settings = Settings(
        models_dir=read("MODELS_DIR", Path, Settings.models_dir),
        hub_token=read("HF_TOKEN", Secret, None),
        default_model=read("DEFAULT_MODEL", str, None),
        preload_models=read("PRELOAD_MODELS", _names, ()),
        bucket=_bucket(env, problems),
        url_expiry_seconds=read(
            "URL_EXPIRY_SECONDS", _integer(1, MAX_URL_EXPIRY_SECONDS), DAY_SECONDS
        ),
        output_dir=read("OUTPUT_DIR", Path, Settings.output_dir),
        callback_secrets=read("CALLBACK_SECRET", _secrets, ()),
        enhancer_model=read("ENHANCER_MODEL", _repository, Settings.enhancer_model),
        worker_concurrency=read("WORKER_CONCURRENCY", _integer(1, 8), 1),
        job_timeout_seconds=read("JOB_TIMEOUT_SECONDS", _integer(1, 7 * DAY_SECONDS), None),
        placement=read("PLACEMENT", _one_of("resident", "sequential", "group"), None),
        weight_type=read("WEIGHT_TYPE", _one_of("bf16", "fp8", "int8"), None),
        compile=read("COMPILE", _one_of("on", "off"), None),
        compile_cache_dir=read("COMPILE_CACHE_DIR", Path, None),
        max_image_bytes=read(
            "MAX_IMAGE_BYTES", _integer(1024, 512 * 1024**2), Settings.max_image_bytes
        ),
        max_image_pixels=read(
            "MAX_IMAGE_PIXELS", _integer(256, 400_000_000), Settings.max_image_pixels
        ),
        max_lora_bytes=read(
            "MAX_LORA_BYTES", _integer(1024, 64 * 1024**3), Settings.max_lora_bytes
        ),
        lora_cache_dir=read("LORA_CACHE_DIR", Path, Settings.lora_cache_dir),
        lora_cache_bytes=read(
            "LORA_CACHE_BYTES", _integer(1024, 1024**5), Settings.lora_cache_bytes
        ),
        log_level=read("LOG_LEVEL", _log_level, "INFO"),
        log_format=read("LOG_FORMAT", _log_format, "text"),
        api_host=read("API_HOST", _address, Settings.api_host),
        api_port=read("API_PORT", _integer(1, 65535), Settings.api_port),
        api_key=read("API_KEY", _api_key, None),
        api_admin_key=read("API_ADMIN_KEY", _api_key, None),
        api_cors_origins=read("API_CORS_ORIGINS", _origins, ()),
        api_max_body_bytes=read(
            "API_MAX_BODY_BYTES", _integer(1024, 1024**3), Settings.api_max_body_bytes
        ),
        queue_limit=read("QUEUE_LIMIT", _integer(1, 100_000), Settings.queue_limit),
        state_dir=read("STATE_DIR", Path, Settings.state_dir),
        allow_private_urls=read("RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS", _boolean, False),
        on_platform=bool(env.get("RUNPOD_WEBHOOK_GET_JOB")),
    )
    if not env.get("API_KEY", "").strip() and not is_loopback(settings.api_host):
        problems.append(
            "API_KEY: must be set where API_HOST is an address that other machines reach"
        )
    if settings.api_admin_key is not None and not env.get("API_KEY", "").strip():
        problems.append("API_ADMIN_KEY: needs an API_KEY beside it")
    if problems:
        raise ConfigInvalid("The environment is not usable:\n- " + "\n- ".join(problems))
    return settings


def _bucket(env: Mapping[str, str], problems: list[str]) -> Bucket | None:
    required = (
        "BUCKET_ENDPOINT_URL",
        "BUCKET_ACCESS_KEY_ID",
        "BUCKET_SECRET_ACCESS_KEY",
        "BUCKET_NAME",
    )
    given = {
        name: env.get(name, "").strip()
        for name in (*required, "BUCKET_PREFIX", "BUCKET_PUBLIC_URL")
    }
    if not any(given.values()):
        return None
    missing = [name for name in required if not given[name]]
    if missing:
        problems.append(f"{', '.join(missing)}: missing, while other BUCKET_* variables are set")
    for name in ("BUCKET_ENDPOINT_URL", "BUCKET_PUBLIC_URL"):
        if given[name] and not is_endpoint(given[name]):
            problems.append(f"{name}: must be a URL such as https://s3.example.com")
    for name in ("BUCKET_ACCESS_KEY_ID", "BUCKET_SECRET_ACCESS_KEY"):
        if given[name] and not re.fullmatch(r"[\x21-\x7e]+", given[name]):
            problems.append(f"{name}: must be text without spaces")
    name, prefix = given["BUCKET_NAME"], given["BUCKET_PREFIX"].strip("/")
    if name and not re.fullmatch(r"[A-Za-z0-9._-]{3,63}", name):
        problems.append("BUCKET_NAME: must be 3 to 63 letters, digits, dots, dashes or underscores")
    if not re.fullmatch(r"([A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*)?", prefix) or ".." in prefix:
        problems.append("BUCKET_PREFIX: must be folder names of letters, digits, '.', '_' and '-'")
    return Bucket(
        endpoint_url=given["BUCKET_ENDPOINT_URL"].rstrip("/"),
        access_key_id=Secret(given["BUCKET_ACCESS_KEY_ID"]),
        secret_access_key=Secret(given["BUCKET_SECRET_ACCESS_KEY"]),
        name=name,
        region=env.get("BUCKET_REGION", "").strip() or Bucket.region,
        prefix=prefix,
        public_url=given["BUCKET_PUBLIC_URL"].rstrip("/") or None,
    )


def is_endpoint(url: str) -> bool:
    """Whether it is an http(s) URL that boto3 takes: no user, query or fragment."""
    match = re.fullmatch(
        r"https?://[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:([0-9]{1,5}))?(/[A-Za-z0-9._~/-]*)?",
        url,
        re.ASCII,
    )
    return match is not None and int(match[3] or 1) <= 65535


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own, so that no other machine can reach it."""
    return host == "localhost" or ipaddress.ip_address(host).is_loopback


def _integer(low: int, high: int) -> Callable[[str], int]:
    def parse(raw: str) -> int:
        # int() alone would also take '1_000' and '１２'.
        if not re.fullmatch(r"[0-9]{1,18}", raw, re.ASCII) or not low <= int(raw) <= high:
            raise ValueError(f"must be a whole number from {low} to {high}, got {raw[:40]!r}")
        return int(raw)

    return parse


def _one_of(*choices: T) -> Callable[[str], T | None]:
    """A parser of one of these words; auto means None."""

    def parse(raw: str) -> T | None:
        if raw.lower() == "auto":
            return None
        for choice in choices:
            if raw.lower() == choice:
                return choice
        raise ValueError(f"must be auto or one of {', '.join(map(str, choices))}, got {raw[:40]!r}")

    return parse


def _names(raw: str) -> tuple[str, ...]:
    """Words, separated by commas or spaces."""
    return tuple(dict.fromkeys(raw.replace(",", " ").split()))


def _address(raw: str) -> str:
    if raw.lower() == "localhost":
        return "localhost"
    try:
        return str(ipaddress.ip_address(raw))
    except ValueError:
        raise ValueError(
            f"must be an IP address such as 127.0.0.1 or 0.0.0.0, got {raw[:40]!r}"
        ) from None


def _api_key(raw: str) -> Secret:
    if not re.fullmatch(r"[\x21-\x7e]{16,512}", raw, re.ASCII):
        raise ValueError("must be 16 to 512 letters, digits and signs, without spaces")
    return Secret(raw)


def _origins(raw: str) -> tuple[str, ...]:
    origins = _names(raw)
    for origin in origins:
        if not is_endpoint(origin) or origin.count("/") != 2 or origin != origin.lower():
            raise ValueError(f"must be origins such as https://example.com, got {origin[:80]!r}")
    return origins


def _boolean(raw: str) -> bool:
    # RunPod's own guard takes these three for true; another word must not mean false silently.
    if raw.lower() in ("1", "true", "yes"):
        return True
    if raw.lower() in ("0", "false", "no"):
        return False
    raise ValueError(f"must be true or false, got {raw[:40]!r}")


def _repository(raw: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*", raw, re.ASCII):
        raise ValueError(f"must be a Hub repository such as ORG/NAME, got {raw[:80]!r}")
    return raw


def _log_level(raw: str) -> str:
    if raw.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise ValueError(f"must be DEBUG, INFO, WARNING or ERROR, got {raw[:40]!r}")
    return raw.upper()


def _log_format(raw: str) -> LogFormat:
    if raw.lower() == "text":
        return "text"
    if raw.lower() == "json":
        return "json"
    raise ValueError(f"must be text or json, got {raw[:40]!r}")


def _is_base64(text: str) -> bool:
    try:
        # Keys without padding are common, and the receivers' libraries take them.
        base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        return False
    return True


def _secrets(raw: str) -> tuple[Secret, ...]:
    """One key or several, separated by spaces or commas; two while keys are being rotated."""
    keys = [part for part in re.split(r"[\s,]+", raw) if part]
    if not keys:
        raise ValueError("holds no key")
    if any(len(key.removeprefix("whsec_")) < 16 for key in keys):
        raise ValueError("each key must have at least 16 characters")
    for key in keys:
        encoded = key.removeprefix("whsec_")
        if encoded != key and not _is_base64(encoded):
            raise ValueError("what follows whsec_ must be base64")
    return tuple(Secret(key) for key in keys)
