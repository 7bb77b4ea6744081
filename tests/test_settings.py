"""Promises of settings: a broken environment is reported whole, and secrets stay unprinted."""

import logging
from pathlib import Path

import pytest

from wan_worker.errors import ConfigInvalid
from wan_worker.settings import Secret, Settings, from_env

CANARY = "canary-7f3a9-secret-value"
BUCKET = {
    "BUCKET_ENDPOINT_URL": "https://s3.example.com",
    "BUCKET_ACCESS_KEY_ID": "AKIAEXAMPLE",
    "BUCKET_SECRET_ACCESS_KEY": CANARY,
    "BUCKET_NAME": "videos",
}


def problems_of(env: dict[str, str]) -> list[str]:
    """The lines of the refusal, one per problem."""
    with pytest.raises(ConfigInvalid) as refusal:
        from_env(env)
    return [line[2:] for line in refusal.value.message.splitlines()[1:]]


def test_an_empty_environment_gives_the_documented_defaults() -> None:
    settings = from_env({})
    assert settings == Settings()
    assert settings.models_dir == Path("models")
    assert settings.output_dir == Path("outputs")
    assert settings.url_expiry_seconds == 86_400
    assert settings.worker_concurrency == 1
    assert settings.job_timeout_seconds is None
    assert settings.bucket is None
    assert settings.log_level == "INFO"
    assert not settings.allow_private_urls
    assert not settings.on_platform


def test_every_variable_is_read() -> None:
    settings = from_env(
        BUCKET
        | {
            "MODELS_DIR": "/models",
            "DEFAULT_MODEL": "wan2.1-t2v-1.3b",
            "BUCKET_REGION": "eu-west-1",
            "BUCKET_PREFIX": "/a/b/",
            "BUCKET_PUBLIC_URL": "https://cdn.example.com/",
            "URL_EXPIRY_SECONDS": "60",
            "OUTPUT_DIR": "/out",
            "CALLBACK_SECRET": "0123456789abcdef",
            "ENHANCER_MODEL": "mistralai/Mistral-7B-Instruct-v0.3",
            "WORKER_CONCURRENCY": "2",
            "JOB_TIMEOUT_SECONDS": "600",
            "MAX_IMAGE_BYTES": "4096",
            "MAX_IMAGE_PIXELS": "1024",
            "MAX_LORA_BYTES": "2048",
            "LORA_CACHE_DIR": "/loras",
            "LORA_CACHE_BYTES": "4096",
            "LOG_LEVEL": "debug",
            "LOG_FORMAT": "JSON",
            "RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS": "true",
            "RUNPOD_WEBHOOK_GET_JOB": "https://api.example.com",
        }
    )
    bucket = settings.bucket
    assert bucket is not None
    assert (bucket.name, bucket.region, bucket.prefix) == ("videos", "eu-west-1", "a/b")
    assert bucket.endpoint_url == "https://s3.example.com"
    assert bucket.public_url == "https://cdn.example.com"
    assert bucket.access_key_id.reveal() == "AKIAEXAMPLE"
    assert bucket.secret_access_key.reveal() == CANARY
    assert settings == Settings(
        models_dir=Path("/models"),
        default_model="wan2.1-t2v-1.3b",
        bucket=bucket,
        url_expiry_seconds=60,
        output_dir=Path("/out"),
        callback_secrets=(Secret("0123456789abcdef"),),
        enhancer_model="mistralai/Mistral-7B-Instruct-v0.3",
        worker_concurrency=2,
        job_timeout_seconds=600,
        max_image_bytes=4096,
        max_image_pixels=1024,
        max_lora_bytes=2048,
        lora_cache_dir=Path("/loras"),
        lora_cache_bytes=4096,
        log_level="DEBUG",
        log_format="json",
        allow_private_urls=True,
        on_platform=True,
    )


