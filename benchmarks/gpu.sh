#!/usr/bin/env bash
# What needs a GPU, on one, in under eight minutes: the step by the bound, layouts, real batches, torch.compile,
# batch-norm, optimisers, kNN, other projects' loops, a run on CIFAR-10 for the time that is left, CUDA graphs. Each part
# begins fewer rounds where time is short, and fails alone. Ends with one table of the ratios.
#
#     benchmarks/gpu.sh [OUT]            writes OUT/gpu.md and OUT/gpu.log; OUT is build/gpu by default
#
# PHOTOGRAPHS   folder of JPEGs, as pretrain.py --data takes it; made up by default
# CIFAR         CIFAR-10, as pretrain.py --data takes it (cifar10:ROOT, or a folder); without it there is no run
# RUN           its run folder, OUT/cifar by default; what is there goes away
# PYTHON        .venv/bin/python by default, or python3 where that is not there
# SECONDS_LEFT  475 by default
# TINY          1 tries the script itself: small networks and one round, on whatever device there is
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
out=${1:-build/gpu}
python=${PYTHON:-.venv/bin/python}
[[ -n ${PYTHON:-} || -x $python ]] || python=python3
end=$((SECONDS + ${SECONDS_LEFT:-475}))
"$python" -c "import jsonargparse, simsiam, timm, torch" || exit 1
mkdir -p "$out"
rm -f "$out"/gpu.md "$out"/gpu.log

# part LIMIT NAME COMMAND...: a part that may take LIMIT seconds.
part() {
    local limit=$1 name=$2 left=$((end - SECONDS)) began=$SECONDS
    shift 2
    if ((left < 10)); then
        echo "-- $name: no time is left"
        return
    fi
    ((limit < left)) || limit=$left
    # Not a pipe, which would wait for whatever outlives a part that was killed.
    timeout -k 5 "$limit" "$@" > >(tee -a "$out/gpu.log") 2>&1
    local code=$?
    echo "-- $name: $((SECONDS - began)) s, code $code" | tee -a "$out/gpu.log"
}

# bench LIMIT NAME SCRIPT ARGUMENT...: by turns until half of LIMIT is over; the rest is for what comes before and after.
bench() {
    local limit=$1 name=$2 script=$3
    shift 3
    part "$limit" "$name" "$python" "benchmarks/$script" "$@" --rounds "$rounds" --seconds $((limit / 2)) --append "$out/gpu.md"
}

cores=$(nproc)
network=(--encoder resnet50 --size 224 --batch-size 256 --precision bf16 --workers $((cores > 14 ? 14 : cores)))
small=(--encoder cifar_resnet18 --size 32 --batch-size 32 --precision bf16)
layer=(--channels 64 --size 112 --batch-size 128 --precision bf16)
features=(--encoder resnet50 --size 224 --bank 4096 --queries 512 --precision bf16)
peers=(--encoder cifar_resnet18 --batch-size 256 --workers 4)
recipe=(--recipe cifar10-r18 --workers 8)
rounds=3
if [[ -n ${TINY:-} ]]; then
    network=(--encoder resnet18 --size 32 --batch-size 4 --precision fp32 --workers 1 --steps 1)
    small=(--encoder resnet8 --size 32 --batch-size 4 --precision fp32 --steps 1)
    layer=(--channels 8 --size 8 --batch-size 4)
    features=(--encoder resnet8 --size 32 --bank 64 --queries 16)
    peers=(--encoder resnet8 --batch-size 8 --workers 1 --dim 32 --hidden 32 --bottleneck 8 --steps 1 --ahead 1)
    recipe=(--recipe quickstart --workers 0 --log-every 5 --batch-size 64)
    rounds=1
fi
photographs=()
[[ -z ${PHOTOGRAPHS:-} ]] || photographs=(--data "$PHOTOGRAPHS")
images=()
[[ -z ${CIFAR:-} ]] || images=(--data "$CIFAR")

command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,driver_version,clocks.sm,power.limit --format=csv,noheader
bench 60 step step.py "${network[@]}" --against nchw --no-real
bench 75 real step.py "${network[@]}" "${photographs[@]}"
bench 120 compiled step.py "${network[@]}" --compile --against eager --no-real
bench 25 batchnorm batchnorm.py "${layer[@]}"
bench 30 optim optim.py --encoder resnet50
bench 40 knn knn.py "${features[@]}"
bench 60 peers peers.py "${peers[@]}" "${images[@]}"
if [[ -n ${CIFAR:-} || -n ${TINY:-} ]]; then
    run=${RUN:-$out/cifar}
    rm -rf "$run"
    left=$((end - SECONDS - 110)) # for the last save, the tables after it, and graphs
    ((left > 30)) || left=30
    limit=$(printf '0:%d:%02d' $((left / 60)) $((left % 60)))
    part $((left + 30)) run "$python" pretrain.py "${recipe[@]}" "${images[@]}" --out "$run" \
        --max-wall-time "$limit" --knn-every 2 --checkpoint.every_epochs 0
    [[ ! -f $run/metrics.jsonl ]] || part 15 epochs "$python" benchmarks/epochs.py "$run" --goal 5 --append "$out/gpu.md"
fi
bench 75 graphs step.py "${small[@]}" --against graphs --no-real
echo
"$python" benchmarks/report.py "$out/gpu.md"
