"""Predictions from compiled programs: FLOPs, collective communication and memory of TPUs."""

import json
import re
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import run_entry
from jax.sharding import NamedSharding, PartitionSpec

from tp_jax import config as config_lib
from tp_jax.messages.errors import UserError
from tp_jax.models.flops import forward_flops
from tp_jax.parallel.axes import ONE_DEVICE
from tp_jax.parallel.mesh import create_mesh
from tp_jax.performance import aot as report_lib
from tp_jax.performance import topology as topology_lib
from tp_jax.performance.collectives import read_collectives
from tp_jax.performance.programs import trace
from tp_jax.performance.topology import open_topology
from tp_jax.performance.traced_flops import traced_flops
from tp_jax.performance.traffic import read_traffic

CONFIG = "configs/imagenet256.py"


def debug_config(*, remat="none", trainable="all"):
    config = runpy.run_path(CONFIG)["get_config"]("debug")
    config.model.update(remat=remat, dtype="float32")
    config.model.thinking.dispatch = "dense"
    config.train.trainable = trainable
    config.init.base = "somewhere"
    return config


# FLOPs


def test_flops_of_loops_and_conditionals_match_a_count_by_hand():
    a, b = jnp.ones((3, 4)), jnp.ones((4, 4))

    def program(a, b):
        a, _ = jax.lax.scan(lambda x, _: (x @ b, None), a, length=7)
        a = jax.lax.cond(a.sum() > 0, lambda: a @ b @ b, lambda: a @ b)
        return jnp.einsum("ij,kj->ik", a, a)

    wanted = 7 * 2 * 3 * 4 * 4 + 2 * 2 * 3 * 4 * 4 + 2 * 3 * 4 * 3
    assert traced_flops(jax.jit(program).trace(a, b).jaxpr) == wanted


def test_flops_in_shard_map_are_summed_over_devices():
    mesh = create_mesh(ONE_DEVICE | dict(data=4))
    cut = PartitionSpec("data")

    def program(a, b):
        f = jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(cut, PartitionSpec()), out_specs=cut)
        return f(a, b)

    a, b = jnp.ones((8, 4)), jnp.ones((4, 5))
    assert traced_flops(jax.jit(program).trace(a, b).jaxpr) == 2 * 8 * 4 * 5


def test_rematerialization_adds_one_forward_pass_of_the_blocks():
    mesh = create_mesh(ONE_DEVICE, jax.devices()[:1])
    flops = {}
    for remat in ("none", "dots", "full"):
        program = trace(debug_config(remat=remat), "train", mesh)
        flops[remat] = traced_flops(program.traced.jaxpr)
    # Not exactly equal: there is no gradient of the images, and adaLN acts on one row per sample.
    assert flops["none"] == pytest.approx(program.model_flops, rel=0.05)
    assert flops["dots"] == flops["none"]
    forward = program.model_flops / 3
    assert flops["full"] - flops["none"] == pytest.approx(forward, rel=0.15)


def test_sampling_flops_count_the_guided_and_the_unguided_half():
    mesh = create_mesh(ONE_DEVICE, jax.devices()[:1])
    config = debug_config()
    config.model.thinking.layers = ()
    program = trace(config, "sample", mesh)
    assert traced_flops(program.traced.jaxpr) == pytest.approx(program.model_flops, rel=1e-6)
    model = config_lib.build(config).model
    assert program.model_flops == 10 * 2 * 16 * forward_flops(model)


# Memory traffic