def test_all_problems_are_reported_at_once() -> None:
    found = problems_of(
        {
            "URL_EXPIRY_SECONDS": "abc",
            "WORKER_CONCURRENCY": "0",
            "JOB_TIMEOUT_SECONDS": "-1",
            "MAX_IMAGE_BYTES": "1",
            "MAX_IMAGE_PIXELS": "1e6",
            "LOG_LEVEL": "LOUD",
            "LOG_FORMAT": "xml",
            "PLACEMENT": "disk",
            "WEIGHT_TYPE": "fp16",
            "RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS": "maybe",
            "CALLBACK_SECRET": "short",
            "BUCKET_NAME": "videos",
        }
    )
    assert {line.split(":")[0] for line in found} == {
        "URL_EXPIRY_SECONDS",
        "WORKER_CONCURRENCY",
        "JOB_TIMEOUT_SECONDS",
        "MAX_IMAGE_BYTES",
        "MAX_IMAGE_PIXELS",
        "LOG_LEVEL",
        "LOG_FORMAT",
        "PLACEMENT",
        "WEIGHT_TYPE",
        "RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS",
        "CALLBACK_SECRET",
        "BUCKET_ENDPOINT_URL, BUCKET_ACCESS_KEY_ID, BUCKET_SECRET_ACCESS_KEY",
    }


@pytest.mark.parametrize("missing", sorted(BUCKET))
def test_a_bucket_with_one_variable_missing_is_refused_naming_it(missing: str) -> None:
    (problem,) = problems_of({k: v for k, v in BUCKET.items() if k != missing})
    assert problem.startswith(f"{missing}: missing")


@pytest.mark.parametrize("present", sorted(BUCKET))
def test_a_bucket_with_one_variable_alone_is_refused(present: str) -> None:
    (problem,) = problems_of({present: BUCKET[present]})
    assert present not in problem.split(": missing")[0].split(", ")
    assert problem.count("BUCKET_") == 4  # the three that lack, and "other BUCKET_* variables"


def test_an_empty_or_blank_variable_counts_as_unset() -> None:
    names = (
        *("MODELS_DIR", "DEFAULT_MODEL", "URL_EXPIRY_SECONDS", "OUTPUT_DIR", "CALLBACK_SECRET"),
        *("WORKER_CONCURRENCY", "JOB_TIMEOUT_SECONDS", "MAX_IMAGE_BYTES", "MAX_IMAGE_PIXELS"),
        *("MAX_LORA_BYTES", "LORA_CACHE_DIR", "LORA_CACHE_BYTES"),
        *("PLACEMENT", "WEIGHT_TYPE", "COMPILE", "COMPILE_CACHE_DIR"),
        *("LOG_LEVEL", "LOG_FORMAT", "BUCKET_REGION", "BUCKET_PREFIX", "BUCKET_PUBLIC_URL"),
        *("RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS", *BUCKET),
    )
    assert from_env(dict.fromkeys((*names, "RUNPOD_WEBHOOK_GET_JOB"), "")) == Settings()
    assert from_env(dict.fromkeys(names, "  ")) == Settings()


def test_the_operators_choices_about_memory_are_words_or_auto() -> None:
    chosen = from_env({"PLACEMENT": "Group", "WEIGHT_TYPE": "fp8"})
    assert (chosen.placement, chosen.weight_type) == ("group", "fp8")
    assert from_env({"WEIGHT_TYPE": "INT8"}).weight_type == "int8"
    assert from_env({"COMPILE": "On"}).compile == "on"
    left = from_env({"PLACEMENT": "auto", "WEIGHT_TYPE": "AUTO", "COMPILE": "auto"})
    assert (left.placement, left.weight_type, left.compile) == (None, None, None)


def test_blank_optional_bucket_variables_take_their_defaults() -> None:
    blank = {"BUCKET_REGION": "", "BUCKET_PREFIX": " ", "BUCKET_PUBLIC_URL": ""}
    assert from_env(BUCKET | blank) == from_env(BUCKET)
    bucket = from_env(BUCKET).bucket
    assert bucket is not None
    assert (bucket.region, bucket.prefix, bucket.public_url) == ("us-east-1", "", None)


