"""A vLLM server on this machine for tests: shapes, refusals and traps of the real one, and a model made of arithmetic.

What it says comes from a script, as with `ScriptedPolicy`; log-probabilities come from a distribution that depends on
the last token, the temperature and the version of the weights.
"""

import asyncio
import contextlib
import json
import math
import select
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from agentrl.policies.core import Sampling
from agentrl.policies.vllm.connection import Deadlines
from agentrl.policies.vllm.engine import Order
from agentrl.policies.vllm.server import ServerEngine

Script = Callable[[dict[str, Any], str], str]
ORDER = Order(
    token_ids=[1, 5, 9], max_tokens=40, stop=(), stop_token_ids=(2,), seed=5, sampling=Sampling(), num_top=4, version=0
)
BLOCK = 16


@cache
def logprobs_after(token: int, weights: str, temperature: float, top_k: int, vocab_size: int) -> tuple[float, ...]:
    """log softmax(logits / T), cut to the top k; temperature 0 counts as 1, as in vLLM."""
    shift = version_in(weights)
    logits = [-((7 * i + 3 * token + 5 * shift) % vocab_size) / 30 / (temperature or 1.0) for i in range(vocab_size)]
    border = sorted(logits, reverse=True)[top_k - 1] if top_k > 0 else -math.inf
    total = math.log(sum(math.exp(logit) for logit in logits if logit >= border))
    return tuple(logit - total if logit >= border else -math.inf for logit in logits)


def version_in(name: str) -> int:
    """The number in agentrl-TOKEN-NUMBER, which may be followed by more; 0 in other names, unless they are numbers."""
    parts = name.split("-")
    number = parts[2] if parts[0] == "agentrl" else name
    return int(number) if number.isdecimal() else 0


