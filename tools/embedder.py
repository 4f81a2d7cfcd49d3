"""Texts as vectors: what dense search needs of a model, and the models that sentence-transformers can load."""

import hashlib
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from agentrl.errors import ConfigError, MissingExtraError

Vectors = NDArray[np.float32]
_BATCH_SIZE = 32


class Embedder(Protocol):
    """Anything that turns texts into vectors whose inner product says how well they fit."""

    name: str
    """For messages."""
    fingerprint: str
    """Equal only for models that give the same vectors."""

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        """Vectors of passages, [texts, dimension]."""
        ...

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        """Vectors of queries, [texts, dimension]."""
        ...


class SentenceEmbedder:
    """A sentence-embedding model in a folder; nothing is downloaded.

    Prompts that the model's configuration holds for queries and documents are used. Vectors have length 1, so that the
    inner product is the cosine, unless the model says that it was trained for the inner product itself.

    Several threads may embed; one at a time does.

    Args:
        folder: Of the model, as sentence-transformers saves it, or as the Hugging Face hub lays it out.

    Raises:
        ConfigError: There is no such folder, or it holds no such model.
        MissingExtraError: The package sentence-transformers is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ConfigError(
                f"The embedding model {folder} is not a folder. Give the path of a model that lies on this machine."
            )
        self.name = self.folder.resolve().name
        self.fingerprint = hash_folder(self.folder)
        self._model = _load(self.folder)
        self._normalize = self._model.similarity_fn_name in (None, "cosine")
        self._lock = threading.Lock()

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        """Vectors of passages, [texts, dimension]."""
        return self._embed(self._model.encode_document, texts)

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        """Vectors of queries, [texts, dimension]."""
        return self._embed(self._model.encode_query, texts)

    def _embed(self, encode: Any, texts: Sequence[str]) -> Vectors:
        with self._lock:  # one pass takes all cores already, and some tokenizers refuse a second thread
            vectors = encode(
                list(texts), batch_size=_BATCH_SIZE, show_progress_bar=False, normalize_embeddings=self._normalize
            )
        return np.asarray(vectors, dtype=np.float32)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder,)


def hash_folder(folder: Path) -> str:
    """SHA-256 over names and contents of all files but hidden ones and texts for people, in hexadecimal."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and path.suffix != ".md" and not any(part.startswith(".") for part in name.parts):
            with open(path, "rb") as file:
                digest.update(f"{name.as_posix()}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def _load(folder: Path) -> Any:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise MissingExtraError("dense", "Dense search") from error
    try:
        return SentenceTransformer(str(folder), local_files_only=True)
    except (OSError, ValueError, LookupError, AttributeError, TypeError, RuntimeError) as error:
        raise ConfigError(f"{folder} cannot be loaded as a sentence-embedding model: {error}") from error
