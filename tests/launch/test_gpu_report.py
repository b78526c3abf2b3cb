"""The report of a machine with a GPU: parts that fail or take too long leave the others as they are."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

LAUNCH = Path(__file__).resolve().parents[2] / "launch"


@pytest.fixture
def gpu_report(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(LAUNCH))
    import gpu_report  # type: ignore[import-not-found]

    yield gpu_report
    del sys.modules["gpu_report"]


def test_each_part_tells_how_it_ended(gpu_report: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def part(code: str) -> Any:
        return gpu_report.Part(1.0, lambda seconds, file: ["-c", code, str(file)], gpu_report.from_file)

    done = "import sys; open(sys.argv[1], 'w').write('[1, 2]')"
    parts = {"done": part(done), "failed": part("print('why'); raise SystemExit(3)")}
    late = "import sys, time; print('{\"k\": 1}', flush=True); time.sleep(60)"
    parts["late"] = gpu_report.Part(1.0, lambda seconds, file: ["-c", late], gpu_report.from_lines)
    monkeypatch.setattr(gpu_report, "PARTS", parts)
    monkeypatch.setattr(gpu_report, "machine", lambda: {"gpu": None})
    assert gpu_report.run_report(tmp_path / "report.json", 12.0, list(parts)) == 1
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["machine"] == {"gpu": None}
    found = report["parts"]
    assert [(each["status"], each["figures"]) for each in found.values()] == [
        (0, [1, 2]),
        (3, None),
        ("stopped after 4 s", [{"k": 1}]),
    ]
    assert found["failed"]["output"] == "why\n"


def test_the_tests_that_failed_are_told_with_their_reason(gpu_report: Any, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    file.write_text(
        '<testsuites><testsuite><testcase classname="a" name="good" time="1.5"/>'
        '<testcase classname="a" name="bad" time="0.5"><failure message="assert 1 == 2">long</failure></testcase>'
        '<testcase classname="a" name="left" time="0"><skipped message="no"/></testcase></testsuite></testsuites>'
    )
    outcomes = gpu_report.outcomes(file, "")
    assert (outcomes["tests"], outcomes["skipped"]) == (3, 1)
    assert outcomes["failed"] == {"a::bad": ["assert 1 == 2"]}
    assert list(outcomes["slowest"]) == ["a::good", "a::bad", "a::left"]


def test_the_tests_marked_for_a_gpu_are_found(gpu_report: Any, tmp_path: Path) -> None:
    names = {Path(word).name for word in gpu_report.gpu_tests(60.0, tmp_path / "figures.json")}
    assert {"test_gpu_hypergradients.py", "test_gpu_commands.py", "test_fingerprint.py"} <= names
    assert "test_layers.py" not in names
