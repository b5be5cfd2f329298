"""A plan carried out: run by run, each in a process of its own, resumed where it stopped, and shown as it goes."""

from __future__ import annotations

import logging
import multiprocessing
import time
from collections.abc import Callable, Collection
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from tubelet.compare.judge import left
from tubelet.compare.length import with_runs
from tubelet.compare.live import progress, state_cost
from tubelet.compare.plan import Plan, Run
from tubelet.compare.reuse import reuse
from tubelet.compare.saved import grown, load_plan, save_plan
from tubelet.compare.state import trained
from tubelet.compare.work import complete, do_baseline, do_run
from tubelet.errors import UserError
from tubelet.recipes.fit import measure_flops_per_s
from tubelet.recipes.run import environment
from tubelet.train.folder import sole_owner
from tubelet.train.parallel import World, resolve_device

log = logging.getLogger("tubelet")
EVERY = 5.0  # seconds between looks at what is running


@dataclass(frozen=True)
class Job:
    """A piece of work for a process. ready: whether what it builds on is there."""

    name: str
    ready: Callable[[], bool]
    function: Callable[..., None]
    arguments: Callable[[], tuple[Any, ...]]


@dataclass(frozen=True)
class Manner:
    """How a plan is carried out.

    jobs: runs at once. threads: of each (None: torch's default). dry_run: state the cost and stop. reuse: another
    comparison, from which runs that would be the same are copied.
    """

    jobs: int = 1
    threads: int | None = None
    dry_run: bool = False
    reuse: str | None = None

    def __post_init__(self) -> None:
        for name in ("jobs", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}={value}: must be at least 1")


def carry_out(plan: Plan, out: Path, manner: Manner, draw: Callable[[Path], object]) -> None:
    """Does all of the plan that ``out`` still lacks, then draws the page, also where runs were refused.

    Raises UserError if ``out`` holds another comparison or another process works in it, and, once everything else
    is done, if runs were refused.
    """
    if out.exists() and not (out / "plan.json").is_file() and any(p.name != ".lock" for p in out.iterdir()):
        raise UserError(f"{out} is not empty and holds no comparison; choose another out")
    console = Console(stderr=True)
    device = resolve_device(str(plan.knobs.get("device", "auto")))

    def settled() -> Plan:
        earlier = load_plan(out)
        return with_runs(grown(earlier, plan, out) if earlier else plan)

    if manner.dry_run:
        state_cost(settled(), out, measure_flops_per_s(device), manner.jobs, console)
        return
    with sole_owner(out):
        whole = settled()
        machine = {k: v for k, v in environment(World(device=device)).items() if k != "command"}
        whole = replace(whole, environment=machine)
        save_plan(whole, out)
        if manner.reuse is not None:
            copied = reuse(whole, out, Path(manner.reuse))
            console.print(f"{copied} runs are taken over from {manner.reuse}", highlight=False)
        state_cost(whole, out, measure_flops_per_s(device), manner.jobs, console)
        failed = _execute(whole, out, manner, console)
        try:
            draw(out)
        except UserError as error:
            failed["the page"] = error
    if failed:
        named = "; ".join(f"{name}: {error or type(error).__name__}" for name, error in failed.items())
        raise UserError(
            f"{len(failed)} pieces of work stopped: {named}. Mend it and call the same command again, which does what "
            f"is left; what each said is in {out / 'log'}"
        )
    console.print(f"{out / 'report.html'}", soft_wrap=True, highlight=False)


def _execute(plan: Plan, out: Path, manner: Manner, console: Console) -> dict[str, BaseException]:
    """Name -> why, of the pieces of work that stopped, or that waited for one that did."""
    work = plan, out, manner.threads
    runs = [_run_job(run, *work) for run in plan.runs if not complete(plan, run, out)]
    waiting = [*runs, *_baseline_jobs(*work)]
    running: dict[Future[None], tuple[str, ProcessPoolExecutor]] = {}
    failed: dict[str, BaseException] = {}
    context = multiprocessing.get_context("spawn")
    with Live(_shown(plan, out, ()), console=console, auto_refresh=False) as live:
        while waiting or running:
            while len(running) < manner.jobs and (job := next((job for job in waiting if job.ready()), None)):
                waiting.remove(job)
                alone = ProcessPoolExecutor(
                    1, mp_context=context
                )  # a killed process breaks its pool, not the others'
                running[alone.submit(job.function, *job.arguments())] = job.name, alone
            if not running:
                break
            done, _ = wait(running, timeout=EVERY, return_when=FIRST_COMPLETED)
            for future in done:
                name, pool = running.pop(future)
                pool.shutdown()
                if (error := future.exception()) is not None:
                    failed[name] = error
                    log.error(f"{name}: {error or type(error).__name__}")
                elif not console.is_terminal:
                    log.info(f"{time.strftime('%H:%M:%S')} {name}: done, {len(waiting) + len(running)} left")
            live.update(_shown(plan, out, [name for name, _ in running.values()]), refresh=True)
    failed |= {job.name: UserError("waits for a run that stopped") for job in waiting}
    return failed


def _shown(plan: Plan, out: Path, running: Collection[str]) -> RenderableType:
    """What is known so far; a file that is damaged must not stop what is being trained."""
    try:
        return progress(plan, out, running)
    except UserError as error:
        return Text(str(error))


def _run_job(run: Run, plan: Plan, out: Path, threads: int | None) -> Job:
    teacher = None if run.arm.teacher is None else plan.run_of(run.arm.teacher, run.seed)
    return Job(
        run.name,
        lambda: teacher is None or trained(out, teacher),
        do_run,
        lambda: (plan, run, out, threads),
    )


def _baseline_jobs(plan: Plan, out: Path, threads: int | None) -> list[Job]:
    def like(model: str) -> Run | None:
        """A trained run whose architecture and clips the baseline takes."""
        return next((run for run in plan.runs if run.arm.model == model and trained(out, run)), None)

    def job(base: dict[str, Any]) -> Job:
        def arguments() -> tuple[Any, ...]:
            run = like(base["model"])
            assert run is not None
            twin = out / run.folder
            spec = f"pixels:{twin}" if base["arm"] == "pixels" else f"random:{twin}@{base['seed']}"
            return plan, spec, out / base["folder"], out, threads

        return Job(
            f"{base['arm']}, seed {base['seed']}",
            lambda: like(base["model"]) is not None,
            do_baseline,
            arguments,
        )

    return [job(base) for base in plan.baselines() if left(plan, out / base["folder"])]
