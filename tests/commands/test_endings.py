"""`outer.timeout` and `outer.target`: where a search ends, what it says then, and how it goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
from blob_searches import optimize

import fds_dist


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Interrupting(fds_dist.Callback):
    """Interrupts the search after its first outer step, as Ctrl-C does."""

    def outer_step(self, record: fds_dist.OuterRecord) -> None:
        raise KeyboardInterrupt


def test_the_search_ends_at_its_timeout_and_goes_on_when_it_is_resumed(capsys: pytest.CaptureFixture[str]) -> None:
    first = optimize("outer.timeout=1e-6", progress=True)
    assert len(first.history) == 1
    assert "finished; message: outer.timeout=1e-06 is over after" in capsys.readouterr().out
    assert len(optimize(resume=first).history) == 2  # as long again
    last = optimize("outer.timeout=null", resume=first)
    assert len(last.history) == 3
    assert last.schedule == optimize("name=whole").schedule


def test_time_before_an_interruption_counts() -> None:
    with pytest.raises(KeyboardInterrupt):
        optimize(callbacks=[Interrupting()])
    (before,) = fds_dist.load_run("runs/run").history
    # The resumed search has spent this already; its first own outer step takes more than the rest.
    assert len(optimize(f"outer.timeout={before.seconds + 1e-6}", resume="runs/run").history) == 2


def test_the_search_ends_at_its_target_and_stays_there(capsys: pytest.CaptureFixture[str]) -> None:
    losses = [record.val_loss for record in optimize("name=whole").history]
    assert losses[1] < losses[0]
    result = optimize(f"outer.target={losses[1]}", progress=True)
    assert [record.val_loss for record in result.history] == losses[:2]
    out = capsys.readouterr().out
    assert f"message: outer step 1 reached val loss {losses[1]:.4g}, at or below outer.target=" in out
    optimize(resume=result, progress=True)
    assert "nothing left to do: outer step 1 reached val loss" in capsys.readouterr().out
    assert len(optimize("outer.target=null", resume=result).history) == 3
    assert optimize("outer.target=-1.0", "name=never").schedule == optimize("name=whole2").schedule


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("outer.timeout=0", "a number of seconds above 0, or null for no limit"),
        ("outer.timeout=soon", "a number of seconds above 0, or null for no limit"),
        ("outer.target=.inf", "a number, or null"),
    ],
)
def test_wrong_ends_are_told(override: str, expected: str) -> None:
    with pytest.raises(fds_dist.UserError, match=rf"^{override.split('=')[0]}: .*expected {expected}"):
        optimize(override)
