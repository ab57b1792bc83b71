"""Names of the files in generators' folders and in training checkpoints."""

# A generator's folder.
GENERATOR_WEIGHTS = "generator.safetensors"
CONFIG = "config.yaml"
# Beside an imported generator: the networks that only a training needs, tensors named PART.NAME.
TRAINING_NETWORKS = "training.safetensors"

# A training checkpoint: the trainer's state, the progress of the run, and a generator's folder.
TRAINING_STATE = "state.pt"
PROGRESS = "progress.json"
GENERATOR_FOLDER = "generator"
