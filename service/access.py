"""Who may do what through HTTP: the one place that decides it.

Without any key in the store, everybody may classify, and changes are taken only where the server is bound to
a loopback address. That is judged by the address it binds, never by the peer's: behind a proxy or in a
container every peer may look local. From the first key on, every request needs one.
"""

import ipaddress
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from typing import Literal, NoReturn, ParamSpec, TypeVar
from urllib.parse import urlsplit

from fastapi import Request

from models.errors import KeyLacksScope, KeyNeeded, UnknownTask, WritingIsOff
from models.names import TaskName
from models.release import unknown_task
from service.engine import LoadedRoute
from service.keys import ALL_TASKS, Key
from service.release import LoadedRelease
from service.server import Server
from service.settings import Settings

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Action = Literal["read", "classify", "tasks", "releases"]

FORWARDED = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip")  # what proxies add


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the holder of a key, this machine's own user where no key exists, or anybody."""

    key: Key | None
    is_own_user: bool
    client: str  # the unit of fairness: a key's id or, without keys, the connection's address and port

    @property
    def sees_all(self) -> bool:
        """Tell whether private tasks may be named to the caller: who manages tasks or releases has to see them."""
        return self.is_own_user if self.key is None else bool(self.key.manages)

    @property
    def manages_tasks(self) -> bool:
        """Tell whether the caller may add and retire tasks."""
        return self.is_own_user if self.key is None else "tasks" in self.key.manages

    def sees(self, task: TaskName, *, is_private: bool) -> bool:
        """Tell whether the caller may know that there is this task."""
        return not is_private or self.sees_all or (self.key is not None and task in self.key.classify)

    def may_classify(self, loaded: LoadedRoute) -> bool:
        """Tell whether a task that the caller may know of answers its images."""
        if self.key is None:
            return True
        return loaded.task in self.key.classify or (ALL_TASKS in self.key.classify and not loaded.route.private)

    def visible(self, release: LoadedRelease) -> Mapping[TaskName, LoadedRoute]:
        """Return the routes of the tasks that the caller may know of, by name."""
        return {
            task: loaded
            for task, loaded in sorted(release.routes.items())
            if self.sees(task, is_private=loaded.route.private)
        }

    def visible_route(self, release: LoadedRelease, task: str) -> LoadedRoute:
        """Return a task's route.

        Raises:
            UnknownTask: there is none that the caller may know of; the message lists those there are.
        """
        (loaded,) = self._visible_routes(release, [task])
        return loaded

    def routes(self, release: LoadedRelease, tasks: Sequence[str]) -> list[LoadedRoute]:
        """Return the routes of `tasks`, or of all that the caller may classify with if `all` is among them.

        Raises:
            UnknownTask: some do not exist, or the caller may not know of them.
            KeyLacksScope: the key's tasks are others.
        """
        if ALL_TASKS in tasks and (visible := self.visible(release)):
            return [loaded for loaded in visible.values() if self.may_classify(loaded)] or self._refuse(tasks)
        found = self._visible_routes(release, tasks)
        refused = [loaded.task for loaded in found if not self.may_classify(loaded)]
        return self._refuse(refused) if refused else found

    def _visible_routes(self, release: LoadedRelease, tasks: Sequence[str]) -> list[LoadedRoute]:
        """Look up each task alone: a release may have hundreds, and every request comes here."""
        found = [release.routes.get(TaskName(task)) for task in tasks]
        visible = [loaded for loaded in found if loaded and self.sees(loaded.task, is_private=loaded.route.private)]
        if len(visible) < len(found):
            known = {loaded.task for loaded in visible}
            unknown = [task for task in tasks if task not in known]
            raise UnknownTask(unknown_task(", ".join(unknown), self.visible(release)))
        return visible

    def _refuse(self, tasks: Sequence[str]) -> NoReturn:
        assert self.key is not None, "without a key, what is seen may be asked"
        raise KeyLacksScope(
            f"key {self.key.name!r} may not classify with task {', '.join(tasks)}; it may with: "
            f"{', '.join(self.key.classify) or 'none'}: use another key, or make one with 'mu2net keys create'"
        )


def server_of(request: Request) -> Server:
    server: Server = request.app.state.server
    return server


