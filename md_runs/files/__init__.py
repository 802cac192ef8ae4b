"""What a run leaves on the disk: its folder, journals, trajectory and log."""
