# The images of Loopwright:
#
#   docker build --target services -t loopwright/loopwright:0.1.0 .    all services; the command chooses: python -m loopwright_<service>
#   docker build --target sandbox  -t loopwright/sandbox:0.1.0 .       where changes are made; --build-arg EXTRA_DEBIAN_PACKAGES="nodejs npm"
#
# linux/amd64 and linux/arm64. docs/decisions/0007 says why they are made this way.
#
# A package index that is not the public one, and its certificate authority, are handed in as secrets, which no layer keeps:
#   --secret id=packages,src=FILE   a shell file, as: export PIP_INDEX_URL=... UV_DEFAULT_INDEX=...
#   --secret id=ca,src=FILE         PEM certificates; the shell file names them as /run/secrets/ca
# Cache and bind mounts are not used: buildah up to 1.28 empties the container when it takes a cache mount away.

# debian:bookworm-20260824-slim, the digest of its index (amd64 and arm64 among others).
ARG BASE=docker.io/library/debian:bookworm-slim@sha256:88200866dfff7ea7f5cbcb6ec7c8a701889efe6fe859fe64d6990e4b07ea4171

# --- what makes the rest, never shipped ---------------------------------------------------------------------------------------------
FROM ${BASE} AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv ca-certificates \
    && apt-get clean && rm -rf /var/lib/apt/lists/*
# The version that tools/setup.py brings into a checkout.
ARG UV_VERSION=0.13.9
RUN --mount=type=secret,id=packages --mount=type=secret,id=ca \
    if [ -f /run/secrets/packages ]; then . /run/secrets/packages; fi; \
    python3 -m venv /opt/uv && /opt/uv/bin/pip install --quiet --no-cache-dir "uv==${UV_VERSION}"
ENV PATH=/opt/uv/bin:$PATH UV_NO_CACHE=1 UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never PYTHONDONTWRITEBYTECODE=1
# Bytecode is made here, because the services cannot write it. It is trusted without a look at the source's time, which builders change.
ENV PYC_INVALIDATION_MODE=unchecked-hash
WORKDIR /build

FROM build AS dependencies
COPY requirements-image.lock .
RUN --mount=type=secret,id=packages --mount=type=secret,id=ca \
    if [ -f /run/secrets/packages ]; then . /run/secrets/packages; fi; \
    uv venv --quiet --python /usr/bin/python3 /opt/loopwright/.venv \
    && uv pip install --quiet --python /opt/loopwright/.venv --require-hashes --only-binary :all: -r requirements-image.lock \
    && echo /opt/loopwright/packages > "$(echo /opt/loopwright/.venv/lib/python3*/site-packages)/loopwright.pth"

# The embedding model is made from its author's weights, which are checked against a pinned hash.
FROM dependencies AS model
COPY services/cluster/src/loopwright_cluster/__init__.py src/loopwright_cluster/
COPY services/cluster/src/loopwright_cluster/embedding src/loopwright_cluster/embedding
RUN --mount=type=secret,id=packages --mount=type=secret,id=ca \
    if [ -f /run/secrets/packages ]; then . /run/secrets/packages; fi; \
    PYTHONPATH=src /opt/loopwright/.venv/bin/python -m loopwright_cluster.embedding.model_build --out /opt/loopwright/models/minilm-int8

# What only makes the model, the tests that some packages bring along, and the asynchronous half of the Kubernetes client, which pr-agent
# does not use (66 MB), stay here.
FROM dependencies AS environment
RUN uv pip uninstall --quiet --python /opt/loopwright/.venv onnx ml-dtypes safetensors \
    && find /opt/loopwright/.venv \( -path '*/numpy/*' -o -path '*/scipy/*' \) -type d -name tests -prune -exec rm -rf {} + \
    && rm -r /opt/loopwright/.venv/lib/python3*/site-packages/kubernetes/aio \
    && rm -f /opt/loopwright/.venv/.lock \
    && /opt/loopwright/.venv/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/loopwright/.venv/lib

FROM dependencies AS packages
COPY requirements.lock .
RUN --mount=type=secret,id=packages --mount=type=secret,id=ca \
    if [ -f /run/secrets/packages ]; then . /run/secrets/packages; fi; \
    uv venv --quiet --python /usr/bin/python3 hatch \
    && uv pip install --quiet --python hatch --require-hashes --only-binary :all: --constraint requirements.lock \
       "$(grep -o '^hatchling==[^ ]*' requirements.lock)"
