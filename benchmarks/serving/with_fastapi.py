"""Bare uvicorn and FastAPI around our engine: what HTTP must cost at least (serving-7)."""

import uvicorn
from fastapi import FastAPI, Request

from benchmarks.serving.whole import Arguments
from models.preprocess import load_pixels
from models.store import Store
from service import engine
from service.release import StagePool
from service.runtime import start_runtime


def create_app(arguments: Arguments) -> FastAPI:
    store = Store.open(arguments.folder / arguments.prefix)
    release = StagePool(start_runtime("cpu", 0)).load_release(store, store.current().release, [])
    app = FastAPI()

    @app.post("/classify/{task}")
    async def classify(request: Request, task: str) -> list[float]:
        route = release.route(task)
        pixels = load_pixels(await request.body(), route.route.image_size)
        logits: list[float] = engine.run([engine.Row(pixels, route)])[0].tolist()
        return logits

    return app


if __name__ == "__main__":
    uvicorn.run(create_app(Arguments.read()), port=Arguments.read().port, log_level="warning", access_log=False)
