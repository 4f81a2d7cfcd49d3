"""`agentrl/MultiHopSearch-v0`: a consistent world, unique answers, and questions that no single search answers."""

import re
from collections import Counter

import pytest
from world_reading import readings

from agentrl.envs import MultiHopSearchEnv
from agentrl.envs.chains import draw_chain
from agentrl.envs.names import NameSource
from agentrl.envs.world import LINKS, MEASURES, NUM_ENTITIES, Kind, World, search_in_world, world
from agentrl.errors import ConfigError
from agentrl.seeding import generator
from agentrl.tasks import Task
from agentrl.tools import Tool
from agentrl.tools.search import MAX_PASSAGE_CHARS

NUM_TASKS = 120


@pytest.fixture(scope="module")
def train() -> World:
    return world(0, "train")


def tasks(level: int, split: str = "train") -> list[Task]:
    return list(MultiHopSearchEnv(level=level, split=split).task_set()[:NUM_TASKS])


def found_by(tool: Tool, query: str, top_k: int = 3) -> str:
    text = tool.call({"query": query, "top_k": top_k})
    assert isinstance(text, str)
    return text


def titles(passages: str) -> list[str]:
    return re.findall(r"^\[\d+\] (.*?): ", passages, re.MULTILINE)


# The world -----------------------------------------------------------------------------------------------------------


def test_a_few_thousand_documents_of_distinct_titles(train: World) -> None:
    documents = train.documents
    assert len(documents) == sum(NUM_ENTITIES.values()) == 3000
    assert len({document.title for document in documents}) == 3000
    assert Counter(entity.kind for entity in train.entities) == NUM_ENTITIES
    assert max(len(f"{document.title}: {document.text}") for document in documents) < MAX_PASSAGE_CHARS


def test_every_fact_stands_in_the_document_of_its_own_entity(train: World) -> None:
    for entity, document in zip(train.entities, train.documents, strict=True):
        assert set(entity.links) == {link.name for link in LINKS[entity.kind]}
        assert set(entity.measures) == {measure.name for measure in MEASURES[entity.kind]}
        for target in entity.links.values():
            assert train.entities[target].name in document.text
        for value in entity.measures.values():
            assert re.search(rf"\b{value}\b", document.text)
        assert document.text.count(entity.name) >= 1
        assert "{" not in document.text


def test_documents_name_nothing_but_their_own_facts(train: World) -> None:
    """Otherwise a question could be cut short by a document that tells more than the data of the world say."""
    names = {e.name.removeprefix("River "): e.number for e in train.entities if e.kind in (Kind.TOWN, Kind.RIVER)}
    for entity, document in zip(train.entities, train.documents, strict=True):
        named = {names[word] for word in re.findall(r"\w+", document.text) if word in names}
        assert named <= {entity.number, *entity.links.values()}


def test_mentions_are_the_links_backwards(train: World) -> None:
    links = {(entity.number, target) for entity in train.entities for target in entity.links.values()}
    mentions = {(source, number) for number, sources in enumerate(train.mentioned_by) for source in sources}
    assert mentions == links


def test_numbers_are_in_their_range(train: World) -> None:
    for entity in train.entities:
        for measure in MEASURES[entity.kind]:
            assert measure.low <= entity.measures[measure.name] <= measure.high


def test_every_document_is_found_by_its_title(train: World) -> None:
    tool = search_in_world(0, "train")
    for entity in train.entities[::7]:
        assert entity.name in titles(found_by(tool, entity.name)), entity.name


def test_worlds_follow_seed_and_split() -> None:
    assert World(0, "train").documents == world(0, "train").documents
    first = {document.title for document in world(0, "train").documents}
    for other in (world(0, "test"), world(1, "train")):
        texts = {document.text for document in other.documents}
        assert not texts & {document.text for document in world(0, "train").documents}
        assert len(first & {document.title for document in other.documents}) < 100  # a town's name may occur in both


def test_worlds_and_indexes_are_built_once_and_shared() -> None:
    one, two = MultiHopSearchEnv(), MultiHopSearchEnv(level=3)
    assert one.tools[0] is two.tools[0]
    assert world(0, "train") is world(0, "train")
    one.reset(seed=1)
    assert one.fork().tools[0] is one.tools[0]


def test_one_phrase_means_one_fact() -> None:
    meanings = {(fact.phrase, fact.name) for kind in Kind for fact in (*LINKS[kind], *MEASURES[kind])}
    assert len(meanings) == len({phrase for phrase, _ in meanings})
    assert all(phrase.startswith("the ") and phrase.endswith(" {}") for phrase, _ in meanings)


def test_names_are_drawn_once() -> None:
    source = NameSource(generator(0, "names"))
    words = [source.word() for _ in range(3000)]
    assert len(set(words)) == 3000
    assert all(re.fullmatch(r"[A-Z][a-z]+", word) for word in words)
    pairs = [source.combined(["A", "B"], ["C", "D"]) for _ in range(4)]
    assert sorted(pairs) == ["A C", "A D", "B C", "B D"]