COPY libs libs
COPY services services
COPY cli cli
# Wheels, as tests/packaging proves them, in a folder of their own: a change of ours is a layer of two megabytes.
# Their bytecode is checked against the source, so that a source replaced in a running container (the Tiltfile does) counts.
RUN for package in libs/* services/* cli; do (cd "$package" && /build/hatch/bin/python -m hatchling build -t wheel -d /build/wheels) || exit 1; done \
    && uv pip install --quiet --python /opt/loopwright/.venv --target /opt/loopwright/packages --no-deps --no-index wheels/*.whl \
    && rm -f /opt/loopwright/packages/.lock \
    && python3 -m compileall -q -j 0 --invalidation-mode checked-hash /opt/loopwright/packages

# --- where changes are made ---------------------------------------------------------------------------------------------------------
FROM ${BASE} AS sandbox
# What a Python repository's checks call by habit (python, pytest), git and make. More tools of a repository's own checks, as Debian packages:
# "nodejs npm", "golang", "default-jdk-headless maven".
ARG EXTRA_DEBIAN_PACKAGES=""
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates git make python3 python-is-python3 python3-pytest python3-venv ${EXTRA_DEBIAN_PACKAGES} \
    && apt-get clean && rm -rf /var/lib/apt/lists/* /var/log/apt /var/log/dpkg.log \
    && useradd --uid 10001 --gid 0 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin loopwright
COPY services/pr-agent/src/loopwright_pr_agent/sandbox/pod_runner.py /opt/loopwright/pod_runner.py
ENV HOME=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 LANG=C.UTF-8
USER 10001:0
WORKDIR /tmp
ENTRYPOINT ["python3", "/opt/loopwright/pod_runner.py"]
LABEL org.opencontainers.image.title="Loopwright sandbox" \
      org.opencontainers.image.description="Where Loopwright makes and verifies a change: Python, git, make and the runner" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="docker.io/library/debian:bookworm-slim"
ARG VERSION=0.1.0
ARG REVISION=""
LABEL org.opencontainers.image.version="${VERSION}" org.opencontainers.image.revision="${REVISION}"

# --- the services -------------------------------------------------------------------------------------------------------------------
FROM ${BASE} AS services
# git reads repositories. Its dubious-ownership check protects users of a shared machine from each other; here there is one user, whose
# number may change between starts while the volume keeps the old one.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates git python3 \
    && apt-get clean && rm -rf /var/lib/apt/lists/* /var/log/apt /var/log/dpkg.log \
    && git config --system --add safe.directory '*' \
    && useradd --uid 10001 --gid 0 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin loopwright \
    && install -d -m 0770 -g 0 -o 10001 /var/lib/loopwright
ENV PATH=/opt/loopwright/packages/bin:/opt/loopwright/.venv/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 LANG=C.UTF-8 \
    LOOPWRIGHT_CLUSTER_EMBEDDING_MODEL_DIR=/opt/loopwright/models/minilm-int8
USER 10001:0
WORKDIR /var/lib/loopwright
CMD ["loopwright", "--help"]
LABEL org.opencontainers.image.title="Loopwright" \
      org.opencontainers.image.description="All services of Loopwright; the command chooses: python -m loopwright_<service>" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="docker.io/library/debian:bookworm-slim"
COPY --from=environment /opt/loopwright/.venv /opt/loopwright/.venv
COPY --from=model /opt/loopwright/models /opt/loopwright/models
COPY --from=packages /opt/loopwright/packages /opt/loopwright/packages
ARG VERSION=0.1.0
ARG REVISION=""
LABEL org.opencontainers.image.version="${VERSION}" org.opencontainers.image.revision="${REVISION}"

# --- the services for the inner loop: what the Tiltfile replaces is the user's own, and `python` begins anew when it is replaced -------
FROM services AS dev
USER 0
COPY docker/reload.py /opt/loopwright/dev/python
RUN chown -R 10001:0 /opt/loopwright/packages && chmod -R g+w /opt/loopwright/packages
ENV PATH=/opt/loopwright/dev:/opt/loopwright/packages/bin:/opt/loopwright/.venv/bin:/usr/local/bin:/usr/bin:/bin
USER 10001:0

# Without --target the services are made.
FROM services
