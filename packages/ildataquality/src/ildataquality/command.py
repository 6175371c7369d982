"""The command `ildataquality report SOURCE`: a data set's metrics, its episodes best first, and what to keep."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from ildataquality.curation import episode_scores, keep_fraction, rank_episodes
from ildataquality.episodes import Episodes
from ildataquality.formats.robomimic import write_robomimic_mask
from ildataquality.quality import quality_report
from ildataquality.report import QualityReport

_HDF5 = (".hdf5", ".h5")
_COLUMNS = ("length", "divergence", "novelty", "idle")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Of the command line; those of the process by default.

    Returns:
        The exit status: 0, or 2 where the source cannot be read or measured, and the reason went to stderr.
    """
    options = _parser().parse_args(arguments)
    try:
        _report(options)
    except (ValueError, ImportError, OSError) as error:
        print(f"ildataquality: {error}", file=sys.stderr)
        return 2
    return 0


def _report(options: argparse.Namespace) -> None:
    in_file = Path(options.source).suffix in _HDF5
    if options.mask and (options.keep is None or not in_file):
        raise ValueError("--mask needs --keep and a robomimic file, whose filter it writes")
    if in_file:
        episodes = Episodes.from_robomimic_hdf5(
            options.source, observation_keys=options.observations, filter_key=options.filter
        )
    else:
        episodes = _from_minari(options)
    report = quality_report(episodes, circular=options.circular, k=options.neighbours, seed=options.seed)
    kept = None if options.keep is None else keep_fraction(rank_episodes(report), options.keep)
    if options.json:
        found = report.to_dict() | {"scores": episode_scores(report).tolist()}
        if kept is not None:
            found["kept"] = [report.names[index] for index in kept.tolist()]
        Path(options.json).write_text(json.dumps(found, indent=1) + "\n")
    print(table(report, set() if kept is None else set(kept.tolist())))
    if options.mask and kept is not None:
        write_robomimic_mask(options.source, options.mask, episodes.subset(kept))
        print(
            f"\nmask/{options.mask} holds the {len(kept)} episodes kept: train with hdf5_filter_key={options.mask}"
        )


def _from_minari(options: argparse.Namespace) -> Episodes:
    if options.filter:
        raise ValueError("--filter needs a robomimic file, whose mask it names")
    try:
        import minari  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError as error:
        raise ImportError(
            f"{options.source!r} is no .hdf5 file, and Minari's need minari: pip install 'ildataquality[minari]'"
        ) from error
    if options.source not in minari.list_local_datasets():
        raise ValueError(
            f"SOURCE must be a robomimic file (.hdf5) or a local Minari data set, got {options.source!r}"
        )
    return Episodes.from_minari(minari.load_dataset(options.source), observation_keys=options.observations)


def table(report: QualityReport, kept: set[int]) -> str:
    """The report as text: the whole set first, then its episodes, best first.

    Args:
        report: What was measured.
        kept: Numbers of the episodes to mark.

    Returns:
        Lines.
    """
    whole = (("action variance", report.action_variance), ("coverage", report.coverage), ("score", report.score),
             ("idle", report.idle), ("mean length", report.horizon.mean))  # fmt: skip
    width = max(7, *(len(str(name)) for name in report.names))
    lines = [f"{len(report.names)} episodes, {len(report.episode_id)} transitions", ""]
    lines += [f"{name:16} {value:8.3f}" for name, value in whole]
    lines += ["", "  " + "episode".ljust(width) + "".join(f" {name:>10}" for name in ("score", *_COLUMNS))]
    scores = episode_scores(report)
    for index in rank_episodes(report).tolist():
        numbers = [scores[index], *(report.episodes[name][index] for name in _COLUMNS)]
        mark = "*" if index in kept else " "
        lines.append(
            f"{mark} {report.names[index]!s:{width}}" + "".join(f" {float(n):10.3f}" for n in numbers)
        )
    return "\n".join([*lines, "", "* kept"] if kept else lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "ildataquality", description="How good demonstrations are for imitation."
    )
    report = parser.add_subparsers(required=True, metavar="COMMAND").add_parser(
        "report", help="metrics of a data set and of its episodes, best first"
    )
    report.add_argument(
        "source", metavar="SOURCE", help="a robomimic file (.hdf5), or the id of a local Minari data set"
    )
    report.add_argument(
        "--keep", type=float, metavar="SHARE", help="mark the best share of the episodes, e.g. 0.8"
    )
    report.add_argument(
        "--mask", metavar="NAME", help="write those kept into the robomimic file as this filter"
    )
    report.add_argument(
        "--filter", metavar="NAME", help="only the episodes of this filter of the robomimic file"
    )
    report.add_argument("--observations", nargs="+", metavar="KEY", help="entries of the observations to use")
    report.add_argument(
        "--circular", nargs="+", type=int, default=(), metavar="I", help="features that are angles"
    )
    report.add_argument("--neighbours", type=int, metavar="K", help="of the variances")
    report.add_argument("--seed", type=int, default=0, help="of the pairs and pushes that are drawn")
    report.add_argument("--json", metavar="FILE", help="write everything there as well")
    return parser
