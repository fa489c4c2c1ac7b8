"""The command `rafthttp`. An error is one line on stderr and an exit code that is not 0."""

from __future__ import annotations

import sys
from importlib.metadata import version as installed_version
from typing import Annotated, Final, cast

import typer

from rafthttp import RaftHttpError
from rafthttp.cli.cluster import cluster
from rafthttp.cli.kv import app as kv_app
from rafthttp.cli.nodes import leave, status, transfer
from rafthttp.cli.output import CommandFailedError, out, print_error
from rafthttp.cli.recover import recover
from rafthttp.cli.serve import serve
from rafthttp.cli.simulate import simulate

app: Final = typer.Typer(
    name="rafthttp",
    help="Raft over the HTTP port your application already serves.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        from rafthttp import IS_COMPILED  # loads the consensus server, which no other command needs

        compiled = " (compiled)" if IS_COMPILED else ""
        out(f"rafthttp {installed_version('raft-http')}{compiled}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print it, and end."
        ),
    ] = False,
) -> None:
    del version  # its callback has done it


app.command()(serve)
app.command()(cluster)
app.command()(status)
app.command()(leave)
app.command()(transfer)
app.command()(recover)
app.command()(simulate)
app.add_typer(kv_app, name="kv")

# click's own, which newer versions of typer carry inside: its public subclass is common to all.
_UsageError: Final = cast(
    "type[Exception]",
    next(cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException"),
)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; ends with `SystemExit`."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Run one command line; returns its exit code."""
    command = typer.main.get_command(app)
    try:
        code: object = command.main(arguments, prog_name="rafthttp", standalone_mode=False)
    except _UsageError as error:
        message = cast("typer.BadParameter", error).format_message()
        if message:  # the help that no arguments ask for is printed already
            context = cast("typer.Context | None", getattr(error, "ctx", None))
            command_path = "rafthttp" if context is None else context.command_path
            print_error(f"{message} (see `{command_path} --help`)")
        return 2
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:
        return 1
    except CommandFailedError as error:
        print_error(str(error))
        return error.code
    except RaftHttpError as error:
        print_error(str(error))
        return 1
    return code if isinstance(code, int) else 0