HLO = """
HloModule test

%body (p: (s32[], f32[4,256], f32[8,256])) -> (s32[], f32[4,256], f32[8,256]) {
  %p = (s32[], f32[4,256]{1,0}, f32[8,256]{1,0}) parameter(0)
  %i = s32[]{:S(6)} get-tuple-element(%p), index=0
  %x = f32[4,256]{1,0} get-tuple-element(%p), index=1
  %stack = f32[8,256]{1,0} get-tuple-element(%p), index=2
  %near = f32[4,256]{1,0:S(1)} multiply(%x, %x)
  %updated = f32[8,256]{1,0} fusion(%stack, %near, %i), kind=kLoop, calls=%update
  ROOT %t = (s32[], f32[4,256]{1,0}, f32[8,256]{1,0}) tuple(%i, %x, %updated)
}

%update (a: f32[8,256], b: f32[4,256], n: s32[]) -> f32[8,256] {
  %a = f32[8,256]{1,0} parameter(0)
  %b = f32[4,256]{1,0} parameter(1)
  %n = s32[] parameter(2)
  %row = f32[1,256]{1,0} slice(%b), slice={[0:1], [0:256]}
  ROOT %new = f32[8,256]{1,0} dynamic-update-slice(%a, %row, %n, %n)
}

%less (q: (s32[], f32[4,256], f32[8,256])) -> pred[] {
  %q = (s32[], f32[4,256]{1,0}, f32[8,256]{1,0}) parameter(0)
  %c = s32[] constant(3)
  %j = s32[] get-tuple-element(%q), index=0
  ROOT %lt = pred[] compare(%j, %c), direction=LT
}

ENTRY %main (x0: f32[4,256], s0: f32[8,256]) -> f32[8,256] {
  %x0 = f32[4,256]{1,0} parameter(0)
  %s0 = f32[8,256]{1,0} parameter(1)
  %zero = s32[] constant(0)
  %kernel = bf16[2,64]{1,0:T(8,128)(2,1)} custom-call(%x0), custom_call_target="tpu_custom_call", backend_config={"a": {
"more":"1"
}}
  %start = (s32[], f32[4,256]{1,0}, f32[8,256]{1,0}) tuple(%zero, %x0, %s0)
  %loop = (s32[], f32[4,256]{1,0}, f32[8,256]{1,0}) while(%start), condition=%less, body=%body
  ROOT %out = f32[8,256]{1,0} get-tuple-element(%loop), index=2
}
"""  # noqa: E501


def test_memory_traffic_of_a_loop_a_kernel_and_an_update_in_place():
    # The kernel reads x0 and writes two rows of 64, stored as eight rows of 128.
    kernel = 4 * 256 * 4 + 8 * 128 * 2
    # Each of three turns reads x twice, as both operands; its product stays in on-chip memory. Then
    # one row is written into the stack, whose other rows are neither read nor written.
    turn = 2 * 4 * 256 * 4 + 256 * 4
    assert read_traffic(HLO) == kernel + 3 * turn


def test_memory_traffic_of_a_compiled_program():
    x = jnp.ones((512, 256))
    text = compiled_text(lambda x: jnp.tanh(x).sum(0), x)
    assert 512 * 256 * 4 <= read_traffic(text) < 4 * 512 * 256 * 4


# Collectives


def compiled_text(f, *args):
    return jax.jit(f).lower(*args).compile().as_text()


def shard_mapped(body, mesh, out=PartitionSpec()):
    return jax.shard_map(
        body, mesh=mesh, in_specs=PartitionSpec("data"), out_specs=out, check_vma=False
    )


def test_collectives_of_compiled_programs():
    mesh = create_mesh(ONE_DEVICE | dict(data=4))
    x = jax.device_put(
        jnp.arange(8 * 1024.0).reshape(8, 1024), NamedSharding(mesh, PartitionSpec("data"))
    )

    def looped(x):
        def turn(total, _):
            whole = jax.lax.all_gather(x * total.sum(), "data", tiled=True)
            return whole[:2] + total, None

        return jax.lax.psum(jax.lax.scan(turn, x, length=5)[0], "data")

    found = {each.kind: each for each in read_collectives(
        compiled_text(shard_mapped(looped, mesh), x), 4
    )}  # fmt: skip
    gathered, summed = found["all-gather"], found["all-reduce"]
    # 8 rows of 4 KiB, 6 of them from other devices, in five iterations.
    assert (gathered.count, gathered.received) == (5, 5 * 6 * 4096)
    assert (summed.count, summed.received) == (1, 2 * 2 * 4096 * 3 / 4)
    assert gathered.between_slices == 0

    def swapped(x):
        parts = jax.lax.all_to_all(x.reshape(4, -1), "data", 0, 0, tiled=True)
        return jax.lax.ppermute(parts, "data", [(i, (i + 1) % 4) for i in range(4)])

    out = PartitionSpec("data")
    found = read_collectives(compiled_text(shard_mapped(swapped, mesh, out), x), 4, slices=2)
    found = {each.kind: each for each in found}
    assert found["all-to-all"].received == 2 * 4096 * 3 / 4
    assert found["collective-permute"].received == 2 * 4096
    assert found["all-to-all"].between_slices == found["all-to-all"].received


