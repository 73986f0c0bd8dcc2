"""Who may do what through HTTP: the one place that decides it.

Without any key in the store, everybody who reaches the server may read and classify with the tasks that are not
private. All else needs the own user's token (`models/own_token.py`), and a server that is bound to a loopback
address, which answers this machine's own pages and programs alone (`service/own_pages.py`). Neither the peer's
address nor the headers that a proxy adds say anything: a proxy on this machine need not add any. From the first
key on, every request needs one.

One rule for private tasks: whatever is computed or told for a caller comes from what the caller may see.
"""

import hmac
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from typing import Literal, NoReturn, ParamSpec, TypeVar

from fastapi import Request
from starlette.types import Scope

from models.errors import ForeignRequest, KeyLacksScope, KeyNeeded, UnknownTask, WritingIsOff
from models.key_list import Key
from models.names import TaskName
from models.release import unknown_task
from models.route import Route
from service.engine import LoadedRoute
from service.keys import ALL_TASKS, TOKEN
from service.own_pages import why_foreign
from service.release import LoadedRelease
from service.server import Server
from service.threads import Threads

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Action = Literal["read", "classify", "tasks", "releases"]
CHANGES: frozenset[Action] = frozenset({"tasks", "releases"})
TOKEN_FILE = "the file 'token' in the folder that MU2NET_CACHE names, ~/.cache/mu2net by default"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the holder of a key, this machine's own user where no key exists, or anybody."""

    key: Key | None
    is_own_user: bool
    client: str  # the unit of fairness: a key's id or, without keys, the connection's address and port

    @property
    def name(self) -> str:
        """Return who it is, for the log."""
        return "anybody" if self.key is None and not self.is_own_user else self.key.id if self.key else "own user"

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

    @property
    def private_tasks(self) -> tuple[TaskName, ...] | None:
        """Return the names that a private task may have for the caller to know of it; None for every name."""
        return None if self.sees_all else tuple(map(TaskName, self.key.classify)) if self.key else ()

    def sees_route(self, route: Route) -> bool:
        """Tell the same of a stored route; the root's is everybody's."""
        return route.task is None or self.sees(route.task, is_private=route.private)

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


async def call_in(
    threads: Threads,
    request: Request,
    call: "Callable[Arguments, Result]",
    /,
    *args: Arguments.args,
    **kwargs: Arguments.kwargs,
) -> Result:
    """Run a request's call in threads, see `Threads.run`."""
    return await threads.run(request.state.visit.holder, call, *args, **kwargs)


def asks_store(endpoint: "Callable[Arguments, Result]") -> "Callable[Arguments, Awaitable[Result]]":
    """Have an endpoint or a dependency with a parameter `request` run in the server's threads for the store."""

    @wraps(endpoint)
    async def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        request = kwargs["request"]
        assert isinstance(request, Request), "FastAPI passes parameters by name"
        return await call_in(server_of(request).store_threads, request, endpoint, *args, **kwargs)

    return run


def connection_of(request: Request) -> str:
    """Return a name for the connection that a request came over, which no other open one has."""
    return "" if request.client is None else f"{request.client.host} {request.client.port}"


def require_own(scope: Scope, server: Server) -> None:
    """Refuse a request that a server without keys on a loopback address does not answer, whatever it asks for.

    Raises:
        ForeignRequest: it is not from a page or program of this machine.
    """
    if not server.is_for_own_user or server.keys.are_known:
        return
    trouble = why_foreign(
        scope["headers"], scope["method"], server.settings.allowed_hosts, server.settings.allowed_origins
    )
    if trouble is not None:
        raise ForeignRequest(
            f"this server answers only this machine's own pages and programs, and {trouble}: call it by its loopback "
            "address, set MU2NET_HOSTS to the name that a proxy before it has, or make a key with 'mu2net keys create'"
        )


def allow(request: Request, action: Action) -> Caller:
    """Return who asks, if the request may do `action`: every route that is not open to all calls this, once.

    `read` is looking at what the server has, `tasks` is adding and retiring tasks and their jobs, `releases` is
    activating and resuming. A caller that may classify need not be allowed every task: see `Caller.routes`.

    Raises:
        KeyNeeded: the server has keys, and the request brings none in use; or it has none, and `action` changes
            something without the own user's token, or what is brought is another.
        KeyLacksScope: its key is for other things.
        RateLimited: its key has used up its rate.
        WritingIsOff: there is no key, and `action` changes something on a server bound to no loopback address.
        NotReady: the keys could not be read yet.
    """
    server = server_of(request)
    request.state.action = action
    find = _key_holder if server.keys.is_required else _without_key
    request.state.caller = caller = find(request, server, action)
    return caller


