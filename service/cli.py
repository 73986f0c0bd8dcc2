"""`mu2net serve`: checks what can be checked beforehand, then becomes the BentoML server."""

import errno
import fcntl
import ipaddress
import os
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import psutil
import typer

from models.errors import InvalidConfig, PortInUse
from models.files import Files, make_folder
from models.key_list import KEYS_FILE
from models.own_token import own_token
from models.signatures import Trust, load_signer
from models.store import Store, is_url
from service.keys import key_files
from service.own_pages import as_host, is_loopback_name
from service.settings import load_settings, server_environment
from service.with_worker import run_both, worker_command

GRACE_S = 30  # for requests under way when the server is told to stop


def serve(
    store: Annotated[str, typer.Argument(help="The store, made by 'mu2net init': a folder or an s3:// URL.")],
    port: Annotated[int, typer.Option(help="TCP port to listen on.", min=1, max=65535)] = 3000,
    host: Annotated[str, typer.Option(help="Address to bind: 127.0.0.1 for this machine only, 0.0.0.0 for all.")] = (
        "127.0.0.1"
    ),
    trust: Annotated[
        list[str] | None,
        typer.Option(
            help="A public key, as a file or in base64; repeatable. Only releases signed by one are served.",
            show_default=False,
        ),
    ] = None,
    with_worker: Annotated[
        bool, typer.Option("--with-worker", help="Start a worker as well, for tasks that are sent to the server.")
    ] = False,
) -> None:
    """Serve the store's active release over HTTP, and follow it as tasks are added. Ctrl-C stops.

    Limits and other settings come from the environment as MU2NET_...
    """
    address = parse_address(host)
    settings = load_settings(store)
    trusted = trust_text(trust, settings.trust)
    if settings.sign is not None:
        load_signer(settings.sign)
    opened = Store.open(store, cache=settings.cache)
    release = opened.release()
    if trusted is not None:
        Trust.of(trusted).check(opened.files, release)
    opened.routes(release)  # reads every record, so that a damaged store is told here
    token = _token(key_files(store, settings.keys), address, settings.token_folder)
    # BentoML's metrics, which two servers must not share
    home = Path.home() / ".cache" / "mu2net" / f"serve-{address.replace(':', '_')}-{port}"
    check_port(address, port)
    reserve(home, address, port)
    if not is_url(store):
        opened.local_files.close_to_others()
    place = store if is_url(store) else str(Path(store).resolve())
    environment = server_environment(settings, store=place, bind_address=address, bentoml_home=home, trust=trusted)
    _tell_console(address, port, token)
    os.umask(0o077)  # of the server and the worker too: what libraries write is nobody else's
    sys.stdout.flush()
    if with_worker:
        sys.exit(run_both(bentoml_command(address, port), worker_command(place), environment, parent=settings.parent))
    os.execve(sys.executable, bentoml_command(address, port), dict(environment))


def trust_text(given: Sequence[str] | None, setting: str | None) -> str | None:
    """Return the public keys to trust as MU2NET_TRUST has them; what the command line gives goes before the setting.

    They stand there in base64, so that neither a comma in a path nor a file replaced later matters.

    Raises:
        InvalidConfig: one cannot be read.
    """
    if given:
        return ",".join(sorted(Trust.of(given).keys))
    return None if setting is None else ",".join(sorted(Trust.of(setting).keys))


def _token(keys: Files, address: str, folder: Path) -> str | None:
    """Return the token with which this machine's user changes a store without keys, None where it gives nothing.

    Raises:
        InvalidConfig: it cannot be kept, or is no secret.
    """
    return own_token(folder) if is_loopback_name(as_host(address)) and not keys.exists(KEYS_FILE) else None


def _tell_console(address: str, port: int, token: str | None) -> None:
    """Print the console's address with the token to a person, never into a log; browsers send no fragment."""
    if token is not None and sys.stdout.isatty():
        typer.echo(f"console: http://{as_host(address)}:{port}/#token={token}")


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
    """Lock the port at an address until this process ends, the server that it becomes included.

    Two servers that start at once would both find the port free, and the later one fail within BentoML. Servers at
    different addresses do not disturb one another, unless one of them listens at all of them.

    Raises:
        PortInUse: another server of ours has the port there, or is about to.
    """
    ip = ipaddress.ip_address(address)
    shared = home.parent / f"port-{ip.version}-{port}.lock"
    _lock(shared, address, port, fcntl.LOCK_EX if ip.is_unspecified else fcntl.LOCK_SH)
    make_folder(home)
    home.chmod(0o700)  # an older version's, too
    own = _lock(home / "lock", address, port, fcntl.LOCK_EX)
    os.ftruncate(own, 0)
    os.write(own, str(os.getpid()).encode())


def _lock(path: Path, address: str, port: int, operation: int) -> int:
    make_folder(path.parent)
    lock = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    os.set_inheritable(lock, True)
    try:
        fcntl.flock(lock, operation | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.read(lock, 20)  # empty where several may hold it
        os.close(lock)
        raise _port_in_use(address, port, [int(holder)] if holder.isdigit() else []) from error
    return lock


def _port_in_use(address: str, port: int, processes: Sequence[int] = ()) -> PortInUse:
    told = _first_told([*processes, *_listeners(address, port)])
    return PortInUse(
        f"port {port} on {address} is in use by another program{told}: stop it, or choose another with --port"
    )


def _first_told(processes: Sequence[int]) -> str:
    """Return what is known of the first process that can be looked at, the start of a sentence's end."""
    for process in processes:
        with suppress(psutil.Error):
            return f", process {process} ({' '.join(psutil.Process(process).cmdline())[:200]})"
    return ""


def _listeners(address: str, port: int) -> list[int]:
    """Return the processes that listen there, as far as the system tells this user."""
    try:
        found = psutil.net_connections("tcp")
    except (psutil.Error, OSError):
        return []
    return sorted(
        {
            connection.pid
            for connection in found
            if connection.pid is not None
            and connection.status == psutil.CONN_LISTEN
            and connection.laddr.port == port
            and _meet(connection.laddr.ip, address)
        }
    )


def _meet(listening: str, wanted: str) -> bool:
    """Whether a socket at one address keeps another from being bound."""
    first, second = ipaddress.ip_address(listening.split("%")[0]), ipaddress.ip_address(wanted.split("%")[0])
    return first == second or first.is_unspecified or second.is_unspecified


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
