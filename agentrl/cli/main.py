"""`agentrl`: every command, its options and its help. What a command does is in the module it imports.

Those imports stand inside the functions, so that `agentrl --help` answers at once and needs no deep-learning stack.
"""

import errno
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from agentrl import __version__
from agentrl.cli.sandbox import sandbox_app
from agentrl.errors import AgentRLError

NOTHING_MEASURED, DRIFTED, USER_ERROR, INTERRUPTED = 1, 1, 2, 130
"""Exit statuses; 130 is what a shell gives a program that Ctrl-C ended."""


class _OneLineErrors(TyperGroup):
    """Prints an error that a user can mend as one line; `--debug`, anywhere on the line, shows the traceback."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--debug" in args:
            args = ["--debug", *(argument for argument in args if argument != "--debug")]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except (AgentRLError, OSError) as error:
            if ctx.params.get("debug") or _is_closed_pipe(error):
                raise
            for line in _describe(error).splitlines():
                typer.echo(f"error: {line}", err=True)
            raise typer.Exit(USER_ERROR) from None


app = typer.Typer(
    cls=_OneLineErrors,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Define tool-use environments, train language-model agents in them, and measure their success rate.",
)
new_app = typer.Typer(no_args_is_help=True, help="Write the files to start from.")
app.add_typer(new_app, name="new")
app.add_typer(sandbox_app, name="sandbox")


def main() -> None:
    """Entry point of the `agentrl` command."""
    sys.path.insert(0, os.getcwd())  # "module:Name-v0" names a file in the folder where the command is typed
    app(prog_name="agentrl")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"agentrl {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Options of every command; `_OneLineErrors` reads --debug."""


@app.command("envs")
def envs_command() -> None:
    """List the environments."""
    from agentrl.cli.lists import list_environments, print_listing

    print_listing(list_environments())


@app.command("tools")
def tools_command() -> None:
    """List the tools that a config can name."""
    from agentrl.cli.lists import list_tools, print_listing

    print_listing(list_tools())


@app.command("algorithms")
def algorithms_command(
    name: Annotated[str | None, typer.Argument(help="One algorithm, to see its parts and numbers.")] = None,
) -> None:
    """List the training algorithms, or show one."""
    from agentrl.cli.lists import list_algorithms, print_algorithm, print_listing

    if name is None:
        print_listing(list_algorithms())
    else:
        print_algorithm(name)


@app.command("train")
def train_command(
    config: Annotated[Path, typer.Argument(help="YAML file; with --resume, also the folder of a run.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings, such as optimizer.learning_rate=1e-4."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run after its latest checkpoint.")] = False,
) -> None:
    """Train an agent and measure held-out success before and after."""
    from agentrl.cli.train import run_training

    run_training(config, overrides or [], resume=resume)


@app.command("eval")
def eval_command(
    model: Annotated[
        str, typer.Argument(help="quickstart, a model or run folder, a hub id, or a served model's name.")
    ],
    env: Annotated[str | None, typer.Option(help="Environment; by default the one a run was trained in.")] = None,
    env_arg: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Argument of the environment; may be repeated.")
    ] = None,
    split: Annotated[str, typer.Option(help="Which tasks.")] = "test",
    tasks: Annotated[int, typer.Option(min=1, help="Number of tasks.")] = 200,
    attempts: Annotated[int, typer.Option(min=1, help="Episodes per task.")] = 1,
    temperature: Annotated[float | None, typer.Option(help="Sampling temperature; 1 by default.")] = None,
    top_p: Annotated[float, typer.Option(help="Keep the most probable tokens up to this sum.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Keep this many tokens; 0 keeps all.")] = 0,
    greedy: Annotated[bool, typer.Option("--greedy", help="Always the most probable token.")] = False,
    seed: Annotated[int, typer.Option(help="Of sampling.")] = 0,
    max_turn_tokens: Annotated[int | None, typer.Option(min=1, help="Token limit of a turn.")] = None,
    max_episode_tokens: Annotated[int | None, typer.Option(min=1, help="Token limit of an episode.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda ...; CUDA by default where there is one.")] = None,
    base_url: Annotated[
        str | None, typer.Option(help="OpenAI-compatible server that has the model, such as http://localhost:8000/v1.")
    ] = None,
    api_key_env: Annotated[
        str, typer.Option(metavar="NAME", help="Environment variable with the server's key.")
    ] = "OPENAI_API_KEY",
    concurrency: Annotated[int | None, typer.Option(min=1, help="Episodes at a time; 16 for a server.")] = None,
    timeout_s: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", help="Longest wait for one answer of a server.")
    ] = 300.0,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the report as JSON.")] = None,
) -> None:
    """Measure a model's success rate in an environment."""
    from agentrl.cli.evaluate import EvalOptions, chosen_sampling, evaluate_model

    report = evaluate_model(
        EvalOptions(
            model=model,
            env=env,
            env_arguments=env_arg or (),
            split=split,
            num_tasks=tasks,
            attempts=attempts,
            sampling=chosen_sampling(temperature, top_p, top_k, greedy=greedy),
            seed=seed,
            base_url=base_url,
            api_key_env=api_key_env,
            concurrency=concurrency,
            timeout_s=timeout_s,
            device=device,
            max_turn_tokens=max_turn_tokens,
            max_episode_tokens=max_episode_tokens,
            json_path=json,
        )
    )
    if report.success is None:
        raise typer.Exit(NOTHING_MEASURED)


@app.command("compare")
def compare_command(
    first: Annotated[Path, typer.Argument(help="Report that `agentrl eval --json` wrote.")],
    second: Annotated[Path, typer.Argument(help="Another one, on the same tasks.")],
) -> None:
    """Compare two evaluations task by task."""
    from agentrl.cli.evaluate import compare_reports

    compare_reports(first, second)


