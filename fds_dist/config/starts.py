"""The values that a learned hyperparameter begins with: `init`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, TypeAdapter, ValidationError, model_validator
from pydantic_core import InitErrorDetails

from fds_dist.common.kinds import NonNegative, Number, Positive, Ratio, Text, expects, read_by, show
from fds_dist.config.sections import Contradiction, Section, refuse

LEFT_OUT: Any = None
"""Stands for a key that is left out."""

EXPECTED = "a number, a list of numbers, or a mapping with one of cosine, linear and file"


class CurveConfig(Section):
    """A warm-up in a line from 0 to `peak`, and then a decay to `floor`."""

    peak: Positive
    """The value after the warm-up."""

    floor: NonNegative = 0.0
    """The value at the end of the horizon."""

    warmup: Ratio = 0.0
    """The fraction of the horizon that the warm-up takes."""

    @model_validator(mode="after")
    def _falls(self) -> CurveConfig:
        if self.floor > self.peak:
            problem = f"{show(self.floor)} is above peak"
            refuse([Contradiction(("floor",), problem, f"a number of at most {show(self.peak)} (peak)")])
        return self


class ShapedStart(Section):
    """A curve, or an earlier schedule; each bucket begins with the mean over its stretch of the horizon, and
    each knot of the shape `linear` with the value where it stands."""

    MEANINGFUL_ABSENCE: ClassVar[frozenset[str]] = frozenset({"cosine", "linear", "file"})

    model_config = ConfigDict(json_schema_extra={"minProperties": 1, "maxProperties": 1})

    cosine: CurveConfig = LEFT_OUT
    """Half a cosine, after a warm-up."""

    linear: CurveConfig = LEFT_OUT
    """A straight line, after a warm-up."""

    file: Text = LEFT_OUT
    """The schedule.json of an earlier search, or the folder of its run; with other buckets, another shape or another
    horizon too."""

    @property
    def kind(self) -> str:
        """The key that it has: cosine, linear or file."""
        (kind,) = self.model_fields_set
        return kind

    @model_validator(mode="after")
    def _is_one_kind(self) -> ShapedStart:
        if not self.model_fields_set:
            raise ValidationError.from_exception_data("init", [InitErrorDetails(type="missing", loc=(), input={})])
        if len(self.model_fields_set) > 1:
            problem = f"{' and '.join(sorted(self.model_fields_set))} exclude each other"
            refuse([Contradiction((), problem, "one of cosine, linear and file")])
        return self


_NUMBER = TypeAdapter[float](Annotated[Number, expects(EXPECTED)])
_NUMBERS = TypeAdapter[list[float]](list[Number])


def _start(value: Any) -> float | list[float] | ShapedStart:
    if isinstance(value, (dict, ShapedStart)):
        return ShapedStart.model_validate(value)
    return (_NUMBERS if isinstance(value, list) else _NUMBER).validate_python(value)


Start = Annotated[float | list[float] | ShapedStart, read_by(_start)]
