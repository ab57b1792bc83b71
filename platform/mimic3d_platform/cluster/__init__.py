"""Ray itself: connecting to a cluster, its dashboard, jobs, tasks and resources."""
