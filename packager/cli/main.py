"""Run the command `package`: arguments in, results on stdout, everything else on stderr, and an exit status.

This is the only place where an error becomes an exit status: 1 or 2, as its class says, and 3 for a bug in packager.
The modules of the commands import what they need only when a command runs, so `package --help` is fast.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import click

from packager.cli import stdio
from packager.cli.bench import bench
from packager.cli.build import build, vet
from packager.cli.bundle import diff, pack, run, unpack, verify
from packager.cli.cache import cache
from packager.cli.export import export
from packager.cli.inspect import inspect, schema
from packager.cli.serve import serve
from packager.cli.sign import sign
from packager.cli.standalone import standalone
from packager.errors import PackagerError, Usage, escape_unprintable, render_error


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="torch-packager", prog_name="package")
def cli() -> None:
    """Turn one manifest and one PyTorch checkpoint into one proven ONNX bundle."""


_COMMANDS = (
    build, vet, verify, sign, diff, run, serve, export, standalone, bench, pack, unpack, inspect, schema, cache,
)  # fmt: skip
for _command in _COMMANDS:
    cli.add_command(_command)


def main() -> NoReturn:
    """Run the command line of this process, and exit with its status."""
    stdio.prepare_streams()
    # If torch, onnxruntime or a library of the user crashes the process, print the Python lines that were running.
    faulthandler.enable(2)
    # Treat SIGTERM like Ctrl-C, so that staged files are removed and callers are notified.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    status = _flush_stdout(_run_command(cli))
    sys.stderr.flush()
    # There is nothing left to do, and tearing down an interpreter that has imported torch takes 0.7 s.
    os._exit(status)


def _run_command(command: Callable[..., Any]) -> int:
    """Run a click command on `sys.argv`, report its error if there is one, and return the exit status."""
    try:
        command(standalone_mode=False, prog_name="package")
    except PackagerError as error:
        return _report_error(error)
    except click.UsageError as error:
        return _report_error(Usage(error.format_message(), error.ctx.command_path if error.ctx else "package"))
    except (click.Abort, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        stdio.discard_stdout()
        return 2
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 2
    except Exception as error:  # noqa: BLE001 (the one place that turns a bug into an exit status)
        return _report_bug(error)
    return 0


def _flush_stdout(status: int) -> int:
    """Return the status, or 2 if stdout cannot be written."""
    try:
        sys.stdout.flush()
    except PackagerError as error:
        return _report_error(error)
    except BrokenPipeError:
        stdio.discard_stdout()
        return 2
    return status


def _report_error(error: PackagerError) -> int:
    _print_error_json(error.as_json())
    print(render_error(error), file=sys.stderr)
    return error.exit_status


def _print_error_json(error: Mapping[str, object]) -> None:
    """Print the error to stdout if `--json` was given; if stdout cannot be written, stderr still has the error."""
    if "--json" in sys.argv:
        with contextlib.suppress(PackagerError, BrokenPipeError):
            print(json.dumps({"error": error}))


def _report_bug(error: Exception) -> int:
    message = f"{type(error).__name__}: {error}"
    _print_error_json({"code": "bug", "message": message, "where": None, "hint": "please report it"})
    text = "".join(traceback.format_exception(error))
    print(escape_unprintable(text, keep_line_breaks=True), end="", file=sys.stderr)
    hint = "please report the traceback above, with the manifest and the output of `package --version`"
    print(f"error[bug]: this is a bug in packager, not in your model\nhint: {hint}", file=sys.stderr)
    return 3
