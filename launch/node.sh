#!/bin/bash
# One node's part of a run, one torchrun, whatever starts it: Slurm, ssh, Kubernetes, SkyPilot.
#   launch/node.sh pretrain.py --recipe NAME --data DATA --out FOLDER
# Which part it is stands in torchrun's own variables, which Kubeflow sets too; without them it is the only node.
#   PET_NNODES          number of nodes, or 1:4 for as many of one to four as there are
#   PET_NODE_RANK       number of this one, from 0
#   PET_NPROC_PER_NODE  ranks on each; default: one for each GPU, of those in CUDA_VISIBLE_DEVICES where that is set
#   PET_MASTER_ADDR     name of node 0, as the others reach it
#   PET_LOCAL_ADDR      name of this one, as the others reach it; default: what the machine calls itself
#   PET_RDZV_CONF       torchrun's --rdzv-conf, such as join_timeout=86400 where nodes may come hours apart
#   PET_MASTER_PORT     a port on it that nobody else takes
#   PET_RDZV_ID         name of the run, unlike that of any other run that might find the same port
set -euo pipefail

nodes=${PET_NNODES:-1} node=${PET_NODE_RANK:-0} ranks=${PET_NPROC_PER_NODE:-}
if [[ -v CUDA_VISIBLE_DEVICES ]]; then
    gpus=$(tr , '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -cE '^([0-9]+|(GPU|MIG)-.*)$') || gpus=0
else
    gpus=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU ') || gpus=0
fi
# Without one it is one rank on the CPU.
[[ $ranks =~ ^[1-9][0-9]*$ ]] || ranks=$((gpus > 1 ? gpus : 1))

# A signal that torchrun does not know kills it and orphans the ranks; those that it knows it passes on. Given as
# variables because --shutdown-timeout is new in torch 2.13: an older torchrun ignores it, and its grace is 30 s.
export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2
export PET_SHUTDOWN_TIMEOUT=${PET_SHUTDOWN_TIMEOUT:-150}
# With the store that torchrun shares by default, about half of the restarts find the keys of the life before and fail,
# and a node that was replaced brings all of them down.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
export PET_MAX_RESTARTS=${PET_MAX_RESTARTS:-3}
# Says what went wrong, and nothing else. launch/README.md has the other variables of NCCL.
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}

export PET_RDZV_BACKEND=c10d PET_RDZV_ID=${PET_RDZV_ID:-simsiam} PET_NPROC_PER_NODE=$ranks
if [[ $nodes == 1 ]]; then
    # Not by the machine's own name, which need not be known even to itself.
    export PET_RDZV_ENDPOINT=localhost:0 PET_LOCAL_ADDR=${PET_LOCAL_ADDR:-localhost}
else
    # Node 0 hosts the rendezvous. Left to itself torchrun compares host names, and not everywhere do they compare.
    host=0
    [[ $node == 0 ]] && host=1
    export PET_RDZV_ENDPOINT=${PET_MASTER_ADDR:?"is the name of node 0"}:${PET_MASTER_PORT:-29400}
    # The first import of torch from a slow disk can keep node 0 for minutes, in which the others look for it.
    export PET_RDZV_CONF=is_host=$host,read_timeout=300${PET_RDZV_CONF:+,$PET_RDZV_CONF}
fi

script=${1:?"give a script and its settings, such as pretrain.py --recipe imagenet-r50-100ep"}
shift
# A node whose clock is slow can be left out without a word: the ranks that there must be are told to the run.
[[ $nodes == *:* ]] || set -- --world-size $((nodes * ranks)) "$@"
# GPUs that torch cannot use, of too old a driver for instance, are a mistake, and no reason to take days on CPUs.
((gpus == 0)) || set -- --device cuda "$@"
# torchrun would set it with a warning.
((ranks == 1)) || export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec torchrun "$script" "$@"
