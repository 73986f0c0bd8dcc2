"""HEAD wherever GET is answered: the same answer without its body (RFC 9110, 9.3.2). FastAPI does not add it."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HeadAsGet:
    """ASGI middleware, the outermost: asks what is within for GET and passes on the head of its answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        is_answered = False

        async def send_head(message: Message) -> None:
            nonlocal is_answered
            if is_answered:
                return
            await send(message)
            if message["type"] == "http.response.start":
                is_answered = True
                await send({"type": "http.response.body", "body": b"", "more_body": False})

        async def receive_until_answered() -> Message:
            return {"type": "http.disconnect"} if is_answered else await receive()  # ends a stream, which has no end

        await self._app({**scope, "method": "GET"}, receive_until_answered, send_head)
