"""An S3 server for tests: moto's, over real sockets, so that a network can fail as networks do."""

import logging
import socket
import uuid
from typing import Any

import fsspec
from moto.server import ThreadedMotoServer


class S3Server:
    """Listens from `start` to `stop`; what is stored outlives a stop, the address as well."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.start()

    def start(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # else a line for each request
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self._server.start()

    def break_off(self, ending: str) -> None:
        """From now to the next start, break off each request for an object whose name ends so, from any process."""
        server = self._server._server  # moto has no other way to it
        assert server is not None
        answer = server.app

        def answer_or_break(environ: dict[str, Any], start_response: Any) -> Any:
            if environ["PATH_INFO"].endswith(ending):
                environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
                raise ConnectionError("broken off")
            return answer(environ, start_response)

        server.app = answer_or_break

    def stop(self) -> None:
        self._server.stop()

    @property
    def environment(self) -> dict[str, str]:
        """Return what a client needs to find it and be let in."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "nobody",
            "AWS_SECRET_ACCESS_KEY": "nothing",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def new_bucket(self) -> str:
        name = f"bucket-{uuid.uuid4().hex}"
        fsspec.filesystem("s3").mkdir(name)
        return name
