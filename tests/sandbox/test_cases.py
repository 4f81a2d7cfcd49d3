"""Where each case of the life of a sandbox is proved (75 others are the programs in `sandbox/attacks`)."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]

CASES: dict[int, list[str]] = {
    76: [  # trainer killed while a cell loops
        "sandbox/test_janitor.py::test_a_killed_trainer_leaves_nothing",
        "sandbox/test_docker_sandbox.py::test_a_trainer_killed_during_a_cell_leaves_nothing",
        "sandbox/test_session_end.py::test_a_killed_host_leaves_nothing",
    ],
    77: [  # trainer killed between making and starting a container
        "sandbox/test_docker_own_engine.py::test_a_trainer_killed_before_the_start_leaves_a_container_that_the_next_one_removes",
        "sandbox/test_docker_own_engine.py::test_a_sweep_counts_what_it_removes",
        "sandbox/test_janitor.py::test_starting_removes_what_was_left_by_those_killed_with_their_janitor",
    ],
    78: ["sandbox/test_bubblewrap_life.py::test_a_sandbox_outlives_the_thread_that_started_it"],
    79: ["sandbox/test_bubblewrap_life.py::test_a_sandbox_whose_outer_process_is_killed_is_ended_by_closing"],
    80: [  # no engine
        "sandbox/test_docker_sandbox.py::test_without_a_socket_the_ways_out_are_named",
        "sandbox/test_docker_sandbox.py::test_a_refused_connection_means_that_the_engine_must_be_started",
        "sandbox/test_docker_sandbox.py::test_a_forbidden_socket_means_that_the_user_needs_the_group",
        "sandbox/test_bubblewrap_remedy.py::test_without_bubblewrap_the_package_is_named",
    ],
    81: [
        "sandbox/test_docker_sandbox.py::test_a_missing_image_is_named_with_the_command_that_makes_it_and_never_pulled"
    ],
    82: ["sandbox/test_docker_sandbox.py::test_an_unknown_runtime_is_named_with_those_there_are"],
    83: ["sandbox/test_docker_own_engine.py::test_the_end_of_the_engine_is_no_fault_of_the_program"],
    84: ["sandbox/test_docker_own_engine.py::test_the_end_of_the_engine_is_no_fault_of_the_program"],
    85: [  # the kernel kills process 1 for its memory
        "sandbox/test_docker_link.py::test_a_program_killed_for_its_memory_is_told_from_one_that_ended",
        "sandbox/test_cgroups.py::test_a_sandbox_whose_first_process_is_killed_for_memory_says_so",
        "sandbox/test_home.py::test_a_sandbox_that_the_kernel_ended_for_its_memory_is_the_programs_doing",
    ],
    86: [  # a frame too large, half a frame, junk
        "sandbox/test_frames.py::test_junk_is_refused",
        "sandbox/test_frames.py::test_the_size_is_checked_before_the_body_is_read",
        "sandbox/test_frames.py::test_half_a_message_does_not_wait_for_ever",
        "sandbox/test_home.py::test_what_is_no_message_is_an_infrastructure_failure",
    ],
    87: [  # JSON with NaN, deep nesting, huge integers; other fields than there should be
        "sandbox/test_frames.py::test_junk_is_refused",
        "sandbox/test_home.py::test_what_is_no_message_is_an_infrastructure_failure",
        "sandbox/test_home.py::test_an_answer_with_other_fields_is_refused",
    ],
    88: [  # the answer to somebody else
        "sandbox/test_home.py::test_an_answer_to_another_request_is_refused",
        "sandbox/test_session_end.py::test_sessions_of_several_threads_do_not_mix",
        "sandbox/test_shared_home.py::test_cells_of_a_family_take_turns_and_mix_nothing",
    ],
    89: [  # a call is cancelled
        "sandbox/test_session_asyncio.py::test_a_cancelled_call_is_ended_by_closing_its_session",
        "sandbox/test_session_asyncio.py::test_a_fork_goes_on_after_a_cancelled_call",
        "sandbox/test_session_asyncio.py::test_closing_from_another_thread_tells_the_caller",
        "sandbox/test_session_end.py::test_closing_ends_a_running_cell",
    ],
    90: ["sandbox/test_session_asyncio.py::test_a_session_outlives_its_event_loop_and_is_closed_from_another_thread"],
    91: [  # a forked trainer
        "sandbox/test_bubblewrap_life.py::test_a_forked_trainer_does_not_end_its_parents_sandbox",
        "sandbox/test_bubblewrap_life.py::test_a_forked_trainer_opens_its_own",
        "sandbox/test_docker_link.py::test_a_busy_fork_of_the_trainer_uses_connections_of_its_own",
        "sandbox/test_pool.py::test_a_forked_copy_of_the_host_begins_with_an_empty_pool",
        "sandbox/test_session_end.py::test_a_forked_host_does_not_end_its_parents_session",
    ],
    92: ["sandbox/test_hostile_crowd.py::test_the_others_get_their_answers"],
    93: [  # state from one episode to the next
        "sandbox/test_walls.py::test_sessions_know_nothing_of_each_other",
        "sandbox/test_walls.py::test_a_pool_hands_out_fresh_sandboxes",
        "sandbox/test_walls.py::test_a_stateless_program_finds_nothing_of_another_anywhere",
        "tools/test_interpreter.py::test_episodes_do_not_see_each_other",
    ],
    94: [  # identities are used once: by a sandbox, by a pool, by a process id, by a user id
        "sandbox/test_pool.py::test_a_sandbox_is_never_handed_out_twice",
        "sandbox/test_owner.py::test_the_process_id_given_to_another_process_is_not_the_owner",
        "sandbox/test_bubblewrap_life.py::test_a_pidfd_stands_for_one_process",
        "sandbox/test_bubblewrap_life.py::test_user_ids_are_of_one_process_until_it_ends",
    ],
    95: [  # answers of a task
        "sandbox/test_walls.py::test_neither_answer_nor_reward_code_can_be_reached",
        "sandbox/test_bubblewrap_view.py::test_nothing_of_agentrl_or_of_the_project_can_be_reached",
        "tools/test_interpreter.py::test_files_are_in_every_session",
    ],
    96: [  # rewards are computed outside, from what was fetched, and graded programs run in sandboxes of their own
        "envs/test_tool_env.py::test_a_reward_can_look_at_what_the_agent_has_made",
        "envs/test_unit_tests.py::test_expected_values_never_enter_the_sandbox",
        "envs/test_unit_tests.py::test_sessions_are_fresh",
    ],
    97: [  # there is no test file that a solution could change: calls go in one by one, values are compared outside
        "envs/test_unit_tests.py::test_cheating_gains_nothing",
        "envs/test_unit_tests.py::test_expected_values_never_enter_the_sandbox",
    ],
    98: [  # exits, in a solution and in a test
        "envs/test_unit_tests.py::test_cheating_gains_nothing",
        "envs/test_unit_tests.py::test_a_killed_test_fails_the_ones_after_it",
    ],
    99: [  # answers in tracebacks and in the environment
        "sandbox/test_cells.py::test_the_report_shows_the_cells_lines_and_nobody_elses",
        "sandbox/test_session.py::test_the_environment_is_built_from_nothing",
        "sandbox/test_bubblewrap_view.py::test_the_environment_is_empty_but_for_settings",
        "sandbox/test_docker_hardening.py::test_nothing_of_the_machine_shows",
    ],
    100: [  # metadata service, names, IPv6, vsock: attack 392 and the others of the group net
        "sandbox/test_attacks_isolated.py::test_it_holds_and_nobody_notices",
        "sandbox/test_bubblewrap_view.py::test_there_is_no_network_but_an_empty_loopback",
        "sandbox/test_docker_hardening.py::test_there_is_no_network",
    ],
    101: [  # logs that fill the disk
        "sandbox/test_docker_hardening.py::test_what_is_printed_is_not_stored_by_the_engine",
        "sandbox/test_output_buffer.py::test_memory_is_bounded",
        "sandbox/test_attacks.py::test_a_huge_output_costs_the_runner_no_memory",
    ],
    # The clock of a machine cannot be set for a test; what is proved is that nobody reads it for a deadline.
    102: ["sandbox/test_cases.py::test_deadlines_read_no_clock_that_can_be_set"],
    # A thousand in short: what grows with each would show after 10, 100 or, in the soak, as many as are wanted.
    103: [
        "sandbox/test_session_end.py::test_many_sessions_leave_no_descriptor_zombie_or_thread",
        "sandbox/test_bubblewrap_life.py::test_a_hundred_sandboxes_leave_nothing",
        "sandbox/test_docker_link.py::test_nothing_is_left_open",
        "sandbox/test_soak.py::test_nothing_is_lost_and_nothing_is_left",
    ],
    104: ["sandbox/test_limits.py::test_what_is_no_limit_is_refused_by_name"],
    105: [  # code that is too long or odd
        "sandbox/test_session.py::test_code_over_the_limit_is_refused_before_it_runs",
        "sandbox/test_session.py::test_odd_code_is_a_result_and_never_a_crash",
        "sandbox/test_cells.py::test_what_does_not_compile_raises",
    ],
    106: ["sandbox/test_session.py::test_sets_are_printed_in_the_same_order_in_every_session"],
    107: [
        "sandbox/test_walls.py::test_load_makes_no_false_timeouts",
        "sandbox/test_shared_home.py::test_waiting_for_a_turn_does_not_count",
    ],
    # A machine has cgroups of one version. Of the other, version 2 where the tests run on version 1, only what is read
    # and written is proved, on folders that look like it; rootless engines and those without swap accounting likewise,
    # by what an engine says of itself. That limits bind is found out on the machine itself, by the self-test.
    108: [
        "sandbox/test_cgroups.py::test_the_self_test_fails_where_a_limit_does_not_bind",
        "sandbox/test_cgroups.py::test_with_v2_memory_swap_and_pids_are_written_and_kills_are_read",
        "sandbox/test_cgroups.py::test_with_v2_the_nearest_ancestor_that_hands_down_both_controllers_is_the_place",
        "sandbox/test_docker_sandbox.py::test_engines_whose_limits_do_not_bind_are_refused",
        "sandbox/test_selftest.py::test_memory_that_grows_is_told_apart_from_getting_out",
    ],
}


def test_every_case_is_there() -> None:
    assert sorted(CASES) == list(range(76, 109))
    assert all(CASES.values())


@pytest.mark.parametrize("node", sorted({node for nodes in CASES.values() for node in nodes}))
def test_the_test_of_a_case_exists_and_is_in_the_default_run(node: str) -> None:
    file, _, name = node.partition("::")
    functions = {
        function.name: function
        for function in ast.parse((TESTS / file).read_text()).body
        if isinstance(function, ast.FunctionDef)
    }
    assert name in functions, f"{file} has no {name}"
    whole_marks = [ast.unparse(decorator) for decorator in functions[name].decorator_list]
    assert not {"pytest.mark.slow", "pytest.mark.skip", "pytest.mark.xfail"} & {
        mark.split("(")[0] for mark in whole_marks
    }


def test_deadlines_read_no_clock_that_can_be_set() -> None:
    """Of all sandbox code only the question for past events of an engine names a date."""
    readers = set()
    folder = TESTS.parent / "sandbox"
    paths = sorted(folder.rglob("*.py"))
    assert folder / "runner" / "cell_watch.py" in paths
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            is_time = isinstance(node, ast.Attribute) and ast.unparse(node) in ("time.time", "time.time_ns")
            is_date = isinstance(node, ast.Attribute) and node.attr in ("now", "utcnow", "today")
            imported = isinstance(node, ast.ImportFrom) and node.module in ("time", "datetime")
            names = {alias.name for alias in node.names} if isinstance(node, ast.ImportFrom) and imported else set()
            if is_time or is_date or names & {"time", "time_ns", "datetime"}:
                readers.add(str(path.relative_to(folder)))
    assert readers <= {"docker/docker_dialect.py"}
