"""Who may change something through HTTP: the one place that decides it.

Judged by the address that the server binds, never by the peer's: behind a proxy or in a container every
peer may look local.
"""

import ipaddress
from urllib.parse import urlsplit

from fastapi import Request

from models.errors import WritingIsOff
from service.settings import Settings


def is_writing_on(settings: Settings) -> bool:
    """Tell whether this server takes changes: it must be bound to a loopback address, and say so."""
    try:
        return ipaddress.ip_address(settings.bind_address).is_loopback
    except ValueError:  # not told: nobody may rely on it
        return False


def require_writing(request: Request, settings: Settings) -> None:
    """Let a request through that may change something.

    A page of another site in a browser on this very machine may not: it comes with an origin or, having
    bent its own name to this address, with a host that is none of this machine's.

    Raises:
        WritingIsOff: the message says what would allow it.
    """
    if not is_writing_on(settings):
        bound = f"bound to {settings.bind_address}" if settings.bind_address else "not told where it is bound"
        raise WritingIsOff(
            f"this server takes no changes: it is {bound}, and only one on a loopback address does ('mu2net serve' "
            "with its default host); change the store with 'mu2net releases ...' instead"
        )
    host, origin = request.headers.get("host", ""), request.headers.get("origin")
    if not _is_local(host) or (origin is not None and urlsplit(origin).netloc != host):
        raise WritingIsOff(
            f"this server takes changes from this machine's own pages and programs only, not from {origin or host!r}: "
            "call it by its loopback address"
        )


def _is_local(host: str) -> bool:
    name = urlsplit(f"//{host}").hostname or ""
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