@app.command("play")
def play_command(
    env: Annotated[str, typer.Argument(help="Environment, as `agentrl envs` lists them.")],
    task: Annotated[int | None, typer.Option(min=0, help="Number of the task; by default a random one.")] = None,
    split: Annotated[str, typer.Option(help="Which tasks.")] = "test",
    env_arg: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Argument of the environment; may be repeated.")
    ] = None,
    oracle: Annotated[bool, typer.Option("--oracle", help="Let the environment's own solution play.")] = False,
) -> None:
    """Play an episode yourself, with the tools that a model would have."""
    from agentrl.cli.env_arguments import parse_env_arguments
    from agentrl.cli.play import play
    from agentrl.envs import make

    play(make(env, **{"split": split, **parse_env_arguments(env_arg or ())}), task=task, oracle=oracle)


@app.command("show")
def show_command(
    run: Annotated[Path, typer.Argument(help="Run folder, or its name under runs/.")],
    tree: Annotated[int, typer.Option(min=1, help="Which of the stored trees, counted from 1.")] = 1,
    last: Annotated[bool, typer.Option("--last", help="The tree stored last.")] = False,
) -> None:
    """Read sampled trajectories: branches, what was sampled and what was given, entropies, rewards."""
    from agentrl.cli.show import show

    show(run, None if last else tree)


@app.command("replay")
def replay_command(
    run: Annotated[Path, typer.Argument(help="Run folder, or its name under runs/.")],
    episode: Annotated[str, typer.Argument(help="Name of the episode, such as 12.5.0, as `agentrl show` prints it.")],
    execute_all: Annotated[
        bool, typer.Option("--execute-all", help="Also run calls that are not idempotent, with whatever they do.")
    ] = False,
) -> None:
    """Run the tool calls of an episode again, and see where results drift."""
    from agentrl.cli.replay import replay

    if not replay(run, episode, execute_all=execute_all):
        raise typer.Exit(DRIFTED)


@app.command("serve-tools")
def serve_tools_command(
    names: Annotated[
        list[str], typer.Argument(metavar="NAME...", help="As `agentrl tools` lists them, or module:name.")
    ],
    tool_arg: Annotated[
        list[str] | None, typer.Option(metavar="NAME.KEY=VALUE", help="Option of a tool; may be repeated.")
    ] = None,
    http: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Streamable HTTP; standard input and output by default.")
    ] = None,
) -> None:
    """Serve tools to any MCP client, each session with its own."""
    from agentrl.cli.serve_tools import serve_tools

    serve_tools(names, tool_arg or [], http)


@app.command("serve-search")
def serve_search_command(
    corpus: Annotated[Path, typer.Argument(help="Documents as JSON lines, or a search index.")],
    backend: Annotated[
        str | None, typer.Option(help="fts5, tantivy, dense or hybrid; by default what the index is, else fts5.")
    ] = None,
    model: Annotated[Path | None, typer.Option(help="Embedding model folder, for dense and hybrid.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 is open to the network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
) -> None:
    """Serve a search over documents, as Search-R1 does: POST /retrieve."""
    from agentrl.cli.serve_search import serve_search

    serve_search(corpus, backend=backend, model=model, host=host, port=port)


@app.command("serve-policy")
def serve_policy_command(
    model: Annotated[str, typer.Argument(help="quickstart, a model folder, or a hub id.")],
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    trusted_network: Annotated[
        bool,
        typer.Option("--trusted-network", help="Only you reach the address: whoever does can exchange the weights."),
    ] = False,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs to split the model over.")] = 1,
    gpu_memory: Annotated[float, typer.Option(metavar="FRACTION", help="Of each GPU's memory, to use.")] = 0.9,
    dtype: Annotated[
        str | None, typer.Option(help="float32 or bfloat16; by default bfloat16 on CUDA and float32 elsewhere.")
    ] = None,
    context: Annotated[
        int | None, typer.Option(min=1, metavar="TOKENS", help="Longest sequence; by default the model's.")
    ] = None,
    max_in_flight: Annotated[int, typer.Option(min=1, help="Requests computed at a time.")] = 64,
    lora_rank: Annotated[
        int | None, typer.Option(min=1, help="Take LoRA adapters up to this rank instead of whole weights.")
    ] = None,
    can_sleep: Annotated[bool, typer.Option("--can-sleep", help="Lend the GPU's memory to a trainer.")] = False,
) -> None:
    """Serve a model with vLLM, set up for training: policy.servers names it."""
    from agentrl.cli.serve_policy import serve_policy
    from agentrl.policies.loading import model_path
    from agentrl.policies.vllm.settings import EngineSettings

    settings = EngineSettings(
        model=model_path(model),
        context_length=context,
        max_in_flight=max_in_flight,
        num_top=63,
        dtype=dtype,
        lora_rank=lora_rank,
        gpu_memory=gpu_memory,
        gpus=gpus,
        can_sleep=can_sleep,
    )
    serve_policy(settings, host=host, port=port, trusted_network=trusted_network)


@new_app.command("env")
def new_env_command(name: Annotated[str, typer.Argument(help="Class name, such as Letters.")]) -> None:
    """Write a small complete environment and its test into this folder."""
    from agentrl.cli.new import write_environment

    for path in write_environment(name, Path.cwd()):
        typer.echo(f"wrote {path.name}")


def _is_closed_pipe(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno == errno.EPIPE  # `agentrl ... | head`: Typer ends quietly


def _describe(error: Exception) -> str:
    if isinstance(error, OSError) and not isinstance(error, AgentRLError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__
