"""What does a client of the older API ask for? ``config`` and ``metadata`` become today's fields.

``config.first_frame`` and ``metadata.start_reference_url`` become image_url.
``metadata.end_reference_url`` becomes last_image_url. All keep the fallback of the older API.
Not covered: all that comes after (parse).
"""

from typing import Any

from wan_worker.errors import InvalidRequest


def open_envelope(
    fields: dict[str, Any], where: dict[str, str]
) -> tuple[dict[str, Any], dict[str, str], list[tuple[str, str]]]:
    """The fields with the envelope's content, the JSON pointer of each, and notices.

    Raises:
        InvalidRequest: two pictures are given for one frame.
    """
    config, metadata = fields.get("config", {}), fields.get("metadata", {})
    starts = {
        pointer: value
        for pointer, value in (
            ("/input/config/first_frame", config.get("first_frame")),
            ("/input/metadata/start_reference_url", metadata.get("start_reference_url")),
        )
        if value
    }
    end = metadata.get("end_reference_url")
    ends = {"/input/metadata/end_reference_url": end} if end else {}
    notices = []
    read = {"config": {"first_frame"}, "metadata": {"start_reference_url", "end_reference_url"}}
    ignored = sorted(
        f"{part}.{name}"[:60]
        for part, names in read.items()
        for name in fields.get(part, {})
        if name not in names
    )
    if ignored:
        others = " and others." if len(ignored) > 5 else "."
        notices.append(("ENVELOPE_FIELDS_IGNORED", f"Not read: {', '.join(ignored[:5])}{others}"))
    opened, found = dict(fields), dict(where)
    for name, references in (("image_url", starts), ("last_image_url", ends)):
        if not references:
            continue
        pointer, value = next(iter(references.items()))
        if name in fields or len(set(references.values())) > 1:
            raise InvalidRequest(
                f"More than one picture is given for one frame; keep {name} alone", field=pointer
            )
        opened |= {name: value} | {"reference_fallback": fields.get("reference_fallback", True)}
        found[name] = pointer
    return opened, found, notices
