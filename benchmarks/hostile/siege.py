"""A server with default settings, attacked: each attack alone, then all together, beside the healthy client."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.hostile.attacks import ATTACKS, Aim, Attacker, Outcome
from benchmarks.hostile.healthy import Healthy, Reply, percentile_ms
from benchmarks.hostile.target import Footprint, Target, Watch

ALONE_S, TOGETHER_S, BEFORE_S = 60.0, 120.0, 60.0
WARM_UP_S = 10.0
PAUSE_S = 3.0  # between attacks
SETTLE_S = 45.0  # before what is left is measured
LEAST_P99_MS = 10.0
TOGETHER = "all together"


@dataclass(frozen=True, slots=True)
class Window:
    """A time and what attacked in it; Unix time."""

    name: str
    began_at: float
    ended_at: float
    peak_mib: float
    outcomes: dict[str, Outcome]


def measure(folder: Path, *, is_smoke: bool, only: Sequence[str] | None) -> dict[str, Any]:
    """Return what became of the healthy client, of the attacks, and of the server's memory and descriptors."""
    names = list(only or ATTACKS)
    scale = 0.15 if is_smoke else 1.0
    with Target(folder) as target:
        aim = Aim(target.port, target.token, target.queue_job())
        healthy = Healthy(target.url)
        healthy.start()
        time.sleep(WARM_UP_S)
        began_at = time.time()
        time.sleep(BEFORE_S * scale)
        quiet = Window("before", began_at, time.time(), 0.0, {})
        before = target.footprint()
        windows = []
        for attackers in [[name] for name in names] + ([names] if len(names) > 1 else []):
            seconds = (ALONE_S if len(attackers) == 1 else TOGETHER_S) * scale
            windows.append(attack(target, aim, attackers, seconds))
            print(windows[-1].name, {name: dict(o.statuses) for name, o in windows[-1].outcomes.items()}, flush=True)
            time.sleep(PAUSE_S)
        time.sleep(SETTLE_S * max(scale, 0.5))
        replies = healthy.stop()
        time.sleep(2.0)  # its connections end
        after = target.footprint()
    return figures(quiet, windows, replies, before, after)


def attack(target: Target, aim: Aim, names: Sequence[str], seconds: float) -> Window:
    attackers = {name: Attacker(name, aim) for name in names}
    with Watch(target) as watch:
        for attacker in attackers.values():
            attacker.wait()
        began_at = time.time()
        time.sleep(seconds)
        ended_at = time.time()
        for attacker in attackers.values():
            attacker.stop()
        outcomes = {name: attacker.outcome() for name, attacker in attackers.items()}
    name = names[0] if len(names) == 1 else TOGETHER
    return Window(name, began_at, ended_at, watch.peak_mib, outcomes)


def figures(
    quiet: Window, windows: Sequence[Window], replies: Sequence[Reply], before: Footprint, after: Footprint
) -> dict[str, Any]:
    alone_ms = percentile_ms(_within(replies, quiet), 99)
    by_window = {window.name: _about(window, _within(replies, window)) for window in windows}
    counted = [reply for reply in replies if reply.due_at >= quiet.began_at]
    failed = [reply for reply in counted if reply.status != 200]
    outcomes = [outcome for window in windows for outcome in window.outcomes.values()]
    errors = sum(count for outcome in outcomes for status, count in outcome.statuses.items() if status[:1] == "5")
    return {
        "requests": len(counted),
        "failed": len(failed),
        "first_failures": [f"{reply.status} {reply.detail}" for reply in failed[:5]],
        "p99_before_ms": round(alone_ms, 2),
        "p99_ratio": max(found["p99_ms"] for found in by_window.values()) / max(alone_ms, LEAST_P99_MS),
        "peak_mib_above": max(window.peak_mib for window in windows) - before.resident_mib,
        "server_errors": errors + sum(reply.status >= 500 for reply in counted),
        "first_server_errors": [text for outcome in outcomes for text in outcome.errors_of_server][:5],
        "told_of_private": sum(outcome.seen for outcome in outcomes),
        "afterwards_ratio": max(after.resident_mib / before.resident_mib, after.descriptors / before.descriptors),
        "before": {"resident_mib": round(before.resident_mib, 1), "descriptors": before.descriptors},
        "after": {"resident_mib": round(after.resident_mib, 1), "descriptors": after.descriptors},
        "windows": by_window,
    }


def _within(replies: Sequence[Reply], window: Window) -> list[Reply]:
    return [reply for reply in replies if window.began_at <= reply.due_at < window.ended_at]


def _about(window: Window, replies: Sequence[Reply]) -> dict[str, Any]:
    return {
        "requests": len(replies),
        "p50_ms": round(percentile_ms(replies, 50), 2),
        "p99_ms": round(percentile_ms(replies, 99), 2),
        "peak_mib": round(window.peak_mib, 1),
        "answers": {name: dict(sorted(outcome.statuses.items())) for name, outcome in window.outcomes.items()},
    }
