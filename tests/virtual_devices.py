"""XLA's options for tests: virtual devices, and quick compilation. It doesn't import jax."""

from importlib import metadata

from packaging.version import Version


def xla_flags(devices: int) -> str:
    """Return a value of XLA_FLAGS for a number of virtual CPU devices.

    The optimization is low, because tests spend more time on compiling than on running. Without
    fusion emitters, and with one module of code instead of 32, a small train step compiles in half
    of the time (jaxlib 0.10.2).
    """
    flags = [
        f"--xla_force_host_platform_device_count={devices}",
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_cpu_parallel_codegen_split_count=1",
    ]
    # From 0.11.1 on, jaxlib has no other emitters and refuses the option.
    if Version(metadata.version("jaxlib")) < Version("0.11.1"):
        flags.append("--xla_cpu_use_fusion_emitters=false")
    return " ".join(flags)
