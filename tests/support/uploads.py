"""Tasks sent over HTTP to a server in this process."""

import io
import zipfile
from collections.abc import Mapping

import httpx2
import numpy as np
from fastapi.testclient import TestClient
from PIL import Image


def image(number: int = 0, size: int = 10) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), number, np.uint8)).save(file, "PNG")
    return file.getvalue()


def zip_of(members: Mapping[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


PETS = zip_of(
    {f"{label}/{number}.png": image(10 * number + len(label)) for label in ("ant", "bee2") for number in range(4)}
)


def send(
    client: TestClient, data: bytes | None = PETS, path: str = "/v1/tasks", method: str = "POST", **fields: str
) -> httpx2.Response:
    files = {} if data is None else {"data": ("pets.zip", data, "application/zip")}
    return client.request(method, path, data=fields, files=files)
