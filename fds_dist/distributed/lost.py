"""Which rank is lost, and how: from last words, signs of life, the processes of this host, and PyTorch's error."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from fds_dist.common.words import few, plural
from fds_dist.distributed import last_words
from fds_dist.distributed.heartbeat import BUSY, ENDED, LOST, Heartbeat, Sign, Verdict, here
from fds_dist.distributed.processes import has_ended, is_stopped

Signs = Mapping[int, Sign]

WITHOUT_A_SIGN = 2.5
"""Intervals without a new sign after which a rank is silent."""

CLOSING = 0.3
"""Seconds in which a process that ends loses all its connections: one after the other, that to the store among them."""

NAMED = 4
"""Ranks that a line names one by one."""

HAS_ENDED = "has ended; see its output"


def why_lost(reason: str, heartbeat: Heartbeat | None) -> Verdict:
    """What the ranks have found out about a rank that is lost; all of them that share a store say the same.

    Args:
        reason: PyTorch's error.
        heartbeat: that of this process; None where the ranks have none.
    """
    if heartbeat is None:
        unknown = f"lost another rank (it ended, or did not answer in time); see its output ({reason})"
        return _from_words(words) if (words := last_words.heard()) else Verdict(unknown, [])
    here.has_lost = True
    if here.verdict is None:
        here.verdict = _first_verdict(reason, heartbeat)
    return here.verdict


def another_has_ended(heartbeat: Heartbeat) -> bool:
    """Whether a rank is known to have ended that may not have lost another one."""
    signs = heartbeat.signs() or {}
    return any(_has_ended(sign, heartbeat.mine) for rank, sign in signs.items() if rank != heartbeat.environment.rank)


def lost_launchers(losses: Mapping[int, str], where: str, heartbeat: Heartbeat | None) -> Verdict:
    """That launchers have ended, and with them the ranks that they had started. All ranks end with this verdict.

    Args:
        losses: rank → what has become of its launcher.
        where: what the ranks have saved together before they end.
        heartbeat: that of this process; None where the ranks have none.
    """
    here.has_lost = True
    verdict = Verdict(f"{told_endings(losses)}; {where}", [])
    return verdict if heartbeat is None else heartbeat.agreed(verdict)


def told_endings(heard: Mapping[int, str]) -> str:
    """`rank 1 ended: ValueError: planted at task.py:7`; ranks with the same reason are named together."""
    ranks: dict[str, list[int]] = {}
    for rank, text in sorted(heard.items()):
        ranks.setdefault(text, []).append(rank)
    return "; ".join(
        f"{plural(len(each), 'rank')} {', '.join(map(str, each))} ended: {text}" for text, each in ranks.items()
    )


def _first_verdict(reason: str, heartbeat: Heartbeat) -> Verdict:
    time.sleep(CLOSING)
    signs = heartbeat.signs()
    if signs is None:
        return _without_store(heartbeat, reason)
    if words := last_words.heard():
        return heartbeat.agreed(_from_words(words))
    what, signs = _from_signs(signs, heartbeat)
    return heartbeat.agreed(_verdict(what, signs, reason))


def _from_words(words: Mapping[int, str]) -> Verdict:
    """These ranks speak for themselves."""
    return Verdict(told_endings(words), [], all(text == last_words.INTERRUPTED for text in words.values()))


def _from_signs(signs: Signs, heartbeat: Heartbeat) -> tuple[Mapping[int, str], Signs]:
    """Those ranks that explain the loss best (stopped, ended, never here, silent, and busy ones, in this order), each
    with what is wrong with it; and the newest signs."""
    others = [rank for rank in range(heartbeat.environment.world_size) if rank != heartbeat.environment.rank]
    here_too = [rank for rank in others if rank in signs]
    if stopped := [rank for rank in here_too if _is_stopped(signs[rank], heartbeat.mine)]:
        return {rank: _silence(signs[rank], "its process is stopped") for rank in stopped}, signs
    if ended := [rank for rank in here_too if _has_ended(signs[rank], heartbeat.mine)]:
        return dict.fromkeys(ended, HAS_ENDED), signs
    if absent := [rank for rank in others if rank not in signs]:
        return dict.fromkeys(absent, "has not come"), signs
    signs, silent = _without_new_sign(signs, others, heartbeat)
    if silent:
        return {rank: _silence(signs[rank], "its host does not answer") for rank in silent}, signs
    return {rank: _work(signs[rank]) for rank in others if signs[rank].state == BUSY}, signs


def _without_new_sign(before: Signs, others: Sequence[int], heartbeat: Heartbeat) -> tuple[Signs, list[int]]:
    """The newest signs, and the ranks among `others` that have written none for a while. Clocks are not compared, since
    those of hosts differ."""
    deadline, signs = time.monotonic() + WITHOUT_A_SIGN * heartbeat.interval, dict(before)
    while True:
        signs |= heartbeat.signs() or {}
        silent = [rank for rank in others if signs[rank].number == before[rank].number and signs[rank].state != ENDED]
        if not silent or time.monotonic() > deadline:
            return signs, silent
        time.sleep(heartbeat.interval / 8)


def _without_store(heartbeat: Heartbeat, reason: str) -> Verdict:
    """The process that has the store has ended, or it or its host is silent."""
    if not heartbeat.store_of_rank_0:
        what = "has ended" if heartbeat.store_is_gone else "does not answer"
        return Verdict(f"lost the launcher, which has the store where the ranks meet: it {what} ({reason})", [])
    sign = heartbeat.first
    if heartbeat.store_is_gone or (sign and _has_ended(sign, heartbeat.mine)):
        what = HAS_ENDED
    elif sign is None:
        what = "does not answer"
    else:
        stopped = _is_stopped(sign, heartbeat.mine)
        what = _silence(sign, "its process is stopped" if stopped else "its host does not answer")
    return _verdict({0: what}, {} if sign is None else {0: sign}, reason)


def _verdict(what: Mapping[int, str], signs: Signs, reason: str) -> Verdict:
    """The line about some ranks, and what is wrong with each."""
    lines = [f"{_name(rank, signs.get(rank))} {text}{_last_step(signs.get(rank))}" for rank, text in what.items()]
    told = few(lines, NAMED) if lines else "none of them is silent or busy"
    return Verdict(f"lost another rank: {told} ({reason})", list(what))


def _name(rank: int, sign: Sign | None) -> str:
    return f"rank {rank}" if sign is None else f"rank {rank} (host {sign.host}, pid {sign.pid})"


def _last_step(sign: Sign | None) -> str:
    if sign is None:
        return ""
    return f"; its last step was {sign.place}" if sign.place else "; it had told of no step yet"


def _silence(sign: Sign, why: str) -> str:
    return f"has been silent for {max(0.0, time.time() - sign.clock):.0f} s, {why}"


def _work(sign: Sign) -> str:
    return f"has been busy{sign.line} for {sign.clock - sign.since:.0f} s, while others waited for it"


def _is_stopped(sign: Sign, mine: Sign) -> bool:
    return _is_visible(sign, mine) and is_stopped(sign.pid)


def _has_ended(sign: Sign, mine: Sign) -> bool:
    """Whether the rank has ended by itself, and not because it had lost another one."""
    if sign.state == LOST:
        return False
    return sign.state == ENDED or (_is_visible(sign, mine) and has_ended(sign.pid, sign.process))


def _is_visible(sign: Sign, mine: Sign) -> bool:
    """Whether this process sees that of the sign by the same number."""
    return (sign.host, sign.space) == (mine.host, mine.space)
