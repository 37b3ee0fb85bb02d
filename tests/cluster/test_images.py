"""The images, built and run here: as a user nobody planned for, on a root that cannot be written."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import images
from tests.cluster.binaries import CannotBuild
from tests.cluster.images import Image, bring_images, configuration, full_name, inputs_of, key_of, package_access, unpacked

CI = os.environ.get("CI", "") not in ("", "0", "false")
SERVICES = ("cluster", "gateway", "ingest", "investigator", "measure", "pr_agent")
UID = 1_234_567  # as OpenShift gives: in no /etc/passwd, of group 0
MODEL = "/opt/loopwright/models/minilm-int8"
IMPORT_ALL = """
import importlib, pkgutil, sys
for name in sys.argv[1:]:
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, name + "."):
        # minilm_graph makes the model, in the build: onnx is not in the image.
        if not module.name.endswith((".__main__", ".minilm_graph")) and ".testing" not in module.name and ".migrations" not in module.name:
            importlib.import_module(module.name)
import kubernetes.client, kubernetes.config
"""
EMBED = """
import asyncio, os
from pathlib import Path
from loopwright_cluster.embedding.minilm import OnnxEncoder
folder = Path(os.environ["LOOPWRIGHT_CLUSTER_EMBEDDING_MODEL_DIR"])
near, also, far = OnnxEncoder(folder / "model.onnx", folder / "tokenizer.json").encode(
    ["the checkout page answers with an error", "checkout fails with an error page", "the weather is fine in Lisbon"])
