# shellcheck shell=bash
# For `source` in a batch script: a torchrun on each node of the job, and the job queued again where it was preempted.
source launch/preemption.sh

# run SCRIPT SETTINGS...: trains on all nodes. Where the run was asked to end, and has saved, it queues the job again and
# ends the script; else its exit status is that of the run.
run() {
    local status=0
    # The stage before this one was asked to end and came to its own end: there is no time left, and no second signal.
    [[ -z $asked ]] || requeue
    export PET_NNODES=${SLURM_JOB_NUM_NODES:-1} PET_NPROC_PER_NODE=${SLURM_GPUS_ON_NODE:-} PET_RDZV_ID=$SLURM_JOB_ID
    read -r PET_MASTER_ADDR < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    # A port of its own for each job of a node, below those that the system hands out.
    export PET_MASTER_ADDR PET_MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000))
    # srun does not take over --cpus-per-task from sbatch. --wait: a node whose torchrun has ended gives the others time to
    # end as well, instead of having them killed.
    # --export: else a site that submits with --export=NONE hands on neither PATH nor any of these. SRUN_ARGS are words of
    # your own, such as a container's.
    # shellcheck disable=SC2016,SC2086
    preemptible USR1 srun --nodes="$PET_NNODES" --ntasks-per-node=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
        --kill-on-bad-exit=0 --wait=180 --export=ALL ${SRUN_ARGS:-} \
        bash -c 'PET_NODE_RANK=$SLURM_NODEID PET_LOCAL_ADDR=${PET_LOCAL_ADDR:-$SLURMD_NODENAME} exec launch/node.sh "$@"' \
        node.sh "$@" || status=$?
    [[ $status != 75 ]] || requeue
    return "$status"
}

# requeue: queues this job, or this task of an array, again under its own number, unless somebody has cancelled it.
requeue() {
    local job=$SLURM_JOB_ID
    # The last task of an array has the number of the whole array: asked by that, Slurm would queue all of them again.
    [[ -z ${SLURM_ARRAY_JOB_ID:-} ]] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
    if [[ $(squeue --noheader --jobs="$job" --format=%T) == COMPLETING ]]; then
        echo "Job $job has saved and is being ended by scancel or its time limit; the same sbatch command goes on"
        exit 1
    fi
    if ! scontrol requeue "$job"; then
        echo "error: job $job has saved, but cannot be queued again (see scontrol above); the same sbatch command goes on" >&2
        exit 1
    fi
    echo "Job $job has saved and is queued again"
    exit 0
}
