"""Every error this project raises on purpose, as one tree.

    Mu2NetError
    ├── InvalidInput          a value that a person or a client gave is not allowed
    │   ├── InvalidName         not a task name
    │   ├── InvalidImage        bytes that are no readable image
    │   ├── ImageTooLarge       more bytes or pixels than the limit
    │   ├── RequestTooLarge     more bytes or images in one request than the limit
    │   ├── UploadTooSlow       a request body that takes longer than it may
    │   ├── UnsupportedMedia    a request body of a content type that holds no image
    │   ├── InvalidData         labelled images that cannot make a task
    │   ├── InvalidConfig       a setting, option or hyperparameter that is unknown or out of range
    │   ├── InvalidRoot         a network that is no plain ViT
    │   └── InvalidRoute        a route or release record that contradicts itself
    ├── NotFound              something was asked for by a name that nothing has
    │   ├── UnknownTask
    │   ├── UnknownRelease
    │   ├── UnknownJob
    │   ├── ReleaseNotResident  a request asks for a release that the server does not hold in memory
    │   ├── UnknownKey
    │   └── StoreNotFound
    ├── StoreError            the store's content is not what its records promise
    │   ├── MissingObject
    │   ├── DamagedObject
    │   ├── UnsupportedFormat
    │   ├── StoreUnreachable    the network or the file system fails; trying again may help
    │   ├── UntrustedRelease    a release without the signature of a key that is trusted
    │   └── PublishConflict     the change no longer fits the current release
    ├── TaskBusy              another process or job evolves this task
    ├── TaskExists            a new task has a name that the release has already
    ├── StorageFull           a disk or a quota is used up; trying again helps once there is space
    │   └── QueueFull           that of the jobs' database
    ├── StorageReadOnly       a folder or a file cannot be written to
    ├── LeaseLost             a worker's job was given to another, or is over
    ├── QueueUnreachable      the database of jobs fails; trying again may help
    │   └── QueueFull           see StorageFull
    ├── WorkerFailed          a worker ends because of its machine; the job that it had waits for another
    ├── ClusterLost           the Ray cluster cannot be reached, or loses candidates over and over
    ├── ExportMismatch        ONNX Runtime and torch disagree about a route
    ├── ProofFailed           a new release could not be proven in a process of its own
    ├── ProofTimeout          that took longer than it may
    ├── PrecisionLoss         a lower precision would cost a route more accuracy than is allowed
    ├── NotReady              the server has no release to answer from
    ├── WritingIsOff          the server takes no changes from where this request could come
    ├── KeyNeeded             the server needs an API key or its user's token, and the request brings none in use
    ├── ForeignRequest        a request to a server without keys that is not from its own machine's pages and programs
    ├── KeyLacksScope         the request's key is for other tasks or other things
    ├── Overloaded            the queue is full, or a deadline passed while waiting in it
    │   ├── RateLimited         a key has made as many requests as it may
    │   ├── BodiesFull          no room for a request's body; the connection closes with the answer
    │   └── QuotaExceeded       a key has as many unfinished jobs, or as much of something, as it may
    ├── PortInUse
    └── ClientError           what service/client.py tells its users
        ├── RequestRefused      the server's refusal, in its words
        ├── ServerUnreachable
        └── JobFailed           a job that was waited for failed or was cancelled

Messages say what happened, the value, what is allowed and the next step. The HTTP status of each
stands in `service/errors.py`; the command line prints the message and exits with 1.
"""

import copyreg
import re
from typing import Any


def kind_of(error: Exception) -> str:
    """Return a short name in kebab case for the kind of error, which stays as it is for programs."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", type(error).__name__).lower()


class Mu2NetError(Exception):
    """Base of all expected errors: the message is for the person who caused it or operates this."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without `__init__`, whose keyword arguments `args` lacks: errors cross process boundaries."""
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class InvalidInput(Mu2NetError):
    pass


class InvalidName(InvalidInput):
    pass


class InvalidImage(InvalidInput):
    pass


class ImageTooLarge(InvalidInput):
    pass


class RequestTooLarge(InvalidInput):
    pass


class UploadTooSlow(InvalidInput):
    pass


class UnsupportedMedia(InvalidInput):
    pass


class InvalidData(InvalidInput):
    pass


class InvalidConfig(InvalidInput):
    pass


class InvalidRoot(InvalidInput):
    pass


class InvalidRoute(InvalidInput):
    pass


class NotFound(Mu2NetError):
    pass


class UnknownTask(NotFound):
    pass


class UnknownRelease(NotFound):
    pass


class UnknownJob(NotFound):
    pass


class ReleaseNotResident(NotFound):
    pass


class UnknownKey(NotFound):
    pass


class StoreNotFound(NotFound):
    pass


class StoreError(Mu2NetError):
    pass


class MissingObject(StoreError):
    pass


class DamagedObject(StoreError):
    pass


class UnsupportedFormat(StoreError):
    pass


class StoreUnreachable(StoreError):
    pass


class UntrustedRelease(StoreError):
    pass


class PublishConflict(StoreError):
    pass


class TaskBusy(Mu2NetError):
    pass


class TaskExists(Mu2NetError):
    pass


class StorageFull(Mu2NetError):
    """`path` is where, for those who operate this and not for those who ask over HTTP; it may be empty."""

    def __init__(self, message: str, *, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class StorageReadOnly(Mu2NetError):
    """As `StorageFull`."""

    def __init__(self, message: str, *, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class LeaseLost(Mu2NetError):
    pass


class QueueUnreachable(Mu2NetError):
    pass


class QueueFull(StorageFull, QueueUnreachable):
    pass


class WorkerFailed(Mu2NetError):
    pass


class ClusterLost(Mu2NetError):
    pass


class ExportMismatch(Mu2NetError):
    pass


class ProofFailed(Mu2NetError):
    """`kind` is the short name of the error that the process met, such as `missing-object`."""

    def __init__(self, message: str, *, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


class ProofTimeout(Mu2NetError):
    pass


class PrecisionLoss(Mu2NetError):
    pass


class NotReady(Mu2NetError):
    pass


class WritingIsOff(Mu2NetError):
    pass


class KeyNeeded(Mu2NetError):
    pass


class ForeignRequest(Mu2NetError):
    pass


class KeyLacksScope(Mu2NetError):
    pass


class Overloaded(Mu2NetError):
    """Try again after `retry_after_s` seconds."""

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RateLimited(Overloaded):
    pass


class BodiesFull(Overloaded):
    pass


class QuotaExceeded(Overloaded):
    pass


class PortInUse(Mu2NetError):
    pass


class ClientError(Mu2NetError):
    pass


class RequestRefused(ClientError):
    """`status` is HTTP's; `kind` is the server's short name of the error, such as `unknown-task`."""

    def __init__(self, message: str, *, status: int, kind: str) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind


class ServerUnreachable(ClientError):
    pass


class JobFailed(ClientError):
    pass