class FakeVllm:
    """One server. Attributes are set by tests, from any thread.

    Args:
        tokenizer: To read prompts and to write replies.
        script: From a request's body and the text so far to the reply.
    """

    def __init__(self, tokenizer: Any, script: Script) -> None:
        self.tokenizer = tokenizer
        self.script = script
        self.vocab_size = len(tokenizer)
        self.scale_out = True
        self.logprobs_mode = "processed_logprobs"
        self.max_logprobs = 64
        self.max_model_len = 2048
        self.max_num_seqs = 8
        self.num_overloaded = 0
        """Turns still to be refused with 503."""
        self.num_failing = 0
        """Turns still to be answered with 500."""
        self.is_nan = False
        self.reset_works = True
        self.takes_adapters = True
        self.update_error = ""
        self.unload_error = ""
        self.num_lost_answers = 0
        """Adapters still to be loaded without an answer."""
        self.dies_after: int | None = None
        """Turns until it dies."""
        self.hang: threading.Event | None = None
        """While it is set to an event that is not set, turns wait; those whose client leaves are aborted."""
        self.on_death: Callable[[], object] = lambda: None
        self.on_turn: Callable[[dict[str, Any]], None] = lambda body: None
        self.lock = threading.Lock()
        self._place = socket.socket()
        """Keeps the port while the server is dead."""
        self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._place.bind(("127.0.0.1", 0))
        self.port: int = self._place.getsockname()[1]
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def version(self) -> int | None:
        """Of the weights that were loaded last."""
        return None if self.weights == "default" else version_in(self.weights)

    def start(self) -> None:
        """Starts it, or starts it again: with the weights it had at first."""
        self.weights = "default"
        self.loading = False
        self.adapters: dict[str, str] = {}
        self.paused = threading.Event()
        self.asleep: str | None = None
        self.bodies: list[dict[str, Any]] = []
        self.calls: list[str] = []
        self.cache: set[tuple[str, str, tuple[int, ...]]] = set()
        self.num_running = self.most_running = self.num_aborted = 0
        self.aborted = threading.Event()
        self.arrived = threading.Event()
        self.is_dead = False
        self._sockets: set[socket.socket] = set()
        self._server = _Server(("127.0.0.1", self.port), _Handler)
        self._server.fake = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def die(self) -> None:
        """As after kill -9: no connection is taken any more, and those that exist are reset."""
        with self.lock:
            if self.is_dead:
                return
            self.is_dead = True
            self._server.socket.close()
            for connection in self._sockets:
                _hang_up(connection)
        self.on_death()

    def restart(self) -> None:
        """Starts it again after its death, for good."""
        self.dies_after, self.on_death = None, lambda: None
        self._server.shutdown()
        self._thread.join()
        self.start()

    def close(self) -> None:
        self.die()
        if self.hang is not None:
            self.hang.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._place.close()

    # Answers ---------------------------------------------------------------------------------------------------------

    def turn(self, body: dict[str, Any], weights: str) -> dict[str, Any]:
        """The answer to a turn; the fields of the sampling parameters are those that vLLM knows.

        Args:
            body: The request's.
            weights: Name of the weights or of the adapter; the answer names the weights below an adapter.
        """
        fields, prompt = body["sampling_params"], body["token_ids"]
        text = self.tokenizer.decode(prompt, skip_special_tokens=False)
        planned = [
            *self.tokenizer.encode(self.script(body, text), add_special_tokens=False),
            self.tokenizer.eos_token_id,
        ]
        ids, finish, reason = self._stopped(planned, fields)
        content = []
        for place, token in enumerate(ids):
            last = ids[place - 1] if place else prompt[-1]
            temperature = fields["temperature"] if self.logprobs_mode == "processed_logprobs" else 1.0
            logprobs = logprobs_after(last, weights, temperature, fields["top_k"], self.vocab_size)
            content.append(_content(token, logprobs, fields["logprobs"], self.is_nan))
        return {
            "request_id": "generate-tokens-0",
            "model": body["model"],
            "usage": {
                "prompt_tokens": len(prompt),
                "completion_tokens": len(ids),
                "prompt_tokens_details": {"cached_tokens": self._cached(body)},
            },
            "choices": [
                {
                    "index": 0,
                    "finish_reason": finish,
                    "stop_reason": reason,
                    "token_ids": ids,
                    "weight_versions": [{"version": self.weights, "start": 0, "end": len(ids)}],
                    "logprobs": {"content": content},
                }
            ],
        }

    def _stopped(self, planned: list[int], fields: dict[str, Any]) -> tuple[list[int], str, int | str | None]:
        """vLLM's order: a token that stops, then the length, and in the front end a string that stops."""
        ids: list[int] = []
        for token in planned:
            ids.append(token)
            if token in fields["stop_token_ids"]:
                return ids, "stop", token
            text = self.tokenizer.decode(ids, skip_special_tokens=fields["skip_special_tokens"])
            for stop in fields["stop"]:
                if fields["detokenize"] and stop in text:
                    return ids, "stop", stop
            if len(ids) == fields["max_tokens"]:
                return ids, "length", None
        raise AssertionError("end-of-turn is not among the tokens that stop")

    def _cached(self, body: dict[str, Any]) -> int:
        key = (body["cache_salt"], body["model"])
        blocks = [tuple(body["token_ids"][:end]) for end in range(BLOCK, len(body["token_ids"]), BLOCK)]
        with self.lock:
            cached = [len(block) for block in blocks if (*key, block) in self.cache]
            self.cache.update((*key, block) for block in blocks)
        return max(cached, default=0)


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    fake: FakeVllm

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        with self.fake.lock:
            self.fake._sockets.add(connection)
            if self.fake.is_dead:  # since the connection was taken
                _hang_up(connection)
        return connection, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves is no news."""


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    is_trapped = False
    """vLLM closes the connection after a 500 without saying so."""

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        self._answer(json.loads(self.rfile.read(length) or b"{}"))

    @property
    def fake(self) -> FakeVllm:
        assert isinstance(self.server, _Server)
        return self.server.fake

    def _answer(self, body: dict[str, Any]) -> None:
        parts = urlsplit(self.path)
        if self.is_trapped:
            self._reset()
            return
        route = parts.path.strip("/").replace("/", "_")
        with self.fake.lock:
            self.fake.calls.append(parts.path)
        handler = getattr(self, f"_{route}", None)
        if handler is None:
            self._send(404, _error("Not Found", 404))
        else:
            handler(body, dict(parse_qsl(parts.query)))

    def _send(self, status: int, body: Any) -> None:
        data = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        self.is_trapped = status == 500

    def _reset(self) -> None:
        """Closes with a TCP reset instead of an end."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.close_connection = True
        for thing in (self.rfile, self.wfile, self.connection):
            thing.close()

    # Routes ----------------------------------------------------------------------------------------------------------

    def _health(self, body: Any, query: Any) -> None:
        self._send(200, None)

    def _v1_models(self, body: Any, query: Any) -> None:
        base = {"id": "policy", "object": "model", "parent": None, "max_model_len": self.fake.max_model_len}
        adapters = [{"id": name, "object": "model", "parent": "policy"} for name in self.fake.adapters]
        self._send(200, {"object": "list", "data": [base, *adapters]})

    def _server_info(self, body: Any, query: dict[str, str]) -> None:
        assert query == {"config_format": "json"}
        self._send(200, {"vllm_config": {"scheduler_config": {"max_num_seqs": self.fake.max_num_seqs}}})

    def _inference_v1_generate(self, body: dict[str, Any], query: Any) -> None:
        fake = self.fake
        with fake.lock:
            fake.bodies.append(body)
            fake.num_running += 1
            fake.most_running = max(fake.most_running, fake.num_running)
            overloaded, failing = fake.num_overloaded > 0, fake.num_failing > 0
            fake.num_overloaded -= overloaded
            fake.num_failing -= failing and not overloaded
            dies = fake.dies_after is not None and len(fake.bodies) > fake.dies_after
            on_turn = fake.on_turn
        fake.arrived.set()
        answer: tuple[int, Any]
        try:
            if dies:
                fake.die()
                return
            on_turn(body)
            if not self._waited():
                return
            if overloaded:
                answer = 503, _error("Service Unavailable", 503)
            elif failing:
                answer = 500, _error("EngineCore encountered an issue", 500)
            else:
                answer = self._generated(body)
        finally:
            with fake.lock:
                fake.num_running -= 1
        self._send(*answer)  # it does not run any more: the client may have sent the next turn before this returns

    def _generated(self, body: dict[str, Any]) -> tuple[int, Any]:
        fake, fields = self.fake, body["sampling_params"]
        if not fake.scale_out:
            message = "Scale-out endpoints are disabled. Restart vllm serve with --enable-scale-out to enable them."
            return 403, _error(message, 403)
        if body["model"] not in ("policy", *fake.adapters):
            return 404, _error(f"The model `{body['model']}` does not exist.", 404)
        if fields["logprobs"] > fake.max_logprobs:
            return 400, _error(f"Requested sample logprobs of {fields['logprobs']}, greater than max allowed", 400)
        if max(body["token_ids"]) >= fake.vocab_size:
            return 400, _error("Token id is out of vocabulary", 400)
        weights = fake.weights if body["model"] == "policy" else body["model"]
        return 200, fake.turn(body, weights)

    def _waited(self) -> bool:
        """Whether the client is still there after the wait, if there was one."""
        fake = self.fake
        hang = fake.hang
        while (hang is not None and not hang.is_set()) or fake.paused.is_set():
            if select.select([self.connection], [], [], 0.01)[0]:
                self.close_connection = True
                with fake.lock:
                    fake.num_aborted += 1
                fake.aborted.set()
                return False
        return True

    def _pause(self, body: Any, query: dict[str, str]) -> None:
        assert query == {"mode": "keep", "clear_cache": "true"}
        self.fake.paused.set()
        self._send(200, {"status": "paused"})

    def _resume(self, body: Any, query: Any) -> None:
        self.fake.paused.clear()
        self._send(200, {"status": "resumed"})

    def _start_weight_update(self, body: Any, query: Any) -> None:
        if self.fake.loading:
            self._send(500, _error("start_weight_update called while a weight update is already active.", 500))
            return
        self.fake.loading = True
        self._send(200, {"message": "Weight update started"})

    def _update_weights(self, body: dict[str, Any], query: Any) -> None:
        path = body["update_info"]["path"]
        error = self.fake.update_error
        with contextlib.suppress(OSError):
            open(path).close()
            path = ""
        if error or path:
            self.fake.loading = False
            self._send(500, _error(error or f"Worker failed with error 'no file {path}'", 500))
            return
        self._send(200, {"message": "Weights updated"})

    def _finish_weight_update(self, body: dict[str, Any], query: Any) -> None:
        self.fake.loading = False
        self.fake.weights = body.get("weight_version", self.fake.weights)
        self._send(200, {"message": "Weight update finished"})

    def _reset_prefix_cache(self, body: Any, query: dict[str, str]) -> None:
        if self.fake.reset_works:
            self.fake.cache.clear()
        self._send(200, {"success": self.fake.reset_works})

    def _weight_info(self, body: Any, query: Any) -> None:
        self._send(200, {"weight_version": self.fake.weights})

    def _v1_load_lora_adapter(self, body: dict[str, str], query: Any) -> None:
        if not self.fake.takes_adapters:
            self._send(404, {"detail": "Not Found"})
            return
        if body["lora_name"] in self.fake.adapters:
            self._send(400, _error(f"The lora adapter '{body['lora_name']}' has already been loaded.", 400))
            return
        self.fake.adapters[body["lora_name"]] = body["lora_path"]
        if self.fake.num_lost_answers:
            self.fake.num_lost_answers -= 1
            self._reset()
            return
        self._send(200, "Success: LoRA adapter added successfully.")

    def _v1_unload_lora_adapter(self, body: dict[str, str], query: Any) -> None:
        if self.fake.unload_error:
            self._send(500, _error(self.fake.unload_error, 500))
            return
        gone = self.fake.adapters.pop(body["lora_name"], None)
        self._send(*((404, _error("The lora adapter cannot be found.", 404)) if gone is None else (200, "Success")))

    def _sleep(self, body: Any, query: dict[str, str]) -> None:
        self.fake.asleep = query["level"]
        self._send(200, {"status": "sleeping"})

    def _wake_up(self, body: Any, query: Any) -> None:
        self.fake.asleep = None
        self._send(200, {"status": "awake"})


