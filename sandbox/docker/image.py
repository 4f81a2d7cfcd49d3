"""Making the image of the sandbox `docker`."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentrl.errors import ConfigError, InfrastructureError
from agentrl.sandbox.docker.engine import Engine
from agentrl.sandbox.docker.host_image import write_root
from agentrl.sandbox.docker.sandbox import IMAGE

PACKAGES = ("numpy", "sympy")
_FOLDER = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class BuiltImage:
    """An image that an engine has now."""

    image_id: str
    num_bytes: int


def build_image(
    tag: str = IMAGE, *, base: str | None = None, from_host: bool = False, packages: Sequence[str] = PACKAGES
) -> BuiltImage:
    """Makes an image for `DockerSandbox`.

    Args:
        tag: Name to give it.
        base: Image to start from, with Python 3.11 or later, pip and a shell; python:3.12-slim by default.
        from_host: Take the running Python and its packages instead, which needs neither a registry nor a network.
        packages: For programs to import. With `from_host` those that are not installed are left out.

    Raises:
        ConfigError: `base` and `from_host` together, or this machine's Python cannot run in a container.
        SandboxUnavailableError: No engine answers.
        InfrastructureError: It cannot build the image.
    """
    if not from_host:
        return _build(tag, base, packages)
    if base is not None:
        raise ConfigError(f"An image is made of this machine's Python or of {base!r}, not of both: leave one out.")
    return _import_host(tag, packages)


def _build(tag: str, base: str | None, packages: Sequence[str]) -> BuiltImage:
    from docker.errors import BuildError

    engine = Engine()
    client = engine.client()
    arguments = {"PACKAGES": " ".join(packages)} | ({"BASE": base} if base else {})
    with tempfile.TemporaryDirectory() as folder, engine.errors("build the image"):
        Path(folder, "Dockerfile").write_bytes((_FOLDER / "Dockerfile").read_bytes())  # nothing else is sent
        try:
            image, _ = client.images.build(
                path=folder,
                tag=tag,
                buildargs=arguments,
                rm=True,
                forcerm=True,
                network_mode=None if packages else "none",
            )
        except BuildError as error:
            lines = "".join(entry.get("stream", "") for entry in error.build_log).splitlines()
            raise InfrastructureError("\n".join([f"The image cannot be built: {error}", *lines[-10:]])) from error
    return _describe(image)


def _import_host(tag: str, packages: Sequence[str]) -> BuiltImage:
    engine = Engine()
    client = engine.client()
    with tempfile.TemporaryFile() as archive:
        write_root(archive, packages)
        archive.seek(0)
        with engine.errors("import the image"):
            client.api.import_image_from_data(archive, repository=tag)
            return _describe(client.images.get(tag))


def _describe(image: Any) -> BuiltImage:
    return BuiltImage(str(image.id), image.attrs["Size"])
