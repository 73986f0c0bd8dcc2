"""Multipart forms in which some fields are files, whatever their senders say of them.

Starlette takes a part for a file by its file name. Several HTTP clients send an image without one, and the part would
become a text, with a limit for texts.
"""

from python_multipart.multipart import parse_options_header
from starlette.formparsers import MultiPartParser
from starlette.requests import Request

NO_FILE_NAME = b'; filename=""'


class FormParser(MultiPartParser):
    """Reads one form; `parse` returns it, or raises Starlette's MultiPartException."""

    def __init__(
        self, request: Request, *, file_field: str, max_files: int, max_fields: int, max_bytes_in_memory: int = 2**20
    ) -> None:
        """
        Args:
            request: whose body it is.
            file_field: the name of the parts that are files.
            max_files: of one form.
            max_fields: parts that are texts.
            max_bytes_in_memory: of a file, before it is written to the disk.
        """
        super().__init__(request.headers, request.stream(), max_files=max_files, max_fields=max_fields)
        self.spool_max_size = max_bytes_in_memory
        self._file_field = file_field

    def on_headers_finished(self) -> None:
        part = self._current_part
        _, options = parse_options_header(part.content_disposition)
        if options.get(b"name") == self._file_field.encode() and b"filename" not in options:
            part.content_disposition = (part.content_disposition or b"") + NO_FILE_NAME
        super().on_headers_finished()