@pytest.mark.parametrize(
    "text",
    [
        "abc",
        "１２",
        "٣",
        "1_0",
        "1.0",
        "1e2",
        "+5",
        "-5",
        "0x10",
        "0",
        "9",
        "9" * 30,
        "5 5",
        "5\n5",
    ],
)
def test_a_whole_number_is_ascii_digits_within_its_range(text: str) -> None:
    (problem,) = problems_of({"WORKER_CONCURRENCY": text})
    assert problem.startswith("WORKER_CONCURRENCY: must be a whole number from 1 to 8")


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("WORKER_CONCURRENCY", 1, 8),
        ("URL_EXPIRY_SECONDS", 1, 604_800),
        ("JOB_TIMEOUT_SECONDS", 1, 604_800),
        ("MAX_IMAGE_BYTES", 1024, 536_870_912),
        ("MAX_IMAGE_PIXELS", 256, 400_000_000),
        ("MAX_LORA_BYTES", 1024, 68_719_476_736),
        ("LORA_CACHE_BYTES", 1024, 1_125_899_906_842_624),
    ],
)
def test_both_edges_of_a_range_are_allowed_and_what_is_beyond_is_not(
    name: str, low: int, high: int
) -> None:
    field = name.lower()
    assert getattr(from_env({name: str(low)}), field) == low
    assert getattr(from_env({name: f" {high} "}), field) == high
    assert len(problems_of({name: str(low - 1)})) == 1
    assert len(problems_of({name: str(high + 1)})) == 1


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", True), ("TRUE", True), ("Yes", True), ("0", False), ("False", False), ("no", False)],
)
def test_a_switch_reads_true_and_false_in_any_case(text: str, value: bool) -> None:
    assert from_env({"RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS": text}).allow_private_urls is value


@pytest.mark.parametrize("text", ["on", "maybe", "2", "ｔｒｕｅ"])
def test_a_switch_with_another_word_is_refused_and_not_silently_off(text: str) -> None:
    (problem,) = problems_of({"RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS": text})
    assert "true or false" in problem


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("BUCKET_ENDPOINT_URL", "s3.example.com", id="endpoint-without-scheme"),
        pytest.param("BUCKET_ENDPOINT_URL", "ftp://s3.example.com", id="endpoint-ftp"),
        pytest.param("BUCKET_ENDPOINT_URL", "https://", id="endpoint-without-host"),
        pytest.param("BUCKET_ENDPOINT_URL", "https://[::1", id="endpoint-broken-bracket"),
        pytest.param("BUCKET_PUBLIC_URL", "cdn.example.com", id="public-without-scheme"),
        pytest.param("BUCKET_NAME", "a/b", id="name-with-slash"),
        pytest.param("BUCKET_NAME", "ab", id="name-too-short"),
        pytest.param("BUCKET_NAME", "a" * 64, id="name-too-long"),
        pytest.param("BUCKET_NAME", "vidéos", id="name-not-ascii"),
        pytest.param("BUCKET_PREFIX", "../up", id="prefix-climbs"),
        pytest.param("BUCKET_PREFIX", "a//b", id="prefix-empty-folder"),
        pytest.param("BUCKET_PREFIX", "a b", id="prefix-space"),
        pytest.param("BUCKET_PREFIX", "a\\b", id="prefix-backslash"),
        pytest.param("BUCKET_PREFIX", "%2e%2e", id="prefix-encoded"),
    ],
)
def test_a_bucket_variable_with_a_wrong_shape_is_refused_by_name(name: str, value: str) -> None:
    (problem,) = problems_of(BUCKET | {name: value})
    assert problem.startswith(f"{name}: must be")


@pytest.mark.parametrize("separator", [" ", ",", ", ", "\n"])
def test_two_callback_keys_may_overlap_while_they_are_rotated(separator: str) -> None:
    settings = from_env({"CALLBACK_SECRET": f"{'a' * 16}{separator}{'b' * 16}"})
    assert [key.reveal() for key in settings.callback_secrets] == ["a" * 16, "b" * 16]


def test_a_callback_keys_prefix_does_not_count_towards_its_length() -> None:
    assert len(problems_of({"CALLBACK_SECRET": "whsec_" + "a" * 15})) == 1
    assert from_env({"CALLBACK_SECRET": "whsec_" + "a" * 16}).callback_secrets


def test_a_callback_key_that_can_not_be_decoded_is_refused_at_start() -> None:
    (problem,) = problems_of({"CALLBACK_SECRET": "whsec_" + "!" * 24})
    assert problem.startswith("CALLBACK_SECRET: ")


@pytest.mark.parametrize("name", ["Qwen", "../x/y", "a/b/c", "https://x/y", "a b/c", "/a", "a/.."])
def test_a_language_model_is_named_by_its_repository(name: str) -> None:
    assert from_env({"ENHANCER_MODEL": "a-b/C.d_1"}).enhancer_model == "a-b/C.d_1"
    assert problems_of({"ENHANCER_MODEL": name})[0].startswith("ENHANCER_MODEL: ")