TPU_TEXT = """
%fused_computation.1 (p: bf16[8,4]) -> bf16[128,4] {
  %p = bf16[8,4]{1,0} parameter(0)
  ROOT %all-gather.1 = bf16[128,4]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=5, replica_groups=mesh['axis_0'=16] {'axis_0'}, dimensions={0}
}

%fused_computation.2 (p: bf16[8,4]) -> bf16[128,4] {
  %p = bf16[8,4]{1,0} parameter(0)
  ROOT %all-gather.2 = bf16[128,4]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=5, replica_groups=mesh['axis_0'=16] {'axis_0'}, dimensions={0}
}

%body (s: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %s = (s32[]{:T(128)}, bf16[8,4]{1,0}) parameter(0)
  %x = bf16[8,4]{1,0} get-tuple-element(%s), index=1
  %start = bf16[128,4]{1,0} fusion(%x), kind=kCustom, calls=%fused_computation.1
  %done = bf16[128,4]{1,0} fusion(%x), kind=kCustom, calls=%fused_computation.2
  ROOT %t = (s32[]{:T(128)}, bf16[8,4]{1,0}) tuple(%s, %x)
}

%condition (s: (s32[], bf16[8,4])) -> pred[] {
  %constant.7 = s32[]{:T(128)} constant(12)
  %s = (s32[]{:T(128)}, bf16[8,4]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%s), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %constant.7), direction=LT
}

%all-reduce-scatter.3 (g: f32[160]) -> f32[10] {
  %g = f32[160]{0} parameter(0)
  %sum = f32[160]{0} all-reduce(%g), channel_id=4, replica_groups=[1,16]<=[16], to_apply=%add
  ROOT %part = f32[10]{0} dynamic-slice(%sum, %i), dynamic_slice_sizes={10}
}

%by_data (s: (s32[], s32[])) -> pred[] {
  %s = (s32[]{:T(128)}, s32[]{:T(128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%s), index=0
  %n = s32[]{:T(128)} get-tuple-element(%s), index=1
  ROOT %lt = pred[]{:T(512)} compare(%i, %n), direction=LT
}

%turn (s: (s32[], s32[])) -> (s32[], s32[]) {
  %s = (s32[]{:T(128)}, s32[]{:T(128)}) parameter(0)
  %r.1 = f32[40,128]{1,0} ragged-all-to-all(%a, %b, %c, %d, %e, %f), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7},{8,9,10,11},{12,13,14,15}}
  ROOT %r.2 = f32[40,128]{1,0} ragged-all-to-all(%a, %b, %c, %d, %e, %f), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7},{8,9,10,11},{12,13,14,15}}
}

ENTRY %main (p: bf16[8,4]) -> bf16[8,4] {
  %p = bf16[8,4]{1,0} parameter(0)
  %w = (s32[]{:T(128)}, bf16[8,4]{1,0}) while(%t), condition=%condition, body=%body
  %v = (s32[]{:T(128)}, s32[]{:T(128)}) while(%u), condition=%by_data, body=%turn
  %sum = (f32[100]{0}, bf16[100]{0}) all-reduce(%g, %h), channel_id=9, replica_groups=[2,8]<=[8,2]T(1,0), to_apply=%add
  %recv.1 = (f32[300]{0:T(128)}, u32[], token[]) recv(%token), channel_id=1, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_target="{1,2}x{0:7}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %kept = f32[10]{0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.3
  %cp = (f32[64]{0}, f32[64]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%g), channel_id=2, source_target_pairs={{0,1},{1,0}}
  ROOT %scattered = f32[10]{0} reduce-scatter(%g), channel_id=10, replica_groups=mesh['axis_0'=2,'axis_1'=8] {'axis_0'}, dimensions={0}, to_apply=%add
}
"""  # noqa: E501


