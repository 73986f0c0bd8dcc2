"""Images out of a request's body, raw or multipart, never holding more of it than is allowed."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import Request
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException
from starlette.types import Message, Receive

from models.errors import InvalidImage, InvalidInput, RequestTooLarge, UnsupportedMedia
from service.multipart import FormParser

IMAGE_FIELD, TASKS_FIELD = "image", "tasks"
HOW_TO_SEND = f"send the image as the body with content type image/..., or as multipart field {IMAGE_FIELD!r}"


@dataclass(frozen=True, slots=True)
class Upload:
    """Encoded images in the order sent, and the task names of a multipart body."""

    images: Sequence[bytes]
    tasks: Sequence[str] = ()


async def read_upload(request: Request, *, max_bytes: int, max_images: int) -> Upload:
    """Return the images of a request.

    Raises:
        UnsupportedMedia: the content type is neither an image's nor multipart.
        RequestTooLarge: the body has more bytes or images than allowed.
        InvalidImage: there is no image, or the multipart body is broken.
        InvalidInput: a multipart field that has no meaning here.
    """
    media_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if media_type == "multipart/form-data":
        return await _read_multipart(request, max_bytes=max_bytes, max_images=max_images)
    if media_type and not media_type.startswith("image/") and media_type != "application/octet-stream":
        raise UnsupportedMedia(f"content type {media_type[:80]!r} is not supported: {HOW_TO_SEND}")
    body = await read_body(request, max_bytes=max_bytes)
    if not body:
        raise InvalidImage(f"the request body is empty: {HOW_TO_SEND}")
    return Upload([body])


async def read_body(request: Request, *, max_bytes: int) -> bytes:
    """Return the whole body.

    Raises:
        RequestTooLarge: it has more bytes than allowed.
        UnsupportedMedia: it is compressed.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":  # a small body could become a huge one
        raise UnsupportedMedia(f"content encoding {encoding[:80]!r} is not supported: send the body as it is")
    check_length(request, max_bytes)
    body = io.BytesIO()
    async for chunk in Request(request.scope, counted(request, max_bytes)).stream():
        body.write(chunk)
    return body.getvalue()  # without a copy, which joining the chunks would be


def check_length(request: Request, max_bytes: int) -> None:
    """Refuse by the announced length, before the body is sent."""
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > max_bytes:
        raise _too_large(int(length), max_bytes)


def counted(request: Request, max_bytes: int) -> Receive:
    """Return the request's messages, with an error as soon as its body is larger than allowed."""
    received = 0

    async def receive() -> Message:
        nonlocal received
        message = await request.receive()
        received += len(message.get("body", b""))
        if received > max_bytes:
            raise _too_large(received, max_bytes)
        return message

    return receive


def _too_large(count: int, max_bytes: int) -> RequestTooLarge:
    return RequestTooLarge(
        f"the request body has {count:,} bytes or more; at most {max_bytes:,} are allowed: send smaller or fewer images"
    )


async def _read_multipart(request: Request, *, max_bytes: int, max_images: int) -> Upload:
    check_length(request, max_bytes)
    limited = Request(request.scope, counted(request, max_bytes))
    parser = FormParser(
        limited,
        file_field=IMAGE_FIELD,
        max_files=max_images + 1,
        max_fields=max_images,
        max_bytes_in_memory=max_bytes,  # where bodies are counted: a container's /tmp is memory as well
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if "Too many files" in error.message:
            raise _too_many(f"more than {max_images}", max_images) from error
        raise InvalidImage(f"the multipart body cannot be read ({error.message}): {HOW_TO_SEND}") from error
    try:
        return await _read_form(form, max_images)
    finally:
        await form.close()


def _too_many(count: str, max_images: int) -> RequestTooLarge:
    return RequestTooLarge(f"the request has {count} images; at most {max_images} are allowed: send several requests")


async def _read_form(form: FormData, max_images: int) -> Upload:
    images: list[bytes] = []
    tasks: list[str] = []
    for field, value in form.multi_items():
        if field == IMAGE_FIELD and isinstance(value, UploadFile):
            images.append(await value.read())
            await value.close()  # its buffer goes before the next image is copied out of its own
        elif field == TASKS_FIELD and isinstance(value, str):
            tasks.append(value)
        else:
            kind = "a file" if isinstance(value, UploadFile) else "text"
            raise InvalidInput(
                f"multipart field {field[:80]!r} holding {kind} has no meaning here: allowed are {IMAGE_FIELD!r} "
                f"(a file, may repeat) and {TASKS_FIELD!r} (text)"
            )
    if not images:
        raise InvalidImage(f"the multipart body has no image: {HOW_TO_SEND}")
    if len(images) > max_images:
        raise _too_many(str(len(images)), max_images)
    return Upload(images, tasks)
