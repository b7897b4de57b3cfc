"""The machine while a stage runs (`system/...`): processors, memory, disks, network, GPUs, by MLflow's own samplers.

Every 10 seconds a sample, every minute a point, so that a short stage has none. MLflow's variables change it:
MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING=false, MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL (seconds) and
MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING (samples a point).
"""

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

SWITCH = "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"
_INTERVAL, _SAMPLES = "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING"
_SECONDS, _A_POINT = 10.0, 6
_OFF = ("false", "0", "no")


@contextmanager
def sampled(log: Callable[[Mapping[str, float]], None]) -> Iterator[None]:
    """Samples the machine meanwhile, in a thread of its own.

    Args:
        log: gets rows {"step": n-th point, "system/<figure>": value, ...}.
    """
    if os.environ.get(SWITCH, "").lower() in _OFF:
        yield
        return
    over = threading.Event()
    thread = threading.Thread(target=_sample, args=(log, over), name="system-metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _sample(log: Callable[[Mapping[str, float]], None], over: threading.Event) -> None:
    seconds, samples = float(os.environ.get(_INTERVAL) or _SECONDS), int(os.environ.get(_SAMPLES) or _A_POINT)
    monitors: list[Any] | None = None
    step = 0
    while True:
        for _ in range(samples):
            if over.wait(seconds):
                return
            monitors = _monitors() if monitors is None else monitors
            for monitor in monitors:
                monitor.collect_metrics()
        step += 1
        row: dict[str, float] = {"step": step}
        for monitor in monitors or ():
            row |= {f"system/{name}": value for name, value in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        log(row)


def _monitors() -> list[Any]:
    """Those that have something to measure here."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    found: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    with suppress(ImportError, RuntimeError):  # no GPU, or no driver's library for Python
        found.append(GPUMonitor())
    return found
