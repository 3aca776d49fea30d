# An image for CUDA, from public bases. The tests of this repository do not build it.
#   docker build -t sae-baselines .
#   docker run --gpus all -v "$PWD:/data" sae-baselines check panel.yaml
FROM python:3.11-slim AS build
WORKDIR /src
RUN pip install --no-cache-dir "build>=1.2,<2"
COPY pyproject.toml README.md LICENSE CHANGELOG.md CITATION.cff ./
COPY sae_baselines sae_baselines
COPY sae_baselines_cli sae_baselines_cli
RUN python -m build --wheel --outdir /dist

# torch from PyPI brings CUDA's libraries, so that only the driver is the host's.
FROM python:3.11-slim
COPY constraints.txt /tmp/
COPY --from=build /dist /tmp/dist
# git: versions of what is run stand in every record. torchvision: see the Makefile.
RUN apt-get update && apt-get install -y --no-install-recommends git && rm -rf /var/lib/apt/lists/* \
 && wheel="$(ls /tmp/dist/*.whl)" \
 && pip install --no-cache-dir -c /tmp/constraints.txt "${wheel}[bench,demo]" \
 && { python -c "from torchvision.io import VideoReader" || pip uninstall --yes torchvision; } \
 && rm -rf /tmp/dist /tmp/constraints.txt \
 && useradd --create-home user
USER user
ENV HF_HOME=/data/huggingface SAE_BASELINES_CACHE=/data/cache
WORKDIR /data
ENTRYPOINT ["sae-baselines"]
CMD ["--help"]
