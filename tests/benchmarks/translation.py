"""Translation compared with transformers' EncoderDecoderModel: `python -m tests.benchmarks.translation --help`.

Both train two BERTs of equal size from random weights with one vocabulary; encoder, decoder and output share the words.
They use the same pairs in the same steps, in bf16, with the same rates of AdamW, label smoothing, clipping and dropout,
and beam search of the same width and penalty. Cloze runs its commands, packed; the peer is a plain loop, padded to the
longest text of a step. Prints a row per seed for each: BLEU and chrF of the test pairs by sacrebleu, and the seconds
of the training.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from framework.data.planning.plan import StepPlan, StepSequences
from framework.data.tokenization.tokenizer import Tokenizer
from framework.models.decoder import DecoderConfig
from framework.tasks.translation.data import ParallelTextData
from framework.tasks.translation.decode import corpus_scores
from framework.tasks.translation.features import TranslationSource
from framework.tasks.translation.search import SearchSettings
from framework.tasks.translation.task import TranslationTask

LONGEST, BEAMS, SMOOTHING, CLIP, WARMUP, DECAY = 128, 4, 0.1, 1.0, 0.06, 0.01
HEAD_DIM = 64
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def run_cloze(given: argparse.Namespace, seed: int, folder: Path) -> dict[str, float]:
    """Trains and evaluates with the commands."""
    (source, target), (test_source, test_target) = given.train, given.test
    overrides = [
        f"data.train={source}",
        f"data.train_targets={target}",
        *("data.validation=null", "data.validation_targets=null", "data.validation_fraction=0.0"),
        f"data.test={test_source}",
        f"data.test_targets={test_target}",
        f"model.hidden_size={given.hidden}",
        f"model.num_layers={given.layers}",
        f"model.num_heads={given.hidden // HEAD_DIM}",
        f"model.intermediate_size={4 * given.hidden}",
        f"model.max_position_embeddings={LONGEST}",
        f"task.decoder.num_layers={given.layers}",
        f"trainer.max_steps={given.steps}",
        f"trainer.global_batch_size={given.batch}",
        f"optimizer.lr={given.lr}",
        *("trainer.max_epochs=null", "precision=bf16", "logger=none", f"seed={seed}"),
    ]
    command = [sys.executable, "-m", "framework.train", "experiment=finetune_translation", f"run.dir={folder}"]
    began = time.perf_counter()
    subprocess.run([*command, "run.id=ours", f"tokenizer.path={given.tokenizer}", *overrides], check=True)
    seconds = time.perf_counter() - began
    output = folder / "metrics.json"
    command = [sys.executable, "-m", "framework.evaluate", "run=ours", f"runs={folder}", "split=test"]
    subprocess.run([*command, "precision=bf16", f"output={output}"], check=True)
    metrics = json.loads(output.read_text())["metrics"]
    return {"bleu": metrics["bleu"], "chrf": metrics["chrf"], "seconds": seconds}


def steps_of(
    source: TranslationSource, seed: int, given: argparse.Namespace
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Returns sources, decoder inputs and labels of each step, padded."""
    plan = StepPlan(source, seed, given.batch, max(source.max_length, given.batch * source.max_length))
    for step in range(given.steps):
        drawn = plan.sequences(step)
        batch = source.build(drawn, step)
        decoder = batch.decoder_inputs
        yield (
            padded(batch.input_ids, batch.lengths, 0),
            padded(decoder.input_ids, decoder.lengths, 0),
            padded(decoder.targets["labels"], decoder.lengths, -100),
        )


def padded(flat: Tensor, lengths: tuple[int, ...], value: int) -> Tensor:
    return nn.utils.rnn.pad_sequence(list(flat.split(list(lengths))), batch_first=True, padding_value=value)


