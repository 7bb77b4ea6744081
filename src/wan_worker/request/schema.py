"""Does this input keep to the schema? The schema, its aliases and the presets, loaded once.

``schemas/request.schema.json`` is the truth about single fields, aliases included. ``check`` adds
what a schema can't say: values that pass JSON Schema and break what comes after it. Errors name the
JSON pointer and the rule, and never repeat a value: it could be a secret.
Not covered: rules across fields, and what the fields mean together (request).
"""

import difflib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError

from wan_worker.errors import ConfigInvalid, InvalidRequest

SCHEMAS_DIR: Final = Path(__file__).resolve().parents[3] / "schemas"
MAX_DEPTH: Final = 8
MAX_VALUES: Final = 2_000
MAX_PROBLEMS: Final = 5

# C0 and C1 controls but for tab, newline and carriage return, and lone surrogates.
_BAD_CHARACTERS: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
# In names also line breaks: names are written to the log.
_BAD_IN_NAMES: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


@dataclass(frozen=True)
class Contract:
    """The schema, its aliases and the presets, loaded once."""

    validator: Draft202012Validator
    fields: tuple[str, ...]
    """Names that a request may use, aliases included."""
    aliases: Mapping[str, str]
    """Alias to canonical name."""
    presets: Mapping[str, Any]


