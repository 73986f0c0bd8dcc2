"""What a server without keys that is bound to a loopback address answers at all: this machine's own requests.

A page of another site in a browser on this machine can send requests here. It comes with a foreign origin or,
having bent its own name to this address (DNS rebinding), with a host that is none of this machine's. Programs
send neither. Hosts are compared as they are written: "localhost." and numbers that only a browser would read
as an address are refused.
"""

import ipaddress
import re
from collections.abc import Collection, Iterable
from functools import lru_cache

HOST = re.compile(r"(?P<name>\[[0-9a-f:.]{2,45}\]|[a-z0-9_.-]{1,253})(?::[0-9]{1,5})?", re.ASCII)
Headers = Iterable[tuple[bytes, bytes]]


def why_foreign(
    headers: Headers, method: str, allowed_hosts: Collection[str], allowed_origins: Collection[str] = ()
) -> str | None:
    """Return why a request is not this machine's own, None if it is.

    Args:
        headers: of the request, their names in lower case.
        method: of the request.
        allowed_hosts: names that count as this machine's, beside its own: what `MU2NET_HOSTS` lists.
        allowed_origins: whose pages count as this machine's: what `MU2NET_CORS_ORIGINS` lists.
    """
    hosts: list[bytes] = []
    origins: list[bytes] = []
    fetched: dict[bytes, bytes] = {}
    for name, value in headers:
        if name == b"host":
            hosts.append(value)
        elif name == b"origin":
            origins.append(value)
        elif name.startswith(b"sec-fetch-"):
            fetched[name] = value
    if len(hosts) != 1 or not _is_own_host(hosts[0], allowed_hosts):
        shown = ", ".join(repr(host.decode("latin-1")[:100]) for host in hosts) or "none"
        return f"the host that was asked for ({shown}) is none of this machine's"
    if origins:
        if len(origins) == 1 and origins[0].decode("latin-1").lower() in allowed_origins:
            return None
        return None if len(origins) == 1 and _is_own_origin(origins[0], hosts[0], allowed_hosts) else _OF_OTHERS
    if fetched.get(b"sec-fetch-site") in (b"cross-site", b"same-site") and not _is_visit(method, fetched):
        return _OF_OTHERS
    return None


_OF_OTHERS = "a page of another site sent it"


def _is_visit(method: str, fetched: dict[bytes, bytes]) -> bool:
    """Tell whether a person follows a link to here: the page that has the link cannot read what is answered."""
    is_whole_page = (fetched.get(b"sec-fetch-mode"), fetched.get(b"sec-fetch-dest")) == (b"navigate", b"document")
    return method in ("GET", "HEAD") and is_whole_page


def _is_own_origin(origin: bytes, host: bytes, allowed_hosts: Collection[str]) -> bool:
    scheme, _, place = origin.lower().partition(b"://")
    if scheme not in (b"http", b"https"):
        return False
    return place == host.lower() or _name_of(place) in allowed_hosts


def _is_own_host(host: bytes, allowed_hosts: Collection[str]) -> bool:
    name = _name_of(host)
    return name is not None and (name in allowed_hosts or is_loopback_name(name))


@lru_cache(maxsize=256)
def _name_of(host: bytes) -> str | None:
    """Return the name in a host as it is sent, in lower case and without the port; None where it is no host."""
    found = HOST.fullmatch(host.decode("latin-1").lower())
    return None if found is None else found["name"]


def as_host(address: str) -> str:
    """Return an IP address as it stands in a URL: IPv6 in brackets."""
    return f"[{address}]" if ":" in address else address


@lru_cache(maxsize=256)
def is_loopback_name(name: str) -> bool:
    """Tell whether a name, an IPv6 address in brackets, is `localhost` or a loopback address."""
    if name == "localhost":
        return True
    if name.startswith("["):
        try:
            return ipaddress.IPv6Address(name[1:-1]) == ipaddress.IPv6Address("::1")
        except ValueError:
            return False
    try:
        return ipaddress.IPv4Address(name).is_loopback
    except ValueError:
        return False
