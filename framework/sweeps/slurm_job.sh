# Sourced by the batch scripts of SLURM jobs: those of slurm/ and those that the sweep launcher writes. Runs the step that
# trains, then ends or requeues the job.
# shellcheck shell=bash

# Signals that torchrun's agent must handle. Any other signal kills it and its workers.
# shellcheck disable=SC2034  # read by the scripts that source this
STEP_SIGNALS=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1

near_end=0 num_signals=0
# Handler until a step runs.
trap 'near_end=1' USR1 TERM

# meeting_address prints the address of the first node that SLURM itself uses. meeting_port prints a port derived from the
# job id, below the range that systems assign automatically.
meeting_address() {
    local head
    head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    scontrol show node --oneliner "$head" | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p'
}
meeting_port() {
    echo $((20000 + SLURM_JOB_ID % 12000))
}

# run_step COMMAND...: runs a step with srun and returns its exit code. A signal to this shell is forwarded to the step once,
# always as USR1, because srun kills its tasks after TERM. Signals of SLURM to the whole job reach the step directly. A lost
# node sends no exit code: srun then waits until SLURM notices the loss and requeues the job.
run_step() {
    local step code=0 seen again
    [[ $near_end == 0 ]] || return $((128 + 10)) # no step has started, so there is nothing to save
    srun --kill-on-bad-exit=0 --wait=0 "$@" &
    step=$!
    # shellcheck disable=SC2064  # expand the process id now
    trap "forward_signal $step" USR1 TERM
    seen=$num_signals
    [[ $near_end == 0 ]] || kill -USR1 "$step" # the signal arrived before the trap was set
    wait "$step" || code=$?
    # wait also returns after a trap.
    while [[ $seen != "$num_signals" ]]; do
        seen=$num_signals again=0
        wait "$step" || again=$?
        [[ $again == 127 ]] || code=$again # 127: the previous wait has returned the exit code
    done
    return "$code"
}

forward_signal() {
    num_signals=$((num_signals + 1))
    [[ $near_end == 0 ]] || return 0
    near_end=1
    kill -USR1 "$1" 2>/dev/null || true
}

# check_time_limit SAVE_SECONDS REMEDY: rejects a job that would get the signal to save as soon as it starts.
check_time_limit() {
    local limit
    limit=$(time_limit)
    if [[ -n $limit && $limit -le $1 ]]; then
        echo "error: The time limit of job $SLURM_JOB_ID is $limit s. It must be longer than $1 s: the job gets the signal to" \
            "save that long before its limit and would never train. Raise the limit or shorten the notice: $2." >&2
        exit 2
    fi
}

# Prints the time limit of the job in seconds; nothing if it has none.
time_limit() {
    { scontrol show job --oneliner "$SLURM_JOB_ID" 2>/dev/null || true; } | sed -n 's/.* TimeLimit=\([0-9][0-9:-]*\) .*/\1/p' |
        awk '{days = 0; if (split($0, day, "-") == 2) {days = day[1]; $0 = day[2]}
            n = split($0, part, ":"); seconds = 0; for (i = 1; i <= n; i++) seconds = 60 * seconds + part[i]
            print 86400 * days + seconds}'
}

# steps_of RUN: prints the last step in the summary or the checkpoints of a run.
steps_of() {
    {
        echo 0
        sed -n 's/^ *"steps": \([0-9]*\),*$/\1/p' "$1/summary.json" 2>/dev/null || true
        find "$1/checkpoints" -path '*/step_*/COMPLETE' 2>/dev/null | sed 's|/COMPLETE$||; s/.*step_0*\(.\)/\1/' || true
    } | sort -n | tail -n 1
}

# begin_job RUN: records the time of this start, and at the first start of a job the current step of the run.
begin_job() {
    mkdir -p "$1/logs"
    rm -f "$1/logs/slurm_exit"
    touch "$1/logs/slurm_start"
    [[ ${SLURM_RESTART_COUNT:-0} -gt 0 ]] || echo "$(steps_of "$1") 0" >"$1/logs/slurm_progress"
}

# is_stuck RUN: succeeds from the third consecutive exit of this job without a new step; records the step.
is_stuck() {
    local file=$1/logs/slurm_progress steps last=0 idle=0
    steps=$(steps_of "$1")
    [[ ! -r $file ]] || read -r last idle <"$file"
    if [[ $steps -gt $last ]]; then idle=0; else idle=$((idle + 1)); fi
    echo "$steps $idle" >"$file"
    [[ $idle -gt 2 ]]
}

# is_new FILE START: succeeds if the file was written after this start began.
is_new() {
    [[ $1 -nt $2 ]]
}

# end_job RUN CODE MAX_REQUEUES: exits, with 0 only if the run has finished according to its summary. A run that was signalled
# and saved is requeued. Call begin_job first.
end_job() {
    local run=$1 code=$2 max_requeues=$3 is_preempted=no start=$1/logs/slurm_start
    if [[ $code == 0 ]] && grep -qs '"ended": "finished"' "$run/summary.json"; then
        exit 0
    fi
    if is_new "$run/summary.json" "$start" && grep -q '"ended": "preempted"' "$run/summary.json"; then
        is_preempted=yes
    elif was_signalled "$code" && ! is_new "$run/logs/failure.json" "$start"; then
        is_preempted=yes # the signal arrived before the run handled signals, or after its end
    fi
    # A cancelled job is no longer RUNNING and stays cancelled.
    if [[ $is_preempted == yes && $(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T) == RUNNING ]]; then
        if is_stuck "$run"; then
            echo "error: Job $SLURM_JOB_ID was requeued twice without a new step (it is at step $(steps_of "$run")) and is not" \
                "requeued again. A start must be long enough for a step. Raise the time limit (now $(time_limit) s), or" \
                "choose nodes that other jobs do not take. The run resumes when you submit it again." >&2
        elif [[ ${SLURM_RESTART_COUNT:-0} -lt $max_requeues ]]; then
            echo "Job $SLURM_JOB_ID stopped before the end of its run and is requeued"
            # SLURM ends this shell. If it does not, the cluster does not allow the requeue.
            scontrol requeue "$SLURM_JOB_ID" && sleep 60
        else
            echo "Job $SLURM_JOB_ID stopped before the end of its run. It was requeued $max_requeues times, the maximum" \
                "(--max-requeues, hydra.launcher.max_requeues). The run resumes when you submit it again."
        fi
    fi
    # A run that did not finish never counts as COMPLETED.
    [[ $code != 0 ]] || code=75
    echo "$code" >"$run/logs/slurm_exit" # framework.status reads it where the run itself could write nothing
    exit "$code"
}

# was_signalled CODE: succeeds if this shell or the step was signalled, or if SLURM takes the nodes for another job.
was_signalled() {
    [[ $near_end == 1 || $1 == $((128 + 10)) || $1 == $((128 + 15)) ]] ||
        scontrol show job --oneliner "$SLURM_JOB_ID" | grep -q 'PreemptTime=[0-9]'
}
