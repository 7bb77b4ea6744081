"""Build, sign and send the callback to the app when a job ends, within a time budget.

The callback never changes the job's outcome: ``send`` returns None or the text of a warning, and
raises nothing. It is signed by the Standard Webhooks rules, with one signature per secret, so that
a receiver can rotate keys. All tries have the same ``webhook-id``, so that a receiver can drop
duplicates. Redirects are not followed, and the answer's body is not read.
Not covered: delivery after the worker has died (the manifest in storage has the result), progress.
"""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from wan_worker.errors import Canceled, DeadlineExceeded, FetchFailed, WorkerError
from wan_worker.inputs import net
from wan_worker.inputs.dialing import Policy
from wan_worker.settings import Secret

FIELD: Final = "/input/callback_url"
MAX_TRIES: Final = 4
BACKOFF_SECONDS: Final = 0.5
"""The pause before the second try. It doubles before each later try."""
MAX_PAUSE_SECONDS: Final = 10.0
"""The longest pause, even if a receiver asks for a longer one."""
TRY_SECONDS: Final = 10.0
"""The limit for one try, so that a receiver that hangs once leaves time for another try."""
RETRYABLE: Final = frozenset({408, 425, 429})
"""These statuses and every 5xx are tried again."""
BASE64_PREFIX: Final = "whsec_"
BUDGET_SECONDS: Final = 20.0
"""For all tries of a job's callback."""
LAST_BUDGET_SECONDS: Final = 2.0
"""The same where the next job should not wait: after a cancel or a deadline."""


def body(
    job_id: str,
    answer: Mapping[str, Any],
    error: WorkerError | None,
    *,
    job_type: str | None,
    wan_task: str | None,
) -> dict[str, Any]:
    """What the callback of a job says.

    Args:
        answer: the job's, where it completed.
        error: why it did not.
        job_type, wan_task: of a failed job, where they were known by then.
    """
    if error is not None:
        return failed(
            job_id,
            error.located,
            error_type=error.code,
            job_type=job_type,
            wan_task=wan_task,
            timestamp=int(time.time()),
        )
    assets = answer["assets"]
    return completed(
        job_id,
        [asset["key"] for asset in assets if "key" in asset],
        [asset["url"] for asset in assets if "url" in asset],
        answer["metadata"],
    )


def budget(error: WorkerError | None, seconds_left: float | None) -> float:
    """Seconds for the callback, from the job's error and the seconds left until its deadline."""
    if isinstance(error, Canceled | DeadlineExceeded):
        return LAST_BUDGET_SECONDS
    if seconds_left is None:
        return BUDGET_SECONDS
    return max(LAST_BUDGET_SECONDS, min(BUDGET_SECONDS, seconds_left))


def completed(
    job_id: str, assets: Sequence[str], asset_urls: Sequence[str], metadata: Mapping[str, Any]
) -> dict[str, Any]:
    """The body for a success. ``assets`` are keys relative to the store, in the URLs' order."""
    return {
        "job_id": job_id,
        "status": "completed",
        "assets": list(assets),
        "asset_urls": list(asset_urls),
        "metadata": dict(metadata),
    }


def failed(
    job_id: str,
    error_message: str,
    *,
    error_type: str,
    job_type: str | None,
    wan_task: str | None,
    timestamp: int,
) -> dict[str, Any]:
    """The body for a failure. ``timestamp`` is Unix time in seconds."""
    return {
        "job_id": job_id,
        "status": "failed",
        "error_message": error_message,
        "metadata": {
            "error_type": error_type,
            "job_type": job_type,
            "wan_task": wan_task,
            "timestamp": timestamp,
        },
    }


def signing_key(secret: Secret) -> bytes:
    """The bytes of the key: base64 after ``whsec_``, otherwise the text itself.

    Raises:
        ValueError: the text after ``whsec_`` is not base64.
    """
    text = secret.reveal()
    if not text.startswith(BASE64_PREFIX):
        return text.encode()
    encoded = text.removeprefix(BASE64_PREFIX)
    padded = encoded + "=" * (-len(encoded) % 4)  # receivers' libraries accept it without padding
    try:
        return base64.b64decode(padded, validate=True)
    except ValueError:
        # From None: the original's traceback holds the secret, and its text may too.
        raise ValueError("a callback secret is not valid base64 after 'whsec_'") from None


def headers(
    body: bytes, message_id: str, timestamp: int, secrets: Sequence[Secret]
) -> dict[str, str]:
    """The headers that prove the sender of ``body``, by https://www.standardwebhooks.com."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    signatures = [
        base64.b64encode(hmac.digest(signing_key(secret), signed, "sha256")).decode()
        for secret in secrets
    ]
    result = {
        "Content-Type": "application/json",
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
    }
    if signatures:
        result["webhook-signature"] = " ".join(f"v1,{signature}" for signature in signatures)
    return result


def message_id(body: Mapping[str, Any]) -> str:
    """One id per job and outcome. It is a hash, so that no text of a job id enters a header."""
    name = json.dumps([body["job_id"], body["status"]])
    return "msg_" + hashlib.sha256(name.encode()).hexdigest()[:32]


def send(
    url: str,
    body: Mapping[str, Any],
    secrets: Sequence[Secret],
    policy: Policy,
    *,
    seconds: float,
    now: Callable[[], float] = time.time,
) -> str | None:
    """Deliver the callback. Try again if that may help, until the time is up.

    Returns:
        None if the receiver accepted it, otherwise the reason for the job's warnings.
    """
    try:
        return _deliver(url, body, secrets, policy, seconds, now)
    except WorkerError as problem:
        return f"The callback was not delivered: {problem.message}"
    except Exception as problem:  # noqa: BLE001 - a callback must not fail a finished job
        return f"The callback was not delivered: {type(problem).__name__}"


def _deliver(
    url: str,
    body: Mapping[str, Any],
    secrets: Sequence[Secret],
    policy: Policy,
    seconds: float,
    now: Callable[[], float],
) -> str | None:
    encoded = json.dumps(body, allow_nan=False).encode()
    webhook_id = message_id(body)
    deadline = policy.clock() + seconds
    attempt = 0
    while True:
        attempt += 1
        # Each try gets a new signature: receivers refuse a timestamp that is minutes old.
        signed = headers(encoded, webhook_id, int(now()), secrets)
        pause = min(BACKOFF_SECONDS * 2 ** (attempt - 1), MAX_PAUSE_SECONDS)
        budget = min(deadline - policy.clock(), TRY_SECONDS)
        try:
            reply = net.post(url, encoded, signed, policy, seconds=budget, field=FIELD)
        except FetchFailed as failure:
            problem, retryable = failure.message, failure.retryable
        else:
            if 200 <= reply.status < 300:
                return None
            problem = f"The receiver answered {reply.status}"
            retryable = reply.status in RETRYABLE or reply.status >= 500
            if reply.retry_after is not None:
                pause = min(max(pause, reply.retry_after), MAX_PAUSE_SECONDS)
        if not retryable or attempt == MAX_TRIES or policy.clock() + pause >= deadline:
            tries = "1 try" if attempt == 1 else f"{attempt} tries"
            return f"The callback was not delivered in {tries}: {problem}"
        policy.sleep(pause)
