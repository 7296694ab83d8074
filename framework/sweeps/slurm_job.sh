# Sourced by the batch scripts of SLURM jobs, those of slurm/ and those that the launcher of sweeps writes: one step that
# trains, and what becomes of the job when the step has ended.
# shellcheck shell=bash

# torchrun's agent dies of signals that it does not know, and its workers with it.
# shellcheck disable=SC2034  # read by the scripts that source this
STEP_SIGNALS=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1

near_end=0 num_signals=0
# What comes before there is a step.
trap 'near_end=1' USR1 TERM

# The first node's address, as SLURM itself reaches it, and a port below those that systems give away: one for each job.
meeting_address() {
    local head
    head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    scontrol show node --oneliner "$head" | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p'
}
meeting_port() {
    echo $((20000 + SLURM_JOB_ID % 12000))
}

# run_step COMMAND...: runs a step of srun and returns its exit code. A signal to this shell goes on to the step, once, and
# always as USR1: at TERM srun would kill its tasks. What SLURM sends to the whole job reaches the step by itself. A node
# that is lost sends no exit code: srun then waits until SLURM has noticed, and queues the job again.
run_step() {
    local step code=0 seen again
    [[ $near_end == 0 ]] || return $((128 + 10)) # nothing has begun that could be saved
    srun --kill-on-bad-exit=0 --wait=0 "$@" &
    step=$!
    # shellcheck disable=SC2064  # the step of now
    trap "pass_on $step" USR1 TERM
    seen=$num_signals
    [[ $near_end == 0 ]] || kill -USR1 "$step" # it came between the two
    wait "$step" || code=$?
    # wait returns when a trap has run, too.
    while [[ $seen != "$num_signals" ]]; do
        seen=$num_signals again=0
        wait "$step" || again=$?
        [[ $again == 127 ]] || code=$again # 127: the wait before saw the end
    done
    return "$code"
}

pass_on() {
    num_signals=$((num_signals + 1))
    [[ $near_end == 0 ]] || return 0
    near_end=1
    kill -USR1 "$1" 2>/dev/null || true
}

# check_time_limit SAVE_SECONDS REMEDY: rejects a job whose signal to save would come as soon as it begins.
check_time_limit() {
    local limit
    limit=$(time_limit)
    if [[ -n $limit && $limit -le $1 ]]; then
        echo "error: job $SLURM_JOB_ID has a time limit of $limit s, but it is asked to save $1 s before the limit and" \
            "would never train. Raise the limit or shorten the notice: $2" >&2
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

# steps_of RUN: prints the last step in its summary or checkpoints.
steps_of() {
    {
        echo 0
        sed -n 's/^ *"steps": \([0-9]*\),*$/\1/p' "$1/summary.json" 2>/dev/null || true
        find "$1/checkpoints" -path '*/step_*/COMPLETE' 2>/dev/null | sed 's|/COMPLETE$||; s/.*step_0*\(.\)/\1/' || true
    } | sort -n | tail -n 1
}

# begin_job RUN: records when this start begins, and at the first start of a job the current step of the run.
begin_job() {
    mkdir -p "$1/logs"
    touch "$1/logs/slurm_start"
    [[ ${SLURM_RESTART_COUNT:-0} -gt 0 ]] || echo "$(steps_of "$1") 0" >"$1/logs/slurm_progress"
}

# is_stuck RUN: true from the third consecutive exit of this job without a new step; records the step.
is_stuck() {
    local file=$1/logs/slurm_progress steps last=0 idle=0
    steps=$(steps_of "$1")
    [[ ! -r $file ]] || read -r last idle <"$file"
    if [[ $steps -gt $last ]]; then idle=0; else idle=$((idle + 1)); fi
    echo "$steps $idle" >"$file"
    [[ $idle -gt 2 ]]
}

# is_new FILE START: written since this start began.
is_new() {
    [[ $1 -nt $2 ]]
}

# end_job RUN CODE MAX_REQUEUES: leaves, with 0 only where the run folder says that the run has finished. A run that was
# asked to leave, and did, is queued again. begin_job has run before.
end_job() {
    local run=$1 code=$2 max_requeues=$3 leaves=no start=$1/logs/slurm_start
    if [[ $code == 0 ]] && grep -qs '"ended": "finished"' "$run/summary.json"; then
        exit 0
    fi
    if is_new "$run/summary.json" "$start" && grep -q '"ended": "preempted"' "$run/summary.json"; then
        leaves=yes
    elif was_asked_to_leave "$code" && ! is_new "$run/logs/failure.json" "$start"; then
        leaves=yes # before the run could listen, or when it was done already
    fi
    # A job that somebody has cancelled is no longer RUNNING, and stays cancelled.
    if [[ $leaves == yes && $(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T) == RUNNING ]]; then
        if is_stuck "$run"; then
            echo "error: job $SLURM_JOB_ID was queued again twice without a new step (it is at step $(steps_of "$run")) and" \
                "is not queued again. Its starts are too short: raise its time limit (now $(time_limit) s), or choose" \
                "nodes that other jobs do not take. The run resumes when it is submitted again." >&2
        elif [[ ${SLURM_RESTART_COUNT:-0} -lt $max_requeues ]]; then
            echo "job $SLURM_JOB_ID left before its end and is queued again"
            # SLURM ends this shell; where it does not, the job may not be queued again.
            scontrol requeue "$SLURM_JOB_ID" && sleep 60
        else
            echo "job $SLURM_JOB_ID left before its end and was queued again $max_requeues times; that is enough"
        fi
    fi
    # A run that did not finish never counts as COMPLETED.
    [[ $code != 0 ]] || code=75
    exit "$code"
}

# was_asked_to_leave CODE: by a signal to this shell or to the step, or because SLURM wants the nodes for another job.
was_asked_to_leave() {
    [[ $near_end == 1 || $1 == $((128 + 10)) || $1 == $((128 + 15)) ]] ||
        scontrol show job --oneliner "$SLURM_JOB_ID" | grep -q 'PreemptTime=[0-9]'
}
