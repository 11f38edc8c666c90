# One image for every process: compose.yaml chooses the command. Build with --build-arg EXTRA=vllm for the vLLM engine.
FROM python:3.11-slim AS build
ARG EXTRA=""
WORKDIR /app
COPY constraints.txt constraints-vllm.txt pyproject.toml README.md ./
COPY schemas schemas
COPY model model
COPY stream stream
COPY workers workers
COPY ops ops
RUN python -m venv /venv \
 && /venv/bin/pip install --no-cache-dir -c constraints.txt '.[encoders,lora]' \
 && if [ "$EXTRA" = vllm ]; then /venv/bin/pip install --no-cache-dir --no-deps -r constraints-vllm.txt; fi \
 && /venv/bin/python -m compileall -q /venv/lib

FROM python:3.11-slim
RUN useradd --create-home --uid 10001 sigma && mkdir -p /data && chown sigma /data
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH SIGMA_HOME=/data OMP_NUM_THREADS=1
USER sigma
WORKDIR /data
VOLUME /data
ENTRYPOINT ["sigma"]
CMD ["--help"]
