"""Rules between parts of a config that need no files."""

import json
import re
from dataclasses import replace
from typing import Any

import pytest
import transformers
from hydra import compose, initialize_config_dir

from framework.config.checks import (
    check_relative_bias,
    check_tensor_parallel,
    check_vocabulary,
    obstacle_to_graphs,
)
from framework.config.command import resolve_config
from framework.config.identity import identity_text
from framework.config.resolvers import conf_folder, register_resolvers
from framework.data.store_data import StoreData
from framework.data.tokenization.tokenizer import Tokenizer
from framework.distributed.parallel.precision import Precision
from framework.errors import ConfigError
from framework.models.config import EncoderConfig
from framework.published.pretrained import load_pretrained
from framework.runs.build import build_settings
from framework.runs.task_parts import data_kind
from framework.tasks.embedding.task import EmbeddingTask
from framework.tasks.pretraining.task import PretrainingTask
from tests.support.data.sequences import NumberedSource

CONFIG = EncoderConfig(
    family="bert",
    vocab_size=30522,
    hidden_size=768,
    num_layers=1,
    num_heads=12,
    intermediate_size=3072,
    max_position_embeddings=512,
)


def test_ranks_of_tensor_parallel_get_whole_heads():
    for size in (1, 2, 3, 4, 6, 12):
        check_tensor_parallel(CONFIG, size, size)
    # The nearest size divides the 12 heads and the processes.
    for size, world_size, nearest in (
        (8, 8, "strategy=fsdp2_tp strategy.tensor_parallel_size=4"),
        (8, 24, "strategy=fsdp2_tp strategy.tensor_parallel_size=6"),
        (5, 5, "strategy=fsdp2"),
    ):
        expected = f"model.num_heads=12 cannot be split over {size} ranks. Each tensor-parallel rank computes whole "
        remedy = f"heads. The nearest setting of {world_size} processes is {nearest}."
        with pytest.raises(ConfigError, match=re.escape(expected + remedy)):
            check_tensor_parallel(CONFIG, size, world_size)


@pytest.mark.parametrize("name", ["vocab_size", "intermediate_size"])
def test_every_rank_gets_some_words_and_channels(name: str):
    # 10 in 4 parts: 3, 3, 3, 1; 9 in 4 parts: 3, 3, 3 and nothing.
    check_tensor_parallel(replace(CONFIG, **{name: 10}), 4, 4)
    with pytest.raises(
        ConfigError,
        match=f"model.{name}=9 cannot be split over 4 ranks. With parts of 3, the last rank would get nothing. "
        "The nearest setting of 4 processes is strategy=fsdp2_tp strategy.tensor_parallel_size=2",
    ):
        check_tensor_parallel(replace(CONFIG, **{name: 9}), 4, 4)


def test_a_relative_bias_needs_uncompiled_layers_and_all_heads():
    biased = replace(CONFIG, relative_bias="bucketed")
    check_relative_bias(CONFIG, "inductor", 2)
    for backend in ("none", "auto"):
        check_relative_bias(biased, backend, 1)
    for backend, size in (("inductor", 1), ("none", 2)):
        with pytest.raises(ConfigError, match=f"'bucketed', but `strategy.compile` is {backend} and .* {size} ranks"):
            check_relative_bias(biased, backend, size)


def test_probes_are_a_free_key_that_is_checked():
    register_resolvers()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        plain_run = resolve_config(compose("train", ["experiment=pretrain_demo"]))
        data = "+probes.sst2.data={train: a.tsv, validation: b.tsv, format: {columns: [text, label], quote: null}}"
        probed = resolve_config(compose("train", ["experiment=pretrain_demo", data, "trainer.probe_every_n_steps=5"]))
        mistyped = resolve_config(compose("train", ["experiment=pretrain_demo", data, "+probes.sst2.pool=cls"]))
        lonely = resolve_config(compose("train", ["experiment=pretrain_demo", "trainer.probe_every_n_steps=5"]))
    settings = build_settings(probed, world_size=2)
    assert settings.probes["sst2"].data.format.columns == ["text", "label"]
    assert identity_text(probed) == identity_text(plain_run)
    with pytest.raises(ConfigError, match=r"unknown config key `probes.sst2.pool`\. Did you mean `pooling`\?"):
        build_settings(mistyped, world_size=2)
    with pytest.raises(ConfigError, match=r"`trainer.probe_every_n_steps` is 5, but `probes` is empty"):
        build_settings(lonely, world_size=2)


@pytest.mark.parametrize(
    ("overrides", "precision", "obstacle"),
    [
        ([], "bf16", None),
        ([], "fp32", "the precision is fp32 and not bf16"),
        (["strategy=ddp"], "bf16", None),
        (["strategy=fsdp2"], "bf16", "strategy=fsdp2 splits weights over ranks"),
        (["strategy=fsdp2", "strategy.cpu_offload=true"], "bf16", "strategy=fsdp2 splits weights over ranks"),
        (["strategy.activation_checkpointing.mode=full"], "bf16", None),
        (["regularization=r_drop"], "bf16", "the regularization adds passes"),
    ],
)
def test_steps_that_cannot_be_captured_have_a_reason(overrides: list[str], precision: str, obstacle: str | None):
    register_resolvers()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        config = resolve_config(compose("train", ["experiment=finetune_demo", "init_from=x", *overrides]))
    world_size = 2 if config["strategy"]["name"] != "single" else 1
    settings = build_settings(config, world_size)
    task, sources = settings.task.build(), {"train": NumberedSource(5)}
    assert obstacle_to_graphs(settings, Precision(precision), CONFIG, task, sources, world_size) == obstacle


