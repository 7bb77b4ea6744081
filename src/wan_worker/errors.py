"""All errors of this worker, in one tree. The worker raises no others on purpose.

    WorkerError
    ├── ClientError              the request is at fault; the same request fails again
    │   ├── InvalidRequest       INVALID_REQUEST
    │   ├── Unsupported          UNSUPPORTED
    │   ├── UrlBlocked           URL_BLOCKED
    │   ├── ImageRejected        IMAGE_REJECTED
    │   └── OutputTooLarge       OUTPUT_TOO_LARGE
    ├── UpstreamError            somebody else's server
    │   ├── FetchFailed          FETCH_FAILED
    │   └── StorageFailed        STORAGE_FAILED
    ├── CapacityError            this machine is too small, too full or too slow
    │   ├── OutOfMemory          OUT_OF_MEMORY
    │   ├── DiskFull             DISK_FULL
    │   └── DeadlineExceeded     DEADLINE
    ├── InternalError            the worker or its image is at fault
    │   ├── ModelUnavailable     MODEL_UNAVAILABLE
    │   ├── ModelCorrupt         MODEL_CORRUPT
    │   ├── GpuFault             GPU_FAULT
    │   ├── GenerationFailed     GENERATION_FAILED
    │   ├── EncodeFailed         ENCODE_FAILED
    │   ├── ConfigInvalid        CONFIG_INVALID
    │   └── UnexpectedError      INTERNAL
    └── Canceled                 CANCELED

A message is public. It names the field, the rule and what to do next. It never holds a path of the
worker, a credential, a signed URL or the value of a field that may be secret.
"""

import json
from typing import Any, ClassVar


class WorkerError(Exception):
    """A failure whose message a caller may read.

    Args:
        message: what happened and what to do next.
        field: JSON pointer of the request field at fault (``/input/size``), if there is one.
        retryable: whether the same request may succeed later; the class's own value by default.
    """

    code: ClassVar[str] = "INTERNAL"
    category: ClassVar[str] = "worker"
    retryable: bool = False
    refresh_worker: ClassVar[bool] = False
    """Whether this process should run no more jobs."""

    def __init__(
        self, message: str, *, field: str | None = None, retryable: bool | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        if retryable is not None:
            self.retryable = retryable

    @property
    def located(self) -> str:
        """The message after its field, for readers who get only text."""
        return f"{self.field}: {self.message}" if self.field else self.message


class ClientError(WorkerError):
    category = "client"


class InvalidRequest(ClientError):
    code = "INVALID_REQUEST"


class Unsupported(ClientError):
    code = "UNSUPPORTED"


class UrlBlocked(ClientError):
    code = "URL_BLOCKED"


class ImageRejected(ClientError):
    code = "IMAGE_REJECTED"


class OutputTooLarge(ClientError):
    code = "OUTPUT_TOO_LARGE"


class UpstreamError(WorkerError):
    category = "upstream"
    retryable = True


class FetchFailed(UpstreamError):
    code = "FETCH_FAILED"


class StorageFailed(UpstreamError):
    code = "STORAGE_FAILED"


class CapacityError(WorkerError):
    category = "capacity"


class OutOfMemory(CapacityError):
    code = "OUT_OF_MEMORY"
    refresh_worker = True


class DiskFull(CapacityError):
    code = "DISK_FULL"
    retryable = True


class DeadlineExceeded(CapacityError):
    code = "DEADLINE"


class InternalError(WorkerError):
    pass


class ModelUnavailable(InternalError):
    code = "MODEL_UNAVAILABLE"


class ModelCorrupt(InternalError):
    code = "MODEL_CORRUPT"


class GpuFault(InternalError):
    code = "GPU_FAULT"
    retryable = True
    refresh_worker = True


class GenerationFailed(InternalError):
    code = "GENERATION_FAILED"
    retryable = True


class EncodeFailed(InternalError):
    code = "ENCODE_FAILED"
    retryable = True


class ConfigInvalid(InternalError):
    code = "CONFIG_INVALID"


class UnexpectedError(InternalError):
    code = "INTERNAL"
    retryable = True


class Canceled(WorkerError):
    code = "CANCELED"
    category = "canceled"


def public(error: WorkerError, stage: str) -> dict[str, Any]:
    """The fields of a failure that a caller gets."""
    return {
        "code": error.code,
        "message": error.message,
        "field": error.field,
        "retryable": error.retryable,
        "stage": stage,
    }


def public_json(error: WorkerError, stage: str) -> str:
    """The compact JSON string that RunPod's ``error`` field carries (it must be a string)."""
    return json.dumps(public(error, stage), ensure_ascii=True, separators=(",", ":"))
