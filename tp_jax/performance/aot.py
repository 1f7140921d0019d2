"""Ahead-of-time compilation for TPUs: memory per chip, and a lower bound on the step time."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, cast

import jax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

import tp_jax
from tp_jax import config as config_lib
from tp_jax.files.atomic import write_json
from tp_jax.messages.errors import UserError
from tp_jax.messages.progress import say
from tp_jax.parallel.mesh import create_mesh
from tp_jax.performance.collectives import Collective, read_collectives
from tp_jax.performance.programs import JOBS, TracedProgram, trace
from tp_jax.performance.topology import Topology, open_topology
from tp_jax.performance.traced_flops import traced_flops
from tp_jax.performance.traffic import read_traffic

GIB = 2**30
# Less optimization by the compiler: a quarter of the compile time, and the memory differs by only a
# few percent.
QUICK: dict[str, Any] = {"exec_time_optimization_effort": -1.0}


@dataclasses.dataclass(frozen=True)
class AotOptions:
    """What to compile; the flags of `tp_jax.aot`.

    Attributes:
      config: the config.
      topology, slices: the arguments of `open_topology`.
      job: one of `JOBS`.
      full: compile with all optimizations, as training does.
      advise: if the program doesn't fit into memory, look for config changes that make it fit.
      json: a file for the report.
    """

    config: ConfigDict
    topology: str
    slices: int = 1
    job: str = "train"
    full: bool = False
    advise: bool = True
    json: epath.Path | None = None


@dataclasses.dataclass(frozen=True)
class Report:
    """The cost of one train step or of sampling one batch. All quantities are per chip.

    Attributes:
      topology, slices, chips: the hardware, with the number of chips of all slices.
      mesh: the mesh axes longer than 1, and their sizes.
      job: one of `JOBS`.
      held: bytes of the program's inputs, by name.
      on_host: bytes that stay in host memory.
      temporaries, peak: bytes, as the compiler reports them; None if it refused to compile a
        program that exceeds the chip's memory.
      traffic: bytes that the compiled program reads from and writes to memory, see `read_traffic`.
      memory: bytes of memory of a chip.
      model_flops, program_flops: FLOPs without and with recomputation.
      bandwidth: of the memory of a chip, bytes/s.
      collectives: the communication, by kind.
      bounds: lower bounds in seconds, from compute, memory traffic and communication.
      model_flops_utilisation: an upper bound, reached if compute, memory traffic and communication
        overlap fully.
      compile_seconds: seconds that tracing and compiling took.
      full: whether the program was compiled with all optimizations.
      advice: config changes with which it fits; None if none was found or looked for.
    """

    topology: str
    slices: int
    chips: int
    mesh: dict[str, int]
    job: str
    held: dict[str, int]
    on_host: int
    temporaries: int | None
    peak: int | None
    traffic: float | None
    memory: int
    model_flops: float
    program_flops: float
    bandwidth: float
    collectives: list[Collective]
    bounds: dict[str, float]
    model_flops_utilisation: float
    compile_seconds: float
    full: bool
    advice: str | None = None

    @property
    def fits(self) -> bool:
        """Whether the program fits into a chip's memory."""
        return self.peak is not None and self.peak <= self.memory


def run_aot(options: AotOptions) -> Report:
    """Compile, print the report, and write it as JSON if `options.json` is given.

    Raises:
      UserError: the topology or the job is unknown, or the config is wrong for it.
    """
    if options.job not in JOBS:
        raise UserError(f"--job={options.job!r}: choose one of {', '.join(JOBS)}")
    if options.json and not options.json.parent.is_dir():
        raise UserError(
            f"--json={options.json}: there is no folder {options.json.parent}; create it first"
        )
    topology = open_topology(options.topology, options.slices)
    config = options.config.copy_and_resolve_references()
    config.mesh.slices = options.slices
    say(f"compiling for {len(topology.devices)} × {topology.devices[0].device_kind} …")
    report = compile_for_topology(config, topology, options)
    if not report.fits and options.advise:
        found = advise(
            config,
            len(topology.devices) // topology.slices,
            options.job,
            lambda changed: compile_for_topology(changed, topology, options),
        )
        report = dataclasses.replace(report, advice=found)
    print(as_text(report))
    if options.json:
        write_json(options.json, as_json(report))
    return report