def note_change(request: Request, **about: str) -> None:
    """Have the audit's line of a request say what it changes, where the path does not."""
    request.state.change = about


def caller_of(request: Request) -> Caller:
    """Return who `allow` found out to ask; anybody where it has not, or refused."""
    known: Caller | None = getattr(request.state, "caller", None)
    return Caller(None, is_own_user=False, client=connection_of(request)) if known is None else known


def bearer(request: Request) -> str:
    """Return what a request sends as its token, "" if none."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def claimed_key(request: Request) -> str | None:
    """Return the id of the key that a request claims to have, whether or not it is right."""
    found = TOKEN.fullmatch(bearer(request))
    return found[1] if found else None


def _is_own(token: str, server: Server) -> bool:
    own = server.own_token
    return own is not None and hmac.compare_digest(token.encode(), own.encode())


def asked_again(request: Request, caller: Caller) -> Caller | None:
    """Return who does what `allow` has let begin, and what goes on, as the keys are at this moment; None: no longer.

    Nothing is counted: the request was, when it came.
    """
    server = server_of(request)
    if not server.keys.is_required:
        return caller if caller.key is None else None
    key = server.keys.holder(bearer(request))
    return None if key is None or caller.key is None or key.id != caller.key.id else replace(caller, key=key)


def _key_holder(request: Request, server: Server, action: Action) -> Caller:
    token = bearer(request)
    key = server.keys.holder(token)
    if key is None:
        raise KeyNeeded(_why_no_key(token, server))
    request.state.caller = caller = Caller(key, is_own_user=False, client=key.id)  # known also where it is refused
    server.rate_limit.count(key)
    if action in CHANGES and action not in key.manages:
        raise KeyLacksScope(
            f"key {key.name!r} may not manage {action}; it may manage: {', '.join(key.manages) or 'nothing'}: use "
            f"another key, or make one with 'mu2net keys create --{action}'"
        )
    return caller


def _why_no_key(token: str, server: Server) -> str:
    if not server.keys.are_known:
        return (
            "this server needs an API key, and its store has none: it is a copy of a store with keys, which are not "
            "copied; make keys with 'mu2net keys create'"
        )
    what = "the request has none"
    if token:
        is_own = _is_own(token, server)
        what = (
            "this machine's own token opens only servers without keys" if is_own else "this one is unknown or revoked"
        )
    return (
        f"this server needs an API key, and {what}: send the header 'Authorization: Bearer KEY' with a key made by "
        "'mu2net keys create'"
    )


def _without_key(request: Request, server: Server, action: Action) -> Caller:
    client = connection_of(request)
    if not server.is_for_own_user:  # a token from another machine proves nothing here, and is ignored
        if action in CHANGES:
            raise WritingIsOff(_why_no_writing(server))
        return Caller(None, is_own_user=False, client=client)
    token = bearer(request)
    if token and not _is_own(token, server):
        raise KeyNeeded(
            "this server has no API keys, and what the request brings is not the token of its machine's user: send "
            f"'Authorization: Bearer TOKEN' with the content of {TOKEN_FILE}, or nothing to read and to classify"
        )
    if not token and action in CHANGES:
        raise KeyNeeded(
            "this server takes changes from its machine's own user only: send 'Authorization: Bearer TOKEN' with the "
            f"content of {TOKEN_FILE}; or make an API key with 'mu2net keys create'"
        )
    return Caller(None, is_own_user=bool(token), client=client)


def _why_no_writing(server: Server) -> str:
    address = server.settings.bind_address
    bound = f"bound to {address}" if address else "not told where it is bound"
    return (
        f"this server takes no changes without a key: it is {bound}, where the token of its machine's user gives "
        "nothing, as it does on a loopback address ('mu2net serve' with its default host); make a key with "
        "'mu2net keys create', or change the store with 'mu2net releases ...'"
    )
