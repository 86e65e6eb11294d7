# The image of every pod: the head and its driver, workers, the submitter, and MLflow's server.
#
#     docker build --tag tuner:0.1.0 .
#     docker build --tag tuner:0.1.0-gpu --build-arg VARIANT=gpu .
#
# What is installed is what `make install` installs and the tests run on.
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
# cpu or gpu: which of torch's builds. The GPU's driver comes from the node.
ARG VARIANT=cpu
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# Debian keeps one version of a package per release, which the base image already pins.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends make \
    && rm -rf /var/lib/apt/lists/*
ENV PIP_NO_CACHE_DIR=1
WORKDIR /src
# The dependencies first, with a package of nothing, so that a change of our code is a small layer.
COPY Makefile pyproject.toml LICENSE ./
COPY requirements requirements
RUN mkdir -p tuner search_spaces datasets \
    && touch README.md tuner/__init__.py \
    && case "${VARIANT}" in \
        cpu) index=https://download.pytorch.org/whl/cpu ;; \
        gpu) index= ;; \
        *) echo "VARIANT must be cpu or gpu, but is ${VARIANT}" >&2; exit 1 ;; \
    esac \
    && make install PYTHON=python3.11 VENV=/opt/tuner EXTRAS=cluster EDITABLE= TORCH_INDEX="${index}" \
    && /opt/tuner/bin/python -m pip uninstall --yes tuner
COPY README.md ./
COPY search_spaces search_spaces
COPY datasets datasets
COPY tuner tuner
# A folder of its own, so that the last stage takes it as one small layer.
RUN /opt/tuner/bin/python -m pip install --no-deps --target /opt/package .

FROM ${PYTHON_IMAGE}
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# KubeRay's probes of Ray's pods ask by wget; its commands may run in a login shell, which forgets
# the PATH of the image.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends wget \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 1000 tuner \
    && useradd --uid 1000 --gid 1000 --create-home tuner \
    && echo "export PATH=/opt/package/bin:/opt/tuner/bin:\$PATH" > /etc/profile.d/tuner.sh
COPY --from=build /opt/tuner /opt/tuner
COPY --from=build /opt/package /opt/package
ENV PATH=/opt/package/bin:/opt/tuner/bin:$PATH \
    PYTHONPATH=/opt/package \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    OMP_NUM_THREADS=1
USER 1000:1000
WORKDIR /home/tuner
CMD ["tuner", "--help"]
