"""XLA's options for tests: virtual devices, and quick compilation. It doesn't import jax."""


def xla_flags(devices: int) -> str:
    """Return a value of XLA_FLAGS for a number of virtual CPU devices.

    The optimization is low, because tests spend more time on compiling than on running.
    """
    return (
        f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0 "
        "--xla_llvm_disable_expensive_passes=true"
    )
