"""The committed evidence: three laptop seeds of every demo, and every speed ratio.

    python -m armillary.workspace.evidence demo NAME RESULTS_FOLDER
    python -m armillary.workspace.evidence speed NAME BENCHMARK_JSON
    python -m armillary.workspace.evidence judge [NAME...]

The first two write under docs/evidence and then refresh the tables made from it. The third judges committed rows
anew, by today's `conditions` of the demo: a verdict that its rows do not bear out is never published.
"""

from __future__ import annotations

import json
import sys
import tomllib
from collections import defaultdict
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from armillary.contract import Machine, Preset, Result, check_result
from armillary.storage import Store, write_atomically
from armillary.summary import differences

FOLDER = Path("docs/evidence")


class SeedRun(BaseModel):
    """One seed of the committed evidence."""

    model_config = ConfigDict(extra="forbid")

    seed: int
    seconds: float
    result: Result


class Evidence(BaseModel):
    """`docs/evidence/<name>.json`."""

    model_config = ConfigDict(extra="forbid")

    name: str
    version: str
    preset: Preset
    machine: Machine
    runs: list[SeedRun]


class Ratio(BaseModel):
    """Peer over ours: above one, ours is faster (or smaller)."""

    model_config = ConfigDict(extra="forbid")

    median: float
    low: float
    high: float


class SpeedGroup(BaseModel):
    """One comparison."""

    model_config = ConfigDict(extra="forbid")

    group: str
    peer: str
    size: str
    quantity: str = "time"
    ratio: Ratio


class Speed(BaseModel):
    """`docs/evidence/<name>.speed.json`."""

    model_config = ConfigDict(extra="forbid")

    name: str
    version: str
    groups: list[SpeedGroup]


def collect(name: str, version: str, results: Path) -> Evidence:
    """Gather the laptop runs of one method.

    Args:
        name: The method.
        version: The version they must be of.
        results: The folder that `armillary run` wrote.

    Raises:
        ValueError: If there are fewer than three seeds of this version, or their tables differ in form.
    """
    runs = [
        run
        for run in Store(results).runs()
        if (run.name, run.preset, run.version) == (name, "laptop", version)
    ]
    if len(runs) < 3:
        raise ValueError(f"{name} {version}: evidence is three laptop seeds, {results} holds {len(runs)}")
    if unlike := differences({run.seed: run.result for run in runs}):
        raise ValueError(f"{name} {version}: seeds of one table are alike: {'; '.join(unlike)}")
    seeds = [SeedRun(seed=run.seed, seconds=run.seconds, result=run.result) for run in runs]
    return Evidence(name=name, version=version, preset="laptop", machine=runs[0].machine, runs=seeds)


def speed(name: str, version: str, benchmark: dict[str, Any]) -> Speed:
    """Turn pytest-benchmark's report into ratios.

    A case that puts `value` into `extra_info` is compared by that number (memory, calls) instead of by time.

    Args:
        name: The method.
        version: Its version.
        benchmark: The parsed JSON report.

    Raises:
        ValueError: If a group is not exactly one `ours` and one `peer`.
    """
    groups: dict[str, dict[str, Any]] = defaultdict(dict)
    for entry in benchmark["benchmarks"]:
        case: Literal["ours", "peer"] = entry["extra_info"].get("case")
        if case not in ("ours", "peer") or case in groups[entry["group"]]:
            raise ValueError(f"{entry['fullname']}: a group holds exactly one case 'ours' and one 'peer'")
        groups[entry["group"]][case] = entry
    return Speed(
        name=name, version=version, groups=[_compare(group, cases) for group, cases in groups.items()]
    )


def judged(document: dict[str, Any]) -> dict[str, Any]:
    """Committed evidence with the verdict that the package's `conditions` give its rows today.

    Args:
        document: The parsed `docs/evidence/<name>.json`; it is not changed.

    Raises:
        ContractError: If what comes out breaks the contract.
    """
    conditions = import_module(f"{document['name'].replace('-', '_')}.demo").conditions
    document = json.loads(json.dumps(document))
    for run in document["runs"]:
        result = run["result"]
        result.pop("criterion", None)
        found = conditions(result["rows"])
        result |= {"conditions": found, "holds": all(condition["holds"] for condition in found)}
        check_result(result)
    return document


def misjudged(root: Path) -> list[str]:
    """The names of those whose verdict is not what their rows say, or whose rows today's demo cannot judge."""
    documents = [json.loads(path.read_text()) for path in committed(root)]
    return [document["name"] for document in documents if not _stands(document)]


def _stands(document: dict[str, Any]) -> bool:
    try:
        return judged(document) == document
    except Exception:  # whatever a demo raises over rows that it no longer knows
        return False


def committed(root: Path) -> list[Path]:
    """Every file of demo evidence."""
    found = sorted((root / FOLDER).glob("*.json"))
    return [path for path in found if not path.name.endswith(".speed.json")]


def _compare(group: str, cases: dict[str, Any]) -> SpeedGroup:
    if cases.keys() != {"ours", "peer"}:
        raise ValueError(f"group {group!r}: needs the cases 'ours' and 'peer', has {sorted(cases)}")
    ours, peer = cases["ours"], cases["peer"]
    about = peer["extra_info"]
    if "value" in about:
        exact = about["value"] / ours["extra_info"]["value"]
        ratio = Ratio(median=exact, low=exact, high=exact)
    else:
        mine, theirs = ours["stats"], peer["stats"]
        ratio = Ratio(
            median=theirs["median"] / mine["median"],
            low=theirs["q1"] / mine["q3"],
            high=theirs["q3"] / mine["q1"],
        )
    rounded = Ratio(**{key: float(f"{value:.3g}") for key, value in ratio.model_dump().items()})
    quantity = about.get("quantity", "time")
    return SpeedGroup(group=group, peer=about["peer"], size=about["size"], quantity=quantity, ratio=rounded)


def declared_version(name: str) -> str:
    """The version in a package's pyproject."""
    project = tomllib.loads(Path("packages", name, "pyproject.toml").read_text())["project"]
    return str(project["version"])


def main(kind: str, *arguments: str) -> None:
    """Write evidence files and refresh the tables."""
    from armillary.workspace import tables

    if kind == "judge":
        chosen = [FOLDER / f"{name}.json" for name in arguments]
        for path in chosen or committed(Path.cwd()):
            write_atomically(path, json.dumps(judged(json.loads(path.read_text()))) + "\n")
    else:
        name, source = arguments
        version = declared_version(name)
        found: Evidence | Speed
        if kind == "demo":
            found, path, indent = collect(name, version, Path(source)), FOLDER / f"{name}.json", None
        else:
            found = speed(name, version, json.loads(Path(source).read_text()))
            path, indent = FOLDER / f"{name}.speed.json", 1
        write_atomically(path, json.dumps(json.loads(found.model_dump_json()), indent=indent) + "\n")
    tables.refresh(Path.cwd())


if __name__ == "__main__":
    main(*sys.argv[1:])
