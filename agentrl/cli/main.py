"""`agentrl`: every command, its options and its help. What a command does is in the module it imports.

Those imports stand inside the functions, so that `agentrl --help` answers at once and needs no deep-learning stack.
"""

import errno
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from agentrl import __version__
from agentrl.errors import AgentRLError

USER_ERROR, INTERRUPTED = 2, 130
"""Exit statuses; 130 is what a shell gives a program that Ctrl-C ended."""


class _OneLineErrors(TyperGroup):
    """Prints an error that a user can mend as one line; `--debug`, anywhere on the line, shows the traceback."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--debug" in args:
            args = ["--debug", *(argument for argument in args if argument != "--debug")]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except (AgentRLError, OSError) as error:
            if ctx.params.get("debug") or _is_closed_pipe(error):
                raise
            for line in _describe(error).splitlines():
                typer.echo(f"error: {line}", err=True)
            raise typer.Exit(USER_ERROR) from None


app = typer.Typer(
    cls=_OneLineErrors,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Define tool-use environments, train language-model agents in them, and measure their success rate.",
)
new_app = typer.Typer(no_args_is_help=True, help="Write the files to start from.")
app.add_typer(new_app, name="new")


def main() -> None:
    """Entry point of the `agentrl` command."""
    app(prog_name="agentrl")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"agentrl {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Options of every command; `_OneLineErrors` reads --debug."""


@app.command("envs")
def envs_command() -> None:
    """List the environments."""
    from agentrl.cli.lists import list_environments, print_listing

    print_listing(list_environments())


@app.command("tools")
def tools_command() -> None:
    """List the tools that a config can name."""
    from agentrl.cli.lists import list_tools, print_listing

    print_listing(list_tools())


@app.command("algorithms")
def algorithms_command() -> None:
    """List the training algorithms."""
    from agentrl.cli.lists import list_algorithms, print_listing

    print_listing(list_algorithms())


@app.command("show")
def show_command(
    run: Annotated[Path, typer.Argument(help="Run folder, or its name under runs/.")],
    tree: Annotated[int, typer.Option(min=1, help="Which of the stored trees, counted from 1.")] = 1,
    last: Annotated[bool, typer.Option("--last", help="The tree stored last.")] = False,
) -> None:
    """Read sampled trajectories: branches, what was sampled and what was given, entropies, rewards."""
    from agentrl.cli.show import show

    show(run, None if last else tree)


@new_app.command("env")
def new_env_command(name: Annotated[str, typer.Argument(help="Class name, such as Letters.")]) -> None:
    """Write a small complete environment and its test into this folder."""
    from agentrl.cli.new import write_environment

    for path in write_environment(name, Path.cwd()):
        typer.echo(f"wrote {path.name}")


def _is_closed_pipe(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno == errno.EPIPE  # `agentrl ... | head`: Typer ends quietly


def _describe(error: Exception) -> str:
    if isinstance(error, OSError) and not isinstance(error, AgentRLError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__
