"""`mu2net serve`: checks what can be checked beforehand, then becomes the BentoML server."""

import errno
import fcntl
import ipaddress
import os
import socket
import sys
from pathlib import Path
from typing import Annotated

import typer

from models.errors import InvalidConfig, PortInUse
from models.files import make_folder
from models.key_list import KEYS_FILE
from models.own_token import own_token
from models.store import Store, is_url
from service.own_pages import is_loopback_name
from service.settings import load_settings, server_environment
from service.with_worker import run_both, worker_command

GRACE_S = 30  # for requests under way when the server is told to stop


def serve(
    store: Annotated[str, typer.Argument(help="The store, made by 'mu2net init': a folder or an s3:// URL.")],
    port: Annotated[int, typer.Option(help="TCP port to listen on.", min=1, max=65535)] = 3000,
    host: Annotated[str, typer.Option(help="Address to bind: 127.0.0.1 for this machine only, 0.0.0.0 for all.")] = (
        "127.0.0.1"
    ),
    with_worker: Annotated[
        bool, typer.Option("--with-worker", help="Start a worker as well, for tasks that are sent to the server.")
    ] = False,
) -> None:
    """Serve the store's active release over HTTP, and follow it as tasks are added. Ctrl-C stops.

    Limits and other settings come from the environment as MU2NET_...
    """
    address = parse_address(host)
    settings = load_settings(store)
    opened = Store.open(store, cache=settings.cache)
    opened.routes(opened.release())  # reads every record, so that a damaged store is told here
    token = _token(opened, address, settings.token_folder)
    home = Path.home() / ".cache" / "mu2net" / f"serve-{port}"  # BentoML's metrics; two servers must not share them
    check_port(address, port)
    reserve(home, address, port)
    if not is_url(store):
        opened.local_files.close_to_others()
    place = store if is_url(store) else str(Path(store).resolve())
    environment = server_environment(store=place, bind_address=address, bentoml_home=home)
    _tell_console(address, port, token)
    os.umask(0o077)  # of the server and the worker too: what libraries write is nobody else's
    sys.stdout.flush()
    if with_worker:
        sys.exit(run_both(bentoml_command(address, port), worker_command(place), environment))
    os.execve(sys.executable, bentoml_command(address, port), dict(environment))


def _token(store: Store, address: str, folder: Path) -> str | None:
    """Return the token with which this machine's user changes a store without keys, None where it gives nothing.

    Raises:
        InvalidConfig: it cannot be kept, or is no secret.
    """
    is_loopback = is_loopback_name(f"[{address}]" if ":" in address else address)
    return own_token(folder) if is_loopback and not store.files.exists(KEYS_FILE) else None


def _tell_console(address: str, port: int, token: str | None) -> None:
    """Print the console's address with the token to a person, never into a log; browsers send no fragment."""
    if token is not None and sys.stdout.isatty():
        host = f"[{address}]" if ":" in address else address
        typer.echo(f"console: http://{host}:{port}/#token={token}")


def bentoml_command(address: str, port: int) -> list[str]:
    """Return the command line that serves `service.api` from wherever this package lies."""
    folder = Path(__file__).parents[1]
    options = ["--host", address, "--port", str(port), "--working-dir", str(folder)]
    grace = ["--timeout-graceful-shutdown", str(GRACE_S)]
    return [sys.executable, "-m", "bentoml", "serve", "service.api:Mu2Net", *options, *grace]


def parse_address(host: str) -> str:
    """Return `host` as an IP address, which is all that BentoML takes.

    Raises:
        InvalidConfig: it is neither an address nor `localhost`.
    """
    if host == "localhost":
        return "127.0.0.1"
    try:
        return str(ipaddress.ip_address(host))
    except ValueError as error:
        raise InvalidConfig(
            f"--host {host!r} is not an IP address: use 127.0.0.1 for this machine only or 0.0.0.0 for all"
        ) from error


def reserve(home: Path, address: str, port: int) -> None:
    """Lock `home` until this process ends, the server that it becomes included.

    Two servers that start at once would both find the port free, and the later one fail within BentoML.

    Raises:
        PortInUse: another server of ours has the port, or is about to.
    """
    make_folder(home)
    home.chmod(0o700)  # an older version's, too
    lock = os.open(home / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    os.set_inheritable(lock, True)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise _port_in_use(address, port) from error


def _port_in_use(address: str, port: int) -> PortInUse:
    return PortInUse(f"port {port} on {address} is in use by another program: stop it, or choose another with --port")


def check_port(address: str, port: int) -> None:
    """Raise PortInUse, or InvalidConfig for an address that cannot be bound here."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise _port_in_use(address, port) from error
            raise InvalidConfig(f"cannot listen on {address} port {port}: {error.strerror}") from error
