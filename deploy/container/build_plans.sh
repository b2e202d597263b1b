#!/bin/sh
# Builds the TensorRT plans of a repository that tensorrt.py made, on the machine that will serve them. It lies in
# that repository's folder. A plan that is there is kept; on another GPU or TensorRT remove model.plan first.
# Checked by the tests with a stand-in for trtexec; it was not run on a GPU where it was developed.
set -eu

cd "$(dirname "$0")"
# NVIDIA's images may have it outside of PATH.
trtexec=$(command -v trtexec || echo /usr/src/tensorrt/bin/trtexec)
if [ ! -x "$trtexec" ]; then
    echo "There is no trtexec, neither on PATH nor in /usr/src/tensorrt/bin. Run this in nvcr.io/nvidia/tensorrt" \
        "of the release that will serve." >&2
    exit 1
fi

# TensorRT 11 is strongly typed without being asked, and takes the argument all the same (BuildOptions::parse in
# sampleOptions.cpp of NVIDIA/TensorRT). TF32 is on unless it is refused; Mooring's image refuses it by its environment,
# others do not.
for shapes in */plan_shapes; do
    for onnx in "${shapes%/*}"/[0-9]*/model.onnx; do
        plan=${onnx%.onnx}.plan
        if [ ! -e "$plan" ]; then
            echo "Building $plan"
            xargs "$trtexec" --stronglyTyped --noTF32 --skipInference \
                "--onnx=$onnx" "--saveEngine=$plan.part" < "$shapes"
            mv "$plan.part" "$plan"
        fi
    done
done
