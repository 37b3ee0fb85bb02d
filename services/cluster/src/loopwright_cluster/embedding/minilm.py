"""all-MiniLM-L6-v2 (int8) on onnxruntime: 384-dimensional sentence vectors, in a thread of its own so the event loop lives."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
from tokenizers import Tokenizer

from loopwright_cluster.embedding import TITLE_ENDS

TOKENS_MAX = 256  # all-MiniLM-L6-v2 was trained with 128 and evaluated with 256; longer text gains nothing
TITLE_SHARE = 0.4  # weight of a title's own vector beside that of the whole; anything from .3 to 1 finds more than the whole alone
CHARS_PER_TOKEN_MAX = 16  # text beyond TOKENS_MAX tokens is cut anyway; this bounds what the tokenizer is made to read

Vectors = npt.NDArray[np.float32]


class OnnxEncoder:
    """One ONNX encoder with its tokenizer; blocking, and not for use from two threads at once."""

    def __init__(self, model: Path, tokenizer: Path, *, threads: int = 1, tokens_max: int = TOKENS_MAX) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Without this a finished run keeps its threads spinning, which on two cores takes time from every other service.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        self._tokenizer.enable_truncation(tokens_max)
        self._tokenizer.no_padding()
        self._chars_max = tokens_max * CHARS_PER_TOKEN_MAX

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Return float32 [len(texts), 384], rows of unit length, in the order of `texts`.

        What stands before TITLE_ENDS counts twice: in the whole text's vector, and by its own.
        """
        if not texts:
            return np.zeros((0, 384), np.float32)
        titles = {at: text.partition(TITLE_ENDS)[0] for at, text in enumerate(texts) if TITLE_ENDS in text[: self._chars_max]}
        parts = [*(text.replace(TITLE_ENDS, "") for text in texts), *titles.values()]
        encoded = self._tokenizer.encode_batch([text[: self._chars_max] for text in parts])
        # One text a run: int8 activations are scaled over the whole input tensor, so in a batch of 32 a text's vector moves with its
        # neighbours (cosine .984 to its own vector alone), and grouping would depend on where batches end. It costs nothing on one
        # thread (167 texts/s alone, 144 in padded batches of 32, at about 50 tokens).
        vectors = np.concatenate([self._run(item.ids) for item in encoded])
        for own, at in enumerate(titles, len(texts)):
            both = vectors[at] + np.float32(TITLE_SHARE) * vectors[own]
            vectors[at] = both / np.linalg.norm(both)
        return vectors[: len(texts)]

    def _run(self, ids: Sequence[int]) -> Vectors:
        input_ids = np.array([ids], np.int64)
        (embedding,) = self._session.run(["embedding"], {"input_ids": input_ids, "attention_mask": np.ones_like(input_ids)})
        result: Vectors = embedding
        return result


class MiniLmEmbedding:
    """The `Embedding` port on a model folder made by `model_build`.

    Raises FileNotFoundError or ValueError at construction when the folder is missing or unreadable: the caller then runs degraded.
    """

    name = "all-MiniLM-L6-v2-int8"
    degraded = False
    dimensions = 384

    def __init__(self, folder: Path, *, threads: int = 1, tokens_max: int = TOKENS_MAX) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        if manifest.get("dimensions") != self.dimensions:
            raise ValueError(f"{folder} holds vectors of {manifest.get('dimensions')} dimensions; {self.dimensions} are needed")
        self._encoder = OnnxEncoder(folder / "model.onnx", folder / "tokenizer.json", threads=threads, tokens_max=tokens_max)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="minilm")

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """Return float32 [len(texts), 384] of unit length; onnxruntime releases the GIL while it computes."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._encoder.encode, list(texts))

    async def close(self) -> None:
        """Wait for the batch in flight and end the thread."""
        await asyncio.to_thread(self._thread.shutdown)
