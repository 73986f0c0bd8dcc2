# A worker: what trains, beside the serving image, which does not.
#   docker build -f deploy/worker.Dockerfile -t mu2net-worker .
FROM python:3.11-slim-bookworm
COPY --chmod=0555 pyproject.toml README.md /app/
COPY models /app/models
COPY evolve /app/evolve
COPY service /app/service
RUN pip install --no-cache-dir uv && cd /app && uv sync --no-dev --no-cache --extra evolve --extra postgres --extra ray --extra s3 \
    && useradd --uid 1034 --create-home mu2net
ENV PATH=/app/.venv/bin:$PATH
USER 1034:1034
ENTRYPOINT ["mu2net"]
CMD ["worker", "/store"]
