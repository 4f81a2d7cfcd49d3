"""The client of a vLLM server against a fake one: shapes, failures, weights, adapters."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from vllm_server import ORDER, Serve, logprobs_after, serving, using

from agentrl.errors import ConfigError, InfrastructureError, PolicyError
from agentrl.policies.core import Sampling
from agentrl.policies.vllm.connection import Deadlines, ServerFaultError
from agentrl.policies.vllm.engine import BrokenModelError, EngineLostError, Order
from agentrl.policies.vllm.server import ServerEngine, open_servers

SOON = Deadlines(connect_s=60.0, turn_s=0.2, per_token_s=0.001, control_s=0.3)


@pytest.fixture
def serve(byte_tokenizer: Any) -> Iterator[Serve]:
    with serving(byte_tokenizer) as start:
        yield start


def turn(url: str, order: Order = ORDER, deadlines: Deadlines | None = None) -> Any:
    return using(url, lambda engine: engine.generate(order), deadlines)


def test_a_turn(serve: Serve, byte_tokenizer: Any) -> None:
    """Log-probabilities and the most probable ones against the server's own arithmetic."""
    server = serve()
    sampled = turn(server.url)
    assert byte_tokenizer.decode(sampled.token_ids) == "It is 42.<|im_end|>"
    assert (sampled.cause, sampled.versions, sampled.num_cached) == ("end_of_turn", (0, 0), 0)
    for place, token in enumerate(sampled.token_ids):
        last = sampled.token_ids[place - 1] if place else ORDER.token_ids[-1]
        exact = logprobs_after(last, "0", 1.0, 0, server.vocab_size)
        assert sampled.logprobs[place] == pytest.approx(exact[token])
        assert sampled.top[place] == pytest.approx(sorted(exact, reverse=True)[:4])


def test_what_is_sent(serve: Serve) -> None:
    server = serve()
    turn(server.url, replace(ORDER, version=7))
    (body,) = server.bodies
    assert set(body) == {"model", "token_ids", "sampling_params", "cache_salt", "stream"}
    assert (body["model"], body["token_ids"], body["cache_salt"]) == ("policy", [1, 5, 9], "7")
    assert (body["sampling_params"]["seed"], body["sampling_params"]["logprobs"]) == (5, 5)


def test_truncated_distributions_have_no_fillers(serve: Serve) -> None:
    """Top-k 2 of 5 that are reported: the other three are -9999 over HTTP."""
    best = max(range(261), key=lambda i: logprobs_after(9, "0", 1.0, 0, 261)[i])
    server = serve()
    server.tokenizer = _Saying(server.tokenizer, [best])
    sampled = turn(server.url, replace(ORDER, max_tokens=1, sampling=Sampling(top_k=2)))
    assert [len(top) for top in sampled.top] == [2]


class _Saying:
    """A tokenizer that encodes everything as the same ids."""

    def __init__(self, tokenizer: Any, ids: list[int]) -> None:
        self._tokenizer, self._ids, self.eos_token_id = tokenizer, ids, tokenizer.eos_token_id

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return self._ids

    def decode(self, ids: Any, *, skip_special_tokens: bool) -> Any:
        return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)


def test_nan_is_a_broken_model(serve: Serve) -> None:
    server = serve(is_nan=True)
    with pytest.raises(BrokenModelError, match=server.url):
        turn(server.url)


# Failures ------------------------------------------------------------------------------------------------------------


def test_refused_connections(serve: Serve) -> None:
    server = serve()
    server.die()
    with pytest.raises(EngineLostError, match="cannot be reached"):
        turn(server.url)


def test_a_server_that_dies_under_a_turn(serve: Serve) -> None:
    server = serve(dies_after=0)
    with pytest.raises(EngineLostError):
        turn(server.url)


def test_a_silent_server_is_lost_and_its_turn_aborted(serve: Serve) -> None:
    server = serve(hang=threading.Event())

    async def wait(engine: ServerEngine) -> None:
        task = asyncio.ensure_future(engine.generate(ORDER))
        assert await asyncio.to_thread(server.arrived.wait, 60)
        let_pass(80.0)
        with pytest.raises(EngineLostError, match=r"did not answer /inference/v1/generate within 80 s"):
            await task

    using(server.url, wait)
    assert server.aborted.wait(60)
    assert server.num_aborted == 1


def let_pass(seconds: float) -> None:
    """Sets the clock of the running loop forward."""
    loop = asyncio.get_running_loop()
    usual = loop.time
    loop.time = lambda: usual() + seconds  # type: ignore[method-assign]


def test_a_listener_that_never_speaks_is_lost() -> None:
    """Connections are taken by the kernel, and nobody reads from them."""
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(EngineLostError, match="within"):
        turn(f"http://127.0.0.1:{listener.getsockname()[1]}", deadlines=SOON)


