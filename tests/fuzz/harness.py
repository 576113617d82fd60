"""One bad input after another through a reader: what became of each, and whether anything else was harmed."""

import contextlib
import faulthandler
import hashlib
import io
import random
import resource
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from longshot.datasets import DataError
from longshot.detector.errors import CheckpointError, ConfigError, ResultsError
from longshot.tools.benchmarks import memory

CLEAR = (ConfigError, DataError, CheckpointError, ResultsError)
LONGEST_MESSAGE = 4000  # ten mistakes of a configuration
MEMORY = 2**30  # bytes that an input may make resident at once
ADDRESSES = 6 * 2**30  # bytes that it may ask for, so that a machine without them survives the suite
OUTCOMES = ("right result", "clear error", "failure")


class Case(NamedTuple):
    """An input and what reads it."""

    what: str  # was done to it
    path: Path
    read: Callable[[], Any]  # a real entry point
    check: Callable[[Any], None]  # raises AssertionError unless what it returns is right
    names: frozenset[str] = frozenset()  # what an error message may name in place of a file


class Kind(Protocol):
    """A kind of input: specimens, and ways to spoil them."""

    inputs: int  # that belong to a run of the suite

    def __init__(self, folder: Path): ...

    def case(self, number: int, rng: random.Random) -> Case: ...


class Outcome(NamedTuple):
    """What became of an input."""

    kind: str
    number: int
    what: str
    outcome: Literal["right result", "clear error", "failure"]
    detail: str  # the message, or why it is a failure


class ToolError(ValueError):
    """What a tool ended with: `error: …`."""


class Hang(BaseException):
    """An input took too long. No Exception, lest somebody catches it."""


def try_kind(
    name: str, kind: type[Kind], *, seed: int, numbers: range, seconds: float, report: Callable[[str], None]
) -> list[Outcome]:
    """The outcomes of some inputs; `report` hears of each before it is tried, should it end the process."""
    outcomes = []
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home).resolve() / "data"
        folder.mkdir()
        makers = kind(folder)
        for number in numbers:
            report(f"{name} {number}, seed {seed}")
            case = makers.case(number, random.Random(f"{name} {seed} {number}"))
            outcomes.append(Outcome(name, number, case.what, *attempt(case, folder, seconds)))
    return outcomes


def attempt(case: Case, folder: Path, seconds: float) -> tuple[str, str]:
    """The outcome of a case, and the message; `folder` holds its files, none of which may change."""
    before = snapshot(folder)
    memory.reset_peak()
    resident = memory.resident()
    outcome, detail = _read(case, seconds, {case.path.name, *case.names, *(Path(name).name for name in before)})
    grown = memory.peak_resident() - resident
    if grown > MEMORY:
        return "failure", f"took {grown / 2**20:,.0f} MiB for {case.path.stat().st_size:,} bytes; {detail}"
    if harm := _harm(before, snapshot(folder)):
        return "failure", f"{harm}; {detail}"
    return outcome, detail


def _read(case: Case, seconds: float, names: set[str]) -> tuple[str, str]:
    try:
        with time_limit(seconds):
            case.check(case.read())
    except (*CLEAR, ToolError) as error:
        complaint = complaint_about(str(error), names)
        return ("failure", complaint) if complaint else ("clear error", str(error))
    except AssertionError as error:
        return "failure", f"believed: {error}"
    except KeyboardInterrupt:
        raise
    except BaseException:  # whatever it is, it is told of with the number of the input
        return "failure", traceback.format_exc()
    return "right result", ""


def complaint_about(message: str, names: set[str]) -> str:
    """What is wrong with an error message, which must have one of the names in it; "" for a good one."""
    if len(message) > LONGEST_MESSAGE + max(map(len, names)):
        return f"a message of {len(message):,} characters: {message[:300]}…"
    if not any(name in message for name in names):
        return f"the message does not say what it is about: {message}"
    return ""


def snapshot(folder: Path) -> dict[str, str]:
    """The hash of each file in a folder, but for the cache of annotations, which may come and go."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".longshot")]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _harm(before: dict[str, str], after: dict[str, str]) -> str:
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return f"files were changed, made or removed: {', '.join(changed)}" if changed else ""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise Hang when the block takes longer; end the process with a traceback should even that not stop it."""

    def stop(*_: object) -> None:
        raise Hang(f"took more than {seconds} seconds")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(seconds + 30, exit=True)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, previous)


def limit_addresses() -> None:
    """Let this process ask for ADDRESSES more bytes than it has."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + ADDRESSES, resource.RLIM_INFINITY))


def run_tool(main: Callable[[], None], *arguments: object, codes: tuple[int, ...] = (0,)) -> str:
    """What a tool prints. Raises ToolError for `error: …` on exit, and AssertionError for another code than `codes`."""
    out, argv, code = io.StringIO(), sys.argv, 0
    sys.argv = ["tool", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()) as err:
            main()
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.argv = argv
    if str(code).startswith("error: "):
        raise ToolError(code)
    if code not in codes:
        raise AssertionError(f"the tool ends with {code!r} and {err.getvalue()[-500:]!r}")
    return out.getvalue()


def refused(what: str) -> Callable[[Any], None]:
    """A check for what must not be read at all."""

    def check(result: Any) -> None:
        raise AssertionError(f"{what} was accepted: {str(result)[:300]}")

    return check
