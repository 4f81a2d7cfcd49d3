"""A forked session is equal at first and independent ever after."""

import pytest
from session_checks import OpenSession, folder_of, processes_in

from agentrl.errors import ForkError
from agentrl.sandbox import Limits
from agentrl.sandbox.session import RunnerSession

BRANCH = "numbers.append(99); x += 1; (numbers, x)"


def test_a_fork_has_the_names_and_goes_its_own_way(session: RunnerSession) -> None:
    session.run("numbers = [1, 2]; x = 10\ndef total(): return sum(numbers)")
    fork = session.fork()
    assert fork.run(BRANCH).output == "([1, 2, 99], 11)\n"
    assert session.run("numbers, x, total()").output == "([1, 2], 10, 3)\n"
    session.run("numbers = 'changed'")
    assert fork.run("numbers, total()").output == "([1, 2, 99], 102)\n"
    fork.close()


def test_nothing_runs_a_second_time(session: RunnerSession) -> None:
    session.run("import os, time; stamp = (time.time_ns(), os.urandom(8))")
    fork = session.fork()
    assert fork.run("stamp").output == session.run("stamp").output
    fork.close()


def test_files_are_copied_and_then_separate(session: RunnerSession) -> None:
    session.run("import os; os.makedirs('a/b'); open('a/b/f', 'w').write('one'); os.symlink('a/b/f', 'link')")
    fork = session.fork()
    assert fork.run("open('link').read()").output == "'one'\n"
    fork.run("open('a/b/f', 'w').write('two'); open('new', 'w').close()")
    assert session.run("open('link').read(), os.path.exists('new')").output == "('one', False)\n"
    session.run("os.remove('a/b/f')")
    assert fork.run("open('link').read()").output == "'two'\n"
    assert session.run("os.path.exists('a/b/f')").output == "False\n"
    fork.close()


def test_a_path_kept_as_text_names_a_file_of_ones_own(session: RunnerSession) -> None:
    session.run("import os; path = os.path.abspath('notes'); _ = open(path, 'w').write('first')")
    fork = session.fork()
    fork.run("_ = open(path, 'w').write('fork')")
    session.run("_ = open(path, 'a').write(' more')")
    for branch, text in ((fork, "fork"), (session, "first more"), (fork, "fork")):
        assert branch.run("open(path).read(), open('notes').read(), path == os.path.abspath('notes')").output == (
            f"({text!r}, {text!r}, True)\n"
        )
    fork.close()


def test_folders_that_cells_removed_are_made_again(session: RunnerSession) -> None:
    fork = session.fork()
    fork.run("import os, shutil; shutil.rmtree(os.getcwd())")
    assert session.run("import os; os.listdir()").output == "[]\n"
    assert fork.run("1").output == "1\n"
    fork.close()


def test_open_files_get_positions_and_contents_of_their_own(session: RunnerSession) -> None:
    session.run("out = open('log', 'w+'); _ = out.write('begin '); out.flush()")
    session.run("source = open('data', 'w+'); _ = source.write('abcdef'); _ = source.seek(2)")
    fork = session.fork()
    for branch, word in ((session, "original"), (fork, "fork")):
        branch.run(f"_ = out.write('{word}'); out.flush(); _ = out.seek(0)")
        assert branch.run("out.read()").output == f"'begin {word}'\n"
        assert branch.run("source.read(2)").output == "'cd'\n"
    fork.close()


def test_unflushed_text_is_written_by_both_to_their_own_file(session: RunnerSession) -> None:
    session.run("out = open('log', 'w'); _ = out.write('buffered')")
    fork = session.fork()
    session.run("out.close()")
    assert fork.run("open('log').read()").output == "''\n"
    assert fork.run("out.close(); open('log').read()").output == "'buffered'\n"
    fork.close()


def test_the_current_directory_is_the_same_place_in_the_copy(session: RunnerSession) -> None:
    session.run("import os; os.mkdir('inner'); os.chdir('inner')")
    fork = session.fork()
    fork.run("open('here', 'w').close()")
    assert fork.run("os.listdir('.')").output == "['here']\n"
    assert session.run("os.listdir('.')").output == "[]\n"
    assert fork.run("os.getcwd() == os.path.join(os.environ['HOME'], 'inner')").output == "True\n"
    fork.close()


