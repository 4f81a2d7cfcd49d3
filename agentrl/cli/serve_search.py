"""`agentrl serve-search`: a corpus behind the `/retrieve` protocol."""

import signal
import threading
from pathlib import Path

import typer

from agentrl.tools.retrieval_server import RetrievalServer
from agentrl.tools.search_backends import open_retriever


def serve_search(corpus: Path, *, backend: str | None, model: Path | None, host: str, port: int) -> None:
    """Serves until SIGINT or SIGTERM, and returns then.

    Args:
        corpus: A corpus or an index.
        backend: See `open_retriever`.
        model: See `open_retriever`.
        host: Address to listen at.
        port: 0 takes a free one.

    Raises:
        ConfigError: The back end, the model or the address cannot be used.
        DataError: The corpus cannot be read.
    """
    retriever = open_retriever(corpus, backend=backend, model=model)
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    with RetrievalServer(retriever, host=host, port=port) as server:
        typer.echo(f"{len(retriever):,} documents at {server.url}")
        stopped.wait()