@cache
def ranked(logprobs: tuple[float, ...]) -> tuple[int, ...]:
    """Tokens, the most probable first."""
    return tuple(sorted(range(len(logprobs)), key=lambda i: -logprobs[i]))


def _content(token: int, logprobs: tuple[float, ...], num: int, is_nan: bool) -> dict[str, Any]:
    """The sampled token first, then by rank, cut to `num` entries; -inf and NaN are -9999."""
    order = ranked(logprobs)
    reported = list(dict.fromkeys([token, *order[:num]]))[: max(1, num)]
    entries = [
        {"token_id": i, "logprob": -9999.0 if is_nan else max(logprobs[i], -9999.0), "rank": order.index(i) + 1}
        for i in reported
    ]
    return {**entries[0], "top_logprobs": entries}


def _error(message: str, code: int) -> dict[str, Any]:
    return {"error": {"message": message, "type": "Error", "param": None, "code": code}}


Serve = Callable[..., FakeVllm]


@contextlib.contextmanager
def serving(tokenizer: Any) -> Iterator[Serve]:
    """Gives a function that starts servers, with their attributes; they stop at the end."""
    servers: list[FakeVllm] = []

    def start(script: Script = lambda body, text: "It is 42.", **attributes: Any) -> FakeVllm:
        server = FakeVllm(tokenizer, script)
        servers.append(server)
        for name, value in attributes.items():
            setattr(server, name, value)
        return server

    try:
        yield start
    finally:
        for server in servers:
            server.close()


def using(url: str, act: Callable[[ServerEngine], Awaitable[Any]], deadlines: Deadlines | None = None) -> Any:
    """Runs something with an engine in a loop of its own."""

    async def run() -> Any:
        engine = ServerEngine(url, deadlines=deadlines)
        try:
            return await act(engine)
        finally:
            await engine.close()

    return asyncio.run(run())