def compile_for_topology(config: ConfigDict, topology: Topology, options: AotOptions) -> Report:
    """Trace and compile one config for a topology.

    Raises:
      UserError: the config is wrong, or it doesn't fit the mesh.
    """
    mesh = create_mesh(config.mesh, list(topology.devices))
    started = time.monotonic()
    program = trace(config, options.job, mesh)
    try:
        compiled = program.traced.lower().compile(compiler_options={} if options.full else QUICK)
    except jax.errors.JaxRuntimeError as error:
        # The compiler raises this error if the program exceeds the memory of a chip.
        if "RESOURCE_EXHAUSTED" not in str(error) or "hbm" not in str(error).lower():
            raise
        compiled = None
    return _report(program, compiled, mesh, topology, options, time.monotonic() - started)


def _report(
    program: TracedProgram,
    compiled: jax.stages.Compiled | None,
    mesh: Mesh,
    topology: Topology,
    options: AotOptions,
    seconds: float,
) -> Report:
    chip, chips = topology.chip, len(topology.devices)
    program_flops = traced_flops(program.traced.jaxpr) / chips
    # A lower bound on memory traffic, however the program is compiled: read every input once, write
    # those that the program changes, and write and read all temporaries.
    least = sum(program.held.values()) + program.changed
    collectives, temporaries, peak, traffic = [], None, None, None
    if compiled is not None:
        text = cast(str, compiled.as_text())
        collectives = read_collectives(text, chips, topology.slices)
        memory: Any = compiled.memory_analysis()
        temporaries, peak = memory.temp_size_in_bytes, memory.peak_memory_in_bytes
        least += 2 * temporaries
        traffic = read_traffic(text)
    between_slices = sum(each.between_slices for each in collectives)
    within_slice = sum(each.received for each in collectives) - between_slices
    bounds = {
        "compute": program_flops / chip.peak_flops,
        "memory": least / chip.bandwidth,
        "interconnect": within_slice / chip.interconnect,
    }
    if between_slices and chip.network:
        bounds["data-centre network"] = between_slices / chip.network
    utilisation = program.model_flops / chips / chip.peak_flops / max(bounds.values())
    return Report(
        topology=topology.name,
        slices=topology.slices,
        chips=chips,
        mesh={name: size for name, size in mesh.shape.items() if size > 1},
        job=options.job,
        held=program.held,
        on_host=program.on_host,
        temporaries=temporaries,
        peak=peak,
        traffic=traffic,
        memory=int(chip.memory),
        model_flops=program.model_flops / chips,
        program_flops=program_flops,
        bandwidth=chip.bandwidth,
        collectives=collectives,
        bounds=bounds,
        model_flops_utilisation=utilisation,
        compile_seconds=seconds,
        full=options.full,
    )


def _remat(config: ConfigDict, devices: int) -> None:
    config.model.remat = "full"


def _bfloat16(config: ConfigDict, devices: int) -> None:
    config.model.dtype = "bfloat16"


def _fsdp(config: ConfigDict, devices: int) -> None:
    """Use the largest `fsdp` size that divides the model's width."""
    width = config.model.width
    size = max(n for n in range(1, devices + 1) if devices % n == 0 and width % n == 0)
    config.mesh.update(data=-1, fsdp=size, tensor=1, expert=1)


def _offload(config: ConfigDict, devices: int) -> None:
    config.train.offload = True


def _accumulate(config: ConfigDict, devices: int) -> None:
    config.train.accumulate *= 2


def _halve(config: ConfigDict, devices: int) -> None:
    config.train.batch_size //= 2


# Config changes that reduce memory, in the order of what they cost in speed, cheapest first.
CHANGES = {
    "train": (_remat, _bfloat16, _fsdp, _offload, _accumulate, _accumulate),
    "sample": (_bfloat16, _fsdp, _halve, _halve),
}


