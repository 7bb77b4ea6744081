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
SCHEMA: Final = "request.schema.json"
PRESETS: Final = "presets.json"

_NAMES: Final[Mapping[str, Any]] = {
    "required": ["enum"],
    "properties": {"enum": {"type": "array", "items": {"type": "string"}}},
}
NEEDED_OF_SCHEMA: Final[Mapping[str, Any]] = {
    "type": "object",
    "required": ["properties"],
    "properties": {
        "properties": {
            "required": ["job_type", "profile"],
            "properties": {"job_type": _NAMES, "profile": _NAMES},
            "additionalProperties": {"type": "object"},
        }
    },
}
NEEDED_OF_PRESETS: Final[Mapping[str, Any]] = {
    "type": "object",
    "additionalProperties": {
        "type": "object",
        "if": {"type": "object", "required": ["extends"]},
        "then": {"properties": {"extends": {"type": "string"}}},
        "else": {"required": ["mode"]},
        "properties": {
            "values": {"type": "object"},
            "profiles": {"type": "object", "additionalProperties": {"type": "object"}},
        },
    },
}
"""What the code reads of the two files, beside what makes them valid."""

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
        ConfigInvalid: a file can't be used; the message says which, why, and what to do.
    """
    schema = _read(folder, SCHEMA)
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise _unusable(SCHEMA, _said(error)) from None
    _hold(schema, NEEDED_OF_SCHEMA, SCHEMA)
    validator, fields = Draft202012Validator(schema), schema["properties"]
    presets = _extended(_hold(_read(folder, PRESETS), NEEDED_OF_PRESETS, PRESETS))
    _check_presets(presets, validator, fields["job_type"]["enum"], fields["profile"]["enum"])
    aliases = {name: f["x-alias-of"] for name, f in fields.items() if "x-alias-of" in f}
    return Contract(validator, tuple(fields), aliases, presets)


def _read(folder: Path, name: str) -> Any:
    try:
        return json.loads((folder / name).read_text("utf-8"))
    except FileNotFoundError:
        raise _unusable(name, "it is missing") from None
    except OSError as error:
        raise _unusable(name, error.strerror or type(error).__name__) from error
    except UnicodeDecodeError:
        raise _unusable(name, "it is no UTF-8 text") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise _unusable(name, f"it is no JSON: {error.msg}, {where}") from None


def _unusable(name: str, why: str) -> ConfigInvalid:
    return ConfigInvalid(
        f"schemas/{name} can't be used: {why}; take the file from the repository and build the "
        "image again"
    )


def _hold(value: Any, needed: Mapping[str, Any], name: str) -> Any:
    """The same value, if it has the parts that the code reads."""
    for error in Draft202012Validator(needed).iter_errors(value):
        raise _unusable(name, _said(error))
    return value


def _said(error: SchemaError | ValidationError) -> str:
    """The library's words: of a file of the repository they may quote anything."""
    pointer = "".join(f"/{part}" for part in error.absolute_path)
    return (f"at {pointer}, " if pointer else "") + error.message[:200]


def _extended(presets: dict[str, Any]) -> dict[str, Any]:
    """Presets in full: one that ``extends`` another has its values, and its own beside them."""
    full = {}
    for name, preset in presets.items():
        base, own = preset, {key: value for key, value in preset.items() if key != "extends"}
        if "extends" in preset:
            base = presets.get(preset["extends"], {})
            problem = "is not there" if not base else "extends another itself"
            if not base or "extends" in base:
                raise _unusable(PRESETS, f"{name} extends {preset['extends']}, which {problem}")
        if "profiles" not in base and "values" not in base:
            raise _unusable(PRESETS, f"{name} has neither values nor profiles")
        if base is preset:
            full[name] = preset
        elif "profiles" in base:
            variants = {profile: values | own for profile, values in base["profiles"].items()}
            full[name] = base | {"profiles": variants}
        else:
            full[name] = base | {"values": base["values"] | own}
    return full


def _check_presets(
    presets: Mapping[str, Any],
    validator: Draft202012Validator,
    job_types: list[str],
    profiles: list[str],
) -> None:
    """Raise ConfigInvalid unless every preset is there and holds values that a request could."""
    _agree("it", "job types", list(presets), job_types)
    for name, preset in presets.items():
        if "profiles" in preset:
            _agree(name, "profiles", list(preset["profiles"]), profiles)
        for values in preset.get("profiles", {"": preset.get("values")}).values():
            for error in validator.iter_errors({"mode": preset["mode"], **values}):
                pointer, rule = next(_describe(error))
                field = pointer.removeprefix("/input").removeprefix("/")
                raise _unusable(PRESETS, f"{name} breaks the rules of requests: {field}: {rule}")


def _agree(who: str, what: str, here: list[str], in_schema: list[str]) -> None:
    if here != in_schema:
        why = f"{who} has the {what} {', '.join(here)}, and {SCHEMA} {', '.join(in_schema)}"
        raise _unusable(PRESETS, why)


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
