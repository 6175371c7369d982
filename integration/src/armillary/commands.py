"""What the command line offers. Each command loads what it needs when it is called, not before."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from armillary.errors import UsageError
from armillary.presets import PRESETS

_Number = TypeVar("_Number", int, float)

_RUN = """\
Run demos, keep each result, tell the verdict, and write report.html.

What a former call finished is not run again, and several calls on one folder
share the work. The exit status is 0 when every demo gave a result, whatever
its verdict.
"""
_RUN_EXAMPLES = """\
examples:
  armillary run sortedft                       one demo, one seed, a minute
  armillary run sortedft gacil --seeds 3       the evidence as it is committed
  armillary run --all --jobs 2 --timeout 1800  everything, two at a time
  armillary run sortedft --seed $TASK_ID       one seed of many, for a job array
"""
_REPORT = """\
Gather folders of results, as of several machines, in one; write its report.

Where two folders hold the same run of a demo, that of the first is taken.
"""
_REPORT_EXAMPLES = """\
examples:
  armillary report node-1 node-2 --out all   one folder and one report of two
  armillary report armillary-results --open  write a folder's report anew, and look at it
"""
_LIST_EXAMPLES = """\
examples:
  armillary list drone             those that mention a word
  armillary list --family control  those of a family
  armillary list --json            for machines, with links
"""
_EXAMPLES = """\
examples:
  armillary list                   what there is
  armillary run sortedft           one demo, about a minute
"""


class _Parser(argparse.ArgumentParser):
    """Tells what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see: {self.prog} --help)")


def execute(arguments: Sequence[str]) -> int:
    """Carry out one command line.

    Args:
        arguments: What follows the command's name.

    Returns:
        The exit status.

    Raises:
        Trouble: If it cannot be carried out.
    """
    parser = _parser()
    if not arguments:
        parser.print_help()
        return UsageError.status
    asked = parser.parse_args(arguments)
    carry_out: Callable[[argparse.Namespace], int] = asked.carry_out
    return carry_out(asked)


def _parser() -> argparse.ArgumentParser:
    about = "Run, compare and combine the methods of armillary."
    parser = _Parser(prog="armillary", **_style(about, _EXAMPLES))
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)
    for name, add, about, examples in (
        ("list", _add_list, "List the methods, one a line, by family.", _LIST_EXAMPLES),
        ("show", _add_show, "Show one method: what it is, where to read on, its committed evidence.", ""),
        ("run", _add_run, _RUN, _RUN_EXAMPLES),
        ("report", _add_report, _REPORT, _REPORT_EXAMPLES),
    ):
        add(commands.add_parser(name, help=about.splitlines()[0], **_style(about, examples)))
    return parser


def _add_list(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(carry_out=_list)
    add = parser.add_argument
    add(
        "word",
        nargs="?",
        default="",
        metavar="WORD",
        help="only what mentions it: name, family, sentence, keywords",
    )
    add("--family", default="", help="only families whose name holds this")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--all",
        action="store_true",
        dest="everything",
        default=True,
        help="also what is not installed (the default)",
    )
    where.add_argument("--installed", action="store_false", dest="everything", help="only what is installed")
    add("--json", action="store_true", help="as JSON, for machines")


