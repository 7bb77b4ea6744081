"""What can still be made where a picture fails? The same request with fewer pictures.

Only for requests with ``reference_fallback``. Pure.
Not covered: finding out whether a picture can be used (inputs.references), and whether a model is
here for what is left (planning).
"""

from collections.abc import Iterator

from wan_worker.errors import WorkerError
from wan_worker.request.parse import Notice, Request


def fewer_pictures(asked: Request, field: str, problem: WorkerError) -> Iterator[Request]:
    """The request without one picture, then without any; each with a notice that says why.

    A request that would have neither a picture nor a prompt is left out.

    Args:
        field: the picture that failed. If the request has no such picture, only the request
            without any picture is tried.
    """
    alone = (field,) if field in asked.references else asked.references
    for dropped in dict.fromkeys((alone, asked.references)):
        fewer = asked.without(dropped, _notice(asked, dropped, problem))
        if fewer.references or fewer.prompt:
            yield fewer


def _notice(asked: Request, dropped: tuple[str, ...], problem: WorkerError) -> Notice:
    left = [name for name in asked.references if name not in dropped]
    start = f"Made without {' and '.join(dropped)}" if left else "Made from the prompt alone"
    return Notice(
        "REFERENCE_UNUSABLE",
        f"{start}; the reference image failed with {problem.code}: {problem.message}",
    )
