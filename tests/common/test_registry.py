"""Faults as lines, nearest names, checked keyword arguments, and functions named in a config."""

from __future__ import annotations

import functools
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fds_dist.common.faults import Fault, UserError
from fds_dist.common.registry import call_faults, load_object, nearest


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A fresh current folder, whose modules are forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def load_fault(path: str) -> Fault:
    with pytest.raises(UserError) as caught:
        load_object(path, "task.name")
    (fault,) = caught.value.faults
    assert fault.key == "task.name" and "\n" not in str(fault)
    return fault


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        (
            Fault("hyperparameters.lr.buckets", "0 is out of range", "a whole number of at least 1"),
            "hyperparameters.lr.buckets: 0 is out of range; expected a whole number of at least 1",
        ),
        (
            Fault("inner.epoch", "unknown key", suggestion="inner.epochs"),
            "inner.epoch: unknown key; did you mean inner.epochs?",
        ),
        (Fault("", "no such file"), "no such file"),
        (Fault("a", "two\nlines\tand a tab"), "a: two lines and a tab"),
    ],
)
def test_a_fault_is_one_line(fault, line):
    assert str(fault) == line


def test_a_user_error_has_one_line_per_fault_and_survives_pickling():
    faults = [Fault("a", "one"), Fault("b", "two\nlines")]
    error = UserError(iter(faults))
    assert error.faults == tuple(faults)
    assert str(error).splitlines() == ["a: one", "b: two lines"]
    assert UserError(faults[0]).faults == (faults[0],)
    assert pickle.loads(pickle.dumps(error)).faults == error.faults


@pytest.mark.parametrize(
    ("name", "expected"),
    [("digit", "digits"), ("DIGITS", "digits"), ("cifar-10", "CIFAR10"), ("zebra", ""), ("", "")],
)
def test_the_nearest_name(name, expected):
    assert nearest(name, ["digits", "CIFAR10", "two_moons"]) == expected


def test_nothing_is_near_no_names():
    assert nearest("digits", []) == ""


def task(batch_size: int, val_fraction: float = 0.1, *, seed: int) -> None: ...


def anything(**options: object) -> None: ...


def by_position(data: object, /, size: int = 3) -> None: ...


def test_options_that_fit_have_no_faults():
    assert call_faults(task, {"batch_size": 3, "seed": 1}, "task") == []
    assert call_faults(anything, {"whatever": 3}, "task") == []
    assert call_faults(functools.partial(task, seed=1), {"batch_size": 3}, "task") == []
    assert call_faults(int, {}, "task") == []


def test_unknown_and_missing_options_are_all_reported():
    faults = call_faults(task, {"batchsize": 3, "seed": 1, "zebra": 2}, "task")
    assert [str(fault) for fault in faults] == [
        "task.batchsize: unknown key; did you mean task.batch_size?",
        "task.zebra: unknown key; expected one of batch_size, val_fraction, seed",
        "task.batch_size: is missing; expected a value",
    ]


def test_a_function_that_cannot_be_called_by_name():
    (fault,) = call_faults(by_position, {"size": 2}, "task")
    assert fault.key == "task" and "'data' by position only" in fault.problem


def test_faults_agree_with_calling_the_function():
    """No faults exactly where the call works, for every choice of options."""
    functions: list[Callable[..., None]] = [task, anything, by_position]
    for function in functions:
        for bits in range(32):
            names = ["batch_size", "val_fraction", "seed", "size", "data"]
            options: dict[str, Any] = {name: 1 for i, name in enumerate(names) if bits >> i & 1}
            try:
                function(**options)
                works = True
            except TypeError:
                works = False
            assert (call_faults(function, options, "task") == []) == works, (function, options)


def test_an_object_of_the_current_folder_is_found(folder):
    (folder / "own_package").mkdir()
    (folder / "own_package" / "tasks.py").write_text("def make(): return 'made'\n")
    assert load_object("own_package.tasks:make", "task.name")() == "made"


def test_an_installed_object_is_found():
    assert load_object("json:dumps", "task.name")([1]) == "[1]"


@pytest.mark.parametrize("path", ["own", "own.make", ":make", "own:", "own:make:again", "own:1", "..own:make", "a b:c"])
def test_another_form_is_refused(path):
    fault = load_fault(path)
    assert repr(path) in fault.problem and fault.expected == "package.module:function"


def test_a_file_name_in_place_of_a_module_is_recognized():
    assert load_fault("tasks/own.py:make").suggestion == "tasks.own:make"


def test_a_missing_module_names_the_nearest_in_the_current_folder(folder):
    (folder / "own_task.py").write_text("def make(): ...\n")
    fault = load_fault("own_tosk:make")
    assert "no module own_tosk" in fault.problem and fault.suggestion == "own_task:make"
    assert "no module json.zebra" in load_fault("json.zebra:make").problem


def test_a_missing_attribute_names_the_nearest(folder):
    (folder / "own_task.py").write_text("def make_task(): ...\n")
    assert load_fault("own_task:make_tusk").suggestion == "own_task:make_task"


def test_what_cannot_be_called_is_refused(folder):
    (folder / "own_task.py").write_text("make = [1]\n")
    fault = load_fault("own_task:make")
    assert "is a list" in fault.problem and fault.expected == "a function"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("x = 1\n\nraise ValueError('two\\nlines')\n", 3, "ValueError: two lines"),
        ("x = 1\ny = (\n", 2, "SyntaxError"),
        ("import zebra_that_is_not_installed\n", 1, "ModuleNotFoundError"),
        ("import json\n\njson.loads('{')\n", 3, "JSONDecodeError"),
        ("import sys\nsys.exit(3)\n", 2, "SystemExit: 3"),
    ],
)
def test_a_module_that_fails_names_the_users_own_line(folder, text, line, words):
    Path("own_task.py").write_text(text)
    printed = str(load_fault("own_task:make"))
    assert f"own_task.py:{line}:" in printed and words in printed
    assert str(folder) not in printed