def _add_show(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(carry_out=_show)
    parser.add_argument("name", metavar="NAME", help="a method's name")
    parser.add_argument("--full", action="store_true", help="with the whole table")


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(carry_out=_run)
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="methods to run")
    add("--all", action="store_true", dest="everything", help="run every installed method")
    add(
        "--preset",
        choices=PRESETS,
        default="laptop",
        help="smoke: seconds, only the form is checked; laptop (the default): about a minute, the claim is judged; "
        "paper: the paper's own settings, may need a GPU and data",
    )
    seeds = parser.add_mutually_exclusive_group()
    seeds.add_argument(
        "--seeds",
        type=_number(int, 1),
        default=1,
        metavar="N",
        help="run the seeds 0 to N-1 (default: 1); the table holds mean and range",
    )
    seeds.add_argument("--seed", type=_number(int, 0), metavar="K", help="run this seed alone")
    add("--device", default="cpu", help="a torch device, such as cuda:0 (default: cpu)")
    add(
        "--out",
        type=Path,
        default=Path("armillary-results"),
        metavar="DIR",
        help="where results and report.html are kept (default: armillary-results)",
    )
    add(
        "--jobs",
        type=_number(int, 1),
        metavar="N",
        help="demos at the same time: 1 here, what fits on a cluster",
    )
    add(
        "--timeout",
        type=_number(float, 0.001),
        metavar="SECONDS",
        help="when a demo counts as hanging and is ended (default: never)",
    )
    add("--fresh", action="store_true", help="run again what was finished, as after editing code")
    add(
        "--memory",
        type=_number(float, 0.001),
        metavar="GB",
        help="main memory that a demo may take, on Linux; beyond it that demo fails (default: any)",
    )
    _add_showing(parser)
    cluster = parser.add_argument_group("on a cluster")
    cluster.add_argument(
        "--cluster",
        metavar="ADDRESS",
        help="run on a Ray cluster: HOST:PORT, auto, or local to start one here",
    )
    cluster.add_argument(
        "--cpus",
        type=_number(int, 1),
        default=1,
        metavar="N",
        help="CPUs that a demo takes there (default: 1)",
    )
    cluster.add_argument(
        "--gpus",
        type=_number(float, 0),
        metavar="N",
        help="GPUs that a demo takes there (default: 1 when the device is one)",
    )


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(carry_out=_report)
    add = parser.add_argument
    add("folders", nargs="+", type=Path, metavar="DIR", help="folders of results")
    add("--out", type=Path, metavar="DIR", help="where to gather them; not needed for one folder")
    _add_showing(parser)


def _add_showing(parser: argparse.ArgumentParser) -> None:
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--full", action="store_true", help="print the whole table of every method")
    how.add_argument("--quiet", action="store_true", help="print one line a method: its verdict")
    parser.add_argument("--open", action="store_true", dest="show", help="show the report in the browser")


def _list(asked: argparse.Namespace) -> int:
    from armillary import catalog, listing

    found = listing.choose(catalog.read(), asked.word, asked.family, asked.everything)
    if asked.json:
        print(listing.as_json(found))
    else:
        listing.print_list(found)
    return 0


def _show(asked: argparse.Namespace) -> int:
    from armillary import catalog, listing

    (method,) = catalog.find([asked.name], catalog.read())
    listing.print_method(method, asked.full)
    return 0


def _run(asked: argparse.Namespace) -> int:
    from armillary import launch

    request = launch.Request(
        names=tuple(asked.names),
        everything=asked.everything,
        preset=asked.preset,
        seeds=range(asked.seeds) if asked.seed is None else (asked.seed,),
        device=asked.device,
        folder=asked.out,
        jobs=asked.jobs,
        timeout=asked.timeout,
        fresh=asked.fresh,
        full=asked.full,
        cluster=asked.cluster,
        cpus=asked.cpus,
        gpus=asked.gpus,
        memory=asked.memory,
        quiet=asked.quiet,
        show=asked.show,
    )
    return launch.launch(request)


def _report(asked: argparse.Namespace) -> int:
    from armillary import gather

    return gather.report(asked.folders, asked.out, full=asked.full, quiet=asked.quiet, show=asked.show)


class _Version(argparse.Action):
    """Prints the version, which is looked up only then."""

    def __call__(self, *_: object) -> NoReturn:
        from armillary import __version__

        print(__version__)
        raise SystemExit(0)


def _style(about: str, examples: str) -> dict[str, Any]:
    """Texts are shown as they are written; options are spelled out."""
    width = min(100, shutil.get_terminal_size().columns)
    return {
        "description": about,
        "epilog": examples,
        "allow_abbrev": False,
        "formatter_class": lambda prog: argparse.RawDescriptionHelpFormatter(
            prog, max_help_position=22, width=width
        ),
    }


def _number(kind: type[_Number], least: _Number) -> Callable[[str], _Number]:
    """What reads an option's number and says what it must be."""

    def read(text: str) -> _Number:
        try:
            number = kind(text)
        except ValueError:
            number = least - 1
        if not least <= number < float("inf"):
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"must be {what}, {least} or more, is {text!r}")
        return number

    return read