# The questions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", range(1, 5))
def test_the_number_of_documents_to_read_is_the_level(level: int) -> None:
    for task in tasks(level):
        path = task.metadata["path"]
        assert len(path) == len(set(path)) == level
        assert path[0] in str(task.prompt)
        assert not any(name in str(task.prompt) for name in [*path[1:], task.answer[0]]), task


@pytest.mark.parametrize("level", range(1, 5))
@pytest.mark.parametrize("split", ["train", "test"])
def test_the_answer_is_the_only_one(level: int, split: str) -> None:
    for task in tasks(level, split):
        phrase = str(task.prompt).split(" is ", 1)[1].removesuffix("?")
        assert readings(world(0, split), phrase) == {task.answer[0]}, task


@pytest.mark.parametrize("level", range(2, 5))
def test_no_document_that_names_the_start_holds_the_answer(level: int, train: World) -> None:
    """The only document with the answer that chance does not explain is the last one, which names other things."""
    for task in tasks(level):
        start, answer = task.metadata["path"][0], task.answer[0]
        for document in train.documents:
            if start in document.text:
                assert not re.search(rf"\b{re.escape(answer)}\b", document.text), (task, document)


@pytest.mark.parametrize("level", range(2, 5))
@pytest.mark.parametrize("top_k", [3, 10])
def test_no_single_search_answers_a_question_of_several_hops(level: int, top_k: int) -> None:
    """An agent that reads perfectly but searches once has all the documents it needs at most by rare chance."""
    tool = search_in_world(0, "train")
    lucky = 0
    for task in tasks(level):
        path = task.metadata["path"]
        for query in (str(task.prompt), path[0]):
            lucky += set(path) <= set(titles(found_by(tool, query, top_k)))
    assert lucky <= 0.02 * NUM_TASKS, f"{lucky} of {NUM_TASKS} by one search"


def test_a_question_of_one_hop_is_answered_by_one_search() -> None:
    """The control of the test above: the same agent finds these."""
    tool = search_in_world(0, "train")
    found = sum(task.metadata["path"][0] in titles(found_by(tool, str(task.prompt))) for task in tasks(1))
    assert found == NUM_TASKS


@pytest.mark.parametrize("level", range(1, 5))
def test_each_search_of_the_oracle_is_told_by_what_it_read_before(level: int) -> None:
    """So demonstrations show what an agent can do that does not know the answer."""
    env = MultiHopSearchEnv(level=level, split="test")
    for index in range(20):
        known, _ = env.reset(options={"task": index})
        while not env.episode.done:
            action = env.oracle(env.task, env.episode)
            if len(env.episode.calls) < level:
                assert env.task.metadata["path"][len(env.episode.calls)] in known
            else:
                assert re.search(rf"\b{env.task.answer[0]}\b", known)
            known = env.step(action)[0]


def test_kinds_of_questions_are_spread() -> None:
    """Random walks must not all end in the same kind of answer."""
    facts = Counter(draw_chain(world(0, "train"), generator(n, "spread"), 2).fact for n in range(300))
    assert len(facts) >= 14
    assert max(facts.values()) < 90


def test_chain_that_does_not_exist_is_refused(train: World) -> None:
    with pytest.raises(ConfigError, match="No chain of 2 facts"):
        draw_chain(train, generator(0, "x"), 2, last={"pages"})  # no fact leads to a book


@pytest.mark.parametrize(
    ("text", "reward", "success"),
    [
        ("Answer: {answer}", 1.0, True),
        ("the {answer}.", 1.0, True),
        ("{answer} Velby", 0.8, False),  # two words of three are right: precision 2/3, recall 1: 2 * 2/3 / (5/3)
        ("{first}", 2 / 3, False),  # precision 1, recall 1/2: 2 * 1/2 / (3/2)
        ("nobody", 0.0, False),
    ],
)
def test_reward_is_f1_and_success_is_the_whole_answer(text: str, reward: float, success: bool) -> None:
    env = MultiHopSearchEnv()
    index = next(i for i, task in enumerate(env.task_set()) if str(task.prompt).startswith("Who"))
    env.reset(options={"task": index})
    answer = env.task.answer[0]
    *_, info = env.step(text.format(answer=answer, first=answer.split()[0]))
    assert info["result"]["turn_rewards"] == [pytest.approx(reward, abs=1e-12)]
    assert info["result"]["success"] is success


def test_a_river_may_be_called_by_its_bare_name() -> None:
    env = MultiHopSearchEnv()
    index = next(i for i, task in enumerate(env.task_set()) if "the river that runs" in str(task.prompt))
    for answer in env.task_set()[index].answer:
        env.reset(options={"task": index})
        assert env.step(answer)[1] == 1.0
