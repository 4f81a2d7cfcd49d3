"""A model that TRL's constructors can load from disk, and the table of deviations."""

from pathlib import Path

import pytest
from comparison import DEVIATIONS
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


@pytest.fixture(scope="session")
def model_dir(
    tmp_path_factory: pytest.TempPathFactory, tiny_llama: LlamaForCausalLM, byte_tokenizer: PreTrainedTokenizerFast
) -> Path:
    directory = tmp_path_factory.mktemp("tiny_llama")
    tiny_llama.save_pretrained(directory)
    byte_tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(autouse=True)
def name_case(request: pytest.FixtureRequest) -> None:
    """After the test and its parameters, all seeds being one case."""
    parameters = getattr(request.node, "callspec", None)
    values = [] if parameters is None else [str(value) for name, value in parameters.params.items() if name != "seed"]
    test = request.node.nodeid.removeprefix("tests/parity/test_trl_").partition("[")[0]
    DEVIATIONS.case = " ".join([test.replace(".py::", ": ").replace("::", ", "), *values])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """`pytest -v tests/parity` ends with the deviations from TRL."""
    if terminalreporter.verbosity >= 0 and DEVIATIONS.found:  # the default run is quiet: -1
        terminalreporter.section("largest deviations from TRL")
        for line in DEVIATIONS.table():
            terminalreporter.write_line(line)
