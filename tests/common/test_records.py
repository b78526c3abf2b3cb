"""Records as JSON: strict and exact both ways; a file of them is whole after a crash."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from fds_dist.common.faults import UserError
from fds_dist.common.randomness import derive_seed
from fds_dist.common.records import FloatOrInf, FloatOrNan, RecordFile, from_line, from_values, to_line, to_values


class Pair(NamedTuple):
    first: float
    second: int


@dataclass(frozen=True)
class Inner:
    loss: FloatOrInf


@dataclass(frozen=True)
class Sample:
    """Every kind of field that the package's records have."""

    count: int
    loss: FloatOrNan
    accuracy: float | None
    values: dict[str, list[FloatOrNan]]
    parts: list[Inner] = field(default_factory=list)
    pairs: tuple[Pair, ...] = ()
    state: dict[str, Any] = field(default_factory=dict)


FULL = Sample(3, 0.1 + 0.2, 0.5, {"lr": [1e-300]}, [Inner(2.0)], (Pair(1 / 3, -1),), {"deep": [{"x": 1.5}, None, "é"]})


def test_a_record_survives_its_line() -> None:
    assert from_line(Sample, to_line(FULL)) == FULL
    assert from_values(Sample, to_values(FULL)) == FULL
    assert from_values(list[Sample], to_values([FULL, FULL])) == [FULL, FULL]


def test_the_line_is_what_the_json_module_writes() -> None:
    assert to_line(Inner(1e16)) == '{"loss": 1e+16}'
    assert to_line(Inner(5e-324)) == '{"loss": 5e-324}'
    assert to_line(Sample(1, 2.0, None, {})) == (
        '{"count": 1, "loss": 2.0, "accuracy": null, "values": {}, "parts": [], "pairs": [], "state": {}}'
    )


def test_every_bit_of_a_float_survives() -> None:
    drawn = (struct.unpack("<d", struct.pack("<Q", derive_seed(0, draw) % 2**64))[0] for draw in range(1000))
    losses = [loss for loss in drawn if math.isfinite(loss)]
    assert len(losses) > 900
    assert [from_line(Inner, to_line(Inner(loss))).loss for loss in losses] == losses


def test_what_is_not_finite_is_null_and_read_as_the_field_says() -> None:
    record = Sample(1, math.inf, math.nan, {"lr": [-math.inf, 1.0]}, [Inner(math.nan)], state={"rung": math.inf})
    content = json.loads(to_line(record), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert (content["loss"], content["accuracy"], content["values"]) == (None, None, {"lr": [None, 1.0]})
    again = from_line(Sample, to_line(record))
    assert math.isnan(again.loss) and again.accuracy is None and math.isnan(again.values["lr"][0])
    assert again.parts == [Inner(math.inf)] and again.state == {"rung": None}


def test_lines_of_earlier_versions_with_the_json_modules_own_infinity_are_read() -> None:
    assert from_line(Inner, '{"loss": Infinity}') == Inner(math.inf)


def test_unknown_keys_are_ignored_and_defaults_stand_for_missing_ones() -> None:
    assert from_line(Sample, '{"count": 1, "loss": 2, "accuracy": null, "values": {}, "new": 3}') == (
        Sample(1, 2.0, None, {})
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 1.0}, "count: 1.0 is not a whole number"),
        ({"count": True}, "count: True is not a whole number"),
        ({"count": None}, "count: None is not a whole number"),
        ({"loss": "0.5"}, "loss: '0.5' is not a number"),
        ({"accuracy": False}, "accuracy: False is not a number"),
        ({"values": {"lr": 0.5}}, "values.lr: 0.5 is not a list"),
        ({"parts": [{"loss": 1.0}, {}]}, "no key parts.1.loss"),
        ({"parts": [3]}, "parts.0: 3 is not an object"),
        ({"state": []}, r"state: \[\] is not an object"),
        ({"accuracy": "long" * 100}, r"accuracy: '[long]{59}\.\.\. is not a number"),
    ],
)
def test_a_wrong_value_is_named_in_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        from_values(Sample, to_values(FULL) | change)


def test_a_file_forgets_a_torn_line_and_goes_on(tmp_path: Path) -> None:
    file = RecordFile(tmp_path / "a" / "losses.jsonl", Inner)
    assert file.read() == []
    file.append([Inner(1.0)])
    with file.path.open("a") as opened:
        opened.write('{"lo')
    assert file.read() == [Inner(1.0)]
    file.append([Inner(2.0), Inner(math.inf)])
    assert file.read() == [Inner(1.0), Inner(2.0), Inner(math.inf)]


@pytest.mark.parametrize("bad", ["something else", "", "[]", '{"loss": "low"}', "{}"])
def test_a_damaged_line_is_named(tmp_path: Path, bad: str) -> None:
    file = RecordFile(tmp_path / "losses.jsonl", Inner, "another file")
    file.path.write_text(f'{{"loss": 1.0}}\n{bad}\n')
    with pytest.raises(UserError, match=r"losses\.jsonl, line 2 is not a record: .*; expected another file"):
        file.read()
