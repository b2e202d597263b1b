#!/bin/sh
# Builds the TensorRT plans of a repository that tensorrt.py made, on the machine that will serve them. It lies in
# that repository's folder. A plan that is there is kept; on another GPU or TensorRT remove model.plan first.
# Checked by the tests with a stand-in for trtexec; it was not run on a GPU where it was developed.
set -eu

cd "$(dirname "$0")"
# NVIDIA's images have it outside of PATH.
trtexec=$(command -v trtexec || echo /usr/src/tensorrt/bin/trtexec)

for shapes in */plan_shapes; do
    for onnx in "${shapes%/*}"/[0-9]*/model.onnx; do
        plan=${onnx%.onnx}.plan
        if [ ! -e "$plan" ]; then
            echo "Building $plan"
            xargs "$trtexec" --stronglyTyped --skipInference "--onnx=$onnx" "--saveEngine=$plan.part" < "$shapes"
            mv "$plan.part" "$plan"
        fi
    done
done
