"""The compared Ray Serve deployment: the same service as one replica behind Ray's HTTP proxy."""

import asyncio
import signal

import ray
from ray import serve
from starlette.requests import Request

from benchmarks.serving.whole import Arguments


@serve.deployment(num_replicas=1, max_ongoing_requests=64)
class Stock:
    def __init__(self, arguments: Arguments) -> None:
        self._models = arguments.models()

    async def __call__(self, request: Request) -> list[float]:
        form = await request.form()
        image = await form["image"].read()  # type: ignore[union-attr]
        return await asyncio.to_thread(self._models.logits, str(form["task"]), image)


if __name__ == "__main__":
    ray.init(include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": Arguments.read().port})
    serve.run(Stock.bind(Arguments.read()), route_prefix="/classify")  # type: ignore[attr-defined]  # the decorator adds it
    print("benchmark: ready", flush=True)
    signal.pause()
