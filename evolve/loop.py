"""The evolutionary loop: add one task to the multitask system, or improve it.

Follows Gesmundo & Dean 2022 (arXiv 2205.12755). Every random draw derives from (seed, task, iteration,
generation, candidate), so a run that was killed and started again ends where it would have ended.
"""

from collections.abc import Callable, Iterator, Sequence

from evolve.candidate import Candidate
from evolve.config import EvolveConfig
from evolve.local_executor import LocalExecutor
from evolve.pool import WeightPool
from evolve.run import Executor, Outcome, Progress, TaskRun, alone
from evolve.task import Task
from evolve.train import Trained, TrainPlan, train_candidate
from models.errors import InvalidConfig
from models.store import Store


def one_after_another(
    candidates: Sequence[Candidate], task: Task, pool: WeightPool, plan: TrainPlan
) -> Iterator[Trained]:
    """The plain executor: train each candidate from the pixels on, sharing nothing.

    Raises:
        InvalidConfig: the plan wants the worse half stopped or bfloat16, neither of which this executor can do.
    """
    if plan.halving:
        raise InvalidConfig("halving = true needs the fast path, which stops candidates: leave --plain out")
    if plan.bf16_products or plan.activation_dtype != "float32":
        option = "bf16_products" if plan.bf16_products else "bf16_activations"
        raise InvalidConfig(
            f"{option} = true needs the fast path, this one is in float32 throughout: leave --plain out"
        )
    for candidate in candidates:
        yield train_candidate(candidate, task, pool, plan)


def silent(progress: Progress) -> None:
    """Report nothing."""


def evolve_task(
    task: Task,
    store: Store,
    config: EvolveConfig,
    *,
    private: bool = False,
    from_release: int | None = None,
    execute: Executor | None = None,
    report: Callable[[Progress], None] = silent,
) -> Outcome:
    """Run one task iteration (section 3 of the paper, "task iteration") and publish its winner.

    1. start    published routes of other tasks and the root become seeds; the task's own locks are lifted
    2. sample   pick parents, mutate each into a child
    3. train    update only what the child owns, on batches that the generation shares
    4. score    validation accuracy after the size and compute factors
    5. keep     a child stays if it scores no worse than its parent did on this task; with `config.anytime` one
                that betters what is live is published at once
    6. end      the best is frozen and published, the rest are dropped

    Args:
        task: the active task.
        store: where its route is published.
        config: the settings.
        private: whether its components are never to be offered to other tasks.
        from_release: the release whose routes are the seeds, and which has the route to better; None: the active one.
        execute: trains a generation; None: the fast path, in this process.
        report: told after each candidate.

    Raises:
        TaskBusy: another process evolves this task in this store.
        InvalidConfig: settings that do not fit the root.
        ExportMismatch: see `evolve.publish.publish`; nothing was released.
        PublishConflict: likewise.
    """
    with alone(store, task.name):
        run = TaskRun.begin(task, store, config, private=private, from_release=from_release)
        population = run.start_population()
        for generation in run.generations():
            data = run.sample_data(population, generation)
            children = run.sample_children(population, data, generation)
            for member in run.train(children, generation, execute or LocalExecutor(), report):
                population.consider(member)
        return run.finish(population)
