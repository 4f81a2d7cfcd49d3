"""What search over 100,000 passages costs: time to index, memory, disk, and time of a query, for each back end.

    python benchmarks/search.py
    python benchmarks/search.py --passages 10000 --backends fts5 tantivy

Passages are 80 words drawn from 60,000 by Zipf's law. Queries have 6 words and ask for 5 passages. "rare" draws their
words evenly from the vocabulary, so that nearly all are rare; "common" draws them as those of the passages, so that in
most queries a word or two are in a third of all passages. Every measurement runs in a process of its own, with one
thread, from an index on disk. Times are of the processor, all threads together, so that other programs do not count;
where the machine is quiet they are those of the clock. Vectors are random, of 384 numbers: the time that a model takes
to make them, for passages and for queries, is left out. Prints a table in Markdown.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agentrl.tools import Document, SearchIndex
from agentrl.tools.dense_index import DenseIndex
from agentrl.tools.embedder import Vectors
from agentrl.tools.hybrid import HybridRetriever
from agentrl.tools.retriever import LocalRetriever
from agentrl.tools.tantivy_index import TantivyIndex

BACKENDS = ("fts5", "tantivy", "dense", "hybrid")
NUM_WORDS, PASSAGE_WORDS, QUERY_WORDS, TOP_K, DIMENSION = 60_000, 80, 6, 5, 384
_MIB = 1 << 20


class RandomVectors:
    """Stands in for a model: a random direction for every text."""

    name = fingerprint = "random"

    def __init__(self) -> None:
        self._rng = np.random.default_rng(3)

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        """Vectors of length 1, [texts, dimension]."""
        vectors = self._rng.standard_normal((len(texts), DIMENSION), dtype=np.float32)
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))

    embed_queries = embed_documents


def zipf() -> NDArray[np.float64]:
    """Probability of each word: in proportion to 1 / rank."""
    weights = 1.0 / np.arange(1, NUM_WORDS + 1)
    return weights / weights.sum()


def make_passages(count: int) -> list[Document]:
    """The corpus, always the same."""
    drawn = np.random.default_rng(1).choice(NUM_WORDS, size=(count, PASSAGE_WORDS), p=zipf())
    return [Document(str(number), "", " ".join(f"w{word}" for word in row)) for number, row in enumerate(drawn)]


def make_queries(count: int, kind: str) -> list[str]:
    """The queries of one kind, always the same."""
    weights = zipf() if kind == "common" else None
    drawn = np.random.default_rng(2).choice(NUM_WORDS, size=(count, QUERY_WORDS), p=weights)
    return [" ".join(f"w{word}" for word in row) for row in drawn]


def build(backend: str, folder: Path, num_passages: int) -> dict[str, float]:
    """Writes an index; seconds of the processor, and the greatest growth of memory meanwhile in bytes."""
    passages = make_passages(num_passages)
    path = folder / backend
    vectors = RandomVectors().embed_documents([""] * num_passages) if backend == "dense" else None
    before = reset_peak()
    begun = time.process_time()
    if backend == "fts5":
        SearchIndex(passages, path)
    elif backend == "tantivy":
        TantivyIndex(passages, path)
    else:
        DenseIndex(passages, RandomVectors(), path, vectors=vectors)
    return {"seconds": time.process_time() - begun, "memory": memory("VmHWM") - before}


def load(backend: str, folder: Path) -> LocalRetriever:
    """Opens what `build` wrote."""
    if backend == "fts5":
        return SearchIndex.load(folder / backend)
    if backend == "tantivy":
        return TantivyIndex.load(folder / backend)
    dense = DenseIndex.load(folder / "dense", RandomVectors())
    return HybridRetriever([SearchIndex.load(folder / "fts5"), dense]) if backend == "hybrid" else dense


def search(backend: str, folder: Path, num_queries: int) -> dict[str, Any]:
    """Median and 95th percentile of a query in milliseconds of the processor, and the growth of memory in bytes."""
    before = memory("VmRSS")
    retriever = load(backend, folder)
    found: dict[str, Any] = {}
    for kind in ("rare", "common"):
        retriever.retrieve("w0 w1 w2 w3 w4 w5", TOP_K)  # so that the files are in memory
        times = []
        for query in make_queries(num_queries, kind):
            begun = time.process_time()
            retriever.retrieve(query, TOP_K)
            times.append(1000 * (time.process_time() - begun))
        found[kind] = [float(np.percentile(times, share)) for share in (50, 95)]
    return {**found, "memory": memory("VmRSS") - before}


def reset_peak() -> int:
    """Lets the peak of memory begin anew (Linux); the memory in use now, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def memory(field: str) -> int:
    """A line of the kernel's account of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def size_on_disk(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())


def in_own_process(phase: str, backend: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs one measurement with one thread."""
    command = [sys.executable, __file__, "--phase", phase, "--backends", backend, "--folder", str(folder)]
    command += ["--passages", str(arguments.passages), "--queries", str(arguments.queries)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    printed = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    return dict(json.loads(printed))


def row(name: str, parts: Sequence[str], built: dict[str, dict[str, Any]], folder: Path, found: dict[str, Any]) -> str:
    """A line of the table; what is built of several parts takes the sum of their times and sizes."""
    cells = [
        name,
        f"{sum(built[part]['seconds'] for part in parts):.1f} s",
        f"{max(built[part]['memory'] for part in parts) / _MIB:.0f} MiB",
        f"{sum(size_on_disk(folder / part) for part in parts) / _MIB:.0f} MiB",
        f"{found['memory'] / _MIB:.0f} MiB",
        *(f"{found[kind][0]:.2f} / {found[kind][1]:.2f} ms" for kind in ("rare", "common")),
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Runs the measurements that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--phase", choices=("build", "search"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.phase == "build":
        print(json.dumps(build(arguments.backends[0], arguments.folder, arguments.passages)))
        return
    if arguments.phase == "search":
        print(json.dumps(search(arguments.backends[0], arguments.folder, arguments.queries)))
        return
    parts = {name: ("fts5", "dense") if name == "hybrid" else (name,) for name in arguments.backends}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        needed = dict.fromkeys(part for group in parts.values() for part in group)
        built = {part: in_own_process("build", part, folder, arguments) for part in needed}
        print("| back end | index time | memory to build | disk | memory to search | rare words | common words |")
        print("|---|---|---|---|---|---|---|")
        for backend, group in parts.items():
            found = in_own_process("search", backend, folder, arguments)
            print(row(backend, group, built, folder, found), flush=True)


if __name__ == "__main__":
    main()
