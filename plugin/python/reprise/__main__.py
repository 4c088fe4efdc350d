"""python -m reprise COMMAND: prepare data and choices, draw reports, export metrics."""

from __future__ import annotations

import argparse
import sys

from . import __version__, choices, prepare, report, tensorboard
from .errors import DataError


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m reprise", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    for module in (prepare, choices, report, tensorboard):
        module.add_command(commands)
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except DataError as error:
        print(f"reprise: error: {error}", file=sys.stderr)
        return 3
    except OSError as error:
        print(f"reprise: error: {error}", file=sys.stderr)
        return 8 if error.errno in (28, 30, 13, 122) else 3  # ENOSPC, EROFS, EACCES, EDQUOT
    except KeyboardInterrupt:
        print("reprise: interrupted; nothing half-written is left under the final names", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
