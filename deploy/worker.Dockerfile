# A worker: what trains, beside the serving image, which does not.
#   docker build -f deploy/worker.Dockerfile -t mu2net-worker .
# Every package is pinned with its hashes. The base is named by its tag; to pin it by its digest as well, look the digest
# up in your registry (docker buildx imagetools inspect TAG) and build with --build-arg BASE=TAG@sha256:DIGEST.
ARG BASE=astral/uv:0.9.17-python3.11-bookworm-slim
FROM ${BASE}
COPY deploy/requirements-worker.txt /app/requirements.txt
RUN uv pip install --system --no-cache --require-hashes --only-binary :all: -r /app/requirements.txt \
    && useradd --uid 1034 --create-home mu2net \
    && printf '#!/bin/sh\nexec python -m models "$@"\n' > /usr/local/bin/mu2net && chmod 0555 /usr/local/bin/mu2net
COPY --chmod=0555 pyproject.toml /app/
COPY models /app/models
COPY evolve /app/evolve
COPY service /app/service
ENV PYTHONPATH=/app
USER 1034:1034
ENTRYPOINT ["mu2net"]
CMD ["worker", "/store"]
