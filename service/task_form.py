"""The form that brings a task's images: read with limits, each field checked, nothing kept."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from fastapi import Request
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException

from models.budget import parse_budget
from models.errors import InvalidInput, InvalidRoute, UnsupportedMedia
from models.files import held
from models.leftovers import FORM_PREFIX
from models.names import TaskName, parse_task_name
from models.release import require_task
from models.route import Route
from service.multipart import FormParser
from service.upload import check_length, counted

NAME, DATA, BUDGET, PRIVATE, PARENTS = "name", "data", "budget", "private", "parents"
FORM_TYPES = ("multipart/form-data", "application/x-www-form-urlencoded")
BOOLEANS = {"": False, "false": False, "0": False, "no": False, "true": True, "1": True, "yes": True, "on": True}


@dataclass(frozen=True, slots=True)
class TaskForm:
    """The fields of a request, and its zip as a file that is gone with the request."""

    fields: Mapping[str, str]
    data: Path | None
    filename: str  # what messages call the zip

    @property
    def name(self) -> TaskName:
        """The new task's name; InvalidName if it cannot be one."""
        return parse_task_name(self.fields.get(NAME, ""))

    @property
    def budget(self) -> str | None:
        """How long it may take; InvalidConfig if that is no time."""
        text = self.fields.get(BUDGET, "").strip()
        if text:
            parse_budget(text)
        return text or None

    @property
    def private(self) -> bool:
        """Whether no other task may use its components; InvalidInput if it is neither true nor false."""
        text = self.fields.get(PRIVATE, "").strip().lower()
        if text not in BOOLEANS:
            raise InvalidInput(f"field {PRIVATE!r} is {text[:80]!r}: use true or false")
        return BOOLEANS[text]

    @property
    def zip(self) -> Path:
        """The images; InvalidInput if none were sent."""
        if self.data is None:
            raise InvalidInput(
                f"the form has no file {DATA!r}: send a zip of labelled images as multipart field {DATA!r}"
            )
        return self.data

    def parents(self, routes: Mapping[TaskName, Route]) -> tuple[TaskName, ...]:
        """Return the tasks whose routes are to be tried first.

        Raises:
            UnknownTask: the release has no such task.
            InvalidRoute: the task is private.
        """
        names = dict.fromkeys(name.strip() for name in self.fields.get(PARENTS, "").split(",") if name.strip())
        found = tuple(require_task(name, routes) for name in names)
        for name in found:
            if routes[name].private:
                raise InvalidRoute(
                    f"task {name!r} is private, so its components are not offered as parents: leave it out"
                )
        return found


@asynccontextmanager
async def task_form(request: Request, allowed: tuple[str, ...], *, max_bytes: int) -> AsyncIterator[TaskForm]:
    """Give the form of a request, its zip on disk while the block runs; an empty body is an empty form.

    Raises:
        UnsupportedMedia: the body is no form.
        RequestTooLarge: it has more bytes than allowed.
        InvalidInput: the form is broken, or has a field that has no meaning here.
    """
    media_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if media_type and media_type not in FORM_TYPES:
        raise UnsupportedMedia(f"content type {media_type[:80]!r} is not supported: send a form, multipart/form-data")
    check_length(request, max_bytes)
    limited = Request(request.scope, counted(request, max_bytes))
    try:
        if media_type == "multipart/form-data":
            form = await FormParser(limited, file_field=DATA, max_files=1, max_fields=len(allowed)).parse()
        else:
            form = await limited.form(max_fields=len(allowed))
    except (HTTPException, MultiPartException) as error:  # Starlette's ways of saying that the body is broken
        told = error.detail if isinstance(error, HTTPException) else error.message
        raise InvalidInput(f"the form cannot be read ({told}): it may have {', '.join(allowed)}, each once") from error
    with tempfile.TemporaryDirectory(prefix=FORM_PREFIX) as folder, held(Path(folder)):
        try:
            yield await _checked(form, allowed, Path(folder))
        finally:
            await form.close()


async def _checked(form: FormData, allowed: tuple[str, ...], folder: Path) -> TaskForm:
    fields: dict[str, str] = {}
    path: Path | None = None
    filename = "the zip"
    for field, value in form.multi_items():
        is_file = isinstance(value, UploadFile)
        if field not in allowed or field in fields or is_file != (field == DATA):
            raise InvalidInput(
                f"form field {field[:80]!r} holding {'a file' if is_file else 'text'} has no meaning here, or is there "
                f"twice: allowed are {', '.join(allowed)}, each once, with a file in {DATA!r} only"
            )
        if isinstance(value, UploadFile):
            path = folder / "data.zip"
            filename = repr((value.filename or "data")[:80])
            await asyncio.to_thread(_save, value, path)
            await value.close()  # what was received goes before anybody copies the file once more
        else:
            fields[field] = value
    return TaskForm(fields, path, filename)


def _save(upload: UploadFile, path: Path) -> None:
    with path.open("wb") as file:
        shutil.copyfileobj(upload.file, file)
