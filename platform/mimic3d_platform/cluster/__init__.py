"""Ray: connecting to a cluster, its dashboard, its resources, jobs, tasks and training workers."""