def asks_store(endpoint: "Callable[Arguments, Result]") -> "Callable[Arguments, Awaitable[Result]]":
    """Have an endpoint or a dependency with a parameter `request` run in the server's threads for the store."""

    @wraps(endpoint)
    async def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        request = kwargs["request"]
        assert isinstance(request, Request), "FastAPI passes parameters by name"
        return await server_of(request).store_threads.run(endpoint, *args, **kwargs)

    return run


def connection_of(request: Request) -> str:
    """Return a name for the connection that a request came over, which no other open one has."""
    return "" if request.client is None else f"{request.client.host} {request.client.port}"


def allow(request: Request, action: Action) -> Caller:
    """Return who asks, if the request may do `action`: every route that is not open to all calls this, once.

    `read` is looking at what the server has, `tasks` is adding and retiring tasks and their jobs, `releases` is
    activating and resuming. A caller that may classify need not be allowed every task: see `Caller.routes`.

    Raises:
        KeyNeeded: the server has keys, and the request brings none in use.
        KeyLacksScope: its key is for other things.
        RateLimited: its key has used up its rate.
        WritingIsOff: there is no key, and `action` changes something where it may not.
        NotReady: the keys could not be read yet.
    """
    server = server_of(request)
    if server.keys.is_required:
        return _key_holder(request, server, action)
    trouble = _why_no_writing(request, server.settings)
    if trouble is not None and action in {"tasks", "releases"}:
        raise WritingIsOff(trouble)
    return Caller(None, is_own_user=trouble is None, client=connection_of(request))


def asked_again(request: Request, caller: Caller) -> Caller | None:
    """Return who does what `allow` has let begin, and what goes on, as the keys are at this moment; None: no longer.

    Nothing is counted: the request was, when it came.
    """
    server = server_of(request)
    if not server.keys.is_required:
        return caller if caller.key is None else None
    key = _key_of(request, server)
    return None if key is None or caller.key is None or key.id != caller.key.id else replace(caller, key=key)


def _key_of(request: Request, server: Server) -> Key | None:
    """Return the key in use that a request brings, None if it brings none."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return server.keys.holder(token.strip()) if scheme.lower() == "bearer" else None


def _key_holder(request: Request, server: Server, action: Action) -> Caller:
    key = _key_of(request, server)
    if key is None:
        is_given = bool(request.headers.get("authorization", "").partition(" ")[2])
        what = "this one is unknown or revoked" if is_given else "the request has none"
        raise KeyNeeded(
            f"this server needs an API key, and {what}: send the header 'Authorization: Bearer KEY' with a key made by "
            "'mu2net keys create'"
        )
    server.rate_limit.count(key)
    if action in {"tasks", "releases"} and action not in key.manages:
        raise KeyLacksScope(
            f"key {key.name!r} may not manage {action}; it may manage: {', '.join(key.manages) or 'nothing'}: use "
            f"another key, or make one with 'mu2net keys create --{action}'"
        )
    return Caller(key, is_own_user=False, client=key.id)


def _why_no_writing(request: Request, settings: Settings) -> str | None:
    """Return why a request without a key may change nothing, None if it may.

    A page of another site in a browser on this very machine may not: it comes with an origin or, having
    bent its own name to this address, with a host that is none of this machine's. Nor may what a proxy on
    this machine passes on, which may come from anywhere.
    """
    if not _is_loopback(settings.bind_address):
        bound = f"bound to {settings.bind_address}" if settings.bind_address else "not told where it is bound"
        return (
            f"this server takes no changes without a key: it is {bound}, and only one on a loopback address does "
            "('mu2net serve' with its default host); make a key with 'mu2net keys create', or change the store "
            "with 'mu2net releases ...'"
        )
    host, origin = request.headers.get("host", ""), request.headers.get("origin")
    name = urlsplit(f"//{host}").hostname or ""
    if not (name == "localhost" or _is_loopback(name)) or (origin is not None and urlsplit(origin).netloc != host):
        return (
            "this server takes changes without a key from this machine's own pages and programs only, not from "
            f"{origin or host!r}: call it by its loopback address"
        )
    if any(header in request.headers for header in FORWARDED):
        return "this server takes no changes that a proxy passes on without a key: make one with 'mu2net keys create'"
    return None


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:  # a name, or not told: nobody may rely on it
        return False