def test_tasks_that_cannot_be_captured_have_a_reason():
    class DecoderTask(PretrainingTask):
        allows_tensor_parallel = False

    register_resolvers()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        settings = build_settings(resolve_config(compose("train", ["experiment=finetune_demo", "init_from=x"])), 1)
    sources = {"train": NumberedSource(5)}
    tasks = (EmbeddingTask(), DecoderTask())
    obstacles = [obstacle_to_graphs(settings, Precision("bf16"), CONFIG, task, sources, 1) for task in tasks]
    assert obstacles == ["the loss of EmbeddingTask needs all sequences of a step at once", "DecoderTask has a decoder"]


def test_one_rank_of_a_sharding_strategy_has_whole_weights_that_can_be_captured():
    register_resolvers()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        configs = [
            resolve_config(compose("train", ["experiment=finetune_demo", "init_from=x", "strategy=fsdp2", *more]))
            for more in ([], ["strategy.cpu_offload=true"])
        ]
    plain, offloaded = (build_settings(config, world_size=1) for config in configs)
    task, sources = plain.task.build(), {"train": NumberedSource(5)}
    assert obstacle_to_graphs(plain, Precision("bf16"), CONFIG, task, sources, 1) is None
    assert (
        obstacle_to_graphs(offloaded, Precision("bf16"), CONFIG, task, sources, 1) == "weights are kept in host memory"
    )


def test_augmentation_makes_another_run_and_null_is_the_earlier_default():
    register_resolvers()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        common = ["experiment=finetune_demo", "init_from=x"]
        none, delete, more = (
            resolve_config(compose("train", [*common, *overrides]))
            for overrides in ([], ["augmentation=delete"], ["augmentation=delete", "augmentation.rate=0.2"])
        )
    assert build_settings(none, world_size=1).augmentation is None
    assert len({identity_text(config) for config in (none, delete, more)}) == 3
    assert identity_text({name: value for name, value in none.items() if name != "augmentation"}) == identity_text(none)


def test_added_keys_with_their_defaults_are_those_of_earlier_runs():
    register_resolvers()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        config = resolve_config(compose("train", ["experiment=pretrain_demo"]))
    earlier = json.loads(json.dumps(config, default=str))
    del earlier["extend_vocabulary"], earlier["trainer"]["batch_warmup_tokens"]
    del earlier["task"]["masked_share"], earlier["task"]["random_share"]
    del earlier["optimizer"]["adamw"]["weight_decay_times"]
    del earlier["schedule"]["warmup_tokens"], earlier["schedule"]["decay_tokens"]
    assert identity_text(earlier) == identity_text(config)
    config["task"]["masked_share"] = 1.0
    assert identity_text(earlier) != identity_text(config)


def tiny_folder(folder, *added: str):
    """Writes a published BERT with 9 embeddings, and a tokenizer with as many ids plus the added ones."""
    config = transformers.BertConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    transformers.BertModel(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcd"]))
    (folder / "added_tokens.json").write_text(json.dumps({token: 9 + index for index, token in enumerate(added)}))
    return folder


@pytest.mark.parametrize(
    ("number", "shown"), [(0, None), (1, r"'<0>' \(9\)\. Remove"), (7, r"'<4>' \(13\) and 2 more")]
)
def test_every_id_has_an_embedding_in_the_weights(number, shown, tmp_path):
    """Spare rows of the model are no embeddings for ids that the weights lack."""
    weights = load_pretrained(str(tiny_folder(tmp_path, *(f"<{index}>" for index in range(number)))))
    tokenizer = Tokenizer.from_folder(tmp_path)
    padded = replace(weights.config, vocab_size=64)
    assert tokenizer.vocab_size == 9 + number
    if shown is None:
        check_vocabulary(tokenizer, padded, weights)
        return
    check_vocabulary(tokenizer, padded)
    with pytest.raises(ConfigError, match=rf"has {9 + number} ids, but the weights .* have 9 embeddings.*{shown}"):
        check_vocabulary(tokenizer, padded, weights)


def test_a_task_that_names_no_kind_of_data_accepts_any():
    class Anything(PretrainingTask):
        def build_sources(self, data: Any, tokenizer: Tokenizer, seed: int) -> dict[str, Any]:
            return {}

    class Unsaid(PretrainingTask):
        def build_sources(self, data, tokenizer, seed):
            return {}

    assert data_kind(Anything) is object
    assert data_kind(Unsaid) is object
    assert data_kind(PretrainingTask) is StoreData


def test_attention_that_depends_on_lengths_cannot_be_captured():
    register_resolvers()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        settings = build_settings(resolve_config(compose("train", ["experiment=finetune_demo", "init_from=x"])), 1)
    task, sources = settings.task.build(), {"train": NumberedSource(5)}
    alibi = replace(CONFIG, relative_bias="alibi")
    obstacle = obstacle_to_graphs(settings, Precision("bf16"), alibi, task, sources, 1)
    assert obstacle == "attention with a relative bias depends on the lengths of the sequences"
