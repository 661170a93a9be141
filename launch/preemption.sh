# shellcheck shell=bash
# For `source`: runs a command that may be asked to save and end, and tells how the run stands.
#
# torchrun does not pass exit codes on, and ends with 1 whenever it was signalled; the marks in the run folder tell more.

# run_folder WORDS...: the --out among the words of a command.
run_folder() {
    local word before='' out=''
    for word; do
        [[ $before == --out ]] && out=$word
        [[ $word == --out=* ]] && out=${word#--out=}
        before=$word
    done
    [[ -n $out ]] || return 1
    echo "$out"
}

# mark FOLDER NAME: which file of that name is there, so that an old and a new one differ; nothing where there is none.
# The folder is listed, not only asked for the name: on NFS an answer to that may be half a minute old.
mark() {
    find "$1" -maxdepth 1 -name "$2" -printf '%i %T@\n' 2>/dev/null || true
}

# is_new FOLDER NAME BEFORE: whether the mark is there and another than before.
is_new() {
    local now
    now=$(mark "$1" "$2")
    [[ -n $now && $now != "$3" ]]
}

# finish PID: waits for the end of a child, however many signals come in between; its exit status.
finish() {
    local status=0
    wait "$1" || status=$?
    while kill -0 "$1" 2>/dev/null; do
        status=0
        wait "$1" || status=$?
    done
    return "$status"
}

# preemptible SIGNALS COMMAND...: runs the command, which must have an --out, and hands these signals on to it; `asked` is
# set once one came. Exit status: 75 where the run has saved because it was asked to end, or was asked before it took
# signals and so had nothing to save; 0 where it is complete; 2 or 3 where it has stopped for a reason that it would meet
# again, which its mark tells; else the command's.
asked=''
preemptible() {
    local signals=$1 out preempted completed failed child signal code status=0
    shift
    out=$(run_folder "$@") || {
        echo "error: no --out in: $*; give the run folder, whose marks tell whether the run is to be started again" >&2
        return 2
    }
    preempted=$(mark "$out" preempted) completed=$(mark "$out" completed) failed=$(mark "$out" failed)
    "$@" &
    child=$!
    trap : TERM # this shell lives on to tell; Slurm sends SIGTERM to the steps itself
    for signal in $signals; do
        # What runs in the background of a shell ignores SIGINT.
        # shellcheck disable=SC2064
        trap "asked=$signal; kill -${signal/INT/TERM} $child 2>/dev/null || true" "$signal"
    done
    finish "$child" || status=$?
    # shellcheck disable=SC2086
    trap - TERM $signals
    is_new "$out" preempted "$preempted" && return 75
    is_new "$out" completed "$completed" && return 0
    if is_new "$out" failed "$failed"; then
        code=$(<"$out/failed")
        [[ $code != [23] ]] || return "$code"
    elif [[ -n $asked && $status != 0 ]]; then
        return 75
    fi
    return "$status"
}
