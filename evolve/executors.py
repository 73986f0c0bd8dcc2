"""Which executor trains the candidates, as the command line chooses it."""

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from models.errors import InvalidConfig

if TYPE_CHECKING:
    from evolve.run import Executor

ExecutorOption = Annotated[
    Literal["local", "ray"],
    typer.Option("--executor", help="This machine, or a Ray cluster (mu2net\\[ray])."),
]
RayAddressOption = Annotated[
    str | None,
    typer.Option(help="Of a running cluster, or 'auto'; default: a cluster of this machine alone."),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(min=1, help="Candidates trained side by side; default: cores / threads of each; on a GPU measured."),
]


def open_executor(
    kind: Literal["local", "ray"], *, workers: int | None, ray_address: str | None
) -> "AbstractContextManager[Executor]":
    """Return the executor to enter.

    Raises:
        InvalidConfig: Ray is not installed, or an option of the other executor is given.
    """
    if kind == "local":
        from evolve.local_executor import LocalExecutor

        if ray_address is not None:
            raise InvalidConfig("--ray-address goes with --executor ray: add that, or leave the address out")
        return LocalExecutor(workers)
    if ray_address is not None and workers is not None:
        raise InvalidConfig("--workers is the size of a cluster of this machine: leave it out with --ray-address")
    try:
        from evolve.ray_executor import RayExecutor
    except ModuleNotFoundError as error:
        raise InvalidConfig("--executor ray needs Ray: install mu2net[ray]") from error
    return RayExecutor(ray_address, workers)
