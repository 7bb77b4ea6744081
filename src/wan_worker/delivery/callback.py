"""The notice to the app when a job ends: built, signed and sent, within a time budget.

It never changes the job's outcome: ``send`` answers None or the text of a warning, and raises
nothing. Notices are signed as Standard Webhooks has it, one signature per secret, so that a
receiver can rotate keys; all tries of a notice carry one ``webhook-id``, so that it can drop
doubles. Redirects are not followed, and the answer's body is not read.
Not covered: delivery after the worker has died (the manifest in storage has the result), progress.
"""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from wan_worker.errors import FetchFailed, WorkerError
from wan_worker.inputs import net
from wan_worker.inputs.dialing import Policy
from wan_worker.settings import Secret

FIELD: Final = "/input/callback_url"
MAX_TRIES: Final = 4
BACKOFF_SECONDS: Final = 0.5
"""Before the second try; doubled before each further one."""
MAX_PAUSE_SECONDS: Final = 10.0
"""However long a receiver asks us to wait."""
TRY_SECONDS: Final = 10.0
"""For one try, so that a receiver that hangs once leaves time for another."""
RETRYABLE: Final = frozenset({408, 425, 429})
"""And every 5xx."""
BASE64_PREFIX: Final = "whsec_"


def completed(
    job_id: str, assets: Sequence[str], asset_urls: Sequence[str], metadata: Mapping[str, Any]
) -> dict[str, Any]:
    """The notice of a success. ``assets`` are keys relative to the store, in order of the URLs."""
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
    """The notice of a failure. ``timestamp`` is Unix time in seconds."""
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
    """The bytes to sign with: base64 after ``whsec_``, else the text itself.

    Raises:
        ValueError: what follows ``whsec_`` is not base64.
    """
    text = secret.reveal()
    if not text.startswith(BASE64_PREFIX):
        return text.encode()
    encoded = text.removeprefix(BASE64_PREFIX)
    padded = encoded + "=" * (-len(encoded) % 4)  # receivers' libraries take it unpadded
    try:
        return base64.b64decode(padded, validate=True)
    except ValueError:
        # From None: the original holds the secret in its traceback's frame, and may in its text.
        raise ValueError("a callback secret is not valid base64 after 'whsec_'") from None


def headers(
    body: bytes, message_id: str, timestamp: int, secrets: Sequence[Secret]
) -> dict[str, str]:
    """The headers that prove where ``body`` comes from, by https://www.standardwebhooks.com."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    signatures = [
        base64.b64encode(hmac.digest(signing_key(secret), signed, "sha256")).decode()
        for secret in secrets
    ]
    named = {
        "Content-Type": "application/json",
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
    }
    if signatures:
        named["webhook-signature"] = " ".join(f"v1,{signature}" for signature in signatures)
    return named


def message_id(body: Mapping[str, Any]) -> str:
    """One id per job and outcome. A hash, so that no job id can write itself into a header."""
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
    """Deliver a notice; try again where that may help, until the time is up.

    Returns:
        None when the receiver took it, else why it did not, for the job's warnings.
    """
    try:
        return _deliver(url, body, secrets, policy, seconds, now)
    except WorkerError as problem:
        return f"The callback was not delivered: {problem.message}"
    except Exception as problem:  # noqa: BLE001 - a notice must not cost a finished job
        return f"The callback was not delivered: {type(problem).__name__}"


def _deliver(
    url: str,
    body: Mapping[str, Any],
    secrets: Sequence[Secret],
    policy: Policy,
    seconds: float,
    now: Callable[[], float],
) -> str | None:
    data = json.dumps(body, allow_nan=False).encode()
    name = message_id(body)
    ends = policy.clock() + seconds
    attempt = 0
    while True:
        attempt += 1
        # Signed anew each time: receivers refuse a timestamp that is minutes old.
        signed = headers(data, name, int(now()), secrets)
        pause = min(BACKOFF_SECONDS * 2 ** (attempt - 1), MAX_PAUSE_SECONDS)
        budget = min(ends - policy.clock(), TRY_SECONDS)
        try:
            reply = net.post(url, data, signed, policy, seconds=budget, field=FIELD)
        except FetchFailed as failure:
            problem, retryable = failure.message, failure.retryable
        else:
            if 200 <= reply.status < 300:
                return None
            problem = f"The receiver answered {reply.status}"
            retryable = reply.status in RETRYABLE or reply.status >= 500
            if reply.retry_after is not None:
                pause = min(max(pause, reply.retry_after), MAX_PAUSE_SECONDS)
        if not retryable or attempt == MAX_TRIES or policy.clock() + pause >= ends:
            tries = "1 try" if attempt == 1 else f"{attempt} tries"
            return f"The callback was not delivered in {tries}: {problem}"
        policy.sleep(pause)
