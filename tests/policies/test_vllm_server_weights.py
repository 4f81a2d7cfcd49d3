"""Exchanging the weights of a fake vLLM server: whole ones, adapters, and what other runs do to them."""

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from vllm_server import ORDER, FakeVllm, Serve, logprobs_after, serving, using, version_in

from agentrl.errors import PolicyError
from agentrl.policies.vllm.engine import EngineLostError
from agentrl.policies.vllm.server import ServerEngine


@pytest.fixture
def serve(byte_tokenizer: Any) -> Iterator[Serve]:
    with serving(byte_tokenizer) as start:
        yield start


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "v1.safetensors"
    path.touch()
    return path


def test_new_weights_sample_the_next_turn(serve: Serve, weights: Path) -> None:
    server = serve()

    async def exchange(engine: ServerEngine) -> Any:
        await engine.load_weights(weights, 3)
        return await engine.generate(replace(ORDER, version=3))

    sampled = using(server.url, exchange)
    assert sampled.versions == (3, 3)
    assert server.weights.startswith("agentrl-")
    exact = logprobs_after(9, "3", 1.0, 0, server.vocab_size)
    assert sampled.logprobs[0] == pytest.approx(exact[sampled.token_ids[0]])
    assert server.calls[:7] == [
        "/pause",
        "/start_weight_update",
        "/update_weights",
        "/finish_weight_update",
        "/reset_prefix_cache",
        "/weight_info",
        "/resume",
    ]


def test_a_cache_that_is_not_reset_is_an_error_and_the_server_goes_on(serve: Serve, weights: Path) -> None:
    server = serve(reset_works=False)
    with pytest.raises(PolicyError, match="did not drop"):
        using(server.url, lambda engine: engine.load_weights(weights, 1))
    assert not server.paused.is_set()


def test_refused_weights_are_an_error_and_the_server_goes_on(serve: Serve, weights: Path) -> None:
    server = serve(update_error="shape mismatch")
    with pytest.raises(PolicyError, match=r"did not take the weights .*shape mismatch"):
        using(server.url, lambda engine: engine.load_weights(weights, 1))
    assert not server.paused.is_set()


def test_a_server_that_dies_under_an_exchange_is_lost(serve: Serve, weights: Path) -> None:
    server = serve()
    server.die()
    with pytest.raises(EngineLostError):
        using(server.url, lambda engine: engine.load_weights(weights, 1))


def test_an_exchange_that_was_cut_short_does_not_block_the_next(serve: Serve, weights: Path) -> None:
    server = serve(loading=True)
    using(server.url, lambda engine: engine.load_weights(weights, 1))
    assert server.version == 1


def test_a_server_that_was_started_again_is_noticed(serve: Serve, weights: Path) -> None:
    """It has the weights it was started with and would sample with them."""
    server = serve()

    async def restart(engine: ServerEngine) -> None:
        await engine.load_weights(weights, 1)
        server.weights = "default"
        with pytest.raises(EngineLostError, match="'default' after version 1 was loaded: it was started again"):
            await engine.generate(replace(ORDER, version=1))
        await engine.load_weights(weights, 1)
        assert (await engine.generate(replace(ORDER, version=1))).versions == (1, 1)

    using(server.url, restart)


def test_a_server_with_weights_of_an_earlier_run_is_not_sampled_from(serve: Serve) -> None:
    server = serve(weights="agentrl-0123456789ab-57")
    with pytest.raises(PolicyError, match=r"agentrl-0123456789ab-57.* did before\. A server serves one run at a time"):
        using(server.url, lambda engine: engine.generate(ORDER))


@pytest.mark.parametrize("theirs", [1, 9])
def test_weights_that_another_run_loads_are_noticed(serve: Serve, weights: Path, theirs: int) -> None:
    """Of whatever version; the run that loaded last is the one that goes on."""
    server = serve()

    async def both(mine: ServerEngine) -> None:
        other = ServerEngine(server.url)
        await mine.load_weights(weights, 1)
        await other.load_weights(weights, theirs)
        with pytest.raises(PolicyError, match=r"another run uses it.* one run at a time.*policy\.servers"):
            await mine.generate(replace(ORDER, version=1))
        assert (await other.generate(replace(ORDER, version=theirs))).versions == (theirs, theirs)
        await other.close()

    using(server.url, both)


