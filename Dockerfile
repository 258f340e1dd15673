# An image with the checkout, for any machine. Build it at the top of the checkout:
#   docker build -t ddm_jax .                          CPU
#   docker build -t ddm_jax --build-arg EXTRA=gpu .    an extra of pyproject.toml; tpu for TPUs
# and run any command in it (add --gpus=all for GPUs):
#   mkdir -p work
#   docker run --rm -it -v ddm_cache:/home/ddm/.cache -v "$PWD/work:/ddm_jax/work" ddm_jax \
#     python -m ddm_jax.main --config=configs/radd_tiny.py --workdir=work/radd
# Prepared data and compiled programs stay in the volume ddm_cache, runs in ./work. The user of the
# image has the id 1000; if `id -u` prints another one, build with --build-arg UID=$(id -u), so that
# it may write there.
FROM python:3.12-slim

ARG EXTRA=
WORKDIR /ddm_jax
ENV PYTHONUNBUFFERED=1

# dependencies first, so that a change of the code does not reinstall them
COPY requirements.txt pyproject.toml setup.py README.md LICENSE ./
RUN mkdir ddm_jax configs && touch ddm_jax/__init__.py \
 && pip install --no-cache-dir -e ".${EXTRA:+[$EXTRA]}"

ARG UID=1000
RUN useradd --create-home --uid "$UID" ddm \
 && mkdir -p work /home/ddm/.cache \
 && chown ddm . work /home/ddm/.cache
COPY ddm_jax ddm_jax
COPY configs configs
COPY launch launch

USER $UID
CMD ["python", "-m", "ddm_jax.main", "--help"]
