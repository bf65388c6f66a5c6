"""What a start costs and promises: no heavy imports, names that resolve, help with examples."""

import subprocess
import sys
from pathlib import Path

import click
import pytest
import typer

import mixlaw
from mixlaw.cli.every import app
from tiny_studies import CLEAN, call_mixlaw

HEAVY = ("scipy", "polars", "torch", "numpy", "matplotlib", "sqlalchemy")
"""None of these may be imported before a command needs it."""


def imported_by(code: str) -> set[str]:
    """Returns the top-level modules that a program has imported at its end."""
    program = f"import sys\n{code}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", program], env=CLEAN, capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines()[-1].split())


def commands(group: click.Group, path: tuple[str, ...] = ()) -> dict[str, click.Command]:
    """Returns all commands by what is typed to call them."""
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        nested = getattr(command, "commands", None)
        if nested is None:
            found[" ".join((*path, name))] = command
        else:
            found |= commands(command, (*path, name))
    return found


COMMANDS = commands(typer.main.get_command(app))


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert not imported_by("import mixlaw").intersection(HEAVY)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["optimize", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        f"sys.argv = ['mixlaw', *{arguments!r}]\n"
        "from mixlaw.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
    )
    assert not imported_by(code).intersection(HEAVY)


def test_opening_the_core_does_not_import_torch_or_matplotlib() -> None:
    modules = imported_by("from mixlaw import Study, fit_law, optimize_mixture, export_mixture")
    assert not modules & {"torch", "matplotlib"}


@pytest.mark.parametrize("name", mixlaw.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(mixlaw, name) is not None


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'mixlaw' has no attribute 'Nothing'"):
        getattr(mixlaw, "Nothing")  # noqa: B009 - a type checker would refuse the attribute


def test_the_commands_are_those_of_the_design() -> None:
    assert set(COMMANDS) == {
        *("demo", "init", "domains add", "domains list", "plan", "run", "status", "import"),
        *("validate", "fit", "predict", "optimize", "verify", "report", "export"),
        *("domains merge", "domains split", "domains name", "domains undo"),
        *("critical", "schedule", "downstream"),
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_and_json(name: str) -> None:
    command = COMMANDS[name]
    examples = [line.strip() for line in (command.help or "").splitlines() if "Example:" in line]
    assert len(examples) == 1
    assert examples[0].startswith(f"Example: mixlaw {name}")
    assert "--json" in {option for parameter in command.params for option in parameter.opts}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_is_for(name: str) -> None:
    assert all(getattr(p, "help", None) for p in COMMANDS[name].params)


METHODS = {
    "import": "import_tables",
    "domains add": "add_domain",
    "domains list": "domain_changes",
    "domains merge": "merge_domains",
    "domains split": "split_domain",
    "domains name": "name_domain",
    "domains undo": "undo_domain_change",
    "init": "create",
}


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_is_a_method_of_the_study(name: str) -> None:
    method = METHODS.get(name, name)
    assert name == "demo" or hasattr(mixlaw.Study, method)


def test_the_module_runs_as_a_program(tmp_path: Path) -> None:
    answer = call_mixlaw("--version", cwd=tmp_path)
    assert (answer.code, answer.out, answer.err) == (0, f"{mixlaw.__version__}\n", "")
