"""Stacks are too small to keep two cores busy with one of them: two processes train at once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from flyseconds.demo.training import train_groups
from flyseconds.demo.variants import ALL_ABLATIONS, Eight, Progress, Size, Trained, Variant

COMMAND = "from flyseconds.demo.processes import work; work()"


def train_variants(
    variants: Sequence[Variant], size: Size, seed: int, device: str, progress: Progress
) -> list[Trained]:
    """Train every variant on every seed with the same budget, and evaluate all in the same world.

    Where `size.two_processes` says so, all stacks but the first are trained in a second process meanwhile.
    """
    groups: dict[tuple[object, ...], list[Variant]] = {}
    for variant in variants:
        groups.setdefault(variant.group, []).append(variant)
    first, *others = groups.values()
    if size.two_processes and others:
        with _Elsewhere(others, size, seed, device) as elsewhere:
            found = train_groups([first], size, seed, device, progress)
            found += elsewhere.result()
    else:
        found = train_groups([first, *others], size, seed, device, progress)
    order = [variant.name for variant in variants]
    return sorted(found, key=lambda trained: order.index(trained.name))


class _Elsewhere:
    """Stacks in training in a second process; each process has half the threads meanwhile.

    A plain child that reads its task and writes its result as JSON: multiprocessing would import the caller's
    main script once more.
    """

    def __init__(self, groups: Sequence[list[Variant]], size: Size, seed: int, device: str) -> None:
        self._threads = torch.get_num_threads()
        self._half = max(1, self._threads // 2)
        self._task = task(groups, size, seed, device, self._half)

    def __enter__(self) -> _Elsewhere:
        torch.set_num_threads(self._half)
        self._child = subprocess.Popen(
            [sys.executable, "-c", COMMAND], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._child.stdin is not None
        self._child.stdin.write(self._task)
        self._child.stdin.close()
        return self

    def result(self) -> list[Trained]:
        """Wait for the second process; its traceback, if any, has gone to standard error."""
        assert self._child.stdout is not None
        written = self._child.stdout.read()
        if self._child.wait():
            raise RuntimeError(f"the second process ended with exit status {self._child.returncode}")
        return told(written)

    def __exit__(self, *exception: Any) -> None:
        torch.set_num_threads(self._threads)
        self._child.kill()
        self._child.__exit__(*exception)  # closes the pipes and waits


def task(groups: Sequence[list[Variant]], size: Size, seed: int, device: str, threads: int) -> str:
    """What the second process is asked, as JSON; variants go by their names."""
    names = [[variant.name for variant in members] for members in groups]
    return json.dumps(
        {"groups": names, "size": asdict(size), "seed": seed, "device": device, "threads": threads}
    )


def told(written: str) -> list[Trained]:
    """What the second process has found."""
    found = [Trained(**each) for each in json.loads(written)]
    for trained in found:
        if isinstance(trained.eight, dict):
            trained.eight = Eight(**trained.eight)
    return found


def work() -> None:
    """What the second process does, from standard input to standard output."""
    asked = json.load(sys.stdin)
    variants = {variant.name: variant for variant in ALL_ABLATIONS}
    groups = [[variants[name] for name in names] for names in asked["groups"]]
    torch.set_num_threads(asked["threads"])
    size = Size(**asked["size"])
    found = train_groups(groups, size, asked["seed"], asked["device"], lambda fraction, message: None)
    json.dump([asdict(trained) for trained in found], sys.stdout)
