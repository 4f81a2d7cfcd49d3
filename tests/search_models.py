"""Embedding models for tests: one of arithmetic, and a tiny random one that sentence-transformers saved."""

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from agentrl.tools.embedder import Vectors


class HashEmbedder:
    """A random direction for every text, the same in every process.

    Args:
        dimension: Of the vectors.
        log: File that gets a line for each text of a document.
    """

    name = "hash"

    def __init__(self, dimension: int = 16, *, log: Path | None = None) -> None:
        self.dimension = dimension
        self.fingerprint = f"hash-{dimension}" * 3
        self._log = log

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        if self._log is not None:
            with self._log.open("a") as file:
                file.writelines(f"{text}\n" for text in texts)
        return self.embed_queries(texts)

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        rows = [np.random.default_rng(zlib.crc32(text.encode())).standard_normal(self.dimension) for text in texts]
        vectors = np.array(rows, dtype=np.float32).reshape(len(texts), self.dimension)
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


def save_tiny_model(folder: Path, *, seed: int = 0, similarity: str = "cosine") -> Path:
    """A BERT of one layer over single letters with mean pooling, saved by sentence-transformers itself."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    letters = ["[PAD]", "[UNK]", *"abcdefghijklmnopqrstuvwxyz"]
    tokenizer = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate(letters)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    parts = folder.with_name(f"{folder.name}-parts")
    BertModel(BertConfig(vocab_size=len(letters), max_position_embeddings=64, **sizes)).save_pretrained(parts)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=64
    ).save_pretrained(parts)
    modules = [Transformer(str(parts)), Pooling(16, pooling_mode="mean")]
    SentenceTransformer(modules=modules, device="cpu", similarity_fn_name=similarity).save(str(folder))
    return folder
