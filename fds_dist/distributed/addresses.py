"""Which address and which network interface of this host the other hosts reach it by.

As a program, `python -m fds_dist.distributed.addresses HOST` prints this host's address on the way to HOST, or nothing
where HOST is this host.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import socket
import struct
import sys
from typing import Protocol

from fds_dist.distributed.environment import LaunchEnvironment

INTERFACE = "GLOO_SOCKET_IFNAME"
_GET_ADDRESS = 0x8915  # Linux's SIOCGIFADDR


class Board(Protocol):
    """What is needed here of the store where ranks meet."""

    def set(self, key: str, value: str) -> None: ...

    def get(self, key: str) -> bytes: ...


def name_interface(environment: LaunchEnvironment, store: Board) -> None:
    """Tells gloo which interface joins this host to the others, unless the user has; all ranks call it alike.

    Gloo itself takes the one with the address of the host's own name, which on many machines is the loopback
    interface: no other host gets there. Of several hosts, the last rank is on another than the first: it takes the way
    to the first one's, and all others take the way to its.
    """
    if environment.rank == environment.world_size - 1:
        store.set("last", way_to(environment.master_address)[0])
    name = interface_of(way_to(store.get("last").decode())[0])
    if name is not None:
        os.environ.setdefault(INTERFACE, name)


def way_to(host: str) -> tuple[str, str]:
    """The addresses of this host and of `host` on what goes from here to there; IPv4 where possible. Sends nothing.

    Raises:
        OSError: there is no such host, or no way to it.
    """
    found = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)
    problem = OSError("it has no address")
    for family, kind, _, _, address in sorted(found, key=lambda entry: entry[0] != socket.AF_INET):
        try:
            with socket.socket(family, kind) as probe:
                probe.connect(address)
                return probe.getsockname()[0], str(address[0])
        except OSError as error:
            problem = error
    raise problem


def interface_of(address: str) -> str | None:
    """The interface whose first IPv4 address this is; None if there is none, or where the system does not tell."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, _GET_ADDRESS, struct.pack("256s", name.encode()))
            except OSError:
                continue  # it has no IPv4 address
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None


def main(host: str) -> None:
    """See above."""
    try:
        here, there = way_to(host)
    except OSError as error:
        sys.exit(f"fds-dist: {host}: {error.strerror}; expected a host that can be reached from here")
    print("" if here == there or ipaddress.ip_address(here).is_loopback else here)


if __name__ == "__main__":
    main(sys.argv[1])
