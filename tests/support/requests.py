"""Heads of HTTP requests as bytes."""

from tests.support.in_process import PATH


def head(path: str = PATH, *lines: str, method: str = "POST") -> bytes:
    own = (f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", "Connection: close")
    return "\r\n".join([*own, *lines, "", ""]).encode("latin-1")