def test_a_turn_that_another_run_s_weights_had_a_part_in_is_refused(serve: Serve, weights: Path) -> None:
    """They came and went: the turn ended with the right ones."""
    server = serve()
    spoil_spans(server, "agentrl-0123456789ab-1", None)

    async def exchange(engine: ServerEngine) -> None:
        await engine.load_weights(weights, 2)
        with pytest.raises(PolicyError, match="one run at a time"):
            await engine.generate(replace(ORDER, version=2))

    using(server.url, exchange)


def test_older_weights_than_asked_for_are_refused(serve: Serve, weights: Path) -> None:
    """As when several servers hide behind one address, of which one got the new weights."""
    server = serve()

    async def exchange(engine: ServerEngine) -> None:
        await engine.load_weights(weights, 1)
        with pytest.raises(EngineLostError, match="'1' after version 1"):
            await engine.generate(replace(ORDER, version=2))

    using(server.url, exchange)


def spoil_spans(server: FakeVllm, *names: str | None) -> None:
    """Has turns say that weights of these names sampled them, None being those that are loaded."""
    plain = server.turn

    def spoiled(body: dict[str, Any], name: str) -> dict[str, Any]:
        answer = plain(body, name)
        answer["choices"][0]["weight_versions"] = [{"version": name or server.weights} for name in names]
        return answer

    server.turn = spoiled  # type: ignore[method-assign]


def test_a_turn_across_an_update_has_both_versions(serve: Serve, weights: Path) -> None:
    server = serve()

    async def exchange(engine: ServerEngine) -> Any:
        await engine.load_weights(weights, 1)
        spoil_spans(server, server.weights, None)
        await engine.load_weights(weights, 2)
        return await engine.generate(replace(ORDER, version=1))

    assert using(server.url, exchange).versions == (1, 2)


def test_sleeping(serve: Serve, weights: Path) -> None:
    """Weights are only dropped when whole ones can be loaded afterwards."""
    server = serve()

    async def sleep(engine: ServerEngine) -> list[str | None]:
        levels = []
        for _ in range(2):
            await engine.sleep()
            levels.append(server.asleep)
            await engine.wake()
            await engine.load_weights(weights, 1)
        return levels

    assert using(server.url, sleep) == ["1", "2"]
    assert server.asleep is None


# Adapters ------------------------------------------------------------------------------------------------------------


def test_adapters_have_a_name_per_version(serve: Serve, tmp_path: Path) -> None:
    server = serve()

    async def exchange(engine: ServerEngine) -> list[Any]:
        turns = []
        for version in (1, 2):
            await engine.load_weights(tmp_path, version)
            turns.append(await engine.generate(replace(ORDER, version=version)))
        return turns

    assert [sampled.versions for sampled in using(server.url, exchange)] == [(1, 1), (2, 2)]
    assert [version_in(body["model"]) for body in server.bodies] == [1, 2]
    assert server.adapters == {}  # the object was closed


def test_the_adapters_of_an_earlier_run_are_no_obstacle_and_go(serve: Serve, tmp_path: Path) -> None:
    """It was killed, and so has not taken them away itself; what somebody else has loaded by another name stays."""
    server = serve()

    async def one_run(engine: ServerEngine) -> list[str]:
        for version in (0, 1, 2):
            await engine.load_weights(tmp_path, version)
            assert (await engine.generate(replace(ORDER, version=version))).versions == (version, version)
        return list(server.adapters)

    async def killed(engine: ServerEngine) -> None:
        (left,) = await one_run(engine)
        server.adapters |= {"theirs": "path"}
        assert await one_run(ServerEngine(server.url)) != [left]  # the same versions again, resumed or not

    using(server.url, killed)
    assert [version_in(name) for name in server.adapters] == [0, 2]
    assert server.adapters.keys() > {"theirs"}


