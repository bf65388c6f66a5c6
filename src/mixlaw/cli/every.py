"""All commands, in the order of the data's path: so `mixlaw --help` lists them."""

from mixlaw.cli import commands, critical, domains, downstream, optimizing, schedule
from mixlaw.cli.app import app

ORDER = (
    "demo", "init", "plan", "run", "status", "import", "fit", "validate", "predict", "optimize",
    "critical", "schedule", "downstream", "verify", "report", "export",
)  # fmt: skip

# Each module has registered its commands when it was imported.
__all__ = ["app", "commands", "critical", "domains", "downstream", "optimizing", "schedule"]

app.registered_commands.sort(
    key=lambda command: ORDER.index(command.name or getattr(command.callback, "__name__", ""))
)
