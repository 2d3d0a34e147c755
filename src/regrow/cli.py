"""The command line. Heavy modules are imported by the command that needs them, so that ``--help`` answers at once."""

from __future__ import annotations

import io
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from regrow import extras
from regrow.commands import compare, demo, export, inspect, profile, report, scan, train
from regrow.commands.recipes import split_overrides
from regrow.commands.words import AS_WRITTEN, WITH_RECIPE, Parser, refuse_empty
from regrow.errors import UserError, is_out_of_memory, nearest

_DESCRIPTION = "Make PyTorch models sparse while they train, and keep changing your mind about what to remove."
_EXAMPLES = """examples:
  regrow demo
  regrow train digits-iee --seed 1 --out runs/first
  regrow compare digits-iee --methods iee,rigl,set,static,dense --seeds 0,1,2

`regrow COMMAND --help` says more about each command."""

COMMANDS = {
    "demo": demo, "train": train, "compare": compare, "inspect": inspect, "profile": profile,
    "scan": scan, "export": export, "report": report,
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the words after ``regrow``; default: those of this process

    Returns:
        The exit code: 0 if all is well, 1 if a run of a comparison failed, 2 for bad input, 130 if interrupted.
    """
    _show_any_name()
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    if argv is None and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            code = _dispatch([word for word in words if word != "--debug"])
    except BaseException as error:
        if debug and not _was_interrupted(error):
            raise
        code = _said(error)
    if argv is None:  # the process is about to end, which Ctrl-C cannot hasten
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        exec("")  # and if it came inside of an exec, as dataclasses have, Python takes it for unhandled until the next
    return code


def _said(error: BaseException) -> int:
    """Says in one line what has ended a command, where that is known; gives the exit code.

    Raises:
        BaseException: ``error`` itself, if it is a mistake of regrow's.
    """
    if _was_interrupted(error):
        print("regrow: interrupted", file=sys.stderr)
        return 130
    if isinstance(error, BrokenPipeError):  # the reader of our output has gone, e.g. `| head`
        sys.stderr.close()
        return 1
    if isinstance(error, OSError):
        place = "" if error.filename is None else f"{error.filename}: "
        said = f"{place}{error.strerror or error}"
    elif isinstance(error, UserError):
        said = str(error)
    elif is_out_of_memory(error):
        said = f"there is not enough memory: {str(error).strip() or 'use smaller batches, or a smaller model'}"
    else:
        raise error
    print(f"regrow: {' '.join(said.split())}", file=sys.stderr)
    return 2


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    """A warning as one line: of regrow's as it speaks otherwise, of others with what it is and where it is from.

    Of several processes that train together, which all come to the same warnings of regrow's, the first one says them.
    """
    said = " ".join(str(message).split())
    ours = Path(filename).is_relative_to(Path(__file__).parent)
    if ours and os.environ.get("RANK", "0") != "0":
        return
    place = "" if ours else f" ({category.__name__} in {filename})"
    print(f"regrow: {said}{place}", file=sys.stderr)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    """Ctrl-C as always, but that it ends the process at once if it comes while a module is imported.

    Half of an import cannot be undone, and modules that are written in C swallow the interruption or turn it into
    another error. Nothing is lost: whatever is written is written so that the process may die at any moment.
    """
    within = frame
    while within is not None:
        if within.f_code.co_filename.startswith("<frozen importlib"):
            os.write(2, b"regrow: interrupted\n")
            os._exit(130)
        within = within.f_back
    signal.default_int_handler(signum, frame)


def _was_interrupted(error: BaseException | None) -> bool:
    """Whether it is Ctrl-C's, also where an import that was interrupted has made another error of it."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _show_any_name() -> None:
    """What the terminal's encoding cannot show, as names of files that are not UTF-8, is printed escaped."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def parsers() -> tuple[Parser, dict[str, Parser]]:
    """The main parser, and that of each command."""
    parser = Parser("regrow", description=_DESCRIPTION, epilog=_EXAMPLES, formatter_class=AS_WRITTEN)
    parser.add_argument("--version", action="store_true", help="show the version and exit")
    group = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=Parser)
    commands = {name: home.add(group) for name, home in COMMANDS.items()}
    for one in (parser, *commands.values()):  # for the help; `main` takes it out
        one.add_argument("--debug", action="store_true", help="show the traceback of an error")
        refuse_empty(one)
    return parser, commands


def _dispatch(words: list[str]) -> int:
    parser, commands = parsers()
    name = next((word for word in words if not word.startswith("-")), None)
    if name is None:
        if words and words[0] not in ("-h", "--help", "--version"):
            parser.error(f"unknown option {words[0]}")
        if words and words[0] == "--version":
            from regrow.version import __version__

            print(f"regrow {__version__}")
        else:
            parser.print_help()
        return 0
    if name not in commands:
        raise UserError(f"there is no command {name!r}{nearest(name, commands)}")
    command = commands[name]
    rest = words[: words.index(name)] + words[words.index(name) + 1 :]
    overrides: list[str] = []
    if name in WITH_RECIPE:
        rest, overrides = split_overrides(rest, command)
    args = command.parse_args(rest)
    args.overrides = overrides
    if not getattr(args, "help", False) or args.recipe is not None:
        extras.require("train", f"`regrow {name}`")
    return COMMANDS[name].run(args)
