from collections.abc import Iterator

import pytest
from live_engine import LiveEngine, vllm_is_installed

from agentrl.policies.loading import LoadedModel, load_model

HOW = "vLLM is not installed; `make test-vllm` runs this in an environment of its own that has it"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not vllm_is_installed():
        for item in items:
            if item.get_closest_marker("vllm"):
                item.add_marker(pytest.mark.skip(reason=HOW))


@pytest.fixture(scope="module")
def live() -> Iterator[LiveEngine]:
    """One engine for the tests of a module, as starting one takes half a minute."""
    with LiveEngine() as engine:
        yield engine


@pytest.fixture
def loaded() -> LoadedModel:
    """The trainer's model, with the weights that the engine of a module begins with."""
    return load_model("quickstart")
