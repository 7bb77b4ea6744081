"""What does a library's exception mean? Memory, the GPU, the disk, or something unexpected.

The names and words of the exception decide, so that torch need not be imported.
Not covered: how the worker reacts (job, clips, planning.out_of_memory).
"""

import errno
import logging

from wan_worker.errors import DiskFull, GpuFault, OutOfMemory, UnexpectedError, WorkerError

log = logging.getLogger(__name__)


def classify(problem: BaseException) -> WorkerError:
    """One of our errors for a library's exception. Its text, with paths or values, is left out."""
    name = type(problem).__name__
    if is_out_of_memory(problem):
        return OutOfMemory("Out of memory; ask for fewer frames or pixels, or take a larger GPU")
    if is_gpu_fault(problem):
        return GpuFault("The GPU failed; the worker restarts, send the job again")
    if is_disk_full(problem):
        return DiskFull("The worker's temp folder is full or read-only")
    log.error("unexpected %s", name, exc_info=problem)
    return UnexpectedError(
        f"The worker failed unexpectedly ({name}); its log has the details, and the same job may "
        "succeed on another try"
    )


def is_memory_or_gpu_fault(error: BaseException) -> bool:
    """Whether a library's exception is about memory or the GPU, judged by torch's words."""
    return is_out_of_memory(error) or is_gpu_fault(error)


def is_out_of_memory(error: BaseException) -> bool:
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    )


def is_gpu_fault(error: BaseException) -> bool:
    """Whether the CUDA context is broken, so that this process can't continue."""
    words = ("CUDA error", "cuDNN error", "CUDNN_STATUS", "CUBLAS_STATUS")
    return type(error).__name__ == "AcceleratorError" or any(w in str(error) for w in words)


def is_disk_full(error: BaseException) -> bool:
    """Whether the operating system refused to write: no space, over quota, read-only."""
    return isinstance(error, OSError) and error.errno in (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EROFS,
    )
