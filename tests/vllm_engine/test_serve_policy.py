"""`agentrl serve-policy` from the shell to the last process, through the client that training uses."""

import asyncio
import contextlib
import copy
import re
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from live_engine import NUM_TOP, largest_gap, make_order, perturb, questions
from process_tree import descendants, left_after

from agentrl.errors import ConfigError, PolicyError
from agentrl.policies.loading import LoadedModel, add_lora, model_path
from agentrl.policies.vllm import launch
from agentrl.policies.vllm.engine import EngineLostError
from agentrl.policies.vllm.launch import LocalServer
from agentrl.policies.vllm.server import ServerEngine
from agentrl.policies.vllm.settings import EngineSettings
from agentrl.policies.vllm.weights import WeightFiles

CLOSE = 1e-3
SECONDS = 120.0


@contextlib.contextmanager
def serving(*options: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """The running command and the URL that it printed."""
    command = [sys.executable, "-m", "agentrl.cli", "serve-policy", "quickstart", "--port", "0", "--context", "1024"]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("policy at http://127.0.0.1:"), line
            yield process, line.split()[-1]
        finally:
            below = descendants(process.pid)
            process.terminate()
            process.wait(SECONDS)
            assert left_after(below, SECONDS) == set()


def with_engine(url: str, work: Callable[[ServerEngine], Awaitable[None]]) -> None:
    async def run() -> None:
        engine = ServerEngine(url)
        try:
            await engine.check(context_length=1024, num_top=NUM_TOP)
            await work(engine)
        finally:
            await engine.close()

    asyncio.run(run())


@pytest.mark.vllm
def test_a_server_follows_the_trainer_until_it_is_killed(loaded: LoadedModel, tmp_path: Path) -> None:
    prompt = (questions(loaded, 1)[0] * 6)[:134]

    with serving("--max-in-flight", "24") as (process, url):
        below = descendants(process.pid)
        assert len(below) >= 3  # server, core, worker

        async def work(engine: ServerEngine) -> None:
            first, second = [await engine.generate(make_order(prompt)) for _ in range(2)]
            assert largest_gap(loaded.model, prompt, first) < CLOSE
            assert (first.num_cached, second.num_cached) == (0, 128)
            with WeightFiles(loaded.model) as files:
                for version in (1, 2):
                    perturb(loaded.model, seed=version)
                    with files.write(version) as path:
                        await engine.load_weights(path, version)
                    turn = await engine.generate(make_order(prompt, version=version))
                    assert largest_gap(loaded.model, prompt, turn) < CLOSE
                    assert turn.num_cached == 0
                    assert turn.versions == (version, version)
            assert engine.max_in_flight == 24
            with pytest.raises(PolicyError):
                await engine.load_weights(tmp_path / "nothing.safetensors", 3)
            turn = await engine.generate(make_order(prompt, version=2))
            assert largest_gap(loaded.model, prompt, turn) < CLOSE
            await another_run_is_noticed(engine, prompt, loaded)
            process.kill()
            assert await asyncio.to_thread(left_after, below, SECONDS) == set()
            with pytest.raises(EngineLostError):
                await engine.generate(make_order(prompt, version=2))

        with_engine(url, work)


async def another_run_is_noticed(engine: ServerEngine, prompt: list[int], loaded: LoadedModel) -> None:
    """It loads its own version 2 where the first run has loaded its version 2; afterwards the first one does again."""
    theirs = copy.deepcopy(loaded.model)
    perturb(theirs, seed=9)
    other = ServerEngine(engine.name)
    for model, runs, stranger in ((theirs, other, engine), (loaded.model, engine, other)):
        with WeightFiles(model) as files, files.write(2) as path:
            await runs.load_weights(path, 2)
        turn = await runs.generate(make_order(prompt, version=2))
        assert turn.versions == (2, 2)
        assert largest_gap(model, prompt, turn) < CLOSE
        with pytest.raises(PolicyError, match="one run at a time"):
            await stranger.generate(make_order(prompt, version=2))
    await other.close()


@pytest.mark.vllm
def test_a_cancelled_turn_leaves_the_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """There is one place: the last turn could not end before the others, and vLLM has seen none of those to its end."""
    command = launch.server_command

    def with_counts(*arguments: Any) -> list[str]:
        return [word for word in command(*arguments) if word != "--disable-log-stats"]

    monkeypatch.setattr(launch, "server_command", with_counts)
    settings = EngineSettings(model=model_path("quickstart"), context_length=1024, max_in_flight=1)

    async def counts(*names: str) -> list[float]:
        async with httpx.AsyncClient(trust_env=False) as client:
            lines = (await client.get(f"{server.url}/metrics")).text.splitlines()
        return [sum(float(line.split()[-1]) for line in lines if re.match(f"vllm:{name}", line)) for name in names]

    ended = 'request_success_total.*finished_reason="length"'
    under_way = "num_requests_running", "num_requests_waiting{"

    async def work(engine: ServerEngine) -> None:
        [before] = await counts(ended)
        turns = [asyncio.ensure_future(engine.generate(make_order([5, 6, i], max_tokens=1000))) for i in range(20)]
        while 0 in await counts(*under_way):
            assert not all(turn.done() for turn in turns)
        left = sum(turn.cancel() for turn in turns)
        assert left > 1  # one runs, the rest wait
        await asyncio.gather(*turns, return_exceptions=True)
        assert (await engine.generate(make_order([5, 6, 7], max_tokens=4))).token_ids
        async with asyncio.timeout(SECONDS):
            while await counts(*under_way) != [0, 0]:
                await asyncio.sleep(0.01)
        assert await counts(ended) == [before + len(turns) - left + 1]

    with LocalServer(settings, log=tmp_path / "log") as server:
        with_engine(server.url, work)


@pytest.mark.vllm
def test_a_server_takes_adapters_and_ends_at_sigterm(loaded: LoadedModel) -> None:
    torch.manual_seed(0)
    model: Any = add_lora(loaded.model, rank=4, alpha=8, targets="all-linear").eval()
    prompt = (questions(loaded, 1)[0] * 6)[:134]

    async def one_run(engine: ServerEngine) -> None:
        with WeightFiles(model) as files:
            for version in (1, 2):
                perturb(model, seed=version)
                with files.write(version) as path:
                    await engine.load_weights(path, version)
                turn = await engine.generate(make_order(prompt, version=version))
                assert largest_gap(model, prompt, turn) < CLOSE
                assert turn.num_cached == 0
                assert turn.versions == (version, version)

    async def two_runs(engine: ServerEngine) -> None:
        """The second one does not know the first, which has not been closed: it was killed."""
        await one_run(engine)
        first = await adapters_of(engine)
        other = ServerEngine(engine.name)
        await one_run(other)
        second = await adapters_of(engine)
        assert len(first) == len(second) == 1
        assert first != second
        with pytest.raises(PolicyError, match="one run at a time"):
            await engine.generate(make_order(prompt, version=2))
        await other.close()
        assert await adapters_of(engine) == []

    with serving("--lora-rank", "8") as (process, url):
        with_engine(url, two_runs)
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0


async def adapters_of(engine: ServerEngine) -> list[str]:
    """On the server, whoever has loaded them."""
    async with httpx.AsyncClient(trust_env=False) as client:
        models = (await client.get(f"{engine.name}/v1/models")).json()["data"]
    return [model["id"] for model in models if model["parent"]]


@pytest.mark.vllm
def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    from agentrl.errors import InfrastructureError

    (tmp_path / "config.json").write_text('{"model_type": "nonsense"}')
    settings = EngineSettings(model=str(tmp_path))
    with (
        pytest.raises(InfrastructureError, match=r"(?s)ended before it was ready.*nonsense"),
        LocalServer(settings, log=tmp_path / "log"),
    ):
        pass


def test_only_a_trusted_network_gets_to_exchange_weights() -> None:
    for host in ("0.0.0.0", "10.0.0.1", "gpu-box", "::"):
        with pytest.raises(ConfigError, match="--trusted-network"):
            LocalServer(EngineSettings(model="quickstart"), host=host)


@pytest.mark.parametrize(
    "wrong",
    [{"dtype": "float16"}, {"max_in_flight": 0}, {"gpu_memory": 1.5}, {"lora_rank": 0}, {"context_length": -1}],
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        EngineSettings(model="quickstart", **wrong)


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_what_needs_a_gpu_is_refused_without_one() -> None:
    with pytest.raises(ConfigError, match="cannot sleep"):
        EngineSettings(model="quickstart", can_sleep=True)
    with pytest.raises(ConfigError, match="gpus=2"):
        EngineSettings(model="quickstart", gpus=2)


def test_flags_and_arguments_say_the_same() -> None:
    settings = EngineSettings(model="folder", context_length=512, num_top=7, lora_rank=9)
    flags, arguments = settings.flags(), settings.arguments()
    assert flags[flags.index("--max-model-len") + 1] == "512" == str(arguments["max_model_len"])
    assert flags[flags.index("--max-logprobs") + 1] == "8"  # the sampled token's besides
    assert flags[flags.index("--max-lora-rank") + 1] == "16"  # the next one that vLLM knows
    assert "--enable-lora" in flags
    assert "--weight-transfer-config" not in flags
