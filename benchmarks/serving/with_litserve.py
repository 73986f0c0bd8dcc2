"""The compared LitServe server: the same service as a `LitAPI`."""

import litserve
from fastapi import Request

from benchmarks.serving.whole import Arguments


class Stock(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self._models = Arguments.read().models()

    def decode_request(self, request: Request) -> tuple[str, bytes]:
        return request["task"], request["image"].file.read()  # it hands the form over

    def predict(self, x: tuple[str, bytes]) -> list[float]:
        return self._models.logits(*x)

    def encode_response(self, output: list[float]) -> list[float]:
        return output


if __name__ == "__main__":
    server = litserve.LitServer(Stock(api_path="/classify"), accelerator="cpu", timeout=600)
    server.run(port=Arguments.read().port, num_api_servers=1, generate_client_file=False, log_level="warning")
