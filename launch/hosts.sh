#!/bin/bash
# One run on several machines that ssh reaches, without a scheduler:
#   launch/hosts.sh node1,node2,node3 pretrain.py --recipe imagenet-r50-100ep --data /data/imagenet --out /shared/runs/r50
# Every machine needs this folder and its Python environment at the same paths, the data, and --out on a shared disk; ssh
# must ask for nothing, and the machines must reach each other by these names. Ctrl-C, SIGTERM, SIGUSR1, and a closed
# terminal where it is not under nohup, make the run save and end on all of them. Exit status: 0 complete, 75 saved and
# goes on by the same command, else a failure.
# PET_NNODES=2:3 before it is content with two of the three; the other variables are in launch/node.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/preemption.sh

IFS=, read -ra hosts <<<"${1:?"give the host names, such as node1,node2, then the script and its settings"}"
shift
export PET_NNODES=${PET_NNODES:-${#hosts[@]}} PET_MASTER_ADDR=${hosts[0]#*@}
export PET_MASTER_PORT=${PET_MASTER_PORT:-$((10000 + RANDOM % 20000))} PET_RDZV_ID=${PET_RDZV_ID:-$(date +%s)-$RANDOM}

# What goes along to the machines, quoted for their shell.
mapfile -t names < <(compgen -e | grep -E '^(PATH|LD_LIBRARY_PATH|DATA|LOG|SIMSIAM_CACHE|TRITON_CACHE_DIR|(PET|NCCL|TORCH_NCCL|TORCH_FR|GLOO|CUDA|OMP)_.*)$')
environment=''
for name in "${names[@]}"; do
    printf -v word ' %q' "$name=${!name}"
    environment+=$word
done

# A machine that is gone without a word is known after two minutes. A shared connection would outlive this script, and
# keep its output open.
ssh=(ssh -n -o BatchMode=yes -o ServerAliveInterval=15 -o ServerAliveCountMax=8 -o ControlPath=none --)

pids=$(mktemp -d)
trap 'rm -rf "$pids"' EXIT

# on_host NODE WORDS...: one machine's part. The shell there tells its number, which torchrun then has, and is in no group
# that a signal here would reach. What a .bashrc there says before is handed on.
on_host() {
    local node=$1 command
    shift
    printf -v command 'cd %q && echo simsiam-pid $$ && exec env%s PET_NODE_RANK=%d PET_LOCAL_ADDR=%q launch/node.sh' \
        "$PWD" "$environment" "$node" "${hosts[$node]#*@}"
    printf -v command '%s%s' "$command" "$(printf ' %q' "$@")"
    "${ssh[@]}" "${hosts[$node]}" "$(printf 'exec bash -c %q' "$command")" | { # whatever shell the account has there
        while IFS= read -r line; do
            if [[ $line =~ ^simsiam-pid\ ([0-9]+)$ ]]; then
                echo "${BASH_REMATCH[1]}" >"$pids/$node"
                break
            fi
            printf '%s\n' "$line"
        done
        exec cat
    }
}

# tell SIGNAL: hands it to torchrun on each machine.
tell() {
    local node
    for node in "${!hosts[@]}"; do
        [[ ! -s $pids/$node ]] || "${ssh[@]}" "${hosts[$node]}" "kill -$1 $(<"$pids/$node")" &
    done
}

# on_all_hosts WORDS...: the run; its exit status is the highest of the machines'.
on_all_hosts() {
    local node child children=() status=0 worst=0
    trap 'tell TERM' TERM HUP
    trap 'tell USR1' USR1
    for node in "${!hosts[@]}"; do
        on_host "$node" "$@" &
        children+=($!)
    done
    for child in "${children[@]}"; do
        status=0
        finish "$child" || status=$?
        ((status <= worst)) || worst=$status
    done
    return "$worst"
}

preemptible "INT TERM HUP USR1" on_all_hosts "$@"
