"""The collectives of 1024 ranks, computed by one process with neither the ranks nor the memory."""

from collections import Counter

import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from framework.distributed.mesh import SHARD, build_mesh, mesh_shape
from framework.distributed.parallel.gradient_norm import clip_gradients
from framework.distributed.parallel.parallelize import parallelize, set_gradient_sync
from framework.distributed.parallel.precision import Precision
from framework.nn.dropout import dropout_base, token_keys
from tests.support.models.tiny import TinyModel, make_batch, tiny_config
from tests.support.processes.collective_trace import CollectiveTrace
from tests.support.processes.workers import WorkerPool

WORLD_SIZE, LOCAL_SIZE = 1024, 8


def dry_step() -> tuple[tuple[int, ...], Counter[str], tuple[int, ...]]:
    """Returns the mesh shape, the collectives of a step with two micro-batches, and this rank's part of the words."""
    dist.destroy_process_group()
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=WORLD_SIZE)
    try:
        shape = mesh_shape("hsdp", WORLD_SIZE, replicate_size=WORLD_SIZE // LOCAL_SIZE)
        mesh = build_mesh("hsdp", shape, "cpu")
        assert mesh is not None and mesh[SHARD].mesh.tolist() == list(range(LOCAL_SIZE))
        batch = make_batch(0, [0])
        keys = token_keys(dropout_base(7, 0, 0), batch)
        with FakeTensorMode(allow_non_fake_inputs=True):
            model = TinyModel(tiny_config(modern=False))
            parallelize(model, mesh, "hsdp", Precision("fp32"))  # type: ignore[arg-type]
            with CollectiveTrace() as trace:
                for is_last in (False, True):
                    set_gradient_sync(model, is_last)
                    model(batch, keys).sum().backward()
                clip_gradients(model.parameters(), 1.0)
        words = model.encoder.embeddings.word_embeddings.weight
        return tuple(mesh.shape), trace.counts, tuple(words.to_local().shape)  # type: ignore[operator]
    finally:
        dist.destroy_process_group()
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)


def test_hsdp_at_128_hosts_of_8(workers: WorkerPool) -> None:
    mesh, counts, part = workers.run(dry_step, 1)[0]
    assert mesh == (128, 8)
    assert part == (13, 32)
    # Two layers, each gathered before forward and backward of each micro-batch, and the root; three reductions within
    # hosts and three between them, and the one of the norm.
    assert counts == {"allgather_base": 9, "reduce_scatter_base": 3, "allreduce": 4}