def test_random_numbers_go_on_as_in_the_original(session: RunnerSession) -> None:
    session.run("import random; random.seed(7); random.random()")
    fork = session.fork()
    assert fork.run("random.random()").output == session.run("random.random()").output
    fork.close()


def test_temporary_files_of_a_fork_are_its_own(session: RunnerSession) -> None:
    session.run("import tempfile; tempfile.gettempdir()")
    fork = session.fork()
    assert fork.run("tempfile.gettempdir()").output.strip("'\n") == str(folder_of(fork) / "tmp")
    fork.close()


def test_forks_fork_and_outlive_their_originals(open_session: OpenSession) -> None:
    root = open_session()
    root.run("path = ['root']")
    child = root.fork()
    child.run("path.append('child')")
    grandchild = child.fork()
    folder = folder_of(root)
    assert len(processes_in(folder)) == 3
    root.close()
    assert len(processes_in(folder)) == 2
    child.close()
    assert grandchild.run("path + ['grandchild']").output == "['root', 'child', 'grandchild']\n"
    grandchild.close()
    assert not folder.exists()
    assert processes_in(folder) == []


def test_an_original_survives_the_end_of_its_fork(session: RunnerSession) -> None:
    session.run("x = 1")
    session.fork().close()
    assert session.run("x").output == "1\n"


def test_a_fork_is_not_taken_for_a_left_over_process(session: RunnerSession) -> None:
    fork = session.fork()
    session.run("1")  # all that a cell leaves behind is killed after it
    session.run("import os; os._exit(1)")
    assert fork.run("2").output == "2\n"
    fork.close()


def test_a_fork_keeps_the_limits_and_the_rollback(open_session: OpenSession) -> None:
    session = open_session(Limits(cpu_s=0.3, wall_s=60))
    session.run("x = 5")
    fork = session.fork()
    result = fork.run("x = 6\nwhile True: pass")
    assert (result.status, result.reason, result.state) == ("timeout", "cpu", "rolled_back")
    assert fork.run("x").output == "5\n"
    assert fork.fork().run("x").output == "5\n"


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("import threading, time; threading.Thread(target=time.sleep, args=(60,), daemon=True).start()", "a thread"),
        ("import os; ends = os.pipe()", "a pipe is open"),
        ("import socket; a, b = socket.socketpair()", "a socket is open"),
        ("import select; e = select.epoll()", "a kernel object is open"),
        ("import mmap; m = mmap.mmap(-1, 4096)", "memory is mapped as shared"),
        ("import tempfile; t = tempfile.TemporaryFile()", "a temporary file without a name is open for writing"),
    ],
)
def test_what_two_processes_would_share_is_refused(session: RunnerSession, code: str, what: str) -> None:
    session.run(code)
    with pytest.raises(ForkError, match=f"cannot be copied: {what}"):
        session.fork()
    assert session.run("1").output == "1\n", "a refusal must not harm the original"


def test_a_refusal_ends_with_its_cause(session: RunnerSession) -> None:
    session.run("import os; r, w = os.pipe()")
    with pytest.raises(ForkError):
        session.fork()
    session.run("os.close(r); os.close(w)")
    fork = session.fork()
    assert fork.run("1").output == "1\n"
    fork.close()


def test_reading_a_deleted_file_goes_on_in_both(session: RunnerSession) -> None:
    session.run("import os; open('f', 'w').write('abcd'); f = open('f', buffering=1); os.remove('f'); f.read(1)")
    session.run("import os; fd = os.open('g', os.O_CREAT | os.O_RDWR); os.write(fd, b'wxyz'); os.close(fd)")
    session.run("fd = os.open('g', os.O_RDONLY); os.remove('g'); os.read(fd, 1)")
    fork = session.fork()
    for branch in (session, fork):
        assert branch.run("os.read(fd, 1)").output == "b'x'\n"
    fork.close()


def test_a_special_file_is_left_out_and_does_not_block(session: RunnerSession) -> None:
    session.run("import os; os.mkfifo('fifo'); open('f', 'w').close()")
    fork = session.fork()
    assert fork.run("os.listdir('.')").output == "['f']\n"
    fork.close()
