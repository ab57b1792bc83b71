"""Volume rendering: patches of rays, tri-plane sampling, compositing, and images of the results."""
