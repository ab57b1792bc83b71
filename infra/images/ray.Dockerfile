# Image of Ray's head, its workers and job submitters: docker build -f infra/images/ray.Dockerfile -t mimic3d .
# PyTorch's wheels contain CUDA; a GPU node needs only the driver and NVIDIA's container runtime.
FROM python:3.11-slim-bookworm AS wheel
WORKDIR /source
COPY pyproject.toml README.md ./
COPY mimic3d mimic3d
COPY platform platform
COPY jobs jobs
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim-bookworm
# KubeRay's probes call bash and wget.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates procps wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 ray \
    && install --directory --owner ray --group ray /cache
COPY constraints.txt /tmp/constraints.txt
COPY --from=wheel /wheels /tmp/wheels
RUN pip install --no-cache-dir --constraint /tmp/constraints.txt /tmp/wheels/*.whl
# Ray refuses to start without a token, since anyone who reaches an open dashboard can run code.
ENV RAY_AUTH_MODE=token \
    MIMIC3D_HOME=/cache \
    PYTHONUNBUFFERED=1
USER 1000
WORKDIR /home/ray
CMD ["mimic3d", "--help"]