print(near.shape[0], float(near @ also) > float(near @ far) + 0.2)
"""


@pytest.fixture(scope="module")
def built() -> dict[str, Image]:
    try:
        return bring_images()
    except CannotBuild as error:
        if CI:
            pytest.fail(f"no images: {error}")
        pytest.skip(f"no images: {error}")


@pytest.fixture(scope="module")
def services(built: dict[str, Image]) -> Iterator[Path]:
    with unpacked(built["services"]) as root:
        yield root


@pytest.fixture(scope="module")
def sandbox(built: dict[str, Image]) -> Iterator[Path]:
    with unpacked(built["sandbox"]) as root:
        yield root


def _run(image: Image, root: Path, *command: str, writable: bool = False, **more: str) -> subprocess.CompletedProcess[str]:
    """Runs a command in the image's file system with the image's environment, as UID and group 0."""
    settings = configuration(image)["config"]
    environment = [*settings["Env"], *(f"{key}={value}" for key, value in more.items())]
    script = f"""
        mount --bind {root} {root}
        {"true" if writable else f"mount -o remount,bind,ro {root}"}
        mount -t tmpfs tmpfs {root}/tmp
        mount -t proc proc {root}/proc
        exec chroot --userspec={UID}:0 --groups=0 {root} /usr/bin/env -i -C "{settings.get("WorkingDir", "/")}" "$@"
    """
    arguments = ["unshare", "--mount", "sh", "-e", "-c", script, "sh", *environment, *command]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("service", SERVICES)
def test_every_service_starts_from_the_one_image(service: str, built: dict[str, Image], services: Path) -> None:
    port = f"LOOPWRIGHT_{service.upper()}_PORT"

    helped = _run(built["services"], services, "python", "-m", f"loopwright_{service}", "--help")
    refused = _run(built["services"], services, "python", "-m", f"loopwright_{service}", **{port: "many"})

    assert helped.returncode == 0, helped.stderr
    assert port in helped.stdout
    assert refused.returncode == 2
    assert port in refused.stderr


def test_everything_of_ours_imports_in_the_image(built: dict[str, Image], services: Path) -> None:
    packages = [f"loopwright_{name}" for name in (*SERVICES, "common", "repositories", "cli")]

    imported = _run(built["services"], services, "python", "-c", IMPORT_ALL, *packages)

    assert imported.returncode == 0, imported.stderr


def test_the_command_and_the_local_forge_are_in_the_image_too(built: dict[str, Image], services: Path) -> None:
    command = _run(built["services"], services, "loopwright", "--help")
    forge = _run(built["services"], services, "python", "-m", "loopwright_repositories.local_forge", "--help")

    assert "doctor" in command.stdout, command.stderr
    assert "LOOPWRIGHT_FORGE_PORT" in forge.stdout, forge.stderr


def test_the_embedding_model_is_in_the_image_and_tells_meanings_apart(built: dict[str, Image], services: Path) -> None:
    embedded = _run(built["services"], services, "python", "-c", EMBED)

    assert embedded.stdout.split() == ["384", "True"], embedded.stderr
    assert f"LOOPWRIGHT_CLUSTER_EMBEDDING_MODEL_DIR={MODEL}" in configuration(built["services"])["config"]["Env"]


def test_bytecode_is_there_because_nobody_can_write_it(services: Path) -> None:
    for source in (services / "opt/loopwright/packages").rglob("loopwright_*/**/*.py"):
        assert list((source.parent / "__pycache__").glob(f"{source.stem}.cpython-*.pyc")), source


@pytest.mark.parametrize("name", ["services", "sandbox"])
def test_the_user_can_write_nothing_but_temporary_files_and_its_volume(
    name: str, built: dict[str, Image], request: pytest.FixtureRequest
) -> None:
    root: Path = request.getfixturevalue(name)

    found = _run(built[name], root, "find", "/", "-xdev", "-writable", "-not", "-type", "l", "-not", "-path", "/dev*", writable=True)

    assert found.returncode in (0, 1), found.stderr  # 1: folders that the user may not read
    assert found.stdout  # it looked
    allowed = r"/tmp|/var/tmp|/run/lock|/var/lib/loopwright"
    assert [path for path in found.stdout.splitlines() if not re.fullmatch(rf"(?:{allowed})(?:/.*)?", path)] == []


@pytest.mark.parametrize("name", ["services", "sandbox"])
def test_an_image_runs_as_nobody_and_says_what_it_is(name: str, built: dict[str, Image]) -> None:
    settings = configuration(built[name])["config"]

    assert settings["User"] == "10001:0"
    assert settings["Labels"]["org.opencontainers.image.version"] == built[name].name.rsplit(":", 1)[1]
    assert settings["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert settings.get("Entrypoint") == (["python3", "/opt/loopwright/pod_runner.py"] if name == "sandbox" else None)


@pytest.mark.parametrize("name", ["services", "sandbox"])
def test_nothing_of_how_packages_were_reached_is_in_an_image(name: str, built: dict[str, Image], request: pytest.FixtureRequest) -> None:
    root: Path = request.getfixturevalue(name)
    told = json.dumps(configuration(built[name]))

    assert not re.search(r"INDEX|proxy|_CERT|CERT_FILE", told)
    assert not list((root / "run").glob("secrets*/*"))
    for place in ("etc/pip.conf", "root/.config", "tmp/pip.conf", "root/.cache", "opt/uv"):
        assert not (root / place).exists()


def test_what_builds_and_tests_is_not_shipped(built: dict[str, Image], services: Path, sandbox: Path) -> None:
    for tool in ("pip", "uv", "gcc", "pytest", "mypy", "nats-server"):
        assert _run(built["services"], services, "sh", "-c", f"command -v {tool}").returncode == 127, tool
    site = next((services / "opt/loopwright/.venv/lib").glob("python3*/site-packages"))
    for package in ("onnx", "pytest", "playwright", "hypothesis", "schemathesis"):
        assert not (site / package).exists()
    assert not list(sandbox.glob("opt/loopwright/.venv"))


def test_the_sandbox_has_its_tools_and_the_runner_of_this_checkout(built: dict[str, Image], sandbox: Path) -> None:
    source = images.ROOT / "services/pr-agent/src/loopwright_pr_agent/sandbox/pod_runner.py"

    tools = _run(built["sandbox"], sandbox, "sh", "-c", "git --version && make --version && python3 -c 'import ssl, venv' && touch /tmp/x")
    runner = _run(built["sandbox"], sandbox, *configuration(built["sandbox"])["config"]["Entrypoint"], "--help")

    assert tools.returncode == 0, tools.stderr
    assert runner.returncode == 0, runner.stderr
    assert key_of("sandbox") in built["sandbox"].archive.name
    assert (sandbox / "opt/loopwright/pod_runner.py").read_bytes() == source.read_bytes()


def test_git_reads_a_repository_that_an_earlier_user_of_the_volume_made(built: dict[str, Image], services: Path) -> None:
    repository = services / "var/lib/loopwright/repository"
    subprocess.run(["git", "init", "--quiet", repository], check=True)
    try:
        status = _run(built["services"], services, "git", "-C", "/var/lib/loopwright/repository", "status", "--short")
    finally:
        shutil.rmtree(repository)

    assert status.returncode == 0, status.stderr


def test_the_stand_ins_hold_their_servers(built: dict[str, Image]) -> None:
    with unpacked(built["postgres"]) as root:
        postgres = _run(built["postgres"], root, "/usr/lib/postgresql/15/bin/postgres", "--version")
    with unpacked(built["nats"]) as root:
        nats = subprocess.run([root / "usr/local/bin/nats-server", "--version"], capture_output=True, text=True, check=False)

    assert "PostgreSQL) 15." in postgres.stdout, postgres.stderr
    assert "nats-server: v2." in nats.stdout


@pytest.mark.parametrize("name", images.NAMES)
def test_an_archive_holds_what_its_digests_say_under_the_charts_name(name: str, built: dict[str, Image]) -> None:
    with tarfile.open(built[name].archive) as archive:
        index = json.load(archive.extractfile("index.json"))  # type: ignore[arg-type]
        for member in archive:
            if member.name.startswith("blobs/sha256/") and member.isfile():
                assert hashlib.file_digest(archive.extractfile(member), "sha256").hexdigest() == member.name.rsplit("/", 1)[1]  # type: ignore[arg-type]

    (entry,) = index["manifests"]
    assert entry["digest"] == built[name].digest
    assert entry["annotations"]["io.containerd.image.name"] == built[name].name == images.image_names()[name]


def test_a_second_call_builds_nothing(built: dict[str, Image]) -> None:
    before = {image.archive: image.archive.stat().st_mtime_ns for image in built.values()}

    again = bring_images(names=["nats", "postgres"])  # files of the other two may be under somebody's hands

    assert {image.archive: image.archive.stat().st_mtime_ns for image in again.values()}.items() <= before.items()


def test_a_services_file_changes_that_image_and_no_other(tmp_path: Path) -> None:
    for path in {*inputs_of("services"), *inputs_of("sandbox")}:
        copy = tmp_path / path.relative_to(images.ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)
    before = {name: key_of(name, tmp_path) for name in images.NAMES}

    (tmp_path / "services/gateway/src/loopwright_gateway/new.py").write_text("x = 1\n")

    changed = {name for name in images.NAMES if key_of(name, tmp_path) != before[name]}
    assert changed == {"services"}


@pytest.mark.parametrize(
    ("repository", "full"),
    [
        ("nats", "docker.io/library/nats:1"),
        ("loopwright/sandbox", "docker.io/loopwright/sandbox:1"),
        ("docker.io/library/nats", "docker.io/library/nats:1"),
        ("registry.example.org/a/b", "registry.example.org/a/b:1"),
        ("localhost/a", "localhost/a:1"),
        ("mirror:5000/a", "mirror:5000/a:1"),
    ],
)
def test_a_name_is_spelt_as_the_container_runtime_spells_it(repository: str, full: str) -> None:
    assert full_name(repository, "1") == full


def test_the_index_of_this_machine_reaches_pip_and_uv_for_as_long_as_the_build_takes(tmp_path: Path) -> None:
    authority = tmp_path / "ca.pem"
    authority.write_text("-----BEGIN CERTIFICATE-----\n")
    environment = {"PIP_CERT": str(authority), "UV_HTTP_TIMEOUT": "9", "LOOPWRIGHT_TOKEN": "never", "PIP_FIND_LINKS": "/opt/wheels"}

    with package_access(environment, {"index-url": "https://packages.example.org/it's/simple"}) as arguments:
        file = Path(arguments[1].split("src=")[1])
        mode = file.stat().st_mode & 0o777
        command = f'. "{file}"; echo "$PIP_INDEX_URL $UV_DEFAULT_INDEX $SSL_CERT_FILE $UV_HTTP_TIMEOUT $PIP_FIND_LINKS $LOOPWRIGHT_TOKEN"'
        seen = subprocess.run(["env", "-i", "sh", "-c", command], capture_output=True, text=True, check=True).stdout.split()

    assert seen == ["https://packages.example.org/it's/simple"] * 2 + ["/run/secrets/ca", "9"]
    assert arguments[2:] == ["--secret", f"id=ca,src={authority}"]
    assert mode == 0o600
    assert not file.exists()


def test_the_base_is_pinned_by_digest_and_can_be_replaced() -> None:
    text = (images.ROOT / "Dockerfile").read_text()

    assert re.search(r"^ARG BASE=docker\.io/library/debian:bookworm-slim@sha256:[0-9a-f]{64}$", text, re.M)
    assert set(re.findall(r"^FROM (\S+)", text, re.M)) <= {"${BASE}", "build", "dependencies", "services"}
    assert "type=cache" not in text
