#!/bin/sh
# Run once by the image's build, as root, after its packages are installed.
set -eu

# What the Dockerfile installed to build packages with; none is built, and the server needs none of it.
apt-get purge -y --auto-remove build-essential git gnupg2
rm -rf /var/lib/apt/lists/*

# BentoML makes these where they are missing, which a read-only root file system would refuse.
for folder in bentos models envs tmp; do
    mkdir -p "$BENTOML_HOME/$folder"
done
