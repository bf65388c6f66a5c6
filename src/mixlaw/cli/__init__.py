"""The command line: parses flags, calls `Study`, prints what it returns."""

from mixlaw.cli.main import main

__all__ = ["main"]
