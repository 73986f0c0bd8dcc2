"""Rows of every task of a release, and what their answers may not depend on."""

from collections.abc import Sequence

import numpy as np

from service import engine
from service.engine import Row
from service.release import LoadedRelease
from tests.support.stores import TaskPlan

PLANS = (
    TaskPlan("plain", seed=1),
    TaskPlan("parts", own_blocks=[1], seed=2),  # its last block is the root's: parts and meets again
    TaskPlan("adapted", adapters={0: 4}, own_blocks=[2], num_classes=5, seed=3),
    TaskPlan("shallow", depth=1, seed=4),
    TaskPlan("large", image_size=32, seed=5),  # shares blocks across image sizes
    TaskPlan("none", depth=0, num_classes=2, seed=6),
)


def rows_of_every_task(release: LoadedRelease, images: int = 2, seed: int = 0) -> list[Row]:
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(images):
        by_size = {size: rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for size in (16, 32)}
        rows += [Row(by_size[route.route.image_size], route) for route in release.routes.values()]
    return rows


def assert_rows_do_not_depend_on_neighbours(rows: Sequence[Row]) -> None:
    """Hold each row's logits, bit by bit, to be the same alone and in batches of any others in any order."""
    alone = [engine.run([row])[0] for row in rows]
    rng = np.random.default_rng(7)
    for count in (2, 3, 5, len(rows)):
        for _ in range(5):
            order = rng.permutation(len(rows))[:count]
            for index, logits in zip(order, engine.run([rows[i] for i in order]), strict=True):
                assert np.array_equal(logits, alone[index])
