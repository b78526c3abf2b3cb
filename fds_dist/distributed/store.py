"""The store where ranks meet before there is a process group.

PyTorch's own store answers a mistake in MASTER_ADDR or MASTER_PORT with pages of C++ frames, or with a long wait. So
the ranks first exchange one line each at that address, and a mistake that can be known at once is told in one line. The
store itself then has a port of its own.
"""

from __future__ import annotations

import os
import re
import socket
import time
from contextlib import suppress
from functools import cache
from itertools import count

from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.distributed_c10d import PrefixStore, Store, _get_default_store
from torch.distributed.rendezvous import rendezvous

from fds_dist.common.faults import Fault, UserError
from fds_dist.common.words import plural
from fds_dist.distributed.environment import LaunchEnvironment
from fds_dist.distributed.errors import RankLost

PATIENCE = 10.0
"""Seconds after which a name that nobody knows, a host without a way to it, or a silent listener is a mistake."""

_LISTENING = 3.0
"""Seconds that rank 0 gives a connection to say which rank it is: less than the others wait for an answer."""
_GREETING = "fds-dist"
_LONGEST_LINE = 200
_meetings = count()


def shared_store(environment: LaunchEnvironment) -> Store:
    """A fresh part of the store that all ranks share; they must call this alike, the same number of times.

    Raises:
        UserError: MASTER_ADDR or MASTER_PORT is wrong.
        RankLost: a rank does not come.
    """
    # torchrun keeps its store over a restart, with all that the ranks before it said. (Of several nodes each counts its
    # own restarts; there launch/multi_node.sh asks torchrun for a fresh store each time.)
    attempt = environment.restarts if environment.one_host else 0
    store = _get_default_store() if environment.has_group else _store(environment)
    return PrefixStore(f"fds-dist/{attempt}/{next(_meetings)}", store)


def hosts_store(environment: LaunchEnvironment) -> bool:
    """Whether the store may end with this process: rank 0 has it, unless torchrun does."""
    return environment.rank == 0 and store_of_rank_0(environment)


def store_of_rank_0(environment: LaunchEnvironment) -> bool:
    """Whether rank 0 has the store, and not torchrun."""
    return environment.has_group or not _of_torchrun()


def line_to_host(store: Store) -> socket.socket | None:
    """A connection to the process that has the store, which closes with it; None where that is not known.

    PyTorch's client prints pages about a store that is gone as soon as it is asked anything.
    """
    while isinstance(store, PrefixStore):
        store = store.underlying_store
    if not isinstance(store, TCPStore):
        return None
    try:
        line = socket.create_connection((store.host, store.port), timeout=PATIENCE)
    except OSError:
        return None
    line.setblocking(False)
    return line


def _of_torchrun() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


@cache  # one connection per process: all ranks meet once
def _store(environment: LaunchEnvironment) -> Store:
    address, port, size = environment.master_address, environment.master_port, environment.world_size
    addresses = _resolved(address)
    if _of_torchrun():  # torchrun itself has the store, at this port
        host = f"[{address}]" if ":" in address else address
        try:
            place = f"tcp://{host}:{port}"
            return next(iter(rendezvous(place, environment.rank, size, timeout=environment.patience)))[0]
        except RuntimeError as error:
            reason = next(iter(str(error).splitlines()), "")
            raise RankLost(f"torchrun's store does not answer at {_place(environment)}: {reason}") from error
    if environment.rank == 0 or environment.one_host:
        _check_is_here(address, addresses)
    if environment.rank > 0:
        return TCPStore(address, _ask_rank_0(environment), size, is_master=False, timeout=environment.patience)
    with _listening(port) as listener:
        store = TCPStore(address, 0, size, is_master=True, timeout=environment.patience, wait_for_workers=False)
        _answer_others(listener, environment, store.port)
    return store


