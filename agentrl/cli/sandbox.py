"""`agentrl sandbox`: around the sandboxes that run model-written code. Imports stand inside the functions."""

from typing import Annotated, Any

import typer

sandbox_app = typer.Typer(no_args_is_help=True, help="Prepare and check the sandboxes that run model-written code.")


@sandbox_app.command("build-image")
def build_image_command(
    tag: Annotated[str, typer.Option(help="Name of the image.")] = "agentrl-sandbox",
    base: Annotated[
        str | None, typer.Option(help="Image to start from, with Python 3.11 or later; python:3.12-slim by default.")
    ] = None,
    from_host: Annotated[
        bool, typer.Option("--from-host", help="Take this Python and its packages: no registry, no network.")
    ] = False,
    package: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Package for programs to import; may be repeated. numpy and sympy by default."
        ),
    ] = None,
) -> None:
    """Make the image of the sandbox `docker`."""
    from agentrl.sandbox.docker.image import PACKAGES, build_image

    image = build_image(tag, base=base, from_host=from_host, packages=package or PACKAGES)
    typer.echo(f"built {tag} ({image.num_bytes / 1e6:.0f} MB)")


@sandbox_app.command("cleanup")
def cleanup_command() -> None:
    """Remove what processes that were killed have left: containers, control groups, folders, processes."""
    from agentrl.sandbox.cleanup import clean_up

    removed = clean_up()
    for line in removed:
        typer.echo(f"removed {line}")
    if not removed:
        typer.echo("nothing was left")


@sandbox_app.command("selftest")
def selftest_command(
    sandbox: Annotated[str, typer.Option(help="Back end to attack.")] = "auto",
    image: Annotated[str | None, typer.Option(help="Image of the back end docker.")] = None,
) -> None:
    """Run the attack list on this machine and print the level that really holds."""
    from agentrl.sandbox import describe_level, open_sandbox
    from agentrl.sandbox.attacks.check import AttackOutcome
    from agentrl.sandbox.selftest import self_test

    def report(outcome: AttackOutcome) -> None:
        if not outcome.passed:
            typer.echo(f"FAILED {outcome.attack.id} {outcome.attack.group}: {outcome.attack.name}: {outcome.detail}")

    options: dict[str, Any] = {} if image is None else {"image": image}
    found = self_test(open_sandbox(sandbox, **options), report)
    for group, (num_held, number) in found.by_group().items():
        typer.echo(f"{group:<8} {num_held:>3} of {number} held")
    typer.echo(f"{found.name}: {describe_level(found.level)}")
    if not found.binds_memory:
        typer.echo("The memory of all processes together is not limited here: that needs control groups.")
    if found.failed:
        raise typer.Exit(1)
