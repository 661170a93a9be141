#!/usr/bin/env bash
# What needs a GPU, on one, in under eight minutes: the step by the bound, layouts, torch.compile, DALI, batch-norm,
# optimisers, kNN, other projects' loops, and a run on CIFAR-10 for the time that is left. Ends with one table of the ratios.
#
#     benchmarks/gpu.sh [OUT]            writes OUT/gpu.md and OUT/*.log; OUT is build/gpu by default
#
# PHOTOGRAPHS   folder of JPEGs, as pretrain.py --data takes it; made up by default
# CIFAR         CIFAR-10, as pretrain.py --data takes it (cifar10:ROOT, or a folder); without it there is no run
# PYTHON        .venv/bin/python by default
# SECONDS_LEFT  475 by default
# TINY          1 tries the script itself: small networks and one round, on whatever device there is
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
out=${1:-build/gpu}
python=${PYTHON:-.venv/bin/python}
end=$((SECONDS + ${SECONDS_LEFT:-475}))
mkdir -p "$out"
rm -f "$out"/gpu.md "$out"/*.log

# part LIMIT NAME COMMAND...: a part that may take LIMIT seconds, and fails alone.
part() {
    local limit=$1 name=$2 left=$((end - SECONDS)) began=$SECONDS
    shift 2
    if ((left < 10)); then
        echo "-- $name: no time is left"
        return
    fi
    ((limit < left)) || limit=$left
    timeout -k 5 "$limit" "$@" >"$out/$name.log" 2>&1
    local code=$?
    echo "-- $name: $((SECONDS - began)) s, code $code"
    cat "$out/$name.log"
}

bench() {
    local limit=$1 name=$2 script=$3
    shift 3
    part "$limit" "$name" "$python" "benchmarks/$script" "$@" --append "$out/gpu.md"
}

network=(--encoder resnet50 --size 224 --batch-size 256 --precision bf16 --workers 8)
small=(--encoder cifar_resnet18 --size 32 --batch-size 32 --precision bf16)
layer=(--channels 64 --size 112 --batch-size 128 --precision bf16)
features=(--encoder resnet50 --size 224 --bank 8192 --queries 1024 --precision bf16)
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
bench 120 step step.py "${network[@]}" "${photographs[@]}" --against nchw --rounds "$rounds"
bench 110 compiled step.py "${network[@]}" --compile --against eager --no-real --rounds "$rounds"
bench 60 graphs step.py "${small[@]}" --compile --against graphs,eager --no-real --rounds "$rounds"
bench 30 batchnorm batchnorm.py "${layer[@]}" --rounds "$rounds"
bench 40 optim optim.py --encoder resnet50 --rounds "$rounds"
bench 60 knn knn.py "${features[@]}" --rounds "$rounds"
bench 70 peers peers.py "${peers[@]}" "${images[@]}" --rounds "$rounds"
if [[ -n ${CIFAR:-} || -n ${TINY:-} ]]; then
    left=$((end - SECONDS - 25)) # start-up before it, the last save and the tables after it
    if ((left > 20)); then
        run=$out/cifar
        rm -rf "$run"
        limit=$(printf '0:%d:%02d' $((left / 60)) $((left % 60)))
        part $((left + 20)) run "$python" pretrain.py "${recipe[@]}" "${images[@]}" --out "$run" \
            --max-wall-time "$limit" --knn-every 2 --checkpoint.every_epochs 0
        bench 20 epochs epochs.py "$run" --goal 5
    fi
fi
echo
"$python" benchmarks/report.py "$out/gpu.md"