def test_a_cancelled_turn_is_aborted_in_the_server(serve: Serve) -> None:
    server = serve(hang=threading.Event())

    async def cancel(engine: ServerEngine) -> None:
        task = asyncio.ensure_future(engine.generate(ORDER))
        assert await asyncio.to_thread(server.arrived.wait, 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    using(server.url, cancel)
    assert server.aborted.wait(60)


def test_an_internal_error_costs_one_turn_and_the_next_survives_the_closed_connection(serve: Serve) -> None:
    """The connection is kept after the 500 and reset when it is used again: the client's second attempt succeeds."""
    server = serve(num_failing=1)

    async def twice(engine: ServerEngine) -> Any:
        with pytest.raises(EngineLostError, match="EngineCore encountered an issue"):
            await engine.generate(ORDER)
        return await engine.generate(ORDER)

    assert using(server.url, twice).cause == "end_of_turn"
    assert len(server.bodies) == 2


def test_many_closed_connections_cost_no_turn(serve: Serve) -> None:
    """Three are kept after errors and all of them are reset when used: the second attempt must use none of them."""
    hang = threading.Event()
    server = serve(num_failing=3, hang=hang)

    async def fail_together(engine: ServerEngine) -> Any:
        tasks = [asyncio.ensure_future(engine.generate(ORDER)) for _ in range(3)]
        while server.num_running < 3:
            await asyncio.sleep(0.001)
        hang.set()
        assert {type(error) for error in await asyncio.gather(*tasks, return_exceptions=True)} == {ServerFaultError}
        return await engine.generate(ORDER)

    assert using(server.url, fail_together).cause == "end_of_turn"


def test_an_overloaded_server_is_waited_for(serve: Serve) -> None:
    server = serve(num_overloaded=3)
    assert turn(server.url).cause == "end_of_turn"
    assert len(server.bodies) == 4


def test_an_overloaded_server_is_not_waited_for_forever(serve: Serve) -> None:
    server = serve(num_overloaded=10**6)
    with pytest.raises(EngineLostError, match="did not answer"):
        turn(server.url, deadlines=SOON)


def test_a_server_without_scale_out_names_the_remedy(serve: Serve) -> None:
    server = serve(scale_out=False)
    with pytest.raises(PolicyError, match=r"Scale-out endpoints are disabled.*agentrl serve-policy"):
        turn(server.url)


def test_a_refused_turn_is_that_turn_s_failure_only(serve: Serve) -> None:
    server = serve()
    with pytest.raises(InfrastructureError, match="out of vocabulary") as raised:
        turn(server.url, replace(ORDER, token_ids=[100_000]))
    assert raised.type is InfrastructureError


def test_answers_of_something_else(serve: Serve) -> None:
    server = serve()
    server.turn = lambda body, weights: {"choices": [{"text": "hi"}]}  # type: ignore[method-assign]
    with pytest.raises(InfrastructureError, match="something else than a turn"):
        turn(server.url)


# Opening -------------------------------------------------------------------------------------------------------------


async def opened(*urls: str, **options: Any) -> list[bool]:
    engines = await open_servers(urls, **({"context_length": 2048, "num_top": 20} | options))
    healthy = [await engine.is_healthy() for engine in engines]
    for engine in engines:
        await engine.close()
        await engine.close()
    return healthy


def test_good_servers_are_opened(serve: Serve) -> None:
    assert asyncio.run(opened(serve().url, serve().url)) == [True, True]


def test_servers_say_how_much_they_do_at_a_time(serve: Serve) -> None:
    urls = [serve(max_num_seqs=64).url, serve(max_num_seqs=256).url]

    async def sizes() -> list[int]:
        engines = await open_servers(urls, context_length=2048, num_top=20)
        for engine in engines:
            await engine.close()
        return [engine.max_in_flight for engine in engines]

    assert asyncio.run(sizes()) == [64, 256]


def test_a_proxy_is_not_asked(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing listens at port 9; whoever goes there does not reach the server."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    server = serve()
    assert asyncio.run(opened(server.url)) == [True]

    async def with_fresh_connection(engine: ServerEngine) -> Any:
        return await engine._connection._fresh_client.get("/health")

    assert using(server.url, with_fresh_connection).is_success


def test_a_server_that_is_named_twice(serve: Serve) -> None:
    url = serve().url
    with pytest.raises(ConfigError, match="twice"):
        asyncio.run(opened(url, f"{url}/"))


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"scale_out": False}, "agentrl serve-policy"),
        ({"logprobs_mode": "raw_logprobs"}, "--logprobs-mode processed_logprobs"),
        ({"max_logprobs": 20}, "greater than max allowed.*agentrl serve-policy"),
        ({"max_model_len": 1024}, "up to 1024 tokens, and 2048"),
        ({"is_nan": True}, "NaN"),
    ],
)
def test_servers_that_lack_something_are_refused(serve: Serve, attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        asyncio.run(opened(serve().url, serve(**attributes).url))


def test_no_server_at_that_address(serve: Serve) -> None:
    server = serve()
    server.die()
    with pytest.raises(EngineLostError, match="cannot be reached"):
        asyncio.run(opened(server.url))
    with pytest.raises(ConfigError, match="http://host:port"):
        asyncio.run(opened("localhost:8000"))


def test_the_address_of_a_server_is_its_root() -> None:
    for url in ("http://127.0.0.1:8001/v1", "http://127.0.0.1:8001/v1/"):
        with pytest.raises(ConfigError, match="Leave out the /v1"):
            ServerEngine(url)
