"""The address and the network interface by which other hosts reach this one.

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
    """The part of the ranks' shared store that is used here."""

    def set(self, key: str, value: str) -> None: ...

    def get(self, key: str) -> bytes: ...


def name_interface(environment: LaunchEnvironment, store: Board) -> None:
    """Tells gloo which interface leads to the other hosts, unless the user has told it. All ranks call this alike.

    By itself gloo takes the interface of the host's own name. On many machines that is the loopback interface, which
    no other host can reach. Where there are several hosts, the last rank is on another host than rank 0. So the last
    rank takes the interface that leads to rank 0, and all others take the one that leads to the last rank.
    """
    if environment.rank == environment.world_size - 1:
        store.set("last", way_to(environment.master_address)[0])
    name = interface_of(way_to(store.get("last").decode())[0])
    if name is not None:
        os.environ.setdefault(INTERFACE, name)


def way_to(host: str) -> tuple[str, str]:
    """The addresses of both ends of the way from this host to `host`; IPv4 where possible. Nothing is sent.

    Raises:
        OSError: there is no such host, or it cannot be reached.
    """
    entries = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)
    problem = OSError("it has no address")
    for family, kind, _, _, address in sorted(entries, key=lambda entry: entry[0] != socket.AF_INET):
        try:
            with socket.socket(family, kind) as probe:
                probe.connect(address)
                return probe.getsockname()[0], str(address[0])
        except OSError as error:
            problem = error
    raise problem


def interface_of(address: str) -> str | None:
    """The interface whose first IPv4 address is `address`; None if there is none, or if the system does not tell."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, _GET_ADDRESS, struct.pack("256s", name.encode()))
            except OSError:
                continue  # the interface has no IPv4 address
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None


def main(host: str) -> None:
    """Prints what the head of this file says."""
    try:
        here, there = way_to(host)
    except OSError as error:
        sys.exit(f"fds-dist: {host}: {error.strerror}; expected a host that can be reached from here")
    print("" if here == there or ipaddress.ip_address(here).is_loopback else here)


if __name__ == "__main__":
    main(sys.argv[1])
