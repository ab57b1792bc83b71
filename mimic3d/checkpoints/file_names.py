"""Names of the files in generators' folders, in training checkpoints and in runs' folders."""

# A config, in a generator's folder and in a run's.
CONFIG = "config.yaml"

# A generator's folder.
GENERATOR_WEIGHTS = "generator.safetensors"
# Beside an imported generator: the networks that only a training needs, tensors named PART.NAME.
TRAINING_NETWORKS = "training.safetensors"

# A training checkpoint: the trainer's state, the progress of the run, and a generator's folder.
TRAINING_STATE = "state.pt"
PROGRESS = "progress.json"
GENERATOR_FOLDER = "generator"
