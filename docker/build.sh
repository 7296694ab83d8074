#!/usr/bin/env bash
# Builds the image with labels for version and commit: docker/build.sh [TAG] [ARGUMENT of docker build ...]
#
#   docker/build.sh                                       tag cloze:VERSION, default base
#   docker/build.sh cloze:vendor --build-arg BASE_IMAGE=... --build-arg TORCH=   base image with its own torch
set -euo pipefail
home=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)
source "$home/launch/lib/settings.sh"

[[ ${1:-} != -h && ${1:-} != --help ]] || show_help "${BASH_SOURCE[0]}"
cd "$home"
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
tag=cloze:$version
if [[ $# -gt 0 && $1 != -* ]]; then
    tag=$1
    shift
fi
commit=$(git rev-parse HEAD 2>/dev/null || echo unknown)
if [[ $commit != unknown && -n $(git status --porcelain --untracked-files=no) ]]; then
    commit+=+changes
fi
exec docker build --file docker/Dockerfile --tag "$tag" --build-arg VERSION="$version" --build-arg COMMIT="$commit" "$@" .
