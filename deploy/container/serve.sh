#!/bin/sh
# Starts the image's tritonserver, with the arguments that it is given, on what is built. Triton takes a model of which
# only the config is there, or whose build has just begun, and a hidden folder such as .git for one that failed; so where
# there is one, those that are built are named, which also lets Triton load and unload models when it is asked to.
set -eu

for argument; do
    case $argument in --model-repository=*) repository=${argument#*=} ;; esac
done

is_built() {
    ls -d "$1"[0-9]*/ > /dev/null 2>&1
}

for model in "$repository"/*/; do
    is_built "$model" || unbuilt=yes
done
if ls -d "$repository"/.[!.]*/ > /dev/null 2>&1; then unbuilt=yes; fi
if [ -n "${unbuilt:-}" ]; then
    set -- "$@" --model-control-mode=explicit
    for model in "$repository"/*/; do
        if is_built "$model"; then set -- "$@" "--load-model=$(basename "$model")"; fi
    done
fi
exec tritonserver "$@"
