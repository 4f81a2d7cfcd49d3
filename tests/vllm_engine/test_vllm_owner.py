"""The end of the trainer is the end of its engine, however the trainer ends."""

import subprocess
import sys
from pathlib import Path

import pytest
from process_tree import descendants, left_after

pytestmark = pytest.mark.vllm

HERE = Path(__file__).parent
SECONDS = 120.0


def test_nothing_is_left_of_the_engine_of_a_killed_trainer() -> None:
    with subprocess.Popen(
        [sys.executable, HERE / "open_and_wait.py"], stdout=subprocess.PIPE, start_new_session=True
    ) as trainer:
        try:
            assert trainer.stdout is not None
            assert trainer.stdout.readline() == b"open\n"
            engine = descendants(trainer.pid)
            assert len(engine) >= 2  # core and worker
        finally:
            trainer.kill()
    assert left_after(engine, SECONDS) == set()


def test_a_script_that_starts_itself_again_is_told_what_to_do(tmp_path: Path) -> None:
    script = tmp_path / "unguarded.py"
    script.write_text((HERE / "open_and_wait.py").read_text().replace('if __name__ == "__main__":', "if True:"))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=900)
    assert done.returncode != 0
    assert "Put what it does under: if __name__ == '__main__':" in done.stderr