def test_collectives_of_a_tpu_program_match_a_count_by_hand():
    found = {each.kind: each for each in read_collectives(TPU_TEXT, 16, slices=2)}
    # One all-gather, split into two fusions, in twelve iterations: 15/16 of 1,024 bytes.
    assert (found["all-gather"].count, found["all-gather"].received) == (12, 12 * 960)
    assert found["all-gather"].between_slices == 12 * 960
    ragged = found["ragged-all-to-all"]
    assert (ragged.count, ragged.received) == (2, 2 * 40 * 128 * 4 * 3 / 4)
    assert ragged.between_slices == 0
    # The groups 0, 2, … and 1, 3, … span both slices; the runtime sends 1,200 bytes between them.
    assert found["all-reduce"].received == 2 * 600 * 7 / 8 + 1200
    assert found["all-reduce"].between_slices == found["all-reduce"].received
    assert found["collective-permute"].received == 256
    assert found["collective-permute"].between_slices == 0
    # A reduce-scatter over 16 devices, and one over pairs of devices in different slices.
    assert (found["reduce-scatter"].count, found["reduce-scatter"].received) == (2, 600 + 40)
    assert found["reduce-scatter"].between_slices == 600 + 40


# The entry


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        ([], "--topology is missing: KIND:SHAPE"),
        (["--topology=v5e"], "--topology=v5e: give KIND:SHAPE in chips, such as v4:4x4x4"),
        (["--topology=v5e:4x4", "--slices=0"], "--slices=0: must be 1 or more"),
        (["--topology=v5e:4x4", "--job=think"], "--job='think': choose one of train, sample"),
    ],
)
def test_wrong_flags_are_refused(flags, match, refused):
    refused("aot", f"--config={CONFIG}:debug", *flags, match=match)


def test_without_libtpu_the_error_names_the_extra(refused, monkeypatch):
    monkeypatch.setattr(topology_lib, "find_spec", lambda name: None)
    match = r"needs libtpu \(but no TPU\): pip install -e '.\[tpu\]'"
    refused("aot", f"--config={CONFIG}:debug", "--topology=v5e:4x4", match=match)


@pytest.fixture
def libtpu():
    if topology_lib.find_spec("libtpu") is None:
        pytest.fail("install libtpu: TP_JAX_EXTRAS=tpu bash launch/test.sh -m libtpu")


def full_size(*, experts=2, dispatch="auto", **mesh):
    config = runpy.run_path(CONFIG)["get_config"]("scratch")
    config.model.thinking.update(experts=experts, dispatch=dispatch)
    config.mesh.update(ONE_DEVICE | mesh)
    return config


@pytest.mark.libtpu
def test_dit_xl_2_from_scratch_fits_on_sixteen_v5e(libtpu, tmp_path):
    mesh = ["--config.mesh.data=1", "--config.mesh.fsdp=-1"]
    out = tmp_path / "report.json"
    code, stdout, stderr = run_entry(
        "aot", f"--config={CONFIG}:scratch", "--topology=v5e:4x4", f"--json={out}", *mesh
    )
    print(stdout)
    assert code == 0, stderr
    assert "MFU at most" in stdout and "16 chips, fsdp 16" in stdout
    found = json.loads(out.read_text())
    assert found["fits"] and found["peak"] <= 1.7 * 2**30
    kinds = {each["kind"]: each for each in found["collectives"]}
    # Only weights are gathered: those of each block twice, in bfloat16, 15/16 from other chips.
    block = 18 * 1152**2 * 2 * 15 / 16
    assert kinds["all-gather"]["received"] == pytest.approx(2 * 28 * block, rel=0.1)
    assert sum(each["received"] for each in kinds.values()) < 2.5 * 2 * 28 * block