def _resolved(host: str) -> list[str]:
    """The addresses of `host`. A host that has just started may become known a little later."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return [str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
        except (OSError, UnicodeError) as error:
            if time.monotonic() > deadline or isinstance(error, UnicodeError):
                reason = getattr(error, "strerror", None) or "no host name"
                raise _fault("MASTER_ADDR", f"{host!r} does not resolve: {reason}", "the host name of rank 0") from None
        time.sleep(0.5)


def _check_is_here(host: str, addresses: list[str]) -> None:
    """Only an address of this host can be bound."""
    for address in addresses:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with suppress(OSError), socket.socket(family) as probe:
            probe.bind((address, 0))
            return
    problem = f"{host!r} is not this host, on which rank 0 runs"
    raise _fault("MASTER_ADDR", problem, f"a name or address of this host, such as {socket.gethostname()}")


def _listening(port: int) -> socket.socket:
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    try:
        listener = socket.create_server(
            ("", port), family=family, dualstack_ipv6=family is socket.AF_INET6, backlog=1024
        )
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise _fault("MASTER_PORT", f"{port}: {reason}", "a port that is free on the host of rank 0") from None
    return listener


def _answer_others(listener: socket.socket, environment: LaunchEnvironment, store_port: int) -> None:
    """Rank 0: tells each other rank where the store is, until all have come."""
    size, deadline = environment.world_size, time.monotonic() + environment.timeout
    missing = set(range(1, size))
    while missing:
        listener.settimeout(max(0.0, deadline - time.monotonic()) or 1e-3)
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            names = f"{plural(len(missing), 'rank')} {', '.join(map(str, sorted(missing)))}"
            why = "not started, or sent elsewhere by another MASTER_ADDR or MASTER_PORT"
            raise RankLost(
                f"missing at {_place(environment)}: {names}, after {environment.timeout:g} s ({why})"
            ) from None
        with connection, suppress(OSError):
            connection.settimeout(_LISTENING)
            greeting = re.fullmatch(f"{_GREETING} ([0-9]+) ([0-9]+)\n", _received_line(connection))
            if greeting is None:
                continue  # no rank: a stranger who looks which ports are open
            rank, its_size = int(greeting[1]), int(greeting[2])
            if its_size != size:
                problem = f"{its_size} on rank {rank}, {size} on rank 0"
                _send_line(connection, f"differs {size}")
                raise _fault("WORLD_SIZE", problem, "the same number on all ranks")
            _send_line(connection, f"store {store_port}" if rank in missing else "taken")
            missing.discard(rank)


def _ask_rank_0(environment: LaunchEnvironment) -> int:
    """Another rank: the port of the store."""
    place = f"{environment.master_address}:{environment.master_port}"
    with _connected(environment) as connection:
        try:
            _send_line(connection, f"{environment.rank} {environment.world_size}")
            words = _received_line(connection).split()
        except OSError:
            words = []
    if words[:1] != [_GREETING]:
        problem = f"another program than rank 0 listens at {place}"
        raise _fault("MASTER_PORT", problem, "a port that is free on the host of rank 0")
    if words[1] == "taken":
        problem = f"another process has come to {place} as rank {environment.rank} already"
        raise _fault("RANK", problem, "a rank of its own for each process, and a MASTER_PORT for each run")
    if words[1] == "differs":
        problem = f"{environment.world_size} on rank {environment.rank}, {words[2]} on rank 0"
        raise _fault("WORLD_SIZE", problem, "the same number on all ranks")
    return int(words[2])


def _connected(environment: LaunchEnvironment) -> socket.socket:
    """A connection to rank 0, which may start later than this rank."""
    host, port = environment.master_address, environment.master_port
    began, why = time.monotonic(), ""
    while (left := began + environment.timeout - time.monotonic()) > 0:
        try:
            return socket.create_connection((host, port), timeout=min(PATIENCE, left))
        except ConnectionError:  # rank 0 does not listen yet
            why = "nothing listens there: rank 0 has not started, or has another MASTER_PORT, or is on another host"
        except TimeoutError:
            why = "no packet comes back: it is another host's address, or a firewall is between"
        except OSError as error:
            if time.monotonic() - began > PATIENCE:
                problem = f"{host!r} cannot be reached: {error.strerror}"
                raise _fault("MASTER_ADDR", problem, "the host name of rank 0") from None
        time.sleep(0.1)
    raise RankLost(f"rank 0 does not answer at {_place(environment)}, for {environment.timeout:g} s ({why})")


def _place(environment: LaunchEnvironment) -> str:
    return f"MASTER_ADDR={environment.master_address} MASTER_PORT={environment.master_port}"


def _send_line(connection: socket.socket, text: str) -> None:
    connection.sendall(f"{_GREETING} {text}\n".encode())


def _received_line(connection: socket.socket) -> str:
    """One line, without its end; what a stranger may send instead is cut."""
    with connection.makefile("rb") as stream:
        return stream.readline(_LONGEST_LINE).decode(errors="replace")


def _fault(variable: str, problem: str, expected: str) -> UserError:
    return UserError(Fault(f"environment variable {variable}", problem, expected))