def advise(
    config: ConfigDict, devices: int, job: str, compile_changed: Callable[[ConfigDict], Report]
) -> str | None:
    """Apply one change of `CHANGES` after another until the program fits.

    Args:
      config: a config that doesn't fit.
      devices: number of devices of one slice.
      job: one of `JOBS`.
      compile_changed: compiles a config. If it raises a UserError, the change is dropped.

    Returns:
      The changes as flags, with the resulting peak memory; None if no combination fits.
    """
    original, current = config_lib.flat(config), config
    for change in CHANGES[job]:
        changed = current.copy_and_resolve_references()
        change(changed, devices)
        fields = config_lib.flat(changed)
        made = [
            f"--config.{name}={value}" for name, value in fields.items() if original[name] != value
        ]
        if fields == config_lib.flat(current):
            continue
        say(f"it doesn't fit; trying {' '.join(made)} …")
        try:
            report = compile_changed(changed)
        except UserError as error:
            say(f"this change isn't possible: {error}")
            continue
        current = changed
        if report.fits and report.peak is not None:
            return f"{' '.join(made)}: peak {report.peak / GIB:.2f} GiB"
    return None


def as_text(report: Report) -> str:
    """Format a report as a table for the terminal."""
    mesh = " × ".join(f"{name} {size}" for name, size in report.mesh.items()) or "one chip"
    lines = [
        f"{report.topology}"
        + (f" × {report.slices} slices" if report.slices > 1 else "")
        + f": {report.chips} chips, {mesh}; {report.job}, per chip:"
    ]

    def line(name: str, value: str, note: str = "") -> None:
        lines.append(f"  {name:24}{value:>14}  {note}".rstrip())

    for name, size in report.held.items():
        line(name, f"{size / GIB:.3f} GiB")
    if report.on_host:
        line("in host memory", f"{report.on_host / GIB:.3f} GiB", "average and optimizer")
    if report.peak is None or report.temporaries is None:
        line("peak", "too large", f"more than the chip's {report.memory / GIB:.0f} GiB")
    else:
        line("temporaries", f"{report.temporaries / GIB:.3f} GiB", "activations, gradients")
        share = report.peak / report.memory
        line(
            "peak", f"{report.peak / GIB:.3f} GiB", f"{share:.0%} of {report.memory / GIB:.0f} GiB"
        )
    line("model FLOPs", f"{report.model_flops / 1e12:.3f} T")
    line("with recomputation", f"{report.program_flops / 1e12:.3f} T")
    for each in report.collectives:
        note = f"{each.count:,} times"
        if each.between_slices:
            note += f", {each.between_slices / 2**20:,.1f} MiB between slices"
        line(each.kind, f"{each.received / 2**20:,.1f} MiB", note)
    between_slices = sum(each.between_slices for each in report.collectives)
    if between_slices and "data-centre network" not in report.bounds:
        lines.append("  the bounds leave out the network between slices: its speed isn't published")
    slowest = max(report.bounds, key=lambda name: report.bounds[name])
    for name, seconds in report.bounds.items():
        line(f"{name} at least", f"{1e3 * seconds:,.2f} ms", "the bound" * (name == slowest))
    if report.traffic is not None:
        milliseconds = 1e3 * report.traffic / report.bandwidth
        note = f"{report.traffic / 1e9:,.1f} GB read and written"
        line("memory, as compiled", f"{milliseconds:,.2f} ms", note)
    line("MFU at most", f"{report.model_flops_utilisation:.1%}")
    note = "" if report.full else "with less optimization; --full for all"
    line("compiled in", f"{report.compile_seconds:.1f} s", note)
    if not report.fits:
        advice = f"Fits with: {report.advice}" if report.advice else "Use more chips"
        lines.append(f"It doesn't fit. {advice}")
    return "\n".join(lines)


def as_json(report: Report) -> dict[str, Any]:
    """Return all fields of a report, and the versions of jax and tp_jax, for JSON."""
    versions = {"jax": jax.__version__, "tp_jax": tp_jax.__version__}
    return {**dataclasses.asdict(report), "fits": report.fits, "versions": versions}
