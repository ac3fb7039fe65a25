"""What all settings models share: strictness, faults with hints, and the types of common values."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import InitErrorDetails, PydanticCustomError

from koubou_common.addresses import AddressError, check_connect
from koubou_common.keys import is_key
from koubou_common.yaml_marks import Route

FAULT = "koubou_fault"  # marks our own errors among pydantic's: message and hint are in their context
DAYS_MAX = 36_500  # a century: beyond it is a slip of the keyboard
SECONDS_MAX = 10 * 365 * 86_400.0  # what the wire carries
BYTES_MAX = 1 << 50

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")


class SettingsModel(BaseModel):
    """Frozen and strict: no unknown keys, no silent conversions, no infinities."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=False)

    @model_validator(mode="before")
    @classmethod
    def _a_key_with_nothing_after_it_keeps_its_default(cls, written: object) -> object:
        # People comment out all entries of a list and leave its key standing.
        if not isinstance(written, dict):
            return written
        fields = cls.model_fields
        return {
            name: value
            for name, value in written.items()
            if value is not None or name not in fields or fields[name].is_required()
        }


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a value, where (below the model or field that found it), and what helps."""

    message: str
    hint: str = ""
    route: Route = ()


def fault(message: str, hint: str = "") -> PydanticCustomError:
    """An error to raise from a validator of one value."""
    # Message and hint are values of the context: braces in them must not be taken for a template's.
    return PydanticCustomError(FAULT, "{message}", {"message": message, "hint": hint})


def part_of(holder: object, name: str) -> object:
    """A value by its name, whether written in a file or already made; None if there is none."""
    return holder.get(name) if isinstance(holder, Mapping) else getattr(holder, name, None)


def default_of(found: FieldInfo) -> object:
    """A field's default; None for one that is required or made from another field."""
    if found.is_required() or found.default_factory_takes_validated_data:
        return None
    default: object = found.get_default(call_default_factory=True)
    return default


def raise_faults(faults: Iterable[Fault], and_these: ValidationError | None = None) -> None:
    """Raise all of them together, each at its own place; nothing if there are none."""
    details = [InitErrorDetails(type=fault(found.message, found.hint), loc=found.route, input=None) for found in faults]
    if and_these is not None:
        details += [_again(error) for error in and_these.errors(include_url=False)]
    if details:
        raise ValidationError.from_exception_data("settings", details)


def from_address(check: Callable[[str], object]) -> Callable[[str], str]:
    """A validator out of a check that raises AddressError."""

    def validate(address: str) -> str:
        try:
            check(address)
        except AddressError as error:
            raise fault(error.message, error.hint) from error
        return address

    return validate


def check_public_key(key: str) -> str:
    """A public CURVE key; an error names what is expected."""
    if not is_key(key):
        raise fault("is not a public key: it has 40 characters", "`koubou-broker` prints it when it starts")
    return key


def _name(word: str) -> str:
    if not _NAME.fullmatch(word):
        raise fault(
            "should be 1 to 64 letters, digits, '.', '_' or '-', not beginning with '.' or '-'",
            "an example: lan_001",
        )
    return word


def _path(written: object) -> object:
    return Path(written) if isinstance(written, str) and written and "\0" not in written else written


def one_or_several(written: object) -> object:
    return (written,) if isinstance(written, str) else written


def _again(error: object) -> InitErrorDetails:
    """An error already reported, to be raised once more beside others."""
    assert isinstance(error, dict)
    context = error.get("ctx", {})
    kind: str | PydanticCustomError = error["type"]
    if kind == FAULT:
        kind = fault(context["message"], context["hint"])
    return InitErrorDetails(type=kind, loc=error["loc"], input=error["input"], ctx=context)


# A list in YAML is a tuple in a frozen model; what it holds stays strict.
NameText = Annotated[str, AfterValidator(_name)]
BrokerAddresses = Annotated[
    tuple[Annotated[str, AfterValidator(from_address(check_connect))], ...],
    Field(strict=False, min_length=1, max_length=16),
    BeforeValidator(one_or_several, json_schema_input_type=str | list[str]),
]
FilePath = Annotated[Path, BeforeValidator(_path)]
PublicKey = Annotated[str, AfterValidator(check_public_key)]
Seconds = Annotated[float, Field(gt=0, le=SECONDS_MAX)]
Days = Annotated[int, Field(ge=1, le=DAYS_MAX)]
Bytes = Annotated[int, Field(ge=1, le=BYTES_MAX)]
LogLevel = Literal["debug", "info", "warning", "error"]
