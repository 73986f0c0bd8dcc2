"""Which machine a request comes from, as far as limits count by it."""

import ipaddress
from functools import lru_cache
from typing import Any

from models.errors import InvalidConfig

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

IPV6_PREFIX = 64  # one customer's network: each of its machines may choose any address in it


@lru_cache(maxsize=16)
def parse_networks(text: str) -> tuple[Network, ...]:
    """Return the networks of addresses and CIDR ranges that are separated by commas.

    Raises:
        InvalidConfig: one of them is neither.
    """
    try:
        return tuple(ipaddress.ip_network(part.strip(), strict=False) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise InvalidConfig(
            f"setting MU2NET_TRUSTED_PROXIES = {text[:200]!r}: {error}; write addresses or CIDR ranges separated by "
            "commas, such as 10.0.0.5,192.168.0.0/16"
        ) from error


def address_of(scope: Any, trusted_proxies: str) -> str:
    """Return the peer's address, of IPv6 its /64; '' for a trusted proxy, behind which are many clients."""
    client = scope.get("client")
    return "" if client is None else _unit(client[0], trusted_proxies)


@lru_cache(maxsize=4096)  # every request comes here
def _unit(host: str, trusted_proxies: str) -> str:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:  # no IP address: the name that a test client gives itself
        return host
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if any(address in network for network in parse_networks(trusted_proxies)):
        return ""
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, IPV6_PREFIX), strict=False))
    return str(address)