def test_no_refusal_repeats_a_secret() -> None:
    env = BUCKET | {
        "BUCKET_ACCESS_KEY_ID": CANARY,
        "BUCKET_ENDPOINT_URL": f"ftp://{CANARY}",
        "BUCKET_NAME": "!",
        "CALLBACK_SECRET": f"{CANARY} no",
        "LOG_LEVEL": "LOUD",
    }
    assert not any("canary" in line for line in problems_of(env))
    assert not any("canary" in line for line in problems_of(env | {"BUCKET_NAME": ""}))


def test_settings_print_without_their_secrets(caplog: pytest.LogCaptureFixture) -> None:
    settings = from_env(BUCKET | {"BUCKET_ACCESS_KEY_ID": CANARY, "CALLBACK_SECRET": CANARY})
    with caplog.at_level(logging.INFO):
        logging.info("%s %r %s", settings, settings.bucket, settings.callback_secrets[0])
    printed = f"{settings!r} {settings.bucket} {settings.callback_secrets[0]:}" + caplog.text
    assert "canary" not in printed
    assert "Secret(***)" in printed


KEY = "a-key-of-the-operator"


def test_every_variable_of_the_http_api_is_read() -> None:
    settings = from_env(
        {
            "API_HOST": "0.0.0.0",
            "API_PORT": "80",
            "API_KEY": KEY,
            "API_ADMIN_KEY": f"{KEY}-admin",
            "API_CORS_ORIGINS": "https://a.example.com, http://b.example.com:8080",
            "API_MAX_BODY_BYTES": "1048576",
            "QUEUE_LIMIT": "5",
            "STATE_DIR": "/state",
            "HF_TOKEN": "hf_0123456789",
        }
    )
    assert settings == Settings(
        api_host="0.0.0.0",
        api_port=80,
        api_key=Secret(KEY),
        api_admin_key=Secret(f"{KEY}-admin"),
        api_cors_origins=("https://a.example.com", "http://b.example.com:8080"),
        api_max_body_bytes=1_048_576,
        queue_limit=5,
        state_dir=Path("/state"),
        hub_token=Secret("hf_0123456789"),
    )
    assert KEY not in repr(settings)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("API_HOST", "example.com"),
        ("API_HOST", "127.0.0.1:80"),
        ("API_HOST", "127.1"),
        ("API_PORT", "0"),
        ("API_PORT", "65536"),
        ("API_KEY", "short"),
        ("API_KEY", "with spaces in it, and long"),
        ("API_KEY", "ünïcode-ünïcode-ünïcode"),
        ("API_CORS_ORIGINS", "*"),
        ("API_CORS_ORIGINS", "https://example.com/"),
        ("API_CORS_ORIGINS", "https://EXAMPLE.com"),
        ("API_CORS_ORIGINS", "example.com"),
        ("API_MAX_BODY_BYTES", "1"),
        ("QUEUE_LIMIT", "0"),
    ],
)
def test_what_the_http_api_can_not_use_is_refused(name: str, value: str) -> None:
    (problem,) = problems_of({name: value})
    assert problem.startswith(f"{name}: ")
    if name == "API_KEY":
        assert value not in problem


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "192.0.2.1", "::ffff:10.0.0.1"])
def test_an_address_that_others_reach_needs_a_key(host: str) -> None:
    (problem,) = problems_of({"API_HOST": host})
    assert problem.startswith("API_KEY: must be set")
    (problem,) = problems_of({"API_HOST": host, "API_KEY": "short"})
    assert not problem.startswith("API_KEY: must be set")
    assert from_env({"API_HOST": host, "API_KEY": KEY}).api_key == Secret(KEY)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost", "LOCALHOST"])
def test_this_machines_own_addresses_need_none(host: str) -> None:
    assert from_env({"API_HOST": host}).api_key is None


def test_an_admin_key_alone_protects_nothing_and_is_refused() -> None:
    (problem,) = problems_of({"API_ADMIN_KEY": KEY})
    assert problem.startswith("API_ADMIN_KEY: needs an API_KEY")