def test_an_adapter_that_was_loaded_although_nobody_heard_of_it_is_no_obstacle(serve: Serve, tmp_path: Path) -> None:
    server = serve()

    async def exchange(engine: ServerEngine) -> Any:
        await engine.load_weights(tmp_path, 1)
        server.num_lost_answers = 1
        with pytest.raises(PolicyError, match="already been loaded"):
            await engine.load_weights(tmp_path, 2)
        assert [version_in(name) for name in server.adapters] == [1, 2]
        await engine.load_weights(tmp_path, 2)
        assert [version_in(name) for name in server.adapters] == [2]
        return await engine.generate(replace(ORDER, version=2))

    assert using(server.url, exchange).versions == (2, 2)


def test_an_adapter_that_cannot_be_taken_away_is_not_used_any_more(serve: Serve, tmp_path: Path) -> None:
    server = serve()

    async def exchange(engine: ServerEngine) -> Any:
        await engine.load_weights(tmp_path, 1)
        old = dict(server.adapters)
        server.unload_error = "no"
        with pytest.raises(PolicyError, match="'no'"):
            await engine.load_weights(tmp_path, 2)
        server.unload_error = ""
        turn = await engine.generate(replace(ORDER, version=2))
        assert turn.versions == (2, 2)  # not with the one that could not be taken away
        await engine.load_weights(tmp_path, 2)
        assert len(server.adapters) == 1
        assert not server.adapters.keys() & old.keys()
        return await engine.generate(replace(ORDER, version=2))

    assert using(server.url, exchange).versions == (2, 2)


def test_a_run_whose_adapter_another_run_took_away_is_told(serve: Serve, tmp_path: Path) -> None:
    server = serve()

    async def both(mine: ServerEngine) -> None:
        other = ServerEngine(server.url)
        await mine.load_weights(tmp_path, 1)
        await other.load_weights(tmp_path, 1)
        with pytest.raises(PolicyError, match=r"another run uses it.* one run at a time"):
            await mine.generate(replace(ORDER, version=1))
        assert (await other.generate(replace(ORDER, version=1))).versions == (1, 1)
        await other.close()

    using(server.url, both)


def test_an_adapter_on_weights_of_another_run_is_noticed(serve: Serve, tmp_path: Path) -> None:
    server = serve(weights="agentrl-0123456789ab-57")

    async def exchange(engine: ServerEngine) -> None:
        await engine.load_weights(tmp_path, 1)
        with pytest.raises(PolicyError, match="start the server again"):
            await engine.generate(replace(ORDER, version=1))

    using(server.url, exchange)


def test_a_server_for_whole_weights_says_so_to_adapters(serve: Serve, tmp_path: Path) -> None:
    server = serve(takes_adapters=False)
    with pytest.raises(PolicyError, match=r"takes no LoRA adapters.*--lora-rank RANK"):
        using(server.url, lambda engine: engine.load_weights(tmp_path, 1))


def test_closing_an_engine_whose_server_is_gone(serve: Serve, tmp_path: Path) -> None:
    server = serve()

    async def exchange(engine: ServerEngine) -> None:
        await engine.load_weights(tmp_path, 1)
        server.die()
        await engine.close()
        assert engine._connection._client.is_closed

    using(server.url, exchange)


def test_an_adapter_stays_while_a_turn_uses_it(serve: Serve, tmp_path: Path) -> None:
    hang = threading.Event()
    server = serve(hang=hang)

    async def exchange(engine: ServerEngine) -> Any:
        await engine.load_weights(tmp_path, 1)
        task = asyncio.ensure_future(engine.generate(replace(ORDER, version=1)))
        assert await asyncio.to_thread(server.arrived.wait, 60)
        await engine.load_weights(tmp_path, 2)
        names = list(server.adapters)
        hang.set()
        old = await task
        await engine.load_weights(tmp_path, 3)
        return old.versions, [version_in(name) for name in names], [version_in(name) for name in server.adapters]

    assert using(server.url, exchange) == ((1, 1), [1, 2], [3])


def test_a_server_without_its_adapter_is_lost_and_gets_it_again(serve: Serve, tmp_path: Path) -> None:
    server = serve()

    async def exchange(engine: ServerEngine) -> Any:
        await engine.load_weights(tmp_path, 1)
        server.adapters.clear()
        with pytest.raises(EngineLostError, match="lost the adapter of version 1"):
            await engine.generate(replace(ORDER, version=1))
        await engine.load_weights(tmp_path, 1)
        return await engine.generate(replace(ORDER, version=1))

    assert using(server.url, exchange).versions == (1, 1)
