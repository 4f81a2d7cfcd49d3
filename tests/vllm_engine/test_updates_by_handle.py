"""New weights that a running engine reads where the trainer has them: a CPU's shared memory stands for a GPU's."""

import copy
import gc
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_engine import LiveEngine, largest_gap, make_order, perturb, questions
from process_tree import descendants
from tiny_models import make_tiny_llama

from agentrl.errors import PolicyError
from agentrl.policies.loading import LoadedModel, load_model
from agentrl.policies.vllm import handles
from agentrl.policies.vllm.weights import WeightFiles

pytestmark = pytest.mark.vllm

CLOSE = 1e-3


@pytest.fixture
def files(live: LiveEngine, loaded: LoadedModel) -> Iterator[WeightFiles]:
    with WeightFiles(loaded.model) as files:
        share(live, files)
        yield files


def share(live: LiveEngine, files: WeightFiles) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        live.run(files.share(live.engine.rehearse))


def update(live: LiveEngine, files: WeightFiles) -> int:
    with files.write(live.version + 1) as path:
        assert path.suffix == ".handles"
        assert path.stat().st_size < 1e5
        version = live.load(path)
    assert not path.exists()
    return version


def long_prompt(loaded: LoadedModel) -> list[int]:
    return (questions(loaded, 1)[0] * 6)[:134]


def shared_files() -> set[str]:
    """What this process has put into shared memory."""
    return {path.name for path in Path("/dev/shm").glob(f"torch_{os.getpid()}_*")}


def test_after_an_update_the_engine_is_the_trainers_model_of_then(
    live: LiveEngine, loaded: LoadedModel, files: WeightFiles
) -> None:
    prompt = long_prompt(loaded)
    for step in range(3):
        perturb(loaded.model, seed=step)
        version = update(live, files)
        then = copy.deepcopy(loaded.model)
        perturb(loaded.model, seed=99)  # in the memory that was read
        [first], [again] = live.sample(make_order(prompt)), live.sample(make_order(prompt))
        assert (first.num_cached, again.num_cached) == (0, 128)
        assert first.versions == again.versions == (version, version)
        assert largest_gap(then, prompt, first) < CLOSE
        assert largest_gap(loaded.model, prompt, first) > 0.1


def test_tied_weights(live: LiveEngine, loaded: LoadedModel, files: WeightFiles) -> None:
    assert loaded.model.config.tie_word_embeddings
    perturb(loaded.model, only="embed_tokens")
    update(live, files)
    prompt = long_prompt(loaded)
    assert largest_gap(loaded.model, prompt, live.sample(make_order(prompt))[0]) < CLOSE


def test_weights_of_another_model_change_nothing(live: LiveEngine, loaded: LoadedModel, files: WeightFiles) -> None:
    update(live, files)
    with WeightFiles(make_tiny_llama(64)) as others:
        share(live, others)
        with pytest.raises(PolicyError, match="do not fit the model"):
            update(live, others)
    prompt = long_prompt(loaded)
    [turn] = live.sample(make_order(prompt))
    assert turn.versions == (live.version, live.version)
    assert largest_gap(loaded.model, prompt, turn) < CLOSE


def test_weights_that_change_while_they_are_handed_over_are_refused(
    live: LiveEngine, loaded: LoadedModel, files: WeightFiles
) -> None:
    update(live, files)
    before = copy.deepcopy(loaded.model)
    with files.write(live.version + 1) as path:
        perturb(loaded.model, only="layers.1.mlp")
        with pytest.raises(PolicyError, match=r"in the memory of model\.layers\.1\.mlp"):
            live.load(path)
    prompt = long_prompt(loaded)
    assert largest_gap(before, prompt, live.sample(make_order(prompt))[0]) < CLOSE


def test_where_memory_cannot_be_read_files_do_it(
    live: LiveEngine, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = handles.export
    monkeypatch.setattr(handles, "export", lambda tensors: export(tensors).replace("/torch_", "/gone_"))
    with WeightFiles(loaded.model) as files:
        with pytest.warns(UserWarning, match="cannot read the trainer's memory.*gone_"):
            live.run(files.share(live.engine.rehearse))
        perturb(loaded.model)
        with files.write(live.version + 1) as path:
            assert path.suffix == ".safetensors"
            live.load(path)
    prompt = long_prompt(loaded)
    assert largest_gap(loaded.model, prompt, live.sample(make_order(prompt))[0]) < CLOSE


def test_an_engine_that_has_a_version_does_not_ask_for_it_again(
    live: LiveEngine, loaded: LoadedModel, files: WeightFiles, tmp_path: Path
) -> None:
    """The handles are gone by then, and what they pointed to has changed."""
    version = update(live, files)
    live.run(live.engine.load_weights(tmp_path / "gone.handles", version))
    with pytest.raises(PolicyError, match=r"gone\.handles"):
        live.run(live.engine.load_weights(tmp_path / "gone.handles", version + 1))
    with pytest.raises(PolicyError, match=r"gone\.handles"):  # nobody knows what it has now
        live.run(live.engine.load_weights(tmp_path / "gone.handles", version))


def test_nothing_piles_up_and_nothing_stays(live: LiveEngine) -> None:
    gc.collect()
    before = shared_files()
    model = load_model("quickstart").model
    below = descendants(os.getpid())
    sizes, numbers = [], []
    with WeightFiles(model) as files:
        share(live, files)
        for step in range(20):
            perturb(model, 1e-3, seed=step)
            update(live, files)
            sizes.append(sum(resident(pid) for pid in below))
            numbers.append(len(shared_files() - before))
            assert [line for pid in below for line in mapped(pid)] == []
    weight = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    assert sizes[-1] - sizes[4] < weight, "less than one copy in 15 updates"
    assert numbers == [len(list(model.parameters()))] * 20
    del model, files
    gc.collect()
    assert shared_files() == before


def resident(pid: int) -> int:
    """Bytes of main memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def mapped(pid: int) -> list[str]:
    """Tensors in shared memory that a process has open."""
    return [line for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "/dev/shm/torch_" in line]
