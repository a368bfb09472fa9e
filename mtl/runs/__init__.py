"""Many runs: cells, the engines that run them, tuning on validation."""
