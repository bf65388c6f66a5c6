"""Entry point: runs a command and turns errors into a sentence and an exit code.

0: done; 1: the user's input; 2: usage; 3: done, but not to be trusted; 130: interrupted.
"""

import io
import os
import sys
import traceback

# One thread per process, before anything numeric is imported: threads of several processes on the
# same cores cost more than they bring.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

from mixlaw.errors import MixlawError

INTERRUPTED = 130
INTERRUPTION = "interrupted: nothing is lost, the same command goes on from here"
UNTRUSTED = 3


def main() -> None:
    """Runs the command line; never returns."""
    from mixlaw.cli.every import app

    for stream in (sys.stdout, sys.stderr):  # a name that the terminal can't show is no reason
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app(prog_name="mixlaw")
    except SystemExit as end:  # what Typer makes of KeyboardInterrupt, too
        if end.code == INTERRUPTED:
            print(INTERRUPTION, file=sys.stderr)
        raise
    except MixlawError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print(INTERRUPTION, file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        place = "" if error.filename is None else f", in {error.filename}"
        print(f"{type(error).__name__}: {error.strerror or error}{place}", file=sys.stderr)
        print("  do: check the path, its permissions and the space on the disk", file=sys.stderr)
        sys.exit(1)
    except Exception:  # noqa: BLE001 - the last line of defence
        traceback.print_exc()
        print("\nthis is a defect of mixlaw: please report the lines above", file=sys.stderr)
        sys.exit(1)
