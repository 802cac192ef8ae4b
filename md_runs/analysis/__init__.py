"""What trajectories say: drift, stability, time-step scans, frequencies."""
