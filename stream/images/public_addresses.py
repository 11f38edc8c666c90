"""Public addresses: which IP addresses an `https://` image may be read from, and how to get there.

A producer's URI must not reach the private network of the worker (server-side request forgery):
its databases, its neighbours, and the metadata service that hands out a cloud machine's keys.
"""

import ipaddress
import socket
from collections.abc import Callable, Sequence

# From host name and port to addresses; raises `socket.gaierror`.
Resolver = Callable[[str, int], Sequence[str]]
# From address, port and timeout in seconds to a connected socket; raises `OSError`.
Connector = Callable[[str, int, float], socket.socket]

_NOT_PUBLIC_TEXT = (
    "0.0.0.0/8",  # this network; Linux connects 0.0.0.0 to itself
    "10.0.0.0/8",  # private
    "100.64.0.0/10",  # carrier-grade NAT, and metadata services of some clouds
    "127.0.0.0/8",  # loopback
    "168.63.129.16/32",  # Azure's internal service, in the middle of a public range
    "169.254.0.0/16",  # link-local: metadata services
    "172.16.0.0/12",  # private
    "192.0.0.0/24",  # protocol assignments
    "192.0.2.0/24",  # documentation
    "192.88.99.0/24",  # 6to4 relays
    "192.168.0.0/16",  # private
    "198.18.0.0/15",  # benchmarks
    "198.51.100.0/24",  # documentation
    "203.0.113.0/24",  # documentation
    "224.0.0.0/4",  # multicast
    "240.0.0.0/4",  # reserved, and broadcast
    "2001::/23",  # protocol assignments: Teredo holds an IPv4 address
    "2001:db8::/32",  # documentation
    "2002::/16",  # 6to4 holds an IPv4 address
    "3fff::/20",  # documentation
)
# Listed in full: what `ipaddress` calls global differs between Python versions.
# Everything that is assigned to the open internet; outside are the IPv4-mapped forms.
_NOT_PUBLIC = tuple(ipaddress.ip_network(text) for text in _NOT_PUBLIC_TEXT)
_UNICAST_V6 = ipaddress.ip_network("2000::/3")


def is_public(address: str) -> bool:
    """Whether an IP address is on the open internet; not so IPv6 forms that hold an IPv4 one."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address) and not _is_unicast(parsed):
        return False
    if not parsed.is_global or parsed.is_multicast or parsed.is_reserved:
        return False
    return not any(parsed in network for network in _NOT_PUBLIC)


def _is_unicast(address: ipaddress.IPv6Address) -> bool:
    # A scope names an interface of this machine.
    return address.scope_id is None and address in _UNICAST_V6


def resolve(host: str, port: int) -> Sequence[str]:
    """Ask the system for all addresses of a name, each once, in its order of preference."""
    infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(info[4][0]) for info in infos))


def connect(address: str, port: int, timeout_s: float) -> socket.socket:
    """Connect to an address directly: a proxy would resolve the name again, without our check."""
    return socket.create_connection((address, port), timeout_s)