def load(folder: Path = SCHEMAS_DIR) -> Contract:
    """Read schema and presets.

    Raises:
        ConfigInvalid: if a file is missing, no JSON, or no valid schema.
    """
    try:
        schema = json.loads((folder / "request.schema.json").read_text("utf-8"))
        presets = _extended(json.loads((folder / "presets.json").read_text("utf-8")))
        Draft202012Validator.check_schema(schema)
        fields = schema["properties"]
        aliases = {name: f["x-alias-of"] for name, f in fields.items() if "x-alias-of" in f}
        validator = Draft202012Validator(schema)
        _check_presets(presets, validator, fields["job_type"]["enum"], fields["profile"]["enum"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SchemaError) as error:
        raise ConfigInvalid(
            f"schemas/ is not usable ({type(error).__name__}): the image is built wrong"
        ) from error
    return Contract(validator, tuple(fields), aliases, presets)


def _extended(presets: dict[str, Any]) -> dict[str, Any]:
    """Presets in full: one that ``extends`` another has its values, and its own beside them."""
    full = {}
    for name, preset in presets.items():
        own = dict(preset)
        base = presets[own.pop("extends")] if "extends" in own else None
        if base is None:
            full[name] = preset
        elif "profiles" in base:
            variants = {profile: values | own for profile, values in base["profiles"].items()}
            full[name] = base | {"profiles": variants}
        else:
            full[name] = base | {"values": base["values"] | own}
    return full


def _check_presets(
    presets: Any, validator: Draft202012Validator, job_types: list[str], profiles: list[str]
) -> None:
    """Raise ValueError unless every preset is there and holds values that a request could."""
    if list(presets) != job_types:
        raise ValueError("presets.json and the schema name different job types")
    for preset in presets.values():
        variants = preset["profiles"] if "profiles" in preset else {"": preset["values"]}
        if "profiles" in preset and list(variants) != profiles:
            raise ValueError("presets.json and the schema name different profiles")
        for values in variants.values():
            if not validator.is_valid({"mode": preset["mode"], **values}):
                raise ValueError("a preset breaks the schema")


def check(given: dict[str, Any], contract: Contract) -> None:
    """Hold an input against the schema.

    Raises:
        InvalidRequest: naming up to five fields that break a rule.
    """
    _check_values(given)
    _check_schema(given, contract)


def _check_values(given: dict[str, Any]) -> None:
    """Refuse what passes JSON Schema but breaks what comes after it.

    NaN passes minimum and maximum, infinity crashes integer checks, a lone surrogate can't be
    encoded into the answer, and deep nesting exhausts the stack of recursive code.
    """
    pending: list[tuple[str, Any, int]] = [("/input", given, 0)]
    seen = 1
    while pending:
        pointer, value, depth = pending.pop()
        if isinstance(value, dict | list):
            seen += len(value)
        if depth > MAX_DEPTH or seen > MAX_VALUES:
            raise InvalidRequest(
                f"The input is nested deeper than {MAX_DEPTH} levels or holds more than "
                f"{MAX_VALUES} values",
                field="/input",
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise InvalidRequest("Must be a finite number", field=pointer)
        if isinstance(value, str) and _BAD_CHARACTERS.search(value):
            raise InvalidRequest(
                "Must be text without control characters or lone surrogates", field=pointer
            )
        if isinstance(value, dict):
            for key, inner in value.items():
                if not isinstance(key, str) or _BAD_IN_NAMES.search(key):
                    raise InvalidRequest("Field names must be plain text", field=pointer)
                pending.append((f"{pointer}/{_escape(key)}", inner, depth + 1))
        elif isinstance(value, list):
            pending.extend((f"{pointer}/{i}", inner, depth + 1) for i, inner in enumerate(value))


def _check_schema(given: dict[str, Any], contract: Contract) -> None:
    problems = [
        problem
        for error in sorted(contract.validator.iter_errors(given), key=lambda e: str(list(e.path)))
        for problem in _describe(error)
    ]
    if not problems:
        return
    first_pointer, first_message = problems[0]
    rest = "".join(f"; {pointer}: {message}" for pointer, message in problems[1:MAX_PROBLEMS])
    hidden = len(problems) - MAX_PROBLEMS
    more = f"; and {hidden} more" if hidden > 0 else ""
    raise InvalidRequest(first_message + rest + more, field=first_pointer)


def _describe(error: ValidationError) -> Iterator[tuple[str, str]]:
    """JSON pointer and rule for one schema error, in our words: the library's quote the value."""
    pointer = "/input" + "".join(f"/{_escape(str(part))}" for part in error.absolute_path)
    rule: Any = error.validator_value
    instance: Any = error.instance
    match error.validator:
        case "additionalProperties":
            schema: Any = error.schema
            known = schema["properties"]
            for name in sorted(set(instance) - set(known)):
                near = difflib.get_close_matches(name[:80], known, n=1, cutoff=0.6)
                hint = f"did you mean {near[0]}?" if near else "docs/requests.md lists every field"
                yield f"{pointer}/{_escape(name)}", f"Unknown field; {hint}"
        case "required":
            absent = [name for name in rule if name not in instance]
            yield pointer, f"Needs: {', '.join(absent)}"
        case "minItems":
            yield pointer, f"Must have at least {rule} item(s)"
        case "maxItems":
            yield pointer, f"Must have at most {rule} items"
        case "type":
            wanted = rule if isinstance(rule, str) else " or ".join(rule)
            yield pointer, f"Must be of type {wanted}"
        case "enum":
            yield pointer, f"Must be one of: {', '.join(map(str, rule))}"
        case "minimum":
            yield pointer, f"Must be at least {rule}"
        case "maximum":
            yield pointer, f"Must be at most {rule}"
        case "exclusiveMinimum":
            yield pointer, f"Must be more than {rule}"
        case "minLength":
            yield pointer, f"Must have at least {rule} character(s)"
        case "maxLength":
            yield pointer, f"Must have at most {rule} characters"
        case "minItems":
            yield pointer, f"Must have at least {rule} item(s)"
        case "maxItems":
            yield pointer, f"Must have at most {rule} items"
        case "pattern":
            yield pointer, "Must look like 832x480"
        case other:
            yield pointer, f"Breaks the schema's rule {other}"


def _escape(part: str) -> str:
    """One reference token of a JSON pointer (RFC 6901), of a length that fits into an answer."""
    return part[:80].replace("~", "~0").replace("/", "~1")
