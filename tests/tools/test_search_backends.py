"""Back ends by name: what a config or a command line can ask for, and what is refused."""

import json
from pathlib import Path

import pytest

from agentrl.config import load_config
from agentrl.envs import ToolEnv, make
from agentrl.errors import AgentRLError, ConfigError, DataError, UnknownNameError
from agentrl.messages import ToolCall
from agentrl.tools import TOOLS, Document, SearchIndex, Toolbox, local_search
from agentrl.tools.retriever import LocalRetriever
from agentrl.tools.search_backends import BACKENDS, open_retriever
from agentrl.tools.tantivy_index import TantivyIndex
from agentrl.trainers import TrainSettings

DOCUMENTS = [Document("1", "Rome", "The capital of Italy."), Document("2", "Oslo", "The capital of Norway.")]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"id": d.id, "title": d.title, "text": d.text}) + "\n" for d in DOCUMENTS))
    return path


def first(retriever: LocalRetriever) -> str:
    return retriever.retrieve("Norway", 1)[0].document.title


@pytest.mark.parametrize(("backend", "kind"), [(None, SearchIndex), ("fts5", SearchIndex), ("tantivy", TantivyIndex)])
def test_a_back_end_is_named(backend: str | None, kind: type, corpus: Path) -> None:
    for given in (DOCUMENTS, iter(DOCUMENTS), corpus, str(corpus)):
        retriever = open_retriever(given, backend=backend)
        assert type(retriever) is kind
        assert first(retriever) == "Oslo"
    assert [path.name for path in corpus.parent.iterdir()] == ["corpus.jsonl"]


def test_an_index_is_opened_as_what_it_is(tmp_path: Path) -> None:
    SearchIndex(DOCUMENTS, tmp_path / "a")
    TantivyIndex(DOCUMENTS, tmp_path / "b")
    assert type(open_retriever(tmp_path / "a")) is SearchIndex
    assert type(open_retriever(str(tmp_path / "b"))) is TantivyIndex
    assert first(open_retriever(tmp_path / "b", backend="tantivy")) == "Oslo"


def test_what_does_not_fit_is_refused(corpus: Path, tmp_path: Path) -> None:
    SearchIndex(DOCUMENTS, tmp_path / "a")
    with pytest.raises(UnknownNameError, match=r"Unknown search back end 'tantify'\. Did you mean 'tantivy'"):
        open_retriever(corpus, backend="tantify")
    for backend in ("tantivy", "dense", "hybrid"):
        with pytest.raises(ConfigError, match=f"a fts5 index and cannot be searched with '{backend}'"):
            open_retriever(tmp_path / "a", backend=backend, model=None if backend == "tantivy" else "m")
    for backend in ("dense", "hybrid"):
        with pytest.raises(ConfigError, match="needs model=FOLDER"):
            open_retriever(corpus, backend=backend)
        with pytest.raises(ConfigError, match="none is not a folder"):
            open_retriever(corpus, backend=backend, model=tmp_path / "none")
    for backend in (None, "fts5", "tantivy"):
        with pytest.raises(ConfigError, match="uses no model"):
            open_retriever(corpus, backend=backend, model="m")
    with pytest.raises(DataError, match="is a folder, but not a search index"):
        open_retriever(tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        open_retriever(tmp_path / "absent", backend="tantivy")


def test_the_names_are_those_of_the_help() -> None:
    assert list(BACKENDS) == ["fts5", "tantivy", "dense", "hybrid"]
    assert all(f'"{name}"' in (local_search.__doc__ or "") for name in BACKENDS)


def test_the_tool_takes_the_options() -> None:
    for backend in (None, "fts5", "tantivy"):
        with Toolbox([TOOLS["search"](corpus=DOCUMENTS, backend=backend, top_k=1)]) as toolbox:
            assert toolbox.call(ToolCall("search", {"query": "Norway"})).text == "[1] Oslo: The capital of Norway."


CONFIG = """
env:
  id: agentrl/Dataset-v0
  arguments:
    path: {tasks}
    tools:
      - search: {{corpus: {corpus}, backend: {backend}, top_k: 1}}
"""


def env_of(corpus: Path, backend: str) -> ToolEnv:
    folder = corpus.parent
    (folder / "tasks.jsonl").write_text('{"prompt": "Where?", "answer": "Oslo"}\n' * 4)
    (folder / "config.yaml").write_text(CONFIG.format(tasks=folder / "tasks.jsonl", corpus=corpus, backend=backend))
    settings = load_config(TrainSettings, folder / "config.yaml").env
    env = make(settings.id, **settings.arguments).unwrapped
    assert isinstance(env, ToolEnv)
    return env


@pytest.mark.parametrize("backend", ["fts5", "tantivy"])
def test_a_config_picks_the_back_end(backend: str, corpus: Path) -> None:
    env = env_of(corpus, backend)
    env.reset(seed=0)
    call = '<tool_call>\n{"name": "search", "arguments": {"query": "Norway"}}\n</tool_call>'
    assert "[1] Oslo: The capital of Norway." in env.step(call)[0]


@pytest.mark.parametrize(("backend", "message"), [("tantify", "Did you mean 'tantivy'"), ("dense", "model=FOLDER")])
def test_a_wrong_config_is_refused_when_it_is_read(backend: str, message: str, corpus: Path) -> None:
    with pytest.raises(AgentRLError, match=message):
        env_of(corpus, backend)
