"""Simulation, relaxation, drift analysis and their reports."""

from dcase.moved import keep_old_names

# Where modules of this package were until 0.1, and where they are.
keep_old_names(
    __name__,
    {
        "batch_forces": "loop.batch_forces",
        "bench_rounds": "bench.rounds",
        "blocks": "loop.compiled_blocks",
        "capture": "loop.gpu_replay",
        "check_measures": "checks.measures",
        "check_structures": "checks.structures",
        "check_subject": "checks.subject",
        "constrain": "loop.constrain",
        "describe": "files.provenance",
        "device_steps": "loop.gpu_verlet",
        "drift": "analysis.drift",
        "engine": "loop.engine",
        "figures": "report.figures",
        "fingerprint": "analysis.dt_scan_verdict",
        "finish": "files.publish",
        "folder_log": "files.run_log",
        "frequency": "analysis.frequency",
        "graph_blocks": "loop.gpu_blocks",
        "html": "report.html",
        "integrators": "loop.integrators",
        "journal": "files.journal",
        "machine": "bench.machine",
        "mechanics": "loop.mechanics",
        "recorder": "files.recorder",
        "replica_batch": "loop.replica_batch",
        "replica_blocks": "loop.replica_blocks",
        "replica_report": "report.replica_report",
        "scan": "analysis.dt_scan",
        "stability": "analysis.stability",
        "state": "files.run_folder",
        "stopwatch": "bench.stopwatch",
        "trajectory": "files.trajectory",
        "uncertainty": "loop.uncertainty",
        "watch": "loop.watch",
    },
)