def build_peer(given: argparse.Namespace, tokenizer: Tokenizer) -> transformers.EncoderDecoderModel:
    shape = {
        "vocab_size": tokenizer.vocab_size,
        "hidden_size": given.hidden,
        "num_hidden_layers": given.layers,
        "num_attention_heads": given.hidden // HEAD_DIM,
        "intermediate_size": 4 * given.hidden,
        "max_position_embeddings": LONGEST,
        "attention_probs_dropout_prob": 0.0,
        "pad_token_id": tokenizer.pad_id,
    }
    encoder = transformers.BertModel(transformers.BertConfig(**shape), add_pooling_layer=False)
    decoder_config = transformers.BertConfig(**shape, is_decoder=True, add_cross_attention=True)
    model = transformers.EncoderDecoderModel(encoder=encoder, decoder=transformers.BertLMHeadModel(decoder_config))
    words = model.encoder.embeddings.word_embeddings.weight
    model.decoder.bert.embeddings.word_embeddings.weight = words
    model.decoder.cls.predictions.decoder.weight = words
    return model


def run_peer(given: argparse.Namespace, seed: int) -> dict[str, float]:
    """Trains and evaluates in a plain loop."""
    tokenizer = Tokenizer.from_folder(given.tokenizer)
    task = TranslationTask(DecoderConfig(given.layers, LONGEST), SearchSettings(BEAMS, 1.0, LONGEST), LONGEST)
    (source, target), (test_source, test_target) = given.train, given.test
    data = ParallelTextData(train=source, train_targets=target, test=test_source, test_targets=test_target)
    sources = task.build_sources(data, tokenizer, seed)
    torch.manual_seed(seed)
    model = build_peer(given, tokenizer).to(DEVICE).train()
    decayed = [parameter for name, parameter in model.named_parameters() if parameter.ndim > 1]
    rest = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=given.lr, betas=(0.9, 0.98), eps=1e-6)
    warmup = round(WARMUP * given.steps)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, warmup, given.steps)
    began = time.perf_counter()
    for step in steps_of(sources["train"], seed, given):
        ids, decoder_ids, labels = (part.to(DEVICE, non_blocking=True) for part in step)
        masks = {"attention_mask": (ids != 0).long(), "decoder_attention_mask": (decoder_ids != 0).long()}
        with torch.autocast(DEVICE.type, torch.bfloat16):
            logits = model(input_ids=ids, decoder_input_ids=decoder_ids, **masks).logits.float()
        nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=SMOOTHING).backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    seconds = time.perf_counter() - began
    return corpus_scores(translate(model.eval(), sources["test"], tokenizer), sources["test"].references, "13a") | {
        "seconds": seconds
    }


@torch.no_grad()
@torch.autocast(DEVICE.type, torch.bfloat16)
def translate(model: transformers.EncoderDecoderModel, source: TranslationSource, tokenizer: Tokenizer) -> list[str]:
    texts: list[str] = []
    for indices in np.array_split(np.arange(len(source)), -(-len(source) // 64)):
        batch = source.build(StepSequences(np.zeros_like(indices), indices, indices), 0)
        ids = padded(batch.input_ids, batch.lengths, 0).to(DEVICE)
        found = model.generate(
            input_ids=ids,
            attention_mask=(ids != 0).long(),
            num_beams=BEAMS,
            max_new_tokens=LONGEST - 1,
            decoder_start_token_id=tokenizer.cls_id,
            eos_token_id=tokenizer.sep_id,
            pad_token_id=tokenizer.pad_id,
        )
        texts += tokenizer.decode_batch(found.tolist())
    return texts


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", nargs=2, required=True, metavar=("SOURCES", "TARGETS"), help="aligned files")
    parser.add_argument("--test", nargs=2, required=True, metavar=("SOURCES", "TARGETS"), help="aligned files")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder; padding must be id 0")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=128, help="pairs of a step")
    parser.add_argument("--layers", type=int, default=4, help="of encoder and of decoder")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    rows = []
    for seed in given.seeds:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(("cloze", seed, run_cloze(given, seed, Path(folder))))
        rows.append(("EncoderDecoderModel", seed, run_peer(given, seed)))
    print("| model | seed | BLEU | chrF | training, s |\n|---|---|---|---|---|")
    for name, seed, row in rows:
        print(f"| {name} | {seed} | {row['bleu']:.2f} | {row['chrf']:.2f} | {row['seconds']:.0f} |")


if __name__ == "__main__":
    main()
