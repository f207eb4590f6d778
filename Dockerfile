# Three images from one file:
#
#     docker build --target serve -t acclimate-serve .  # predictions and the API; no torch
#     docker build --target work  -t acclimate-work  .  # one worker, for one device
#     docker build --target all   -t acclimate       .  # both, over SQLite and a folder
#
# Each runs as a user without rights on a root file system that may be read-only; the
# volume is the only place that is kept, /tmp is scratch:
#
#     docker run --read-only --tmpfs /tmp -v acclimate:/var/lib/acclimate \
#         -e ACCLIMATE_INSECURE=true -p 127.0.0.1:50051:50051 acclimate
#
# A container listens on all of its addresses, so without TLS and tokens it starts only if
# it is told that whoever reaches it may do everything; publish such a port on the loopback.
# docs/security.md has the other way. Docker kills after 10 seconds what drains for up to 20
# (ACCLIMATE_DRAIN_SECONDS): give it `--stop-timeout 30`.
#
# Every package is checked by hash against requirements/, and each image gets the
# versions that the tests ran on. For a GPU, add --gpus all to `work` or `all`, which can
# `acclimate serve` too; what `serve` has computes on processors alone. docs/containers.md
# has what was tried, and the sizes.

ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS base
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

# ── the wheel, and an environment for each kind of process ───────────────────

FROM base AS wheel
WORKDIR /src
COPY requirements/build.txt requirements/
RUN pip install --require-hashes -r requirements/build.txt
COPY pyproject.toml README.md LICENSE ./
COPY clients/python clients/python
COPY service service
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheels .

FROM base AS serve-environment
COPY requirements/serve.txt /requirements/
RUN python -m venv --without-pip /opt/acclimate \
    && pip --python /opt/acclimate/bin/python install --require-hashes -r /requirements/serve.txt

FROM base AS work-environment
COPY requirements/work.txt /requirements/
RUN python -m venv --without-pip /opt/acclimate \
    && pip --python /opt/acclimate/bin/python install --require-hashes -r /requirements/work.txt

# Apart from what it needs, which is gigabytes: an upgrade brings a layer of its own, of a few
# megabytes, and leaves that of its packages as it is until a lock changes.
FROM base AS program
COPY --from=wheel /wheels /wheels
RUN python -m venv --without-pip /opt/acclimate \
    && pip --python /opt/acclimate/bin/python install --no-deps --no-index --root /program \
        /wheels/*.whl

# ── what runs ────────────────────────────────────────────────────────────────

FROM base AS runtime
# Python's images come without its compiled library. Who may not write there would compile it at
# every start, and the health check is one.
RUN python -m compileall -q -x '/(site-packages|tests?|lib2to3)/' \
    "$(python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"
# A fixed number, so that a volume's owner stays the same over releases.
RUN groupadd --gid 10001 acclimate \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/acclimate acclimate \
    && install --directory --owner=10001 --group=10001 --mode=0750 /var/lib/acclimate
# HOME, for weights from a hub, also where the container is given a user that has no name here.
# matplotlib keeps a cache of fonts, by default in a home.
ENV PATH=/opt/acclimate/bin:$PATH \
    HOME=/var/lib/acclimate \
    ACCLIMATE_HOME=/var/lib/acclimate \
    MPLCONFIGDIR=/tmp/matplotlib
VOLUME /var/lib/acclimate
WORKDIR /var/lib/acclimate
USER 10001:10001
STOPSIGNAL SIGTERM

FROM runtime AS work
COPY --from=work-environment /opt/acclimate /opt/acclimate
COPY --from=program /program/ /
# It listens to nothing: a dead worker's container ends, and a hung one is seen by its
# lease, which then goes to another.
HEALTHCHECK NONE
CMD ["acclimate", "work"]

FROM runtime AS answering
# All addresses of the container's own network; what is published is the host's choice.
ENV ACCLIMATE_HOST=0.0.0.0
EXPOSE 50051
# It ends itself: Docker before 23 gives up one that takes too long and lets it run, so that on
# a machine that is short of processors each makes the next one slower.
HEALTHCHECK --interval=15s --timeout=10s --start-period=60s --retries=3 \
    CMD ["sh", "-c", "exec timeout -s KILL 8 acclimate health --timeout 5 --server ${ACCLIMATE_SERVER:-127.0.0.1:${ACCLIMATE_PORT:-50051}}"]

FROM answering AS serve
COPY --from=serve-environment /opt/acclimate /opt/acclimate
COPY --from=program /program/ /
CMD ["acclimate", "serve"]

# The last target is what a plain `docker build .` makes.
FROM answering AS all
COPY --from=work-environment /opt/acclimate /opt/acclimate
COPY --from=program /program/ /
CMD ["acclimate", "up"]