@pytest.mark.libtpu
def test_more_experts_add_few_flops_and_are_sharded_over_the_chips(libtpu):
    topology = open_topology("v5e:4x4")
    flops = {}
    for experts in (2, 64):
        axis = dict(expert=16) if experts == 64 else dict(fsdp=16)
        dispatch = "expert_parallel" if experts == 64 else "auto"
        config = full_size(experts=experts, dispatch=dispatch, **axis)
        program = trace(config, "train", create_mesh(config.mesh, list(topology.devices)))
        flops[experts] = traced_flops(program.traced.jaxpr)
        if experts == 64:
            text = program.traced.lower().compile(report_lib.QUICK).as_text()
    print(flops)
    assert flops[64] < 1.2 * flops[2]
    assert "ragged-all-to-all" in text
    # Each of sixteen chips holds four experts; their layout may differ.
    shapes = {tuple(map(int, dims.split(","))) for dims in _shapes(text)}
    whole = 64 * 1152 * 3 * 128
    with_rank = [shape for shape in shapes if (1152 in shape and 128 in shape) or 384 in shape]
    assert any(np.prod(shape) == whole / 16 for shape in with_rank)
    assert not any(np.prod(shape) >= whole for shape in with_rank)


def _shapes(text):
    return re.findall(r"\b(?:bf16|f32)\[([\d,]+)\]", text)


def reported(**fields):
    """A report in which only `memory` and these fields are set."""
    empty = dict.fromkeys(report_lib.Report.__dataclass_fields__)
    return report_lib.Report(**empty | dict(memory=100) | fields)


def test_advice_keeps_changes_that_help_and_skips_impossible_ones():
    config, tried = debug_config(), []

    def compile_changed(changed):
        tried.append((changed.model.remat, changed.model.dtype, changed.train.accumulate))
        if changed.model.dtype == "bfloat16":
            raise UserError("no such thing here")
        return reported(peak=99 if changed.train.accumulate == 4 else 101)

    found = report_lib.advise(config, 4, "train", compile_changed)
    assert "--config.model.remat=full" in found and "--config.train.accumulate=4" in found
    assert "--config.train.offload=True" in found and "bfloat16" not in found
    assert ("full", "bfloat16", 1) in tried and tried[-1] == ("full", "float32", 4)
    assert "--config.mesh.fsdp=4" in found
    assert report_lib.advise(config, 4, "sample", lambda changed: reported(peak=101)) is None


@pytest.mark.libtpu
def test_a_program_that_does_not_fit_gets_advice_that_does(libtpu):
    code, stdout, stderr = run_entry(
        "aot", f"--config={CONFIG}:scratch", "--topology=v5e:2x2", "--config.mesh.data=4",
        "--config.model.remat=none", "--config.model.dtype=float32",
    )  # fmt: skip
    assert code == 0, stderr
    advice = stdout.partition("It doesn't fit. Fits with: ")[2]
    assert "--config.model.remat=full" in advice and "GiB" in advice


@pytest.mark.libtpu
@pytest.mark.parametrize(("kind", "shape"), [("v4", "2x2x1"), ("v5p", "2x2x1"), ("v6e", "2x2")])
def test_every_tpu_generation_compiles_training_and_sampling(kind, shape, libtpu, tmp_path):
    for job in ("train", "sample"):
        code, stdout, stderr = run_entry(
            "aot", f"--config={CONFIG}:debug", f"--topology={kind}:{shape}", f"--job={job}"
        )
        assert code == 0, stderr
        assert "the bound" in stdout
    code, _, stderr = run_entry("aot", f"--config={CONFIG}:debug", f"--topology={kind}:3x5x7")
    assert code == 2 and f"--topology={kind}:3x5x7: " in stderr
